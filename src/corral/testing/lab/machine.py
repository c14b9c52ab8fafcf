"""
Machines of the lab: each its own network, process, mount, host name and IPC namespaces, held by one process.

When that process ends, the kernel ends everything in the machine and takes its mounts and devices away, also when the
program that made the lab was killed. So nothing has a name in /run/netns that somebody would have to remove.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from corral.testing.lab.errors import LabFailed, LabRefused, LabUnsupported

BOOT = Path(__file__).with_name("boot.py")
BOOT_TIMEOUT_S = 20.0
NAMESPACES = ("net", "pid", "mnt", "uts", "ipc")
PROGRAMS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "mount": "mount",
    "hostname": "hostname",
}
_SPAWN = 'echo $$ > "$0.new" && mv "$0.new" "$0" && exec "$@"'


@dataclass(frozen=True)
class Machine:
    """
    One machine of a lab.

    Args:
        lab: the lab's folder.
        name: also its host name.
    """

    lab: Path
    name: str

    @property
    def folder(self) -> Path:
        """All that the machine writes."""
        return self.lab / "machines" / self.name

    @property
    def pid(self) -> int:
        """
        Number of the process that holds the machine.

        Raises:
            LabRefused: the machine is off.
        """
        found = self._pid()
        if found is None:
            raise LabRefused(f"the machine {self.name} is off; nothing was done", hint="turn it on first")
        return found

    @property
    def is_on(self) -> bool:
        """Whether the machine runs."""
        return self._pid() is not None

    def turn_on(self, *, keep_open: Sequence[int] = ()) -> None:
        """
        Makes the namespaces; what was on the machine's disk is there again, what was in /run is not.

        Args:
            keep_open: descriptors that stay open for as long as the machine runs (locks).

        Raises:
            LabUnsupported: this machine cannot do that.
            LabFailed: it did not come up.
        """
        require_rights()
        if self.is_on:
            raise LabRefused(f"the machine {self.name} is on already; nothing was done")
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        (self.folder / "pid").unlink(missing_ok=True)
        for part in ("run", "etc-docker"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        identity = self.folder / "machine-id"
        if not identity.exists():
            identity.write_text(f"{os.urandom(16).hex()}\n")
        # An isolated interpreter: whatever is set for the caller does not reach it.
        command = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]
        command += ["--propagation", "private", sys.executable, "-ISB", str(BOOT), str(self.lab), self.name]
        with (self.folder / "boot.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=keep_open
            )
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while self._pid() is None:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                said = (self.folder / "boot.log").read_text(errors="replace").strip()
                raise LabFailed(f"the machine {self.name} did not start: {said[-2000:]}")
            time.sleep(0.005)

    def turn_off(self) -> None:
        """Pulls the plug: everything in the machine ends at once. Off already is fine."""
        pid = self._pid()
        if pid is None:
            return
        kill_all([pid])
        (self.folder / "pid").unlink(missing_ok=True)

    def command(self, argv: Sequence[str]) -> list[str]:
        """What to run here so that `argv` runs in the machine, in the same folder."""
        enter = ["nsenter", f"--target={self.pid}", *(f"--{_OPTIONS[kind]}" for kind in NAMESPACES)]
        return [*enter, f"--wd={Path.cwd()}", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        standard_input: str | None = None,
        timeout_s: float = 300,
    ) -> str:
        """
        Runs a program in the machine to its end.

        Returns:
            What it printed to its standard output.

        Raises:
            LabFailed: it ended with an error, or not in time.
        """
        shown = " ".join(argv)
        try:
            done = subprocess.run(
                self.command(argv),
                env=dict(environment if environment is not None else plain_environment()),
                input=standard_input,
                stdin=subprocess.DEVNULL if standard_input is None else None,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabFailed(f"`{shown}` in {self.name} did not end within {timeout_s:g} s") from error
        if done.returncode != 0:
            raise LabFailed(
                f"`{shown}` in {self.name} ended with {done.returncode}:\n{done.stderr[-8000:]}{done.stdout[-2000:]}",
                status=done.returncode,
            )
        return done.stdout

    def spawn(
        self, argv: Sequence[str], *, name: str, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """
        Starts a program that goes on running in the machine; it prints to `log_file(name)`.

        Args:
            argv: the program and its arguments.
            name: to find it again with `signal` and `runs`; one of a name at a time.
            environment: of the program.

        Returns:
            A process that ends when the program does. To end the program itself use `signal`.

        Raises:
            LabRefused: a program of this name runs.
        """
        if self.runs(name):
            raise LabRefused(f"{name} runs in {self.name} already; nothing was started")
        self._pid_file(name).unlink(missing_ok=True)
        command = self.command(["sh", "-c", _SPAWN, f"/run/{name}.lab-pid", *argv])
        with self.log_file(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                env=dict(environment if environment is not None else plain_environment()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while not self._pid_file(name).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabFailed(f"{name} did not start in {self.name}:\n{self.log_end(name)}")
            time.sleep(0.005)
        return process

    def signal(self, name: str, how: signal.Signals) -> None:
        """Sends a signal to a program that `spawn` started; one that has ended is left alone."""
        if self.runs(name):
            self._kill(self._pid_file(name).read_text().strip(), how.name.removeprefix("SIG"))

    def runs(self, name: str) -> bool:
        """Whether a program that `spawn` started under this name still runs."""
        if not self.is_on or not self._pid_file(name).exists():
            return False
        return self._kill(self._pid_file(name).read_text().strip(), "0")

    def wait_ended(self, name: str, *, timeout_s: float) -> bool:
        """Whether the program of this name has ended within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.runs(name):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def log_file(self, name: str) -> Path:
        """What a spawned program prints."""
        return self.folder / f"{name}.log"

    def log_end(self, name: str) -> str:
        """The end of what a spawned program printed."""
        try:
            return self.log_file(name).read_text(errors="replace")[-4000:]
        except FileNotFoundError:
            return ""

    def _pid(self) -> int | None:
        try:
            pid, _, started = (self.folder / "pid").read_text().partition(" ")
        except FileNotFoundError:
            return None
        return int(pid) if started_at(int(pid)) == started else None

    def _pid_file(self, name: str) -> Path:
        return self.folder / "run" / f"{name}.lab-pid"

    def _kill(self, inner_pid: str, how: str) -> bool:
        done = subprocess.run(
            self.command(["sh", "-c", f"kill -{how} {int(inner_pid)}"]), capture_output=True, check=False
        )
        return done.returncode == 0


