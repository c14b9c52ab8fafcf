"""The gauge's sockets, measured at by an agent's client over loopback, and asked by strangers."""

import asyncio
import base64
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.agent.gauging import Effort, GaugeBusy, GaugeClient, GaugeFailed
from corral.core.units import MIB
from corral.protocol.gauge import (
    ANSWER_BYTES,
    ASK_BYTES,
    CHALLENGE_BYTES,
    NO_NONCE,
    STATEMENT,
    Ask,
    Statement,
    StatementRefused,
    StreamRequest,
    ask_bytes,
    new_permit,
    stream_bytes,
    verify_statement,
)
from corral.relay.gauge.limits import GaugeLimits
from corral.relay.gauge.process import NICE, GaugeProcess
from corral.relay.gauge.server import GaugeIdentity, GaugeServer
from corral.testing.ids import numbered_id
from corral.wire.agent import GaugeSpec, SignedStatement

RELAY, HOST, OTHER = numbered_id("ho", 1), numbered_id("ho", 2), numbered_id("ho", 3)
GAUGE_KEY, RELAY_KEY = b"g" * 32, Ed25519PrivateKey.from_private_bytes(b"r" * 32)
RELAY_PUBLIC = base64.b64encode(RELAY_KEY.public_key().public_bytes_raw()).decode()
SMALL = Effort(streams=3, seconds=0.5, bytes_max=3 * MIB)
WITHIN_S = 20


@asynccontextmanager
async def gauge(**limits: float) -> AsyncIterator[int]:
    """A gauge on loopback; its port."""
    identity = GaugeIdentity(relay_id=RELAY, gauge_key=GAUGE_KEY, statement_key=RELAY_KEY)
    async with GaugeServer(identity, GaugeLimits(**limits)).serving("127.0.0.1", 0) as port:  # type: ignore[arg-type]
        yield port


def spec(port: int, *, host_id: str = HOST, key: bytes = GAUGE_KEY, life_s: float = 600) -> GaugeSpec:
    """A permit as the control plane makes it."""
    permit, permit_key = new_permit(key, host_id=host_id, expires_at=int(time.time() + life_s))
    return GaugeSpec(
        relay_id=RELAY,
        address="127.0.0.1",
        port=port,
        permit=base64.b64encode(permit).decode(),
        permit_key=base64.b64encode(permit_key).decode(),
    )


def stated(signed: SignedStatement) -> Statement:
    """The statement, its signature checked."""
    return verify_statement(signed.payload, signed.signature, relay_key=RELAY_PUBLIC)


async def test_what_went_to_and_fro_is_stated_by_the_relay() -> None:
    """Bytes are those that have arrived, and every round trip but the first is timed by the gauge."""
    async with gauge() as port, asyncio.timeout(WITHIN_S):
        client = GaugeClient(spec(port))
        assert await client.round_trips(21) == 21
        assert await client.download(SMALL) == SMALL.bytes_max
        assert await client.upload(SMALL) == SMALL.bytes_max
        found = stated(await client.statement())
    assert (found.relay_id, found.host_id) == (RELAY, HOST)
    assert (found.download_bytes, found.upload_bytes) == (SMALL.bytes_max, SMALL.bytes_max)
    assert found.download_bit_s > 0
    assert found.upload_bit_s > 0
    assert found.round_trips == 20
    assert 0 < found.rtt_us_min <= found.rtt_us < 1_000_000
    assert found.loss_ppm == 0


async def test_a_statement_that_was_changed_is_refused() -> None:
    """A host cannot make its own link faster."""
    async with gauge() as port, asyncio.timeout(WITHIN_S):
        client = GaugeClient(spec(port))
        await client.round_trips(3)
        signed = await client.statement()
    better = signed.payload.replace('"download_bit_s":0', '"download_bit_s":9000000000')
    assert better != signed.payload
    with pytest.raises(StatementRefused, match=RELAY):
        verify_statement(better, signed.signature, relay_key=RELAY_PUBLIC)


async def test_one_host_is_measured_at_a_time_and_the_next_one_is_told_when() -> None:
    """Two at once would each find half of the relay's link."""
    async with gauge() as port, asyncio.timeout(WITHIN_S):
        first, second = GaugeClient(spec(port)), GaugeClient(spec(port, host_id=OTHER))
        await first.download(SMALL)
        with pytest.raises(GaugeBusy) as busy:
            await second.download(SMALL)
        assert 0 < busy.value.wait_s <= 30
        assert await second.round_trips(3) == 3
        await first.statement()
        assert await second.download(SMALL) == SMALL.bytes_max


