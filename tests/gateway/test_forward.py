"""Ports that lead to the head through the gateway: real nginx, the program of a leaf, and the renter's end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from corral.sdk.client import Gateway as Place
from corral.sdk.errors import PortTaken, RequestInvalid
from corral.sdk.forward import Failed, Forward, Listening, Told, forward, parse_forward
from corral.testing.local_network import free_port

from .conftest import FOREIGN_KEY, KEY, Gateway

MIB = 2**20
WITHIN_S = 20


class Forwarding:
    """A running `forward`, and what it told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Told] = asyncio.Queue()

    async def next(self) -> Told:
        """What it tells next."""
        return await asyncio.wait_for(self.told.get(), WITHIN_S)


@contextlib.asynccontextmanager
async def forwarding(gateway: Gateway, port: int, *, key: str = KEY) -> AsyncIterator[tuple[Forwarding, int]]:
    """A port of this machine that leads to `port` of the head."""
    made = Forwarding()
    place = Place(f"{gateway.url}/c/mnist", key, None)
    task = asyncio.ensure_future(forward(place, [Forward(0, port)], made.told.put_nowait))
    try:
        listening = await made.next()
        assert isinstance(listening, Listening)
        yield made, listening.local
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def head_port() -> AsyncIterator[tuple[int, asyncio.Queue[str]]]:
    """A port of the head that sends back what it gets, greeting first; the queue tells when a connection ended."""
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        while chunk := await reader.read(MIB):
            if chunk == b"bye\n":
                break
            writer.write(chunk)
            await writer.drain()
        writer.close()
        ended.put_nowait("ended")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], ended


async def test_any_bytes_go_both_ways_and_nothing_is_lost(gateway: Gateway) -> None:
    """Not HTTP: whoever speaks first, and more of it than any buffer holds."""
    blob = bytes(range(256)) * (8 * MIB // 256)
    async with head_port() as (port, _), forwarding(gateway, port) as (_, local):
        reader, writer = await asyncio.open_connection("127.0.0.1", local)
        assert await asyncio.wait_for(reader.readline(), WITHIN_S) == b"hello\n"

        async def send() -> None:
            writer.write(blob)
            await writer.drain()

        _, back = await asyncio.wait_for(asyncio.gather(send(), reader.readexactly(len(blob))), WITHIN_S)
        assert back == blob
        writer.close()


@pytest.mark.parametrize("who", ["here", "head"])
async def test_both_ends_are_closed_when_either_closes(gateway: Gateway, who: str) -> None:
    """Nothing hangs on a stream whose other end has gone."""
    async with head_port() as (port, ended), forwarding(gateway, port) as (_, local):
        reader, writer = await asyncio.open_connection("127.0.0.1", local)
        assert await asyncio.wait_for(reader.readline(), WITHIN_S) == b"hello\n"
        if who == "head":
            writer.write(b"bye\n")
            assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
        writer.close()
        assert await asyncio.wait_for(ended.get(), WITHIN_S) == "ended"


async def test_port_where_nothing_listens_is_told_and_the_next_try_may_work(gateway: Gateway) -> None:
    """A server that a job starts may come later."""
    port = free_port()
    async with forwarding(gateway, port) as (made, local):
        reader, _ = await asyncio.open_connection("127.0.0.1", local)
        assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
        assert await made.next() == Failed(port, f"nothing answers at port {port} of the head")


async def test_foreign_key_opens_no_stream(gateway: Gateway) -> None:
    """The gateway asks before it connects anything."""
    async with head_port() as (port, _), forwarding(gateway, port, key=FOREIGN_KEY) as (made, local):
        reader, _ = await asyncio.open_connection("127.0.0.1", local)
        assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
        failed = await made.next()
        assert isinstance(failed, Failed)
        assert "no such cluster" in failed.reason


@pytest.mark.parametrize(
    ("path", "protocol", "status"),
    [
        ("/c/mnist/_corral/tcp/{port}", "websocket", 400),
        ("/c/mnist/_corral/tcp/{port}", "", 400),
        ("/c/mnist/_corral/tcp/0", "corral-tcp", 400),
        ("/c/mnist/_corral/tcp/99999", "corral-tcp", 400),
        ("/c/mnist/_corral/tcp/{port}/x", "corral-tcp", 404),
        ("/c/mnist/_corral/tcp/10.0.0.1:22", "corral-tcp", 404),
        ("/c/mnist/_corral/", "", 404),
        ("/_corral/tcp/{port}", "corral-tcp", 404),
    ],
)
async def test_streams_are_opened_at_their_own_place_alone(
    gateway: Gateway, browserless: aiohttp.ClientSession, path: str, protocol: str, status: int
) -> None:
    """A visitor chooses a port of the head and nothing else."""
    async with head_port() as (port, _):
        headers = {"Authorization": f"Bearer {KEY}"}
        headers |= {"Connection": "Upgrade", "Upgrade": protocol} if protocol else {}
        async with browserless.get(gateway.url + path.format(port=port), headers=headers) as answer:
            assert answer.status == status


async def test_page_of_a_cluster_opens_no_stream(gateway: Gateway, browserless: aiohttp.ClientSession) -> None:
    """A session of a browser is for pages: what they load comes from a stranger's machine."""
    headers = {"Host": "mnist.localhost", "Cookie": "corral-session=session-of-mnist"}
    headers |= {"Connection": "Upgrade", "Upgrade": "corral-tcp"}
    async with (
        head_port() as (port, _),
        browserless.get(f"{gateway.url}/_corral/tcp/{port}", headers=headers) as answer,
    ):
        assert answer.status in (401, 404)


async def test_port_in_use_is_told(gateway: Gateway) -> None:
    """With what to do about it."""
    async with head_port() as (port, _):
        with pytest.raises(PortTaken, match=str(port)):
            await forward(Place(f"{gateway.url}/c/mnist", KEY, None), [Forward(port, 8265)], lambda _: None)


def test_ports_are_written_as_one_number_or_two() -> None:
    """Anything else is wrong usage."""
    assert parse_forward("8265") == (8265, 8265)
    assert parse_forward("9265:8265") == (9265, 8265)
    assert parse_forward("0:10001") == (0, 10001)
    for text in ("", ":", "x", "8265:", ":8265", "0", "70000", "1:70000", "70000:1", "1:2:3", "-1", "８２６５"):
        with pytest.raises(RequestInvalid):
            parse_forward(text)
