"""
The sockets of a relay: one thread, one epoll, one UDP socket per mailbox.

Where the kernel has them, UDP_GRO hands over many packets of one sender in one buffer, and UDP_SEGMENT sends many to
one receiver in one call; a call per packet would cost most of the throughput. One buffer may hold packets for several
receivers, so it is cut into runs of equal headers.
"""

import errno
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from ipaddress import ip_address

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from corral.relay import packets
from corral.relay.errors import RelayClosed, RelayError, RelayStopped
from corral.relay.forwarding import Address, Forward, Mailbox, ObservedCallback, Reason, Switchboard, check_mailboxes
from corral.relay.limits import Limits

SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
"""linux/udp.h; the socket module of Python 3.11 does not name them."""

SEGMENTS_MAX = 64
DATAGRAM_BYTES_MAX = 65507
BUFFER_BYTES = 65536
SOCKET_BUFFER_BYTES = 7 * 2**20
BATCHES_PER_TURN = 32
"""Buffers read from one socket before the others get their turn."""
TICK_S = 1.0
_HEADER = struct.Struct("<4sI")
"""What data begins with: its kind, and the index that its receiver chose."""


@dataclass(frozen=True, kw_only=True)
class PortFailure:
    """A mailbox whose port could not be bound; the others work, and the next list tries again."""

    node_id: str
    port: int
    reason: str


@dataclass(slots=True)
class Counters:
    """What a relay has done since it began; written by its thread alone."""

    forwarded_packets: int = 0
    forwarded_bytes: int = 0
    dropped_packets: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))


@dataclass(frozen=True, kw_only=True)
class RelayState:
    """What a relay is at one moment."""

    mailboxes: int = 0
    proved_members: int = 0
    unbound_ports: int = 0
    has_gro: bool = False
    has_gso: bool = False
    receive_buffer_bytes: int = 0
    """The smallest that any mailbox was given, as the kernel counts it (twice the payload); 0 without a mailbox."""


class Relay:
    """A running relay. Its methods may be called from any thread."""

    def __init__(
        self,
        bind_ip: str,
        *,
        limits: Limits | None = None,
        on_observed: ObservedCallback | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        uses_offload: bool = True,
    ) -> None:
        """
        Begins to run, without a mailbox.

        Args:
            bind_ip: the address of every mailbox; IPv4 or IPv6.
            limits: what is granted.
            on_observed: called from the relay's thread with a node and its new observed address, or None when that
                lapsed; it must return at once.
            monotonic: the clock, seconds.
            uses_offload: whether GRO and GSO are tried.

        Raises:
            RelayError: `bind_ip` is not an IP address.
        """
        try:
            version = ip_address(bind_ip).version
        except ValueError as error:
            raise RelayError(f"{bind_ip!r} is not an IP address; the relay did not start") from error
        # The private half would only be needed to answer, and the observer never answers.
        self.observer_key = X25519PrivateKey.generate().public_key().public_bytes_raw()
        self.counters = Counters()
        self._observed: dict[str, Address] = {}
        self._on_observed = on_observed
        self._loop = _Loop(
            bind_ip,
            socket.AF_INET if version == 4 else socket.AF_INET6,
            Switchboard(self.observer_key, limits=limits, now=monotonic(), on_observed=self._note_observed),
            self.counters,
            monotonic,
            uses_offload,
        )

    @property
    def state(self) -> RelayState:
        """As of the last second or the last list."""
        return self._loop.state

    @property
    def is_running(self) -> bool:
        """Whether packets are forwarded: until it is closed, or its thread has died."""
        return self._loop.is_running

    def set_mailboxes(self, mailboxes: Iterable[Mailbox]) -> list[PortFailure]:
        """
        Makes this the whole list, while traffic flows; waits until it is in force.

        Returns:
            The mailboxes whose port could not be bound. Giving the same list again tries them again.

        Raises:
            MailboxesRefused: the list contradicts itself; the one in force stays.
            RelayClosed: `close` was called.
            RelayStopped: the relay's thread has died.
        """
        return self._loop.apply(list(check_mailboxes(mailboxes).values())).result()

    def observed(self, node_id: str) -> Address | None:
        """Where the node's direct plane is seen from, or None if it has not called the observer lately."""
        return self._observed.get(node_id)

    def close(self) -> None:
        """Ends the thread and closes every socket; may be called twice."""
        self._loop.close()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note_observed(self, node_id: str, address: Address | None) -> None:
        if address is None:
            self._observed.pop(node_id, None)
        else:
            self._observed[node_id] = address
        if self._on_observed is not None:
            self._on_observed(node_id, address)


