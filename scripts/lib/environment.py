"""The virtual environment of this checkout: exactly the lock, plus the project itself, editable."""

import platform
import sys
from pathlib import Path

from lib.steps import CACHE, ROOT, digest_of, run, step

HERE = Path(__file__).resolve().parent
TOOLS = CACHE / "tools"
UV = TOOLS / "bin" / "uv"
BUILD_LOCK = HERE / "build.txt"
ENVIRONMENT = ROOT / ".venv"
LOCK = ROOT / "requirements" / "dev.txt"


def ensure_environment() -> None:
    """Bring `.venv` to the lock; nothing is asked and nothing changes where it already is."""
    stamp = ENVIRONMENT / ".corral-lock"
    wanted = digest_of([LOCK, ROOT / "pyproject.toml", HERE / "tools.txt", BUILD_LOCK], platform.python_version())
    if (ENVIRONMENT / "bin" / "python").exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    ensure_tools()
    step("Python environment", _sync)
    stamp.write_text(wanted)


def ensure_tools() -> None:
    """uv, at a pinned version with its hash, in an environment of its own: a sync must not remove it."""
    stamp = TOOLS / ".corral-lock"
    wanted = digest_of([HERE / "tools.txt"], platform.python_version(), sys.executable)
    if UV.exists() and stamp.exists() and stamp.read_text() == wanted:
        return

    def work() -> None:
        CACHE.mkdir(exist_ok=True)
        run((sys.executable, "-m", "venv", "--clear", TOOLS), what="making a virtual environment")
        pip = (TOOLS / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
        run((*pip, "--require-hashes", "--only-binary=:all:", "-r", HERE / "tools.txt"), what="installing uv")
        stamp.write_text(wanted)

    step("uv", work)


def _sync() -> None:
    if not (ENVIRONMENT / "bin" / "python").exists():
        run((sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT), what="making .venv")
    target = ("--python", ENVIRONMENT / "bin" / "python")
    run((UV, "pip", "sync", "-q", *target, "--require-hashes", LOCK), what="installing requirements/dev.txt")
    project = ("--no-deps", "--build-constraints", BUILD_LOCK, "--editable", ROOT)
    run((UV, "pip", "install", "-q", *target, *project), what="installing the project")