@pytest.mark.parametrize("wrong", [{"key": b"x" * 32}, {"life_s": -1}])
async def test_without_a_valid_permit_nothing_is_sent_or_taken(wrong: dict[str, float]) -> None:
    """A stranger has no use of it, neither as a source of traffic nor as a sink."""
    async with gauge() as port, asyncio.timeout(WITHIN_S):
        client = GaugeClient(spec(port, **wrong))  # type: ignore[arg-type]
        with pytest.raises(GaugeFailed, match=r"127\.0\.0\.1"):
            await client.download(SMALL)
        with pytest.raises(GaugeFailed):
            await client.upload(SMALL)
        with pytest.raises(GaugeFailed):
            await client.statement()


async def test_a_stranger_hears_nothing_over_udp_and_nobody_more_than_he_sends() -> None:
    """With a forged address it would flood somebody else otherwise."""
    assert ANSWER_BYTES < ASK_BYTES
    loop = asyncio.get_running_loop()
    permit, key = new_permit(GAUGE_KEY, host_id=HOST, expires_at=int(time.time() + 600))
    expired, expired_key = new_permit(GAUGE_KEY, host_id=HOST, expires_at=int(time.time() - 1))
    good = ask_bytes(Ask(permit, 1, 1, NO_NONCE), key)
    bad = [b"", b"x" * ASK_BYTES, good[:-1], good[:-1] + bytes([good[-1] ^ 1])]
    bad.append(ask_bytes(Ask(expired, 1, 1, NO_NONCE), expired_key))
    async with gauge() as port, asyncio.timeout(WITHIN_S):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.setblocking(False)
            asker.connect(("127.0.0.1", port))
            for datagram in (*bad, good):
                await loop.sock_sendall(asker, datagram)
            # The good one came last, so that nothing else is under way once it is answered.
            assert len(await loop.sock_recv(asker, 4096)) == ANSWER_BYTES
            with pytest.raises(BlockingIOError):
                asker.recv(4096)


async def test_a_message_that_was_listened_to_opens_no_second_connection() -> None:
    """Each connection has a challenge of its own."""
    async with gauge() as port, asyncio.timeout(WITHIN_S):
        permit = base64.b64decode(spec(port).permit)
        key = base64.b64decode(spec(port).permit_key)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        challenge = await reader.readexactly(CHALLENGE_BYTES)
        heard = stream_bytes(StreamRequest(STATEMENT, permit, 0, 0, 0), key, challenge)
        writer.write(heard)
        assert await reader.read(1) == b"\0"
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readexactly(CHALLENGE_BYTES)
        writer.write(heard)
        assert await reader.read(1) == b""
        writer.close()


async def test_a_host_gets_no_more_bytes_than_it_may_have() -> None:
    """Whatever it asks for; what is left of its hour is small then."""
    async with gauge(host_bytes_hour=MIB) as port, asyncio.timeout(WITHIN_S):
        client = GaugeClient(spec(port))
        effort = Effort(streams=1, seconds=5, bytes_max=64 * MIB)
        received = await client.download(effort)
        assert received < 16 * MIB
        with pytest.raises(GaugeFailed):
            await client.upload(effort)


async def test_the_process_serves_at_a_port_and_ends_with_whoever_started_it() -> None:
    """Apart from the relay's own, so that forwarding waits for nothing."""
    told = asyncio.Event()
    process = GaugeProcess(bind="127.0.0.1", port=0, relay_id=RELAY, statement_key=RELAY_KEY, told=told.set)
    running = asyncio.create_task(process.run())
    async with asyncio.timeout(WITHIN_S):
        process.take_key(base64.b64encode(GAUGE_KEY).decode())
        await told.wait()
        port = process.port
        client = GaugeClient(spec(port))
        assert await client.round_trips(5) == 5
        assert stated(await client.statement()).round_trips == 4
    [child] = [one for one in psutil.Process().children() if "corral.relay.gauge" in one.cmdline()]
    assert child.nice() == min(19, psutil.Process().nice() + NICE)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert process.port == 0
    assert not child.is_running()
    with pytest.raises(GaugeFailed):
        await GaugeClient(spec(port)).statement()


async def test_a_port_that_is_taken_is_told_and_tried_again() -> None:
    """Forwarding goes on without the gauge."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = GaugeProcess(
            bind="127.0.0.1", port=taken.getsockname()[1], relay_id=RELAY, statement_key=RELAY_KEY, told=lambda: None
        )
        process.take_key(base64.b64encode(GAUGE_KEY).decode())
        async with asyncio.timeout(WITHIN_S):
            assert "in use" in await process._run_once()
