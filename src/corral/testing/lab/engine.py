"""
A Docker Engine per machine, and the store of images that all of them read.

The images are loaded once, into a template that is kept between runs. An engine gets an empty data folder whose layers
are links into the template (overlayfs only reads lower layers), so it starts in well under a second and copies nothing.
"""

import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from corral.testing.lab.errors import LabFailed, LabRefused, LabUnsupported
from corral.testing.lab.machine import Machine
from corral.testing.lab.remains import cgroup, demolish

START_TIMEOUT_S = 60.0
DAEMON = "dockerd"
_SOCKET = "/run/docker.sock"


@dataclass(frozen=True)
class Engine:
    """
    The engine of one machine. In there it is at the usual place: /var/run/docker.sock.

    Args:
        machine: where it runs.
        cgroup: the control group of its containers.
        bridge: address of its default bridge, with prefix length; empty for none.
    """

    machine: Machine
    cgroup: str
    bridge: str

    @property
    def host(self) -> str:
        """DOCKER_HOST for a client outside of the machine."""
        return f"unix://{self.machine.folder / 'run' / 'docker.sock'}"

    @property
    def data_root(self) -> Path:
        """Where it keeps its data."""
        return self.machine.folder / "docker"

    def furnish(self, template: Path) -> None:
        """Gives an engine that never ran the images of the template."""
        layers = self.data_root / "overlay2"
        layers.mkdir(parents=True, mode=0o710)
        shutil.copytree(template / "image", self.data_root / "image", symlinks=True)
        shutil.copytree(template / "overlay2" / "l", layers / "l", symlinks=True)
        for layer in (template / "overlay2").iterdir():
            if layer.name != "l":
                (layers / layer.name).symlink_to(layer)

    def start(self) -> None:
        """
        Starts the engine and waits until it answers.

        Raises:
            LabFailed: it does not.
        """
        command = [DAEMON, "--data-root", str(self.data_root), "--exec-root", "/run/docker"]
        command += ["--pidfile", "/run/docker.pid", "--host", f"unix://{_SOCKET}", "--userland-proxy=false"]
        command += ["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", self.cgroup]
        command += ["--bip", self.bridge] if self.bridge else ["--bridge", "none", "--iptables=false"]
        (self.machine.folder / "run" / "docker.pid").unlink(missing_ok=True)
        process = self.machine.spawn(command, name=DAEMON)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabFailed(
                    f"the engine of {self.machine.name} did not start:\n{self.machine.log_end(DAEMON)[-2000:]}"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        """Stops the engine in order, its containers too."""
        self.machine.signal(DAEMON, signal.SIGTERM)
        if not self.machine.wait_ended(DAEMON, timeout_s=60):
            raise LabFailed(f"the engine of {self.machine.name} does not end")

    def kill(self) -> None:
        """Kills the daemon; containers go on running until it is started again."""
        self.machine.signal(DAEMON, signal.SIGKILL)
        self.machine.wait_ended(DAEMON, timeout_s=20)

    def answers(self) -> bool:
        """Whether the engine answers now."""
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        try:
            connection.sock.connect(self.host.removeprefix("unix://"))
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def containers(self, pattern: str = "*", *, running_only: bool = False) -> list[str]:
        """Names of containers that fit the pattern (as in file names)."""
        every = [] if running_only else ["--all"]
        names = self.docker("ps", *every, "--format", "{{.Names}}").split()
        return sorted(name for name in names if fnmatch(name, pattern))

    def kill_containers(self, pattern: str, how: signal.Signals = signal.SIGKILL) -> list[str]:
        """
        Sends a signal to all running containers that fit the pattern, and names them.

        Raises:
            LabRefused: there is none.
        """
        names = self.containers(pattern, running_only=True)
        if not names:
            raise LabRefused(f"no container {pattern} runs on {self.machine.name}; nothing was done")
        self.docker("kill", "--signal", how.name, *names)
        return names

    def docker(self, *arguments: str, timeout_s: float = 120) -> str:
        """
        Types `docker …` to this engine, from outside of the machine.

        Raises:
            LabFailed: it ended with an error.
        """
        done = subprocess.run(
            ["docker", "--host", self.host, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode != 0:
            raise LabFailed(f"`docker {' '.join(arguments)}` on {self.machine.name} failed: {done.stderr.strip()}")
        return done.stdout


class Template:
    """
    The image store that engines link to, in the cache; made when it is first needed.

    Use as a context manager; while it is open, or a machine holds `lock`, nobody removes it.
    """

    def __init__(self, cache: Path, images: Mapping[str, str]) -> None:
        self._cache = cache
        self._images = sorted(set(images.values()))
        self._key = hashlib.sha256(json.dumps(self._images).encode()).hexdigest()[:16]
        self._lock = -1

    @property
    def folder(self) -> Path:
        """The store."""
        return self._cache / self._key

    @property
    def lock(self) -> int:
        """A descriptor; the store is in use while a copy of it is open anywhere."""
        return self._lock

    def __enter__(self) -> "Template":
        """Makes the store if it is not there, and removes stores of other images that nobody uses."""
        for program in (DAEMON, "docker"):
            if shutil.which(program) is None:
                raise LabUnsupported(
                    f"the program {program} is missing; no lab was made", hint="scripts/setup, or apt install docker.io"
                )
        self._cache.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._cache / f"{self._key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            if not self.folder.exists():
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                if not self.folder.exists():
                    self._make()
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            self._remove_others()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of it."""
        os.close(self._lock)

    def _make(self) -> None:
        """Loads the images into an engine of its own that is not connected to anything."""
        lab = Path(tempfile.mkdtemp(prefix="corral-lab-"))
        partial = self.folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        machine = Machine(lab, "loader")
        engine = Engine(machine, cgroup=f"/{cgroup(lab)}/loader", bridge="")
        try:
            machine.turn_on()
            engine.data_root.symlink_to(partial)
            partial.mkdir()
            engine.start()
            self._load(engine)
            engine.stop()
        finally:
            demolish(lab)
        partial.rename(self.folder)

    def _load(self, engine: Engine) -> None:
        with subprocess.Popen(
            ["docker", "save", *self._images], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as saving:
            loaded = subprocess.run(
                ["docker", "--host", engine.host, "load"], stdin=saving.stdout, capture_output=True, check=False
            )
            assert saving.stdout is not None
            assert saving.stderr is not None
            saving.stdout.close()
            said = saving.stderr.read().decode(errors="replace")
        if saving.returncode != 0:
            raise LabFailed(f"the images could not be saved: {said.strip()}", hint="scripts/setup")
        if loaded.returncode != 0:
            raise LabFailed(f"the images could not be loaded: {loaded.stderr.decode(errors='replace').strip()}")

    def _remove_others(self) -> None:
        for lock_file in self._cache.glob("*.lock"):
            if lock_file.stem == self._key:
                continue
            lock = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
            try:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
                    shutil.rmtree(lock_file.with_suffix(".partial"), ignore_errors=True)
                    lock_file.unlink()
            finally:
                os.close(lock)
