"""What the parts of scripts/setup share: steps shown with their seconds, commands, and the one way to give up."""

import fcntl
import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, NoReturn, TypeVar

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
_Result = TypeVar("_Result")
_print_lock = threading.Lock()


class SetupFailed(Exception):
    """Setup cannot go on; the text says what is missing and the command for it."""


def say(text: str) -> None:
    """One line of progress on stderr."""
    with _print_lock:
        print(f"setup: {text}", file=sys.stderr, flush=True)


def step(name: str, work: Callable[[], _Result]) -> _Result:
    """Run `work`, show that it runs and how long it took."""
    say(f"{name} …")
    began_at = time.monotonic()
    result = work()
    say(f"{name}: {time.monotonic() - began_at:.1f} s")
    return result


def alone() -> IO[str]:
    """Wait until no other setup of this checkout runs; ours then lasts as long as the returned file is open."""
    CACHE.mkdir(exist_ok=True)
    lock = (CACHE / "setup.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another setup of this checkout is running; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def run(command: Sequence[str | Path], *, what: str, given: bytes | None = None, **options: object) -> str:
    """Output of a command that must succeed.

    Raises:
        SetupFailed: it did not; with the last lines of what it said.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=given, capture_output=True, check=False, cwd=ROOT, **options)  # type: ignore[call-overload]
    except FileNotFoundError:
        raise SetupFailed(f"{what}: the program {words[0]} is missing") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
        raise SetupFailed(
            "\n".join([f"{what} failed: {' '.join(words[:6])} … (status {done.returncode})", *said[-25:]])
        )
    return done.stdout.decode()


def digest_of(paths: Iterable[Path], *words: str) -> str:
    """SHA-256 over `words` and over the names, modes and contents of files, folders included."""
    total = hashlib.sha256()
    for word in words:
        total.update(word.encode() + b"\0")
    for path in paths:
        members = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in members:
            if file.is_file() and "__pycache__" not in file.parts:
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                is_program = bool(file.stat().st_mode & 0o100)
                total.update(f"{file.relative_to(ROOT)} {is_program} {content}\n".encode())
    return total.hexdigest()


def give_up(error: SetupFailed) -> NoReturn:
    """Print why, and end with status 1."""
    sys.exit(f"setup: error: {error}")
