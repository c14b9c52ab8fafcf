"""
What a host has to lend: its hardware cut into devices, whose sum never exceeds it.

1. The host itself keeps a reserve: no core where it has at most two, else 10 % of them and at least half a core; 10 %
   of memory and at least 2 GiB; 10 % of the free disk and at least 20 GiB (for images).
2. Each GPU that can be handed to a container is a device with a fixed share: up to 16 cores, up to 32 GiB or twice its
   own memory (the greater), up to 1 TiB of disk. Where the host has less, the shares shrink in proportion.
3. What is left becomes CPU slices of one core each, with equal shares of the memory and disk left: as many as the
   cores allow while each gets at least 2 GiB of memory and 10 GiB of disk.

More cores, memory or disk never give fewer devices; another GPU never gives fewer GPUs, but may take cores from slices.
A card in MIG mode, and one for which the engine lacks the means, is shown in the hardware and not lent.

In development there is exactly one CPU slice, of the cores and memory that were asked for, possibly a fraction of a
core: several agents then share one machine.
"""

import math
from collections.abc import Iterable, Sequence

from corral.core.errors import CorralError
from corral.core.units import GIB
from corral.wire.agent import DeviceOffer, Gpu, Hardware

RESERVE_FRACTION = 0.1
CORES_RESERVE_MIN = 0.5
CORES_WITHOUT_RESERVE = 2.0
"""Hosts this small lend all cores: half a core less would cost them a whole slice."""
MEMORY_RESERVE_MIN = 2 * GIB
DISK_RESERVE_MIN = 20 * GIB

GPU_CORES = 16.0
GPU_MEMORY_MIN = 32 * GIB
GPU_MEMORY_FACTOR = 2
GPU_DISK = 1024 * GIB

SLICE_CORES = 1.0
SLICE_MEMORY_MIN = 2 * GIB
"""Ray's head alone holds 0.7 GiB; below this a slice runs nothing useful."""
SLICE_DISK_MIN = 10 * GIB

DEVELOPMENT_DISK = 10 * GIB
_HUNDREDTH = 100


class CapacityRefused(CorralError):
    """A development slice asks for more than the machine has."""

    code = "capacity_refused"


def devices_of(hardware: Hardware) -> tuple[DeviceOffer, ...]:
    """The devices of a host that is lent as a whole: GPUs first, in their order, then CPU slices."""
    cores, memory, disk = _lendable(hardware)
    gpus = [gpu for gpu in hardware.gpus if _is_lendable(gpu, hardware.runtimes)]
    gpu_cores, cores = _shares(cores, [GPU_CORES] * len(gpus))
    gpu_memory, memory = _shares(memory, [_gpu_memory_share(gpu) for gpu in gpus])
    gpu_disk, disk = _shares(disk, [float(GPU_DISK)] * len(gpus))
    offers = [
        DeviceOffer(
            key=gpu.uuid,
            kind="gpu",
            model=gpu.model,
            cores=math.floor(gpu_cores[place] * _HUNDREDTH) / _HUNDREDTH,
            memory_bytes=int(gpu_memory[place]),
            disk_bytes=int(gpu_disk[place]),
            gpu_memory_bytes=gpu.memory_bytes,
        )
        for place, gpu in enumerate(gpus)
    ]
    return (*offers, *_slices(hardware.cpu.model, cores, memory, disk))


def development_device(hardware: Hardware, *, cores: float, memory_bytes: int) -> DeviceOffer:
    """
    The one slice of a development agent: exactly what was asked for.

    Raises:
        CapacityRefused: more cores or memory than the machine has, or none.
    """
    if not 0 < cores <= hardware.cpu.cores:
        raise CapacityRefused(
            f"a slice of {cores} cores was asked for, this machine has {hardware.cpu.cores:g}; nothing is lent",
            hint="give --cores a value that all slices of this machine together do not exceed",
            cores=cores,
        )
    if not 0 < memory_bytes <= hardware.memory_bytes:
        raise CapacityRefused(
            f"a slice of {memory_bytes} bytes of memory was asked for, this machine has {hardware.memory_bytes}; "
            "nothing is lent",
            hint="give --memory fewer GiB",
            memory_bytes=memory_bytes,
        )
    return DeviceOffer(
        key="cpu-0",
        kind="cpu",
        model=hardware.cpu.model,
        cores=cores,
        memory_bytes=memory_bytes,
        disk_bytes=min(DEVELOPMENT_DISK, hardware.disk_free_bytes),
    )


