"""
Process 1 of a machine of the lab: makes its namespaces look like a machine, then only reaps what is orphaned.

Run by `machine.py` under `unshare`, with a bare interpreter: nothing of this project is imported.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path


def main(lab: Path, name: str) -> None:
    """Mounts, names, and waits for ever."""
    folder = lab / "machines" / name
    # The /proc in place is still the one of the machine around us, so this is our number there.
    outer_pid = os.readlink("/proc/self")
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    _call("mount", "-t", "proc", "proc", "/proc")
    _call("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")  # noqa: S108
    _call("mount", "--bind", str(folder / "run"), "/run")
    for source, target in (("etc-docker", "/etc/docker"), ("machine-id", "/etc/machine-id")):
        if os.path.exists(target):
            _call("mount", "--bind", str(folder / source), target)
    _call("hostname", name)
    _call("ip", "link", "set", "lo", "up")
    (folder / "pid.new").write_text(f"{outer_pid} {started}")
    (folder / "pid.new").rename(folder / "pid")
    # Blocked, so that an end between reaping and waiting is not missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    while True:
        _reap()
        signal.sigwait([signal.SIGCHLD])


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
