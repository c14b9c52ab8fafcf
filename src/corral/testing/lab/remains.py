"""Ends whatever is left of a lab, also one whose maker was killed; and says what still exists of it."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from corral.testing.lab.errors import LabFailed
from corral.testing.lab.machine import BOOT, NAMESPACES, kill_all, started_at

FORWARDER = "corral.testing.lab.forwarder"
STATE_NAME = "lab.json"
_CGROUPS = Path("/sys/fs/cgroup")
_REMOVE_TIMEOUT_S = 20.0

Process = tuple[int, str]
"""Number and start: a number alone may be another process by now."""


def demolish(folder: Path) -> set[Process]:
    """
    Ends all processes of the lab in `folder`, removes its control groups, and the folder. Nothing there is fine.

    Returns:
        The processes that there were, for `left_behind`.

    Raises:
        LabFailed: something does not go away.
    """
    were = inhabitants(folder)
    kill_all(list(holders(folder)))
    # With its first process a machine's other processes were killed too; they need a moment to be gone.
    deadline = time.monotonic() + _REMOVE_TIMEOUT_S
    while True:
        _remove_cgroups(folder)
        shutil.rmtree(folder, ignore_errors=True)
        left = left_behind(folder, were)
        if not left:
            return were
        if time.monotonic() > deadline:
            raise LabFailed(f"of the lab in {folder} there is still: {', '.join(left)}", hint="end these, then again")
        time.sleep(0.05)


def left_behind(folder: Path, were: Iterable[Process] = ()) -> list[str]:
    """
    What exists of a lab: processes, mounts, control groups, files. A namespace lives no longer than its processes.

    Args:
        folder: of the lab.
        were: its processes before the end, as `inhabitants` gave them. (Not its namespaces: their numbers are used
            again at once.)
    """
    pids = set(holders(folder)) | {pid for pid, started in were if started_at(pid) == started}
    left = [f"process {pid}" for pid in sorted(pids)]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    left += [f"mount {line.split()[1]}" for line in mounts if f"{folder}/" in line]
    left += [f"control group {path}" for path in _cgroups(folder)]
    if folder.exists():
        left.append(f"folder {folder}")
    return left


def inhabitants(folder: Path) -> set[Process]:
    """All processes in any namespace of the lab's machines, and its internet."""
    held = set(holders(folder))
    namespaces = {name for pid in held for name in _namespaces(pid)} - _namespaces(os.getpid())
    found = {pid for pid in _processes() if _namespaces(pid) & namespaces}
    return {(pid, started) for pid in held | found if (started := started_at(pid))}


def cgroup(folder: Path) -> str:
    """The control group below which all containers of a lab are: a name that no other program uses."""
    return f"corral-lab-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def holders(folder: Path) -> Iterator[int]:
    """Processes that hold the lab's machines, and its internet; all the others end with these."""
    for pid in _processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(folder) in words and (str(BOOT) in words or FORWARDER in words):
            yield pid


def _namespaces(pid: int) -> set[str]:
    try:
        return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in NAMESPACES}
    except OSError:
        return set()


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _cgroups(folder: Path) -> list[Path]:
    """The lab's control groups: in each hierarchy of version 1, or in the one of version 2."""
    name = cgroup(folder)
    found = [_CGROUPS / name, *(path / name for path in _CGROUPS.glob("*/"))]
    return [path for path in found if path.is_dir()]


def _remove_cgroups(folder: Path) -> None:
    for top in _cgroups(folder):
        for path, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(path)
            except OSError:
                continue  # Still busy or gone already: `left_behind` tells which.
