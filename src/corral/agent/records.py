"""
What the node keeper remembers on disk: the last desired state, without its secrets, and the last roster of each node.

They let an agent that restarts while the control plane is away keep its nodes, end them in time, and refuse a roster
older than the one in force; which nodes have worked tells it which to mend. A record that cannot be read counts as
absent; one that cannot be written (a full disk) is kept in memory, and written when `save` is called again.
"""

import contextlib
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from corral.wire.agent import Desired, Instant

log = structlog.get_logger()

DESIRED = "desired.json"
ROSTERS = "rosters.json"
TIME = "time.json"
WORKED = "worked.json"
SKEW_STEP = timedelta(seconds=10)
"""A smaller change of the clocks' difference is not worth a write."""

_T = TypeVar("_T")


class RosterMark(msgspec.Struct, frozen=True):
    """The roster that a node applied last."""

    serial: int
    payload_hash: str


class TimeMark(msgspec.Struct, frozen=True):
    """The server's time, and this machine's at the same instant."""

    server: Instant
    own: Instant


class Records:
    """Files in one host's state folder, each replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unsaved: dict[str, bytes] = {}
        self._skew: timedelta | None = None

    def skew(self) -> timedelta:
        """The server's clock less ours, when we last heard from it; zero if we never did."""
        mark = self._read(TIME, TimeMark)
        self._skew = mark.server - mark.own if mark is not None else None
        return self._skew or timedelta()

    def keep_time(self, *, server: datetime, own: datetime) -> None:
        """Remembers how wrong our clock is."""
        if self._skew is None or abs(server - own - self._skew) > SKEW_STEP:
            self._skew = server - own
            self._keep(TIME, msgspec.json.encode(TimeMark(server, own)))

    def save(self) -> None:
        """Tries again what could not be written."""
        for name, content in list(self._unsaved.items()):
            self._keep(name, content)

    def desired(self) -> Desired | None:
        """The last desired state, without secrets."""
        return self._read(DESIRED, Desired)

    def keep_desired(self, desired: Desired) -> None:
        """Replaces the last desired state; its secrets and permits are left out."""
        self._keep(DESIRED, msgspec.json.encode(msgspec.structs.replace(desired, secrets={}, gauges=())))

    def rosters(self) -> dict[str, RosterMark]:
        """The last roster of each node, by node id."""
        return self._read(ROSTERS, dict[str, RosterMark]) or {}

    def keep_rosters(self, rosters: dict[str, RosterMark]) -> None:
        """Replaces the marks of all nodes."""
        self._keep(ROSTERS, msgspec.json.encode(rosters))

    def worked(self) -> frozenset[str]:
        """Ids of the nodes here that have worked."""
        return self._read(WORKED, frozenset[str]) or frozenset()

    def keep_worked(self, node_ids: frozenset[str]) -> None:
        """Replaces them."""
        self._keep(WORKED, msgspec.json.encode(sorted(node_ids)))

    def _read(self, name: str, kind: type[_T]) -> _T | None:
        try:
            return msgspec.json.decode((self._folder / name).read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("record.unreadable", file=name, error=str(error))
            return None

    def _keep(self, name: str, content: bytes) -> None:
        try:
            self._write(name, content)
        except OSError as error:
            if name not in self._unsaved:
                log.error("record.unwritable", file=name, error=str(error))
            self._unsaved[name] = content
        else:
            self._unsaved.pop(name, None)

    def _write(self, name: str, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / name
        draft = path.with_name(f".{name}.new")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
