"""
Which nodes are mended here: their containers that ended are made anew, in the network namespace that stays.

Only a node that has worked is mended, and only so often: one that never came up, or ends again and again, is left as it
is, with its fault, for the control plane to replace. What has worked is on disk, so that an agent which comes back
after its engine crashed still knows.
"""

from collections.abc import Set
from dataclasses import dataclass, field

from corral.agent.records import Records
from corral.core.clock import Clock
from corral.wire.agent import Fault

PAUSES_S = (0.0, 2.0, 10.0, 30.0, 60.0)
"""Before each renewal within `WINDOW_S`; after the last one there is none."""
WINDOW_S = 600.0


@dataclass(kw_only=True)
class _Past:
    """The renewals of one node."""

    count: int = 0
    at: list[float] = field(default_factory=list[float])
    """Monotonic; those within `WINDOW_S`."""
    reason: Fault | None = None
    """What the last one was for."""


class Renewals:
    """What has been mended on this host, and what may be."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records, self._clock = records, clock
        self._worked = records.worked()
        self._past: dict[str, _Past] = {}

    def note_worked(self, node_ids: Set[str]) -> None:
        """These nodes work."""
        if not node_ids <= self._worked:
            self._worked |= node_ids
            self._records.keep_worked(self._worked)

    def may(self, node_id: str) -> bool:
        """Whether what has ended of a node is made anew, now or after a pause."""
        return node_id in self._worked and self._recent(node_id) < len(PAUSES_S)

    def due(self) -> frozenset[str]:
        """Nodes whose ended containers are to be made anew now."""
        return frozenset(node_id for node_id in self._worked if self._is_due(node_id))

    def note(self, node_id: str, reason: Fault | None) -> None:
        """A node is mended now."""
        past = self._past.setdefault(node_id, _Past())
        past.count += 1
        past.at.append(self._clock.monotonic())
        past.reason = reason

    def count(self, node_id: str) -> int:
        """How often a node was mended since this agent started."""
        return self._past[node_id].count if node_id in self._past else 0

    def reason(self, node_id: str) -> Fault | None:
        """What a node was mended for last."""
        return self._past[node_id].reason if node_id in self._past else None

    def keep_only(self, known: Set[str]) -> None:
        """Forgets all other nodes."""
        self._past = {node_id: past for node_id, past in self._past.items() if node_id in known}
        if not self._worked <= known:
            self._worked &= known
            self._records.keep_worked(self._worked)

    def _is_due(self, node_id: str) -> bool:
        recent = self._recent(node_id)
        if recent >= len(PAUSES_S):
            return False
        last = self._past[node_id].at[-1] if recent else float("-inf")
        return self._clock.monotonic() - last >= PAUSES_S[recent]

    def _recent(self, node_id: str) -> int:
        past = self._past.get(node_id)
        if past is None:
            return 0
        now = self._clock.monotonic()
        past.at = [at for at in past.at if now - at < WINDOW_S]
        return len(past.at)