@dataclass(frozen=True, slots=True)
class _Command:
    mailboxes: list[Mailbox]
    done: "Future[list[PortFailure]]"


@dataclass(slots=True)
class _Port:
    number: int
    socket: socket.socket
    receive_buffer_bytes: int
    has_gro: bool
    has_gso: bool


class _Loop:
    """The thread. A list of mailboxes comes in through a queue and an eventfd; no packet waits for a lock."""

    def __init__(
        self,
        bind_ip: str,
        family: socket.AddressFamily,
        switchboard: Switchboard,
        counters: Counters,
        monotonic: Callable[[], float],
        uses_offload: bool,
    ) -> None:
        self.state = RelayState()
        self._bind_ip, self._family = bind_ip, family
        self._switchboard, self._counters, self._monotonic = switchboard, counters, monotonic
        self._uses_offload = uses_offload
        self._ports: dict[int, _Port] = {}
        self._by_fd: dict[int, _Port] = {}
        self._unbound = 0
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._words = self._buffer.cast("Q")
        self._segment, self._segment_control = 0, [(SOL_UDP, UDP_SEGMENT, b"\0\0")]
        self._commands: deque[_Command] = deque()
        self._handover = threading.Lock()
        self._is_closing = False
        self._failure: BaseException | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="corral-relay", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._is_closing

    def apply(self, mailboxes: list[Mailbox]) -> "Future[list[PortFailure]]":
        done: Future[list[PortFailure]] = Future()
        with self._handover:
            if self._failure is not None:
                raise RelayStopped(self._failure)
            if self._is_closing:
                raise RelayClosed()
            self._commands.append(_Command(mailboxes, done))
            os.eventfd_write(self._wake, 1)
        return done

    def close(self) -> None:
        with self._handover:
            if not self._is_closing:
                self._is_closing = True
                if self._failure is None:
                    os.eventfd_write(self._wake, 1)
        self._thread.join()

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._serve()
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._handover:
                self._failure = failure
                self._is_closing = self._is_closing or failure is None
                for command in self._commands:
                    command.done.set_exception(RelayStopped(failure) if failure else RelayClosed())
                self._commands.clear()
                for port in self._ports.values():
                    port.socket.close()
                self._epoll.close()
                os.close(self._wake)

    def _serve(self) -> None:
        next_tick = self._monotonic() + TICK_S
        while not self._is_closing:
            has_command = False
            for fd, _ in self._epoll.poll(TICK_S):
                port = self._by_fd.get(fd)
                if port is not None:
                    self._drain(port)
                elif fd == self._wake:
                    os.eventfd_read(self._wake)
                    has_command = True
            # After the packets, so that what came before a list is still judged by the list before.
            while has_command and self._commands:
                command = self._commands.popleft()
                command.done.set_result(self._set_mailboxes(command.mailboxes))
            if (now := self._monotonic()) >= next_tick:
                next_tick = now + TICK_S
                self._switchboard.expire(now)
                self._publish()

    def _set_mailboxes(self, mailboxes: list[Mailbox]) -> list[PortFailure]:
        self._switchboard.set_mailboxes(mailboxes)
        wanted = {mailbox.port for mailbox in mailboxes}
        for number in [number for number in self._ports if number not in wanted]:
            port = self._ports.pop(number)
            del self._by_fd[port.socket.fileno()]
            self._epoll.unregister(port.socket)
            port.socket.close()
        failures: list[PortFailure] = []
        for mailbox in mailboxes:
            if mailbox.port in self._ports:
                continue
            try:
                port = self._open(mailbox.port)
            except OSError as error:
                reason = f"{self._bind_ip} UDP port {mailbox.port}: {error.strerror or error}"
                failures.append(PortFailure(node_id=mailbox.node_id, port=mailbox.port, reason=reason))
                continue
            self._ports[mailbox.port] = self._by_fd[port.socket.fileno()] = port
            self._epoll.register(port.socket, select.EPOLLIN)
        self._unbound = len(failures)
        self._publish()
        return failures

    def _open(self, number: int) -> _Port:
        opened = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                opened.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
            opened.bind((self._bind_ip, number))
        except OSError:
            opened.close()
            raise
        return _Port(
            number,
            opened,
            opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
            self._uses_offload and _accepts(opened, UDP_GRO, 1),
            self._uses_offload and _accepts(opened, UDP_SEGMENT, 0),
        )

    def _publish(self) -> None:
        ports = self._ports.values()
        self.state = RelayState(
            mailboxes=len(self._switchboard.mailboxes),
            proved_members=self._switchboard.proved_members,
            unbound_ports=self._unbound,
            has_gro=bool(ports) and all(port.has_gro for port in ports),
            has_gso=bool(ports) and all(port.has_gso for port in ports),
            receive_buffer_bytes=min((port.receive_buffer_bytes for port in ports), default=0),
        )

    def _drain(self, port: _Port) -> None:
        receive, number, header_of = port.socket.recvmsg_into, port.number, _HEADER.unpack_from
        buffer, buffers = self._buffer, [self._buffer]
        on_data, dropped = self._switchboard.on_data, self._counters.dropped_packets
        ancillary_bytes = socket.CMSG_SPACE(4) if port.has_gro else 0
        now = self._monotonic()
        for _ in range(BATCHES_PER_TURN):
            try:
                size, ancillary, _, source = receive(buffers, ancillary_bytes)
            except OSError:
                # Nothing to read; or an error of the network, which the kernel reports once and which concerns a
                # packet that is gone.
                return
            segment = size
            for level, kind, value in ancillary:
                if level == SOL_UDP and kind == UDP_GRO:
                    segment = int.from_bytes(value, sys.byteorder)
            if len(source) > 2:
                source = source[:2]
            kind, index = header_of(buffer)
            is_data = kind == packets.DATA and size >= packets.DATA_BYTES_MIN
            # What nearly always comes: nothing but data for one receiver. This is the path that has to be short.
            if is_data and (segment >= size or self._is_run(size, segment)):
                outcome = on_data(number, source, index, size, now)
                if isinstance(outcome, Forward):
                    self._send(outcome, 0, size, segment)
                else:
                    dropped[outcome.reason] += -(-size // segment)
            elif segment >= size:
                self._forward_one(number, source, 0, size, now)
            else:
                self._forward_batch(number, source, size, segment, now)

    def _is_run(self, size: int, segment: int) -> bool:
        """Whether all packets begin as the first one does, and the last, the shortest, is long enough for data."""
        count = -(-size // segment)
        if size - (count - 1) * segment < packets.DATA_BYTES_MIN:
            return False
        headers = self._headers(size, segment)
        return headers == headers[:8] * count

    def _forward_one(self, number: int, source: Address, start: int, end: int, now: float) -> None:
        outcome = self._switchboard.on_packet(number, source, self._buffer[start:end], now)
        if isinstance(outcome, Forward):
            self._send(outcome, start, end, end - start)
        else:
            self._counters.dropped_packets[outcome.reason] += 1

    def _forward_batch(self, number: int, source: Address, size: int, segment: int, now: float) -> None:
        """Forwards the packets of one buffer, each `segment` bytes long but for the last, in runs of equal headers."""
        headers = self._headers(size, segment)
        count = len(headers) // 8
        # A packet too short for data is looked at by itself; only the last one can be shorter than `segment`.
        uniform = count if size - (count - 1) * segment >= packets.DATA_BYTES_MIN else count - 1
        if segment < packets.DATA_BYTES_MIN:
            uniform = 0
        first = 0
        while first < count:
            header = headers[first * 8 : first * 8 + 8]
            if first >= uniform or header[:4] != packets.DATA:
                self._forward_one(number, source, first * segment, min((first + 1) * segment, size), now)
                first += 1
                continue
            end = first + 1
            while end < uniform and headers[end * 8 : end * 8 + 8] == header:
                end += 1
            self._forward_run(number, source, first * segment, min(end * segment, size), segment, header, now)
            first = end

    def _forward_run(
        self, number: int, source: Address, start: int, end: int, segment: int, header: bytes, now: float
    ) -> None:
        index = int.from_bytes(header[4:8], "little")
        outcome = self._switchboard.on_data(number, source, index, end - start, now)
        if isinstance(outcome, Forward):
            self._send(outcome, start, end, segment)
        else:
            self._counters.dropped_packets[outcome.reason] += -(-(end - start) // segment)

    def _headers(self, size: int, segment: int) -> bytes:
        """The first eight bytes of every packet of the buffer; stale at the end where the last is shorter than that."""
        # WireGuard pads to 16 bytes, so a strided copy of 64-bit words nearly always does.
        if segment % 8 == 0:
            return self._words[: (size - 1) // 8 + 1 : segment // 8].tobytes()
        return b"".join(self._buffer[at : at + 8] for at in range(0, size, segment))

    def _send(self, forward: Forward, start: int, end: int, segment: int) -> None:
        port, addresses = self._ports.get(forward.port), forward.addresses
        size = end - start
        count = -(-size // segment) if segment else 1
        if port is None:
            self._counters.dropped_packets[Reason.NOT_SENT] += count
            return
        if len(addresses) == 1 and (segment >= size or self._fits(port, size, segment)):
            control = self._control(segment) if segment < size else []
            try:
                port.socket.sendmsg([self._buffer[start:end]], control, 0, addresses[0])
            except OSError:
                pass  # Below it is tried piece by piece.
            else:
                self._counters.forwarded_packets += count
                self._counters.forwarded_bytes += size
                return
        sent = 0
        for address in addresses:
            sent = max(sent, self._send_to(port, address, start, end, segment))
        self._counters.forwarded_packets += sent
        self._counters.forwarded_bytes += min(sent * segment, size)
        if sent < count:
            self._counters.dropped_packets[Reason.NOT_SENT] += count - sent

    @staticmethod
    def _fits(port: _Port, size: int, segment: int) -> bool:
        """Whether the kernel takes so many packets in one call."""
        return port.has_gso and size <= DATAGRAM_BYTES_MAX and size <= SEGMENTS_MAX * segment

    def _control(self, segment: int) -> list[tuple[int, int, bytes]]:
        if segment != self._segment:
            self._segment, self._segment_control = segment, [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment))]
        return self._segment_control

    def _send_to(self, port: _Port, address: Address, start: int, end: int, segment: int) -> int:
        """Sends the packets of a run. Returns how many the kernel took."""
        sent = 0
        if port.has_gso and end - start > segment:
            step = min(SEGMENTS_MAX, DATAGRAM_BYTES_MAX // segment) * segment
            control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment))]
        else:
            step, control = segment or 1, []
        while True:
            chunk_end = min(start + step, end)
            try:
                port.socket.sendmsg(
                    [self._buffer[start:chunk_end]], control if chunk_end - start > segment else [], 0, address
                )
            except OSError as error:
                if not control or error.errno not in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                    if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                        return sent
                else:
                    # EIO: the device cannot segment. The others: packets longer than the path takes in one piece,
                    # which sent one by one are cut by the IP layer.
                    port.has_gso = port.has_gso and error.errno != errno.EIO
                    step, control = segment, []
                    continue
            else:
                sent += -(-(chunk_end - start) // segment) if segment else 1
            start = chunk_end
            if start >= end:
                return sent


def _accepts(opened: socket.socket, option: int, value: int) -> bool:
    """Whether this kernel knows a UDP option."""
    try:
        opened.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return True