def check_beside(
    others: Iterable[tuple[str, float, int]], *, cores: float, memory_bytes: int, hardware: Hardware
) -> None:
    """
    Whether a slice fits beside the others of the same machine.

    Args:
        others: (name, cores, bytes of memory) of each.
        cores: of the new slice.
        memory_bytes: of the new slice.
        hardware: the machine.

    Raises:
        CapacityRefused: together they would exceed the machine.
    """
    others = tuple(others)
    named = ", ".join(name for name, _, _ in others) or "none"
    cores_sum = cores + sum(one for _, one, _ in others)
    memory_sum = memory_bytes + sum(one for _, _, one in others)
    if cores_sum > hardware.cpu.cores + 1e-9:
        raise CapacityRefused(
            f"a slice of {cores:g} cores does not fit: with the others here ({named}) it would be {cores_sum:g}, "
            f"and this machine has {hardware.cpu.cores:g}; nothing was enrolled",
            hint=f"give --cores at most {max(0.0, hardware.cpu.cores - cores_sum + cores):g}, or remove a slice",
            cores=cores,
        )
    if memory_sum > hardware.memory_bytes:
        raise CapacityRefused(
            f"a slice of {memory_bytes / GIB:.1f} GiB does not fit: with the others here ({named}) it would be "
            f"{memory_sum / GIB:.1f} GiB, and this machine has {hardware.memory_bytes / GIB:.1f}; nothing was enrolled",
            hint="give --memory fewer GiB, or remove a slice",
            memory_bytes=memory_bytes,
        )


def _lendable(hardware: Hardware) -> tuple[float, float, float]:
    cores = hardware.cpu.cores
    reserve = max(CORES_RESERVE_MIN, cores * RESERVE_FRACTION)
    return (
        max(min(cores, CORES_WITHOUT_RESERVE), cores - reserve),
        _without_reserve(hardware.memory_bytes, MEMORY_RESERVE_MIN),
        _without_reserve(hardware.disk_free_bytes, DISK_RESERVE_MIN),
    )


def _without_reserve(total: int, reserve_min: int) -> float:
    return max(0.0, total - max(reserve_min, total * RESERVE_FRACTION))


def _is_lendable(gpu: Gpu, runtimes: Sequence[str]) -> bool:
    if gpu.vendor == "nvidia":
        return not gpu.mig and "nvidia" in runtimes
    return gpu.render_node != ""


def _gpu_memory_share(gpu: Gpu) -> float:
    return float(max(GPU_MEMORY_MIN, GPU_MEMORY_FACTOR * gpu.memory_bytes))


def _shares(total: float, wanted: Sequence[float]) -> tuple[list[float], float]:
    """What each gets of `total`: what it wants, or less in proportion; and what is left."""
    sum_wanted = sum(wanted)
    if sum_wanted <= total:
        return list(wanted), total - sum_wanted
    return [total * share / sum_wanted for share in wanted], 0.0


def _slices(model: str, cores: float, memory: float, disk: float) -> list[DeviceOffer]:
    count = min(int(cores / SLICE_CORES), int(memory / SLICE_MEMORY_MIN), int(disk / SLICE_DISK_MIN))
    return [
        DeviceOffer(
            key=f"cpu-{number}",
            kind="cpu",
            model=model,
            cores=SLICE_CORES,
            memory_bytes=int(memory / count),
            disk_bytes=int(disk / count),
        )
        for number in range(count)
    ]
