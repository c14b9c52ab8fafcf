"""
One measurement at one relay's gauge: round trips, streams either way, and the statement that comes of it.

The gauge times and counts; this side sends and receives as fast as the link allows, and brings the statement home.
"""

import asyncio
import base64
import secrets
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec

from corral.core.errors import CorralError
from corral.protocol.gauge import (
    BUSY,
    CHALLENGE_BYTES,
    DOWNLOAD,
    GRANTED,
    NO_NONCE,
    STATEMENT,
    STATEMENT_BYTES_MAX,
    UPLOAD,
    Answer,
    Ask,
    StatementRefused,
    StreamRequest,
    answer_of,
    ask_bytes,
    read_statement,
    stream_bytes,
)
from corral.wire.agent import GaugeSpec, SignedStatement

ROUND_TRIPS = 21
ANSWER_S = 1.0
"""After this a round trip counts as lost: more than three times around the world."""
SILENT_ASKS_MAX = 3
CONNECT_S = 5.0
GRACE_S = 5.0
"""Beyond a stream's time, for what is under way."""
CHUNK_BYTES = 256 * 1024


class GaugeFailed(CorralError):
    """A gauge could not be measured at; nothing was learnt."""

    code = "gauge_failed"


class GaugeBusy(GaugeFailed):
    """Another host is being measured there."""

    code = "gauge_busy"

    def __init__(self, relay_id: str, wait_s: int) -> None:
        self.wait_s = wait_s
        super().__init__(f"relay {relay_id} measures another host for up to {wait_s} s; nothing was measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much a measurement of bandwidth may send and receive: each way at most `seconds` and `bytes_max`."""

    streams: int
    seconds: float
    bytes_max: int


class GaugeClient:
    """
    One session at a gauge.

    Args:
        spec: where, and the permit.
        session: a number that no earlier session had; empty draws one.
    """

    def __init__(self, spec: GaugeSpec, session: int | None = None) -> None:
        self._spec = spec
        self._session = secrets.randbits(64) if session is None else session
        self._permit, self._key = base64.b64decode(spec.permit), base64.b64decode(spec.permit_key)

    async def round_trips(self, count: int = ROUND_TRIPS) -> int:
        """
        Goes to and fro over UDP, one at a time; returns how many came back.

        Raises:
            GaugeFailed: the address cannot be sent to.
        """
        loop = asyncio.get_running_loop()
        try:
            transport, answers = await loop.create_datagram_endpoint(
                lambda: _Answers(self._key), remote_addr=(self._spec.address, self._spec.port)
            )
        except OSError as error:
            raise self._failed(error) from error
        came_back, nonce = 0, NO_NONCE
        try:
            for sequence in range(1, count + 1):
                ask = Ask(self._permit, self._session, sequence, nonce)
                transport.sendto(ask_bytes(ask, self._key))
                answer = await answers.wait_for(self._session, sequence)
                came_back += answer is not None
                nonce = answer.nonce if answer is not None else NO_NONCE
                if not came_back and sequence >= SILENT_ASKS_MAX:
                    break
        finally:
            transport.close()
        return came_back

    async def download(self, effort: Effort) -> int:
        """
        Receives over several streams at once; returns the bytes.

        Raises:
            GaugeBusy: it measures another host.
            GaugeFailed: it cannot be reached, or does not let us.
        """
        return await self._streams(effort, DOWNLOAD)

    async def upload(self, effort: Effort) -> int:
        """Sends over several streams at once; returns the bytes. Raises what `download` raises."""
        return await self._streams(effort, UPLOAD)

    async def statement(self) -> SignedStatement:
        """
        What the gauge has measured in this session.

        Raises:
            GaugeFailed: it says nothing, or something else.
        """
        request = StreamRequest(STATEMENT, self._permit, self._session, 0, 0)
        try:
            async with asyncio.timeout(CONNECT_S), self._connected(request) as (reader, _):
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > STATEMENT_BYTES_MAX:
                    raise self._failed("its statement is too long")
                signed = msgspec.json.decode(await reader.readexactly(size), type=SignedStatement)
                stated = read_statement(signed.payload)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, msgspec.DecodeError, StatementRefused) as error:
            raise self._failed(error) from error
        if (stated.relay_id, stated.session) != (self._spec.relay_id, self._session):
            raise self._failed("its statement is about something else")
        return signed

    async def _streams(self, effort: Effort, purpose: int) -> int:
        share = max(1, effort.bytes_max // effort.streams)
        request = StreamRequest(purpose, self._permit, self._session, int(effort.seconds * 1000), share)
        stream = self._receive if purpose == DOWNLOAD else self._send
        done = await asyncio.gather(
            *(stream(request, effort.seconds) for _ in range(effort.streams)), return_exceptions=True
        )
        failures = [one for one in done if isinstance(one, BaseException)]
        # Some streams alone measure something else than what was meant.
        if failures:
            first = failures[0]
            raise first if isinstance(first, GaugeFailed) else self._failed(first) from first
        return sum(one for one in done if isinstance(one, int))

    async def _receive(self, request: StreamRequest, seconds: float) -> int:
        async with asyncio.timeout(CONNECT_S + seconds + GRACE_S), self._connected(request) as (reader, _):
            received = 0
            while data := await reader.read(CHUNK_BYTES):
                received += len(data)
            return received

    async def _send(self, request: StreamRequest, seconds: float) -> int:
        async with asyncio.timeout(CONNECT_S + seconds + GRACE_S), self._connected(request) as (reader, writer):
            noise, sent, ends_at = secrets.token_bytes(CHUNK_BYTES), 0, time.monotonic() + seconds
            while sent < request.bytes_max and time.monotonic() < ends_at:
                chunk = noise[: request.bytes_max - sent]
                writer.write(chunk)
                await writer.drain()
                sent += len(chunk)
            writer.write_eof()
            await reader.read()  # It closes once it has all.
            return sent

    @asynccontextmanager
    async def _connected(self, request: StreamRequest):
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(self._spec.address, self._spec.port, limit=4 * CHUNK_BYTES)
        try:
            writer.transport.set_write_buffer_limits(high=CHUNK_BYTES)
            async with asyncio.timeout(CONNECT_S):
                challenge = await reader.readexactly(CHALLENGE_BYTES)
                writer.write(stream_bytes(request, self._key, challenge))
                (status,) = await reader.readexactly(1)
                if status == BUSY:
                    raise GaugeBusy(self._spec.relay_id, (await reader.readexactly(1))[0])
            if status != GRANTED:
                raise self._failed("it has measured enough of this host, or does not take its permit")
            yield reader, writer
        finally:
            writer.transport.abort()

    def _failed(self, reason: object) -> GaugeFailed:
        told = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else reason
        return GaugeFailed(
            f"nothing was measured at relay {self._spec.relay_id} ({self._spec.address}:{self._spec.port}): {told}",
            hint=f"let TCP and UDP out to port {self._spec.port}",
        )


class _Answers(asyncio.DatagramProtocol):
    """Answers as they come in; none is waited for but the last one that was asked for."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._awaited: tuple[int, int] = (0, 0)
        self._answer: asyncio.Future[Answer] | None = None

    async def wait_for(self, session: int, sequence: int) -> Answer | None:
        """The answer to this request; None if it does not come."""
        self._awaited, self._answer = (session, sequence), asyncio.get_running_loop().create_future()
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                return await self._answer
        return None

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = answer_of(data, self._key)
        waiting = self._answer
        if answer is None or waiting is None or waiting.done():
            return
        if (answer.session, answer.sequence) == self._awaited:
            waiting.set_result(answer)

    def error_received(self, exc: Exception) -> None:
        """An ICMP message: the answer does not come, and that is known by its time."""
