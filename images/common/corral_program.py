"""What the programs inside the images share: newline-delimited JSON in on stdin and out on stdout.

Secrets arrive on stdin, because it shows up in no argument list, environment, file or log of the Engine. Whatever is
printed here is kept by the Engine's log driver: callers never pass a secret to `emit`.
"""

import json
import os
import sys

LINE_BYTES_MAX = 4 * 1024 * 1024  # the largest document that the control plane sends; also the bound on memory here
_READ_BYTES = 65536


class Malformed(Exception):
    """A line on stdin was not a JSON object, or too long. Nothing was done with it."""


class ControlInput:
    """Complete JSON objects from a file descriptor, however the bytes are cut into reads."""

    def __init__(self, descriptor: int = 0) -> None:
        self.descriptor = descriptor
        self.is_open = True
        self._partial = bytearray()
        self._is_skipping = False

    def fileno(self) -> int:
        """File descriptor to poll for input."""
        return self.descriptor

    def read(self) -> list[dict[str, object] | Malformed]:
        """Objects completed by one read, in order; call when the descriptor is readable.

        A line over LINE_BYTES_MAX is dropped up to its end and reported once as Malformed. At the end of the input
        `is_open` becomes False; the caller goes on with what it has.
        """
        try:
            chunk = os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            chunk = b""
        if not chunk:
            self.is_open = False
            return []
        *complete, rest = chunk.split(b"\n")
        results: list[dict[str, object] | Malformed] = []
        results.extend(result for piece in complete if (result := self._end_of_line(piece)) is not None)
        if not self._is_skipping:
            self._partial += rest
            if len(self._partial) > LINE_BYTES_MAX:
                self._partial.clear()
                self._is_skipping = True
                results.append(_too_long())
        return results

    def _end_of_line(self, piece: bytes) -> dict[str, object] | Malformed | None:
        if self._is_skipping:
            self._is_skipping = False
            return None
        line = bytes(self._partial) + piece
        self._partial.clear()
        if len(line) > LINE_BYTES_MAX:
            return _too_long()
        if not line.strip():
            return None
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            # The message says nothing of the content: it may have been a secret.
            return Malformed("a line is not JSON")
        return value if isinstance(value, dict) else Malformed("a line is not a JSON object")


def _too_long() -> Malformed:
    return Malformed(f"a line is longer than {LINE_BYTES_MAX} bytes")


def emit(kind: str, **fields: object) -> None:
    """Print one object on stdout, as one line and at once."""
    line = json.dumps({"type": kind, **fields}, separators=(",", ":")).encode() + b"\n"
    while line:
        line = line[os.write(1, line) :]


def end_as_fatal(reason: str) -> None:
    """Print why this container cannot do its work, and end it with status 1."""
    emit("fatal", reason=reason)
    sys.stderr.flush()
    os._exit(1)