_OPTIONS = {"net": "net", "pid": "pid", "mnt": "mount", "uts": "uts", "ipc": "ipc"}


def require_rights() -> None:
    """
    Checks what every machine of the lab needs.

    Raises:
        LabUnsupported: something is missing; the message says what.
    """
    if os.geteuid() != 0:
        raise LabUnsupported("namespaces are made by root alone; no lab was made", hint="run this as root")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise LabUnsupported(f"the program {program} is missing; no lab was made", hint=f"apt install {package}")
    if not os.path.exists("/dev/net/tun"):
        raise LabUnsupported("/dev/net/tun is missing; no lab was made", hint="modprobe tun")


def plain_environment() -> dict[str, str]:
    """This process's environment without what would lead programs of a machine out of it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("CORRAL_", "DOCKER_"))}


def kill_all(pids: Sequence[int], *, timeout_s: float = 20.0) -> None:
    """
    Kills processes and waits until they are gone; a zombie counts as gone.

    Raises:
        LabFailed: one of them does not end.
    """
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + timeout_s
    for pid in pids:
        while started_at(pid):
            if time.monotonic() > deadline:
                raise LabFailed(f"process {pid} does not end")
            time.sleep(0.005)


def started_at(pid: int) -> str:
    """When a process started, in ticks since boot: tells it from a later one of the same number. Empty: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
