"""
AMD GPUs, by the vendor's management library (AMD SMI).

The Python package prints and raises while it is imported on a machine without `libamd_smi.so`, so it is imported only
where that library loads. Never run on a real card so far: tested with published samples alone.
"""

import contextlib
import ctypes
import ctypes.util
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from corral.core.units import MIB
from corral.wire.agent import Gpu

_LIBRARY_PATHS = ("/opt/rocm/lib/libamd_smi.so", "/opt/rocm/lib64/libamd_smi.so", "libamd_smi.so")
_DRM = Path("/sys/class/drm")
_AMD_PCI_VENDOR = "0x1002"


def read_amd(library: Any | None = None, *, drm: Path = _DRM) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """
    The AMD GPUs of this machine, in AMD SMI's order, and notes on what could not be found out.

    Args:
        library: the module `amdsmi` or one that answers like it; None imports it where its library loads.
        drm: the kernel's list of graphics devices, from which a missing render node is told.

    Returns:
        No GPU and no note where there is no AMD GPU. One card that fails costs that card and a note, never the others.
    """
    if library is None:
        if not _library_loads(_LIBRARY_PATHS):
            return (), _note_of_cards_without_library(drm)
        try:
            library = _import_amdsmi()
        except Exception as error:
            return (), (f"AMD GPUs could not be read: AMD SMI does not start: {error!r}",)
    assert library is not None
    try:
        library.amdsmi_init()
    except Exception as error:
        return (), (f"AMD GPUs could not be read: the AMD driver does not work: {error}",)
    try:
        return _read_all(library, drm)
    except Exception as error:
        return (), (f"the AMD driver answers, but counting its GPUs failed: {error}",)
    finally:
        with contextlib.suppress(Exception):
            library.amdsmi_shut_down()


def _library_loads(paths: Iterable[str]) -> bool:
    for path in paths:
        try:
            ctypes.CDLL(path)
        except OSError:
            continue
        return True
    return False


def _import_amdsmi() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        import amdsmi
    return amdsmi


def _note_of_cards_without_library(drm: Path) -> tuple[str, ...]:
    cards = sum(1 for node in _render_nodes(drm) if _file_text(node / "device" / "vendor") == _AMD_PCI_VENDOR)
    if not cards:
        return ()
    return (f"{cards} AMD GPU(s) are not lent: libamd_smi.so does not load; install amd-smi-lib (part of ROCm)",)


def _read_all(library: Any, drm: Path) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    gpus: list[Gpu] = []
    notes: list[str] = []
    for index, handle in enumerate(library.amdsmi_get_processor_handles()):
        try:
            gpu = _read_one(library, handle, index, drm)
        except Exception as error:
            notes.append(f"AMD GPU {index} does not answer: {error}")
            continue
        if not gpu.render_node:
            notes.append(f"AMD GPU {index} ({gpu.model}) has no render node, so no container can be given it")
        gpus.append(gpu)
    return tuple(gpus), tuple(notes)


def _read_one(library: Any, handle: Any, index: int, drm: Path) -> Gpu:
    asic = library.amdsmi_get_gpu_asic_info(handle)
    vram = library.amdsmi_get_gpu_vram_info(handle)
    bus_id = str(library.amdsmi_get_gpu_device_bdf(handle)).lower()
    driver = _optional(lambda: library.amdsmi_get_gpu_driver_info(handle)) or {}
    return Gpu(
        uuid=str(library.amdsmi_get_gpu_device_uuid(handle)),
        vendor="amd",
        model=str(asic["market_name"]),
        memory_bytes=int(vram["vram_size"]) * MIB,  # AMD SMI counts video memory in mebibytes
        index=index,
        driver=str(driver.get("driver_version", "")),
        pci_bus_id=bus_id,
        render_node=_render_node(library, handle, bus_id, drm),
    )


def _render_node(library: Any, handle: Any, bus_id: str, drm: Path) -> str:
    # The enumeration call is younger than AMD SMI itself; the kernel's own list knows the card by its bus address.
    enumeration = _optional(lambda: library.amdsmi_get_gpu_enumeration_info(handle)) or {}
    number = enumeration.get("drm_render")
    if isinstance(number, int):
        return f"renderD{number}"
    for node in _render_nodes(drm):
        if (node / "device").resolve().name.lower() == bus_id:
            return node.name
    return ""


def _render_nodes(drm: Path) -> list[Path]:
    return sorted(drm.glob("renderD*"))


def _optional(call: Callable[[], Any]) -> Any | None:
    try:
        return call()
    except Exception:
        return None


def _file_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
