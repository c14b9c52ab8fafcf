"""Packets for the lab's tests, with checksums from the definition and not from the code under test."""

import struct

UDP, TCP, ICMP = 17, 6, 1


def an_address(text: str) -> bytes:
    """Four bytes."""
    return bytes(int(part) for part in text.split("."))


def full_checksum(content: bytes | bytearray) -> int:
    """The Internet checksum, word by word (RFC 1071)."""
    total = 0
    for at in range(0, len(content), 2):
        total += int.from_bytes(content[at : at + 2].ljust(2, b"\0"))
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def a_packet(protocol: int, source: bytes, target: bytes, body: bytes, *, options: bytes = b"") -> bytearray:
    """An IPv4 packet around a transport header and its content, whose checksum fields are still 0."""
    length = 20 + len(options)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | length // 4, 0, length + len(body), 7, 0x4000, 64, protocol, 0, source, target
    )
    header += options
    header = header[:10] + full_checksum(header).to_bytes(2) + header[12:]
    at = {UDP: 6, TCP: 16, ICMP: 2}[protocol]
    covered = body if protocol == ICMP else source + target + struct.pack("!HH", protocol, len(body)) + body
    found = full_checksum(covered)
    if protocol == UDP:
        found = found or 0xFFFF
    return bytearray(header + body[:at] + found.to_bytes(2) + body[at + 2 :])


def a_datagram(source: bytes, source_port: int, target: bytes, target_port: int, content: bytes = b"hi") -> bytearray:
    """A UDP packet."""
    body = struct.pack("!HHHH", source_port, target_port, 8 + len(content), 0) + content
    return a_packet(UDP, source, target, body)


def a_segment(source: bytes, source_port: int, target: bytes, target_port: int, content: bytes = b"") -> bytearray:
    """A TCP packet."""
    body = struct.pack("!HHIIBBHHH", source_port, target_port, 1, 2, 0x50, 0x18, 512, 0, 0) + content
    return a_packet(TCP, source, target, body)


def an_echo(source: bytes, target: bytes, number: int, *, is_reply: bool = False) -> bytearray:
    """An ICMP echo request or reply."""
    return a_packet(ICMP, source, target, struct.pack("!BBHHH", 0 if is_reply else 8, 0, 0, number, 1) + b"ping")


def an_error(source: bytes, target: bytes, about: bytes | bytearray) -> bytearray:
    """An ICMP port unreachable about the start of a packet."""
    return a_packet(ICMP, source, target, struct.pack("!BBHI", 3, 3, 0, 0) + bytes(about[:28]))


def is_sound(packet: bytes | bytearray) -> bool:
    """Whether both checksums are what a full computation gives."""
    length = (packet[0] & 0x0F) * 4
    if full_checksum(packet[:length]) != 0:
        return False
    body, protocol = packet[length:], packet[9]
    if protocol == ICMP:
        return full_checksum(body) == 0
    if protocol == UDP and body[6:8] == b"\0\0":
        return True
    return full_checksum(packet[12:20] + struct.pack("!HH", protocol, len(body)) + body) == 0


def ports(packet: bytes | bytearray) -> tuple[int, int]:
    """Source and destination port."""
    length = (packet[0] & 0x0F) * 4
    return int.from_bytes(packet[length : length + 2]), int.from_bytes(packet[length + 2 : length + 4])
