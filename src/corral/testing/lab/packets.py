"""IPv4 packets as the lab's internet needs them: where the fields are, and checksums (RFC 1071, RFC 1624)."""

import struct

ICMP, TCP, UDP = 1, 6, 17
ECHO_REPLY, ECHO_REQUEST = 0, 8
ICMP_ERRORS = frozenset({3, 11, 12})
"""Destination unreachable, time exceeded, parameter problem: each carries the start of the packet that caused it."""
HEADER_BYTES_MIN = 20
ICMP_HEADER_BYTES = 8

CHECKSUM_OFFSET = {ICMP: 2, TCP: 16, UDP: 6}
"""Where the checksum is, from the start of the transport header."""


def header_bytes(packet: bytes | bytearray | memoryview) -> int:
    """Length of the IPv4 header; 0 if this is no whole IPv4 packet."""
    if len(packet) < HEADER_BYTES_MIN or packet[0] >> 4 != 4:
        return 0
    length = (packet[0] & 0x0F) * 4
    total = packet[2] << 8 | packet[3]
    return length if HEADER_BYTES_MIN <= length <= total <= len(packet) else 0


def is_fragment(packet: bytes | bytearray | memoryview) -> bool:
    """Whether this is a part of a packet: only the first has ports, and none has a whole checksum."""
    return bool((packet[6] & 0x3F) | packet[7])


def checksum(*pieces: bytes | bytearray | memoryview) -> int:
    """The Internet checksum over `pieces` laid end to end; all but the last are of even length."""
    total = 0
    for piece in pieces:
        padded = bytes(piece) + b"\0" * (len(piece) % 2)
        total += sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    return ~_fold(total) & 0xFFFF


def transport_checksum(packet: bytes | bytearray) -> int:
    """What the checksum of a whole UDP, TCP or ICMP packet should be."""
    start = header_bytes(packet)
    protocol = packet[9]
    body = bytearray(packet[start : packet[2] << 8 | packet[3]])
    at = CHECKSUM_OFFSET[protocol]
    body[at : at + 2] = b"\0\0"
    if protocol == ICMP:
        return checksum(body)
    found = checksum(packet[12:20], struct.pack("!HH", protocol, len(body)), body)
    return found or 0xFFFF if protocol == UDP else found


def change(old: bytes, new: bytes) -> int:
    """What replacing the words `old` by `new` adds to a checksum's complement; for `adjust`."""
    words = len(old) // 2
    removed = sum(~word & 0xFFFF for word in struct.unpack(f"!{words}H", old))
    return _fold(removed + sum(struct.unpack(f"!{words}H", new)))


def adjust(packet: bytearray, at: int, delta: int) -> None:
    """Brings the checksum at `at` up to date after a `change` of words that it covers."""
    total = (~(packet[at] << 8 | packet[at + 1]) & 0xFFFF) + delta
    found = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet[at], packet[at + 1] = found >> 8, found & 0xFF


def adjust_udp(packet: bytearray, at: int, delta: int) -> None:
    """As `adjust`, for UDP: 0 means that there is no checksum, and a sum of 0 is sent as all ones."""
    if not (packet[at] | packet[at + 1]):
        return
    adjust(packet, at, delta)
    if not (packet[at] | packet[at + 1]):
        packet[at] = packet[at + 1] = 0xFF


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
