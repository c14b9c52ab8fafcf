"""The traffic of a node in all, from counters that begin anew when its network namespace does."""

from collections.abc import Iterable
from typing import NamedTuple

COUNT_MAX = 2**62
"""Above this a host lies, and a number does not fit PostgreSQL's bigint."""


class Counts(NamedTuple):
    """Bytes on the host's network."""

    received_bytes: int = 0
    """In the mesh."""
    sent_bytes: int = 0
    internet_received_bytes: int = 0
    internet_sent_bytes: int = 0


def cap_of(caps: Iterable[int | None]) -> int | None:
    """What a node may have with the internet in an hour: the sum of its devices' caps; None if one of them has none."""
    known = list(caps)
    return None if not known or None in known else sum(cap for cap in known if cap is not None)


def total_after(total: Counts, last: Counts, said: Counts) -> Counts:
    """
    What was counted in all, after one more report.

    Args:
        total: before.
        last: what was reported last.
        said: what is reported now. All of it 0 is no count: an agent that has just started knows none yet. Less than
            `last` in any counter: all of them have begun anew, and what is reported came on top.
    """
    if not any(said):
        return total
    if any(now < before for now, before in zip(said, last, strict=True)):
        last = Counts()
    grown = (min(COUNT_MAX, amount + now - before) for amount, now, before in zip(total, said, last, strict=True))
    return Counts(*grown)
