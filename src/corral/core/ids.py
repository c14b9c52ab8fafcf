"""Ids: one type each, so that two of them cannot be swapped in silence."""

import re
from datetime import UTC, datetime
from typing import NewType, Protocol

from corral.core.clock import Clock
from corral.core.randomness import Randomness

PersonId = NewType("PersonId", str)
KeyId = NewType("KeyId", str)
HostId = NewType("HostId", str)
DeviceId = NewType("DeviceId", str)
QuoteId = NewType("QuoteId", str)
BookingId = NewType("BookingId", str)
LineId = NewType("LineId", str)
ClusterId = NewType("ClusterId", str)
NodeId = NewType("NodeId", str)
AccountId = NewType("AccountId", str)
TransferId = NewType("TransferId", str)

ID_PATTERN = r"^[a-z]{2,4}_[0-9a-z]{26}$"
"""A prefix that tells the kind, then 26 characters: 10 of time (milliseconds), 16 of randomness (80 bits)."""

NAME_PATTERN = r"^[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?$"
"""Names of persons, hosts and clusters: a DNS label of at most 40 characters that starts with a letter."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u to misread.
_ID = re.compile(ID_PATTERN)
_NAME = re.compile(NAME_PATTERN)


class IdSource(Protocol):
    """Where new ids come from."""

    def new(self, prefix: str) -> str:
        """Returns a new id `prefix_…`, later ones sorting after earlier ones."""
        ...


class TimeOrderedIds:
    """Ids that sort by the time of their making (the layout of a ULID)."""

    def __init__(self, clock: Clock, randomness: Randomness) -> None:
        self._clock = clock
        self._randomness = randomness

    def new(self, prefix: str) -> str:
        """Returns a new id, unique with 80 random bits within its millisecond."""
        milliseconds = int(self._clock.now().timestamp() * 1000)
        number = milliseconds << 80 | int.from_bytes(self._randomness.bytes(10), "big")
        return f"{prefix}_{_base32(number)}"


def made_at(identifier: str) -> datetime:
    """The instant at which a time-ordered id was made, to the millisecond, UTC."""
    number = 0
    for character in identifier.rpartition("_")[2]:
        number = number << 5 | _ALPHABET.index(character)
    return datetime.fromtimestamp((number >> 80) / 1000, UTC)


def is_id(text: str) -> bool:
    """Whether `text` is an id (`ID_PATTERN`)."""
    return _ID.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether `text` may name a person, a host or a cluster (`NAME_PATTERN`)."""
    return _NAME.fullmatch(text) is not None


def _base32(number: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in range(25, -1, -1))
