"""
Which relays carry the relayed plane of a pair of members.

Both ends compute it from the same signed mailboxes, without a word between them, so it depends on nothing else and not
on who asks. Standard library only: it also runs where nothing is installed.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

UNKNOWN_US = 10_000_000
"""The cost of a round trip that was not measured; no round trip and no penalty costs more."""
GRAIN_US = 1_000
"""Costs are compared in whole steps of this: less is noise, and must not draw every pair to one relay."""


class MailboxesMixed(ValueError):
    """The mailboxes handed in as one member's are not all its own; no relay was chosen."""


class Mailbox(NamedTuple):
    """A member's place on a relay, as the member and the operator of the relay state it."""

    member: str
    relay: str
    site: str
    """The host of the relay, for a backup that does not fail with it; empty: unknown, a site of its own."""
    rtt_us: int | None = None
    """The member's round trip to the relay; None: not measured."""
    load_us: int = 0
    """Penalty for the relay's load, as if it were so much farther away."""


def choose(mine: Sequence[Mailbox], theirs: Sequence[Mailbox], *, salt: str) -> tuple[str, ...]:
    """
    The relays of a pair, the same whichever end asks.

    Args:
        mine: the mailboxes of one member, in any order.
        theirs: those of the other.
        salt: the cluster; makes ties fall differently in each.

    Returns:
        Primary and backup, as relay ids. The primary costs least: both round trips and the load; of relays as good as
        each other a hash chooses, so that they share the pairs evenly. The backup is the next one at another site;
        without one there is only the primary. Empty when the two have no relay in common.

    Raises:
        MailboxesMixed: the mailboxes of one side name more than one member.
    """
    if not mine or not theirs:
        return ()
    pair = sorted((_owner(mine), _owner(theirs)))
    of_mine, of_theirs = _by_relay(mine), _by_relay(theirs)
    common = sorted(
        (_cost(one, other), _draw(salt, *pair, relay), relay, min(one.site, other.site) or f"relay {relay}")
        for relay, one in of_mine.items()
        if (other := of_theirs.get(relay)) is not None
    )
    if not common:
        return ()
    _, _, primary, site = common[0]
    backup = next((relay for _, _, relay, another in common if another != site), None)
    return (primary,) if backup is None else (primary, backup)


def _owner(mailboxes: Sequence[Mailbox]) -> str:
    owners = sorted({mailbox.member for mailbox in mailboxes})
    if len(owners) > 1:
        raise MailboxesMixed(
            f"mailboxes of {len(owners)} members ({owners[0]}, {owners[1]}) were given as one member's; "
            "no relay was chosen; pass the mailboxes of one member per side"
        )
    return owners[0]


def _by_relay(mailboxes: Iterable[Mailbox]) -> dict[str, Mailbox]:
    """One mailbox per relay: of several the cheapest, however they are ordered."""
    found: dict[str, Mailbox] = {}
    for mailbox in sorted(mailboxes, key=lambda each: (_bounded(each.rtt_us), _bounded(each.load_us), each.site)):
        found.setdefault(mailbox.relay, mailbox)
    return found


def _cost(one: Mailbox, other: Mailbox) -> int:
    load_us = max(_bounded(one.load_us), _bounded(other.load_us))
    return (_bounded(one.rtt_us) + _bounded(other.rtt_us) + load_us) // GRAIN_US


def _bounded(us: int | None) -> int:
    """A member signs its own numbers and may lie: none counts as less than nothing or as more than unknown."""
    return UNKNOWN_US if us is None else min(max(us, 0), UNKNOWN_US)


def _draw(*parts: str) -> bytes:
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).digest()
