"""What Ray is told about a node: counted from the devices that it consists of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from corral.core.units import MIB

OBJECT_STORE_BYTES_MIN = 80 * MIB
"""Ray refuses less."""

OBJECT_STORE_PERCENT = 30
"""Ray's own default share of a node's memory."""


class Share(Protocol):
    """A device's share of its host."""

    @property
    def kind(self) -> str: ...
    @property
    def cores(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class RaySize:
    """Logical resources of a node."""

    num_cpus: int
    num_gpus: int
    object_store_bytes: int


def ray_size(shares: Sequence[Share]) -> RaySize:
    """
    Ray's resources on a node of these devices.

    A CPU slice counts 1, also a fractional one of a development host; a GPU brings its cores rounded down, at least 1.
    """
    memory_bytes = sum(share.memory_bytes for share in shares)
    return RaySize(
        num_cpus=sum(1 if share.kind == "cpu" else max(1, int(share.cores)) for share in shares),
        num_gpus=sum(share.kind == "gpu" for share in shares),
        object_store_bytes=max(OBJECT_STORE_BYTES_MIN, memory_bytes * OBJECT_STORE_PERCENT // 100),
    )
