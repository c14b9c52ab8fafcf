"""
Network address translation as home routers do it (terms of RFC 4787), on packets in place. No I/O, no clock.

Both kinds let a packet in only from an address and port to which the same inner port has sent before
("port-restricted"). `cone` shows one outer port per inner port to everybody (endpoint-independent mapping), the same
number where it is free; `symmetric` shows a new random port to each address and port that is talked to, so that nobody
else can learn it. What is not UDP, TCP, ICMP echo or an ICMP error about one of these is dropped, and so are fragments.
Several hosts may share a router.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from corral.testing.lab.packets import (
    CHECKSUM_OFFSET,
    ECHO_REPLY,
    ECHO_REQUEST,
    HEADER_BYTES_MIN,
    ICMP,
    ICMP_ERRORS,
    ICMP_HEADER_BYTES,
    TCP,
    UDP,
    adjust,
    adjust_udp,
    change,
    checksum,
    header_bytes,
    is_fragment,
)

IDLE_S: Mapping[int, float] = {UDP: 120.0, TCP: 7440.0, ICMP: 60.0}
"""After so long without an outgoing packet a flow is forgotten (RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-2)."""
PORTS = range(1024, 65536)
_NO_PORT = b"\0\0"


class NatKind(StrEnum):
    """How a host is connected."""

    none = "none"
    cone = "cone"
    symmetric = "symmetric"


@dataclass
class _Mapping:
    """An outer port that stands for an inner one."""

    key: tuple[int, bytes, bytes, bytes]
    outer_port: bytes
    used_at_s: float


@dataclass
class _Flow:
    """One conversation, with what changes in its packets."""

    mapping: _Mapping
    out_key: bytes
    in_key: bytes
    inner: bytes
    inner_port: bytes
    used_at_s: float
    out_delta: int
    """What translation adds to the transport's checksum; ICMP's does not cover addresses."""
    in_delta: int


class Nat:
    """
    The router of one host, or of several.

    Args:
        kind: cone or symmetric.
        inner: the first host's own address, 4 bytes; `inners` has all of them.
        outer: the address that others see, 4 bytes.
        randomness: chooses ports.
        idle_s: by protocol.
    """

    def __init__(
        self, kind: NatKind, *, inner: bytes, outer: bytes, randomness: Random, idle_s: Mapping[int, float] = IDLE_S
    ) -> None:
        self.kind = kind
        self.inners, self.outer = {inner}, outer
        self._randomness = randomness
        self._idle_s = idle_s
        self._flows_out: dict[bytes, _Flow] = {}
        self._flows_in: dict[bytes, _Flow] = {}
        self._mappings: dict[tuple[int, bytes, bytes, bytes], _Mapping] = {}
        self._taken: dict[tuple[int, bytes], _Mapping] = {}

    def __len__(self) -> int:
        """How many flows are known, idle ones included."""
        return len(self._flows_out)

    def outbound(self, packet: bytearray, now_s: float) -> bool:
        """Translates a packet that the host sends; False where it is dropped."""
        start = header_bytes(packet)
        inner = bytes(packet[12:16])
        if not start or inner not in self.inners or is_fragment(packet):
            return False
        protocol = packet[9]
        remote = bytes(packet[16:20])
        if protocol in (UDP, TCP) and len(packet) >= start + 8:
            inner_port, remote_port = bytes(packet[start : start + 2]), bytes(packet[start + 2 : start + 4])
            port_at = start
        elif protocol == ICMP and len(packet) >= start + ICMP_HEADER_BYTES:
            if packet[start] in ICMP_ERRORS:
                return self._error_out(packet, start)
            if packet[start] != ECHO_REQUEST:
                return False
            inner_port, remote_port = bytes(packet[start + 4 : start + 6]), _NO_PORT
            port_at = start + 4
        else:
            return False
        flow = self._flow_out(protocol, inner, inner_port, remote, remote_port, now_s)
        if flow is None:
            return False
        flow.used_at_s = flow.mapping.used_at_s = now_s
        packet[12:16] = self.outer
        packet[port_at : port_at + 2] = flow.mapping.outer_port
        adjust(packet, 10, change(inner, self.outer))
        _adjust_transport(packet, protocol, start, flow.out_delta)
        return True

    def inbound(self, packet: bytearray, now_s: float) -> bool:
        """Translates a packet that comes for the host; False where nobody asked for it, and it is dropped."""
        start = header_bytes(packet)
        if not start or packet[16:20] != self.outer or is_fragment(packet):
            return False
        protocol = packet[9]
        if protocol in (UDP, TCP) and len(packet) >= start + 8:
            remote_port, outer_port = bytes(packet[start : start + 2]), bytes(packet[start + 2 : start + 4])
            port_at = start + 2
        elif protocol == ICMP and len(packet) >= start + ICMP_HEADER_BYTES:
            if packet[start] in ICMP_ERRORS:
                return self._error_in(packet, start, now_s)
            if packet[start] != ECHO_REPLY:
                return False
            remote_port, outer_port = _NO_PORT, bytes(packet[start + 4 : start + 6])
            port_at = start + 4
        else:
            return False
        flow = self._flows_in.get(bytes((protocol,)) + packet[12:16] + remote_port + outer_port)
        if flow is None or self._is_over(flow, now_s) or flow.inner not in self.inners:
            return False
        packet[16:20] = flow.inner
        packet[port_at : port_at + 2] = flow.inner_port
        adjust(packet, 10, change(self.outer, flow.inner))
        _adjust_transport(packet, protocol, start, flow.in_delta)
        return True

    def forget_idle(self, now_s: float) -> None:
        """Frees what has been idle for too long; it would not be used again anyway."""
        for flow in [flow for flow in self._flows_out.values() if self._is_over(flow, now_s)]:
            self._drop(flow)
        for mapping in [mapping for mapping in self._mappings.values() if self._is_stale(mapping, now_s)]:
            del self._mappings[mapping.key]
            del self._taken[mapping.key[0], mapping.outer_port]

    def _flow_out(
        self, protocol: int, inner: bytes, inner_port: bytes, remote: bytes, remote_port: bytes, now_s: float
    ) -> _Flow | None:
        out_key = bytes((protocol,)) + inner + remote + inner_port + remote_port
        flow = self._flows_out.get(out_key)
        if flow is not None:
            if not self._is_over(flow, now_s):
                return flow
            self._drop(flow)
        mapping = self._mapping(protocol, inner, inner_port, remote + remote_port, now_s)
        if mapping is None:
            return None
        in_key = bytes((protocol,)) + remote + remote_port + mapping.outer_port
        inside, outside = inner_port, mapping.outer_port
        if protocol != ICMP:
            inside, outside = inner + inside, self.outer + outside
        deltas = change(inside, outside), change(outside, inside)
        flow = _Flow(mapping, out_key, in_key, inner, inner_port, now_s, *deltas)
        self._flows_out[out_key] = self._flows_in[in_key] = flow
        return flow

    def _mapping(self, protocol: int, inner: bytes, inner_port: bytes, remote: bytes, now_s: float) -> _Mapping | None:
        """The mapping that stands, or a new one; None where all ports are taken."""
        key = (protocol, inner, inner_port, remote if self.kind is NatKind.symmetric else b"")
        mapping = self._mappings.get(key)
        if mapping is not None and not self._is_stale(mapping, now_s):
            return mapping
        if mapping is not None:
            del self._mappings[key]
            del self._taken[protocol, mapping.outer_port]
        outer_port = self._free_port(protocol, None if self.kind is NatKind.symmetric else inner_port)
        if outer_port is None:
            return None
        mapping = _Mapping(key, outer_port, now_s)
        self._mappings[key] = self._taken[protocol, outer_port] = mapping
        return mapping

    def _free_port(self, protocol: int, wanted: bytes | None) -> bytes | None:
        if wanted is not None and (protocol, wanted) not in self._taken:
            return wanted
        first = self._randomness.randrange(len(PORTS))
        for step in range(len(PORTS)):
            port = PORTS[(first + step) % len(PORTS)].to_bytes(2)
            if (protocol, port) not in self._taken and port != wanted:
                return port
        return None

    def _is_over(self, flow: _Flow, now_s: float) -> bool:
        return now_s - flow.used_at_s > self._idle_s[flow.out_key[0]]

    def _is_stale(self, mapping: _Mapping, now_s: float) -> bool:
        return now_s - mapping.used_at_s > self._idle_s[mapping.key[0]]

    def _drop(self, flow: _Flow) -> None:
        self._flows_out.pop(flow.out_key, None)
        if self._flows_in.get(flow.in_key) is flow:
            del self._flows_in[flow.in_key]

    def _error_in(self, packet: bytearray, start: int, now_s: float) -> bool:
        """An error about a packet that the host sent: the packet inside gets its inner source back."""
        quoted = _Quoted.at(packet, start + ICMP_HEADER_BYTES)
        if quoted is None or quoted.source != self.outer:
            return False
        # As in an answer from there: its source is the quoted destination.
        key = bytes((quoted.protocol,)) + quoted.destination + quoted.destination_port + quoted.source_port
        flow = self._flows_in.get(key)
        if flow is None or self._is_over(flow, now_s) or flow.inner not in self.inners:
            return False
        quoted.rewrite_source(packet, flow.inner, flow.inner_port)
        packet[16:20] = flow.inner
        adjust(packet, 10, change(self.outer, flow.inner))
        _renew_icmp_checksum(packet, start)
        return True

    def _error_out(self, packet: bytearray, start: int) -> bool:
        """The host's error about a packet that came in: the packet inside gets its outer destination back."""
        quoted = _Quoted.at(packet, start + ICMP_HEADER_BYTES)
        inner = bytes(packet[12:16])
        if quoted is None or quoted.destination != inner:
            return False
        key = bytes((quoted.protocol,)) + inner + quoted.source + quoted.destination_port + quoted.source_port
        flow = self._flows_out.get(key)
        if flow is None:
            return False
        quoted.rewrite_destination(packet, self.outer, flow.mapping.outer_port)
        packet[12:16] = self.outer
        adjust(packet, 10, change(inner, self.outer))
        _renew_icmp_checksum(packet, start)
        return True


