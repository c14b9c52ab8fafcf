"""TCP streams from a leaf into its mesh: what nginx passes on is upgraded and carried to the address that it names.

Only nginx reaches this program: it listens on a socket in a folder of its container's own. The target is nginx's word,
whose configuration is the agent's; a visitor chooses no more than the port.
"""

import asyncio
import contextlib
import os
import signal
import sys
from typing import NamedTuple

STREAMS_MAX = 200
"""At once; each takes two descriptors and up to four buffers."""
CHUNK_BYTES = 64 * 1024
HEAD_BYTES_MAX = 64 * 1024
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 10.0
PROTOCOL = "corral-tcp"
TARGET_HEADER = "x-corral-target"

_REASONS = {400: "Bad Request", 502: "Bad Gateway", 503: "Service Unavailable"}


class Refused(Exception):
    """A request that opens no stream."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Target(NamedTuple):
    """Where a stream leads."""

    host: str
    port: int


def main() -> None:
    asyncio.run(serve(sys.argv[1]))


async def serve(path: str) -> None:
    """Serves at the unix socket `path` until SIGTERM."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await asyncio.start_unix_server(Streams().handle, path, limit=HEAD_BYTES_MAX)
    async with server:
        await stop.wait()


class Streams:
    """All open streams."""

    def __init__(self) -> None:
        self._open = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of nginx: a stream, or why there is none."""
        self._open += 1
        try:
            try:
                target = await asyncio.wait_for(_target(reader), REQUEST_TIMEOUT_S)
                if self._open > STREAMS_MAX:
                    raise Refused(503, f"{STREAMS_MAX} streams are open already")
                far_reader, far_writer = await _connect(target)
            except TimeoutError:
                return
            except Refused as refused:
                writer.write(_answer(refused.status, str(refused)))
                await writer.drain()
                return
            try:
                head = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
                writer.write(head.encode())
                await join(reader, writer, far_reader, far_writer)
            finally:
                far_writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass  # Either end has gone.
        finally:
            self._open -= 1
            writer.close()


async def join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    """Carries bytes both ways until either end closes; what was read by then is still passed on."""
    ways = [asyncio.ensure_future(_carry(reader, far_writer)), asyncio.ensure_future(_carry(far_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()


async def _target(reader: asyncio.StreamReader) -> Target:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise Refused(400, "this is no request") from None
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if fields.get("upgrade") != PROTOCOL:
        raise Refused(400, f"this is no request for the protocol {PROTOCOL}")
    host, _, port = fields.get(TARGET_HEADER, "").rpartition(":")
    if not host or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise Refused(400, "there is no such port")
    return Target(host, int(port))


async def _connect(target: Target) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter]":
    try:
        return await asyncio.wait_for(asyncio.open_connection(*target), CONNECT_TIMEOUT_S)
    except TimeoutError:
        raise Refused(502, f"port {target.port} of the head does not answer") from None
    except OSError as error:
        raise Refused(502, f"port {target.port} of the head cannot be reached: {error.strerror or error}") from None


def _answer(status: int, reason: str) -> bytes:
    body = f"{reason}\n".encode()
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
