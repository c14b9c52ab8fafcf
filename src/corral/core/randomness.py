"""Randomness as a value that is passed in."""

import random
import secrets
from typing import Protocol


class Randomness(Protocol):
    """Where random bytes come from."""

    def bytes(self, count: int) -> bytes:
        """Returns `count` random bytes."""
        ...


class SystemRandomness:
    """The operating system's generator: fit for keys and tokens."""

    def bytes(self, count: int) -> bytes:
        """Returns `count` bytes of the system's generator."""
        return secrets.token_bytes(count)


class SeededRandomness:
    """Repeatable bytes for simulations and tests; never for keys of a real network."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        """Returns the next `count` bytes of the seeded sequence."""
        return self._random.randbytes(count)
