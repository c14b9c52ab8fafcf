"""
WireGuard's messages as far as somebody without a key can read them: type, length, indexes and mac1.

Source: the WireGuard white paper, section 5.4; all integers are little-endian.
"""

import hashlib
from typing import Final

INITIATION: Final = b"\x01\0\0\0"
RESPONSE: Final = b"\x02\0\0\0"
COOKIE: Final = b"\x03\0\0\0"
DATA: Final = b"\x04\0\0\0"
"""The type, with the three reserved bytes that follow it."""

INITIATION_BYTES: Final = 148
RESPONSE_BYTES: Final = 92
COOKIE_BYTES: Final = 64
DATA_BYTES_MIN: Final = 32

INITIATION_COVERED_BYTES: Final = 116
RESPONSE_COVERED_BYTES: Final = 60
"""What mac1 covers; mac1 itself follows, then mac2."""

MAC1_BYTES: Final = 16
KEY_BYTES: Final = 32
_LABEL: Final = b"mac1----"


class Mac1:
    """The check that a handshake message was made for the owner of one public key."""

    __slots__ = ("_keyed",)

    def __init__(self, public_key: bytes) -> None:
        key = hashlib.blake2s(_LABEL + public_key).digest()
        self._keyed = hashlib.blake2s(digest_size=MAC1_BYTES, key=key)

    def of(self, covered: bytes) -> bytes:
        """The 16 bytes that follow `covered` in a message for this key's owner."""
        # A copy of the keyed state costs two thirds of a new one; a flood of junk is paid for in these.
        keyed = self._keyed.copy()
        keyed.update(covered)
        return keyed.digest()


def sender_index(packet: bytes | memoryview) -> int:
    """The index that the sender of an initiation or a response chose for packets to itself."""
    return int.from_bytes(packet[4:8], "little")


def receiver_index(packet: bytes | memoryview) -> int:
    """The index that the receiver of a response, a cookie reply or data once chose."""
    return int.from_bytes(packet[8:12] if packet[0] == RESPONSE[0] else packet[4:8], "little")