@dataclass(frozen=True)
class _Quoted:
    """The start of a packet inside an ICMP error. An echo's id counts as the port of the side that asked."""

    at_byte: int
    transport_at: int
    protocol: int
    source: bytes
    destination: bytes
    source_port: bytes
    destination_port: bytes

    @classmethod
    def at(cls, packet: bytearray, at: int) -> "_Quoted | None":
        """The quoted packet at this offset; None where too little of it is there."""
        inner = bytes(packet[at:])
        if len(inner) < HEADER_BYTES_MIN or inner[0] >> 4 != 4:
            return None
        length = (inner[0] & 0x0F) * 4
        if length < HEADER_BYTES_MIN or len(inner) < length + 8 or is_fragment(inner):
            return None
        ports = inner[length : length + 4]
        match inner[9]:
            case 17 | 6:
                source_port, destination_port = ports[:2], ports[2:]
            case 1 if inner[length] == ECHO_REQUEST:
                source_port, destination_port = inner[length + 4 : length + 6], _NO_PORT
            case _:
                return None
        return cls(at, at + length, inner[9], inner[12:16], inner[16:20], source_port, destination_port)

    def rewrite_source(self, packet: bytearray, address: bytes, port: bytes) -> None:
        """Replaces the quoted source; its header's checksum follows, the transport's too where it is quoted."""
        self._rewrite(packet, 12, self.source, address)
        port_at = self.transport_at + (4 if self.protocol == ICMP else 0)
        self._rewrite_port(packet, port_at, self.source_port, port, change(self.source, address))

    def rewrite_destination(self, packet: bytearray, address: bytes, port: bytes) -> None:
        """Replaces the quoted destination, likewise."""
        self._rewrite(packet, 16, self.destination, address)
        port_at = self.transport_at + 2
        self._rewrite_port(packet, port_at, self.destination_port, port, change(self.destination, address))

    def _rewrite(self, packet: bytearray, field_at: int, old: bytes, new: bytes) -> None:
        packet[self.at_byte + field_at : self.at_byte + field_at + 4] = new
        adjust(packet, self.at_byte + 10, change(old, new))

    def _rewrite_port(self, packet: bytearray, at: int, old: bytes, new: bytes, address_delta: int) -> None:
        packet[at : at + 2] = new
        checksum_at = self.transport_at + CHECKSUM_OFFSET[self.protocol]
        if len(packet) < checksum_at + 2:
            return
        renew = adjust_udp if self.protocol == UDP else adjust
        renew(packet, checksum_at, change(old, new))
        if self.protocol != ICMP:
            renew(packet, checksum_at, address_delta)


def _adjust_transport(packet: bytearray, protocol: int, start: int, delta: int) -> None:
    at = start + CHECKSUM_OFFSET[protocol]
    if len(packet) >= at + 2:
        (adjust_udp if protocol == UDP else adjust)(packet, at, delta)


def _renew_icmp_checksum(packet: bytearray, start: int) -> None:
    packet[start + 2 : start + 4] = b"\0\0"
    end = packet[2] << 8 | packet[3]
    packet[start + 2 : start + 4] = checksum(packet[start:end]).to_bytes(2)
