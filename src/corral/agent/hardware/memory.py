"""Memory and disk of the host, as its containers will find them."""

from pathlib import Path

import psutil

ENGINE_DISK = Path("/")
"""The agent's own root lies on the engine's data root, so its free space is what containers can use."""


def memory_bytes() -> int:
    """All memory that the kernel manages, in bytes; the container's own limit plays no part."""
    return psutil.virtual_memory().total


def disk_free_bytes(path: Path = ENGINE_DISK) -> tuple[int, tuple[str, ...]]:
    """Free bytes on the file system of `path`, and a note if it cannot be asked."""
    try:
        return psutil.disk_usage(str(path)).free, ()
    except OSError as error:
        return 0, (f"free disk space could not be read at {path}: {error}",)
