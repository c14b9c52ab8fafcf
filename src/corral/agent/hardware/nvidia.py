"""
NVIDIA GPUs, by the vendor's management library (NVML).

`read_nvidia()` needs neither engine nor network, so it can be tried on a real card by itself:
`python -c "from corral.agent.hardware.nvidia import read_nvidia; print(read_nvidia())"`.
"""

from collections.abc import Callable
from typing import Any

from corral.wire.agent import Gpu

_MIG_ENABLED = 1  # NVML_DEVICE_MIG_ENABLE


def read_nvidia(library: Any | None = None) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """
    The NVIDIA GPUs of this machine, in NVML's order, and notes on what could not be found out.

    Args:
        library: the module `pynvml` or one that answers like it; None imports it.

    Returns:
        No GPU and no note where there is no NVIDIA driver. One card that fails costs that card and a note, never the
        others. Cards in MIG mode carry `mig=True`: they are shown and not lent whole.
    """
    if library is None:
        try:
            import pynvml as library
        except ImportError:
            return (), ("NVIDIA GPUs were not looked for: nvidia-ml-py is not installed",)
    assert library is not None
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return (), _note_of_failed_start(library, error)
    try:
        return _read_all(library)
    except library.NVMLError as error:
        return (), (f"the NVIDIA driver answers, but counting its GPUs failed: {error}",)
    finally:
        _quietly(library, library.nvmlShutdown)


def _note_of_failed_start(library: Any, error: Exception) -> tuple[str, ...]:
    # No library and no driver mean that this is no NVIDIA machine: the ordinary case, which needs no note.
    ordinary = (library.NVML_ERROR_LIBRARY_NOT_FOUND, library.NVML_ERROR_DRIVER_NOT_LOADED)
    if getattr(error, "value", None) in ordinary:
        return ()
    return (f"the NVIDIA driver does not work: {error}; see `nvidia-smi` on the host",)


def _read_all(library: Any) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    driver = _text(_quietly(library, library.nvmlSystemGetDriverVersion) or "")
    gpus: list[Gpu] = []
    notes: list[str] = []
    for index in range(library.nvmlDeviceGetCount()):
        try:
            gpus.append(_read_one(library, index, driver))
        except library.NVMLError as error:
            notes.append(f"NVIDIA GPU {index} does not answer: {error}")
    return tuple(gpus), tuple(notes)


def _read_one(library: Any, index: int, driver: str) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    # Not every card knows of MIG, and consumer cards answer "not supported".
    mig = _quietly(library, lambda: library.nvmlDeviceGetMigMode(handle))
    pci = _quietly(library, lambda: library.nvmlDeviceGetPciInfo(handle))
    return Gpu(
        uuid=_text(library.nvmlDeviceGetUUID(handle)),
        vendor="nvidia",
        model=_text(library.nvmlDeviceGetName(handle)),
        memory_bytes=_memory_bytes(library, handle),
        index=index,
        driver=driver,
        pci_bus_id=_text(pci.busId).lower() if pci is not None else "",
        mig=mig is not None and mig[0] == _MIG_ENABLED,
    )


def _memory_bytes(library: Any, handle: Any) -> int:
    # Cards that share the system's memory (Grace, Jetson) have none of their own and answer "not supported".
    memory = _quietly(library, lambda: library.nvmlDeviceGetMemoryInfo(handle))
    return int(memory.total) if memory is not None else 0


def _quietly(library: Any, call: Callable[[], Any]) -> Any | None:
    """What `call` returns, or None where this card or driver does not support it."""
    try:
        return call()
    except library.NVMLError:
        return None


def _text(value: bytes | str) -> str:
    # Older releases of nvidia-ml-py return bytes.
    return value.decode(errors="replace") if isinstance(value, bytes) else value
