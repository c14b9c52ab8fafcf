"""The sockets of a gauge: TCP for streams and statements, UDP for round trips, at one port number."""

import asyncio
import contextlib
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.protocol.gauge import (
    BUSY,
    CHALLENGE_BYTES,
    DOWNLOAD,
    GRANTED,
    REFUSED,
    STATEMENT,
    STREAM_BYTES,
    UPLOAD,
    PermitRefused,
    StreamRequest,
    answer_bytes,
    ask_of,
    is_tagged,
    permit_key,
    read_permit,
    sign_statement,
    stream_of,
)
from corral.relay.gauge.book import Book
from corral.relay.gauge.limits import GaugeLimits
from corral.wire.agent import SignedStatement

CHUNK_BYTES = 128 * 1024
_TCP_INFO_BYTES = 128
_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_AT = 120
"""Offset of `tcpi_bytes_acked` in Linux's `struct tcp_info` (since 4.1)."""
KEYS_MAX = 4096


@dataclass(frozen=True, kw_only=True)
class GaugeIdentity:
    """Who measures, with which keys."""

    relay_id: str
    gauge_key: bytes
    """Permits are checked with it."""
    statement_key: Ed25519PrivateKey
    """Statements are signed with it: the relay's own key."""


class GaugeServer:
    """What a gauge does with what comes in."""

    def __init__(self, identity: GaugeIdentity, limits: GaugeLimits) -> None:
        self._identity, self._limits = identity, limits
        self._book = Book(identity.relay_id, limits, time.monotonic(), secrets.token_bytes)
        # What cannot be compressed: between a host and us there may be somebody who tries.
        self._noise = secrets.token_bytes(CHUNK_BYTES)
        self._keys: dict[bytes, bytes] = {}
        self._connections = 0

    @asynccontextmanager
    async def serving(self, bind: str, port: int) -> AsyncIterator[int]:
        """
        Serves at an address while the block runs; yields the port, which 0 lets the system choose.

        Raises:
            OSError: the port cannot be bound.
        """
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._on_connection, bind, port, limit=4 * CHUNK_BYTES)
        async with server:
            number = server.sockets[0].getsockname()[1]
            transport, _ = await loop.create_datagram_endpoint(lambda: _Echo(self), local_addr=(bind, number))
            try:
                yield number
            finally:
                transport.close()

    def on_datagram(self, datagram: bytes) -> bytes | None:
        """The answer to a datagram; None for what is no request of a host with a permit."""
        ask = ask_of(datagram)
        if ask is None:
            return None
        key = self._key(ask.permit)
        if not is_tagged(datagram, key):
            return None
        try:
            permit = read_permit(ask.permit, now=time.time())
        except PermitRefused:
            return None
        answer = self._book.answer(permit.host_id, ask, time.monotonic())
        return None if answer is None else answer_bytes(answer, key)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > self._limits.connections_max:
                return
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await self._serve(reader, writer)
        finally:
            self._connections -= 1
            writer.close()
            # Whoever does not read what is still to come is not waited for.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._limits.greeting_s):
                    await writer.wait_closed()
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        async with asyncio.timeout(self._limits.greeting_s):
            writer.write(challenge)
            message = await reader.readexactly(STREAM_BYTES)
        request = stream_of(message)
        if request is None or not is_tagged(message, self._key(request.permit), challenge):
            return  # Strangers are told nothing.
        try:
            host_id = read_permit(request.permit, now=time.time()).host_id
        except PermitRefused:
            writer.write(bytes((REFUSED,)))
            return
        verdict = self._book.open(host_id, request.session, request.purpose, time.monotonic())
        writer.write(bytes((BUSY, verdict.wait_s)) if verdict.status == BUSY else bytes((verdict.status,)))
        if verdict.status != GRANTED:
            return
        if request.purpose == STATEMENT:
            self._state(host_id, writer)
            return
        try:
            async with asyncio.timeout(self._limits.stream_s_max + self._limits.greeting_s):
                if request.purpose == DOWNLOAD:
                    await self._send(host_id, request, reader, writer)
                else:
                    await self._receive(host_id, reader)
        finally:
            self._book.close(host_id, time.monotonic())

    def _state(self, host_id: str, writer: asyncio.StreamWriter) -> None:
        statement = self._book.statement(host_id, time.monotonic(), unix_s=time.time())
        payload, signature = sign_statement(statement, self._identity.statement_key)
        body = msgspec.json.encode(SignedStatement(payload=payload, signature=signature))
        writer.write(len(body).to_bytes(4, "big") + body)

    async def _send(
        self, host_id: str, request: StreamRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Sends until the host has enough, or has had enough."""
        now = time.monotonic()
        ends_at = now + min(request.duration_ms / 1000, self._limits.stream_s_max)
        connection: socket.socket = writer.get_extra_info("socket")
        writer.transport.set_write_buffer_limits(high=CHUNK_BYTES)
        sent, counted, before = 0, 0, _acked_bytes(connection)
        while now < ends_at and sent < request.bytes_max and self._book.left_bytes(host_id, now) > 0:
            chunk = self._noise[: request.bytes_max - sent]
            writer.write(chunk)
            sent += len(chunk)
            await writer.drain()
            now = time.monotonic()
            arrived = _acked_bytes(connection) - before
            self._book.count(host_id, DOWNLOAD, arrived - counted, now)
            counted = arrived
        # The rest is under way: it counts once the host has it all, and says so by closing.
        with contextlib.suppress(OSError):
            writer.write_eof()
        async with asyncio.timeout(self._limits.greeting_s):
            while await reader.read(CHUNK_BYTES):
                pass
        arrived = min(_acked_bytes(connection) - before, sent)
        self._book.count(host_id, DOWNLOAD, max(0, arrived - counted), time.monotonic())

    async def _receive(self, host_id: str, reader: asyncio.StreamReader) -> None:
        """Receives until the host ends."""
        now = time.monotonic()
        ends_at = now + self._limits.stream_s_max
        while now < ends_at and self._book.left_bytes(host_id, now) > 0:
            data = await reader.read(2 * CHUNK_BYTES)
            now = time.monotonic()
            if not data:
                return
            self._book.count(host_id, UPLOAD, len(data), now)

    def _key(self, permit: bytes) -> bytes:
        key = self._keys.get(permit)
        if key is None:
            key = permit_key(self._identity.gauge_key, permit)
            if len(self._keys) >= KEYS_MAX:
                self._keys.clear()  # Strangers may fill it: that costs us one HMAC each.
            self._keys[permit] = key
        return key


class _Echo(asyncio.DatagramProtocol):
    """The UDP port."""

    def __init__(self, server: GaugeServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # pyright: ignore[reportAttributeAccessIssue] - it is one of datagrams

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server.on_datagram(data)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)


def _acked_bytes(connection: socket.socket) -> int:
    """How many bytes the other end's kernel has confirmed."""
    found = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return _BYTES_ACKED.unpack_from(found, _BYTES_ACKED_AT)[0]
