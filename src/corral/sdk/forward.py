"""
Ports of this machine that lead to the head of a cluster, through its gateway and with the renter's key; without root.

Each connection is a request to the gateway that is upgraded to a stream of bytes. When either end closes, both do.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from corral.sdk.client import Gateway
from corral.sdk.errors import PortTaken, RequestInvalid

PROTOCOL = "corral-tcp"
PATH = "/_corral/tcp"
STREAMS_MAX = 200
"""At once, as many as the gateway's end carries; one more is closed at once."""
CHUNK_BYTES = 64 * 1024
OPEN_TIMEOUT_S = 20.0
HEAD_BYTES_MAX = 64 * 1024

_WISH = re.compile(r"(?:(?P<local>[0-9]{1,5}):)?(?P<remote>[0-9]{1,5})")


class Forward(NamedTuple):
    """A port here, and the port of the head that it leads to."""

    local: int
    remote: int


class Listening(NamedTuple):
    """Where a port can be used from now on."""

    local: int
    remote: int


class Failed(NamedTuple):
    """A connection that led nowhere, and why."""

    remote: int
    reason: str


Told = Listening | Failed


def parse_forward(text: str) -> Forward:
    """
    `8265`, or `LOCAL:REMOTE`; the local port 0 is any that is free.

    Raises:
        RequestInvalid: it is neither.
    """
    found = _WISH.fullmatch(text)
    if found is not None:
        remote = int(found["remote"])
        local = int(found["local"]) if found["local"] is not None else remote
        if 0 < remote < 65536 and local < 65536:
            return Forward(local, remote)
    raise RequestInvalid(
        f"{text[:40]!r} is no port to forward; nothing was opened", hint="write it like 8265, or 9265:8265"
    )


async def forward(gateway: Gateway, wishes: Sequence[Forward], tell: Callable[[Told], None]) -> None:
    """
    Serves ports of 127.0.0.1 until it is cancelled.

    Args:
        gateway: the cluster's.
        wishes: which ports.
        tell: is called once each port can be used, and for each connection that led nowhere.

    Raises:
        PortTaken: a port is in use here, or not this person's to open.
    """
    streams = _Streams(gateway, tell)
    async with AsyncExitStack() as stack:
        for wish in wishes:
            try:
                server = await asyncio.start_server(
                    lambda reader, writer, remote=wish.remote: streams.carry(remote, reader, writer),
                    "127.0.0.1",
                    wish.local,
                )
            except OSError as error:
                raise PortTaken(
                    f"port {wish.local} of this machine cannot be opened: {(error.strerror or str(error)).lower()}",
                    hint=f"choose another: `--forward 0:{wish.remote}` takes one that is free",
                    port=wish.local,
                ) from error
            await stack.enter_async_context(server)
            tell(Listening(server.sockets[0].getsockname()[1], wish.remote))
        await asyncio.Event().wait()


class _Streams:
    """The connections that are open."""

    def __init__(self, gateway: Gateway, tell: Callable[[Told], None]) -> None:
        self._gateway, self._tell, self._open = gateway, tell, 0
        parts = urlsplit(gateway.url)
        self._host = parts.hostname or ""
        self._authority, self._path = parts.netloc, parts.path
        self._port = parts.port or (443 if gateway.context is not None else 80)

    async def carry(self, remote: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a local program, to its end."""
        self._open += 1
        far: asyncio.StreamWriter | None = None
        try:
            if self._open > STREAMS_MAX:
                self._tell(Failed(remote, f"{STREAMS_MAX} connections are open already"))
                return
            far_reader, far = await asyncio.wait_for(self._connect(), OPEN_TIMEOUT_S)
            reason = await asyncio.wait_for(self._ask(remote, far_reader, far), OPEN_TIMEOUT_S)
            if reason is not None:
                self._tell(Failed(remote, reason))
                return
            await _join(reader, writer, far_reader, far)
        except TimeoutError:
            self._tell(Failed(remote, "the gateway did not answer in time"))
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self._tell(Failed(remote, f"the gateway cannot be reached: {error}"))
        finally:
            self._open -= 1
            for one in (writer, far):
                if one is not None:
                    one.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port, ssl=self._gateway.context, limit=HEAD_BYTES_MAX)

    async def _ask(self, remote: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        """Asks the gateway for a stream; why there is none, or None."""
        writer.write(
            (
                f"GET {self._path}{PATH}/{remote} HTTP/1.1\r\nHost: {self._authority}\r\n"
                f"Authorization: Bearer {self._gateway.api_key}\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
            ).encode("ascii")
        )
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = head.split(" ", 2)[1] if head.startswith("HTTP/1.1 ") else ""
        if status == "101":
            return None
        known = {
            "401": "the key is not valid",
            "404": "there is no such cluster at the gateway, or its gateway is older",
            "502": f"nothing answers at port {remote} of the head",
            "503": "the cluster cannot be reached now, or carries too many connections",
        }
        return known.get(status, f"the gateway answered HTTP {status or '?'}")


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    ways = [asyncio.ensure_future(_way(reader, far_writer)), asyncio.ensure_future(_way(far_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
