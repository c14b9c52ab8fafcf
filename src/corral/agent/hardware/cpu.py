"""The processor: its name as the vendor writes it, and how many cores the kernel counts."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import psutil

from corral.wire.agent import Cpu

_VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd", "Apple": "apple", "ARM": "arm"}
_TEXT_MAX = 512


async def read_cpu() -> tuple[Cpu, tuple[str, ...]]:
    """
    The processor of this machine, and notes on what could not be found out.

    py-cpuinfo starts processes and takes about a second, so it runs once and in a thread.
    """
    cores = psutil.cpu_count(logical=True) or 1
    try:
        found = await asyncio.to_thread(_cpuinfo)
    except Exception as error:
        return Cpu(model="unknown", cores=cores), (f"the processor's name could not be read: {error}",)
    return cpu_from(found, cores=cores), ()


def with_present_cores(known: Cpu) -> Cpu:
    """A processor found earlier, with the cores that the kernel counts now."""
    return msgspec.structs.replace(known, cores=float(psutil.cpu_count(logical=True) or 1))


def cpu_from(found: Mapping[str, Any], *, cores: int) -> Cpu:
    """
    The processor that py-cpuinfo's answer describes.

    Args:
        found: what `cpuinfo.get_cpu_info()` returned; any field may be missing.
        cores: logical cores, as the kernel counts them: py-cpuinfo's own count is wrong under a CPU set.
    """
    model = str(found.get("brand_raw") or found.get("arch_string_raw") or "unknown").strip()
    vendor = str(found.get("vendor_id_raw") or "")
    architecture = str(found.get("arch_string_raw") or found.get("arch") or "").lower()
    return Cpu(
        model=" ".join(model.split())[:_TEXT_MAX],
        vendor=_vendor(vendor, model)[:_TEXT_MAX],
        architecture=architecture[:_TEXT_MAX],
        cores=float(cores),
    )


def _vendor(vendor_id: str, model: str) -> str:
    # Apple's chips, and most Arm servers, give no vendor id: the name then tells.
    if vendor_id in _VENDORS:
        return _VENDORS[vendor_id]
    return next((word for word in ("intel", "amd", "apple", "ampere") if word in model.lower()), vendor_id.lower())


def _cpuinfo() -> dict[str, Any]:
    import cpuinfo

    return cpuinfo.get_cpu_info()
