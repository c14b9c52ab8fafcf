"""
What the node keeper remembers on disk: the last desired state, without its secrets, and the last roster of each node.

Both let an agent that restarts while the control plane is away keep its nodes, end them in time, and refuse a roster
older than the one in force. A record that cannot be read counts as absent.
"""

import contextlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from corral.wire.agent import Desired

log = structlog.get_logger()

DESIRED = "desired.json"
ROSTERS = "rosters.json"

_T = TypeVar("_T")


class RosterMark(msgspec.Struct, frozen=True):
    """The roster that a node applied last."""

    serial: int
    payload_hash: str


class Records:
    """Files in the agent's state folder, each replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def desired(self) -> Desired | None:
        """The last desired state, without secrets."""
        return self._read(DESIRED, Desired)

    def keep_desired(self, desired: Desired) -> None:
        """Replaces the last desired state; its secrets are left out."""
        self._write(DESIRED, msgspec.json.encode(msgspec.structs.replace(desired, secrets={})))

    def rosters(self) -> dict[str, RosterMark]:
        """The last roster of each node, by node id."""
        return self._read(ROSTERS, dict[str, RosterMark]) or {}

    def keep_rosters(self, rosters: dict[str, RosterMark]) -> None:
        """Replaces the marks of all nodes."""
        self._write(ROSTERS, msgspec.json.encode(rosters))

    def _read(self, name: str, kind: type[_T]) -> _T | None:
        try:
            return msgspec.json.decode((self._folder / name).read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("record.unreadable", file=name, error=str(error))
            return None

    def _write(self, name: str, content: bytes) -> None:
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
