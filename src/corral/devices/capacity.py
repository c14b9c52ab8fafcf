"""What a host may claim to own: the sum of its devices never exceeds the host, and nothing is absurd."""

import math

from corral.core.units import GIB
from corral.devices.errors import ReportRefused
from corral.wire.agent import Check, DeviceOffer, Hardware

CORES_MAX = 4096
MEMORY_BYTES_MAX = 64 * 1024 * GIB
DISK_BYTES_MAX = 16 * 1024 * 1024 * GIB
GPU_MEMORY_BYTES_MAX = 4 * 1024 * GIB
GPUS_MAX = 64
DEVICES_MAX = 4096
CHECKS_MAX = 64
CORES_SLACK = 1e-6  # Fractional cores are sums of floats.


def check_hardware(hardware: Hardware) -> None:
    """
    Refuses hardware that cannot exist.

    Raises:
        ReportRefused: cores, memory, disk or GPUs out of any reason, or two GPUs with one UUID.
    """
    # A gateway lends nothing: it reports no cores and no devices.
    _within("cores", hardware.cpu.cores, CORES_MAX, minimum=0)
    _within("memory_bytes", hardware.memory_bytes, MEMORY_BYTES_MAX, minimum=1)
    _within("disk_free_bytes", hardware.disk_free_bytes, DISK_BYTES_MAX)
    if len(hardware.gpus) > GPUS_MAX:
        raise ReportRefused(f"{len(hardware.gpus)} GPUs are claimed, at most {GPUS_MAX} are believed")
    if len({gpu.uuid for gpu in hardware.gpus}) < len(hardware.gpus):
        raise ReportRefused("two GPUs have the same UUID")
    for gpu in hardware.gpus:
        _within(f"memory_bytes of GPU {gpu.uuid}", gpu.memory_bytes, GPU_MEMORY_BYTES_MAX)


def check_devices(devices: tuple[DeviceOffer, ...], hardware: Hardware) -> None:
    """
    Refuses devices that this hardware does not hold.

    Raises:
        ReportRefused: a key twice, a share that is absurd, a GPU that the hardware does not name, or a sum of cores,
            memory or disk above the host's.
    """
    if len(devices) > DEVICES_MAX:
        raise ReportRefused(f"{len(devices)} devices are claimed, at most {DEVICES_MAX} are believed")
    if len({device.key for device in devices}) < len(devices):
        raise ReportRefused("two devices have the same key")
    gpus = {gpu.uuid: gpu for gpu in hardware.gpus}
    for device in devices:
        _within(f"cores of {device.key}", device.cores, CORES_MAX, minimum=0.01)
        _within(f"memory_bytes of {device.key}", device.memory_bytes, MEMORY_BYTES_MAX, minimum=1)
        if device.kind == "gpu" and device.key not in gpus:
            raise ReportRefused(f"device {device.key} names a GPU that the host did not report")
        if device.kind == "gpu" and device.gpu_memory_bytes > gpus[device.key].memory_bytes:
            raise ReportRefused(f"device {device.key} claims more GPU memory than its GPU has")
        if device.kind == "cpu" and device.gpu_memory_bytes:
            raise ReportRefused(f"device {device.key} is a CPU slice with GPU memory")
    _sum_within("cores", math.fsum(device.cores for device in devices), hardware.cpu.cores + CORES_SLACK)
    _sum_within("memory_bytes", sum(device.memory_bytes for device in devices), hardware.memory_bytes)
    _sum_within("disk_bytes", sum(device.disk_bytes for device in devices), hardware.disk_free_bytes)


def check_checks(checks: tuple[Check, ...]) -> None:
    """
    Refuses a requirement table that is too long or names a rule twice.

    Raises:
        ReportRefused: see above.
    """
    if len(checks) > CHECKS_MAX or len({check.rule for check in checks}) < len(checks):
        raise ReportRefused("the requirement table is too long or names a rule twice")


def _within(what: str, value: float, maximum: float, *, minimum: float = 0) -> None:
    if not minimum <= value <= maximum:  # False for NaN, too.
        raise ReportRefused(f"{what} is {value}, which is not within {minimum} and {maximum}")


def _sum_within(what: str, total: float, held: float) -> None:
    if total > held:
        raise ReportRefused(f"the devices claim {total} {what} together, the host has {held}")
