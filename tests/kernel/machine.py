"""An emulated machine with a Debian kernel that has WireGuard, and the file system of corral-net."""

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EMULATOR = "qemu-system-x86_64"
MEMORY_MIB = 1024
MODULES = ("veth", "wireguard", "nf_tables", "nft_ct", "tun")
"""What the mesh needs of the kernel, and the wire between the two."""


def missing(kernels: Path) -> str:
    """Why there can be no such machine here; empty if there can."""
    if platform.machine() != "x86_64":
        return "the emulated machine is an x86_64 one; as another it would be far too slow"
    if shutil.which(EMULATOR) is None or shutil.which("cpio") is None:
        return f"{EMULATOR} or cpio is missing; scripts/test --all installs them"
    return (
        "" if list(kernels.glob("boot/vmlinuz-*")) else f"there is no kernel in {kernels}; scripts/test --all gets it"
    )


def build(folder: Path, *, kernels: Path, image: str, init: Path) -> tuple[Path, Path]:
    """
    Makes the machine's kernel and first file system.

    Args:
        folder: empty; for what is made.
        kernels: an unpacked Debian package of a kernel.
        image: of corral-net.
        init: the program to run as process 1.

    Returns:
        Kernel and file system.
    """
    [kernel] = kernels.glob("boot/vmlinuz-*")
    root = folder / "root"
    root.mkdir()
    made = subprocess.run(["docker", "create", image], capture_output=True, text=True, check=True).stdout.strip()
    try:
        with subprocess.Popen(["docker", "export", made], stdout=subprocess.PIPE) as exporting:
            subprocess.run(["tar", "-x", "-C", str(root)], stdin=exporting.stdout, check=True)
    finally:
        subprocess.run(["docker", "rm", made], capture_output=True, check=True)
    (root / "modules").mkdir()
    names = list(_modules(kernels))
    for path in names:
        shutil.copy(path, root / "modules")
    (root / "modules" / "order").write_text("\n".join(path.name for path in names))
    shutil.copy(init, root / "init")
    (root / "init").chmod(0o755)
    packed = folder / "root.cpio"
    with packed.open("wb") as file:
        pack = "find . -print0 | cpio --null --create --format=newc --quiet"
        subprocess.run(["sh", "-c", pack], cwd=root, stdout=file, check=True)
    shutil.rmtree(root)
    return kernel, packed


def run(kernel: Path, packed: Path, *, timeout_s: float) -> tuple[list[dict[str, Any]], str]:
    """Runs the machine until it turns itself off; its messages, and all that it printed."""
    command = [EMULATOR, "-accel", "tcg,thread=multi", "-cpu", "max", "-m", str(MEMORY_MIB)]
    command += ["-smp", "2", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"]
    command += ["-kernel", str(kernel), "-initrd", str(packed), "-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    lines = re.findall(r"\{\"(?:ok|failed)\".*\}", done.stdout)
    return [json.loads(line) for line in lines], done.stdout[-4000:] + done.stderr[-2000:]


def _modules(kernels: Path) -> Iterator[Path]:
    """Modules in an order in which they can be loaded, each once."""
    found = {
        path.name.partition(".")[0].replace("-", "_"): path for path in kernels.glob("lib/modules/*/kernel/**/*.ko")
    }
    given: set[str] = set()

    def needed(name: str) -> Iterator[Path]:
        if name in given or name not in found:
            return  # What is no file is part of the kernel itself.
        given.add(name)
        depends = re.search(rb"\0depends=([^\0]*)\0", found[name].read_bytes())
        for other in depends.group(1).decode().split(",") if depends else ():
            yield from needed(other.replace("-", "_"))
        yield found[name]

    for name in MODULES:
        yield from needed(name)
