"""Following a job's log: what both clients know about Ray's WebSocket, without the socket itself."""

from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any

from websockets.exceptions import InvalidHandshake, InvalidStatus

import corral
from corral.sdk.addresses import host_of, is_loopback
from corral.sdk.calls import problem_of
from corral.sdk.errors import UNAVAILABLE_STATUSES, ApiError
from corral.sdk.jobs.calls import tail_path

OPEN_TIMEOUT_S = 15.0
RECONNECT_S = 1.0
"""Ray itself looks once a second for new lines."""
FINISH_POLL_S = 0.5
LOST_TAILS_MAX = 60
"""Consecutive failures to open a tail, one a second, before the log is given up."""


@dataclass
class LogCursor:
    """How much of a log has been given out. A new tail starts from the beginning: what was seen is skipped."""

    seen: int = 0
    _position: int = field(default=0)

    def restart(self) -> None:
        """A new tail begins."""
        self._position = 0

    def accept(self, text: str) -> str:
        """The part of the next piece of the tail that was not given out before."""
        start, self._position = self._position, self._position + len(text)
        fresh = text[max(0, self.seen - start) :]
        self.seen = max(self.seen, self._position)
        return fresh

    def rest(self, whole: str) -> str:
        """What the whole log has beyond what was given out."""
        self.restart()
        return self.accept(whole)


def connect_options(base_url: str, job_id: str, *, api_key: str, context: SSLContext | None) -> dict[str, Any]:
    """Arguments of websockets' `connect` for the tail of a job."""
    options: dict[str, Any] = {
        "uri": "ws" + base_url.removeprefix("http") + tail_path(job_id),
        "additional_headers": {"Authorization": f"Bearer {api_key}"},
        "user_agent_header": f"corral/{corral.__version__}",
        "open_timeout": OPEN_TIMEOUT_S,
        "compression": None,  # Ray's processes lose the tail of one who offers compression, and close it cleanly
        "max_size": None,  # Ray joins up to 20,000 characters and then a whole line of any length
        "ssl": context,
    }
    if is_loopback(host_of(base_url)):
        options["proxy"] = None
    return options


def must_poll(error: InvalidHandshake, *, url: str) -> bool:
    """
    Whether the log has to be asked for again and again, because something on the way lets no WebSocket through.

    Raises:
        ApiError: the tail was refused for a reason that asking again does not change.
    """
    if not isinstance(error, InvalidStatus):
        return True
    status = error.response.status_code
    if status in {401, 403, 404}:
        raise ApiError(problem_of(status, bytes(error.response.body or b""), url=url)) from error
    return status not in UNAVAILABLE_STATUSES
