"""A Debian kernel for the emulated machine of tests/kernel: only unpacked, never installed."""

import platform
import re
import shutil

from lib.machine import install
from lib.steps import CACHE, run, say, step

FOLDER = CACHE / "kernel"
META_PACKAGE = "linux-image-cloud-amd64"


def ensure_kernel() -> None:
    """Make sure that the emulator and a kernel with WireGuard are here; elsewhere than on x86_64 say why not.

    Raises:
        SetupFailed: a package could not be had.
    """
    if platform.machine() != "x86_64":
        say("no kernel for tests: the emulated machine is an x86_64 one")
        return
    missing: dict[str, str] = {}
    if not shutil.which("qemu-system-x86_64"):
        missing["qemu-system-x86"] = "emulates a machine whose kernel has WireGuard"
    if not shutil.which("cpio"):
        missing["cpio"] = "packs that machine's files"
    install(missing)
    if not list(FOLDER.glob("boot/vmlinuz-*")):
        step("kernel for tests", _unpack)


def _unpack() -> None:
    run(("apt-get", "update", "-q"), what="apt-get update")
    told = run(("apt-cache", "depends", META_PACKAGE), what=f"asking for {META_PACKAGE}")
    [package] = re.findall(r"Depends: (linux-image-\S+)", told)
    partial = FOLDER.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # It writes to the folder that it runs in, and leaves what the package depends on.
    run(("sh", "-c", 'cd "$0" && apt-get download -q "$1"', partial, package), what=f"downloading {package}")
    [found] = partial.glob(f"{package}_*.deb")
    run(("dpkg-deb", "-x", found, partial), what=f"unpacking {package}")
    found.unlink()
    shutil.rmtree(FOLDER, ignore_errors=True)
    partial.rename(FOLDER)
