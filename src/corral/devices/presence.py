"""Who was heard of when: kept in memory by each process and flushed in batches, because a row per report costs more."""

from datetime import datetime

from corral.core.ids import HostId


class Presence:
    """Last signs of life since the last flush."""

    def __init__(self) -> None:
        self._unflushed: dict[HostId, datetime] = {}

    def heard(self, host_id: HostId, now: datetime) -> None:
        """A host began an exchange at `now`."""
        self._unflushed[host_id] = now

    def take(self) -> dict[HostId, datetime]:
        """Hands over what was not flushed yet; give it back with `restore` when the flush fails."""
        taken, self._unflushed = self._unflushed, {}
        return taken

    def restore(self, taken: dict[HostId, datetime]) -> None:
        """Puts back a failed flush; what was heard meanwhile is newer and stays."""
        self._unflushed = taken | self._unflushed
