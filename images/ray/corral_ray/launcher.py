"""First process of a node's workload: takes the token, waits for the mesh, starts Ray, reports, and ends it.

The work is split in two. This process is small and imports nothing of Ray: it is PID 1, reaps what Ray leaves behind,
and stays responsive. The starter beside it imports Ray while the mesh comes up, and then becomes `ray start`.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time

from corral_program import ControlInput, Malformed, emit

from corral_ray.command import BadSettings, Settings, ray_environment, read_settings

TOKEN_PATH = "/run/corral/token"  # noqa: S105 the place, not the token
STARTER = "/corral/ray-start"
STOP_S = 4.5  # the Engine is told to allow 5 s
POLL_MESH_S = 0.02


def main() -> None:
    os.umask(0o077)
    try:
        settings = read_settings(dict(os.environ))
    except BadSettings as error:
        emit("phase", phase="failed", seconds=0.0, detail=str(error))
        sys.exit(2)
    sys.exit(Launcher(settings).run())


class Launcher:
    """One Ray node, from its token to its end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._began_at = time.monotonic()
        self._phase: dict[str, object] = {}
        self._alive: list[str] | None = None
        self._has_token = self._is_started = False
        self._stop_by: float | None = None
        self._input = ControlInput()
        # The starter speaks in lines on one pipe, as this process does to the agent; a word on the other lets it go.
        reports, report_end = os.pipe()
        go_end, self._go = os.pipe()
        self._reports = ControlInput(reports)
        self._starter = subprocess.Popen(
            (STARTER, str(go_end), str(report_end)),
            env={**os.environ, **ray_environment(TOKEN_PATH)},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            pass_fds=(go_end, report_end),
        )
        os.close(go_end)
        os.close(report_end)

    def run(self) -> int:
        """Serve until Ray ends.

        Returns:
            Ray's exit status; 0 after SIGTERM.
        """
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._enter("waiting_mesh")
        poll = select.poll()
        for descriptor in (self._input.fileno(), self._reports.fileno(), wake_read):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll(self._timeout_ms()):
                if descriptor == wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_read, 4096)
                elif descriptor == self._input.fileno():
                    for message in self._input.read():
                        self._obey(message)
                    if not self._input.is_open:
                        poll.unregister(descriptor)
                else:
                    for report in self._reports.read():
                        self._note(report)
                    if not self._reports.is_open:
                        poll.unregister(descriptor)
            if self._has_token and not self._is_started and _can_bind(self._settings.node_address):
                self._is_started = True
                self._enter("waiting_head" if self._settings.role == "worker" else "starting")
                os.write(self._go, b"go\n")
            if (status := self._reap()) is not None:
                return self._ended(status)
            if self._stop_by is not None and time.monotonic() > self._stop_by:
                _kill_all()
                return 0

    def _timeout_ms(self) -> float | None:
        if self._stop_by is not None:
            return max(0.0, self._stop_by - time.monotonic()) * 1000 + 1
        return POLL_MESH_S * 1000 if self._has_token and not self._is_started else None

    def _obey(self, message: "dict[str, object] | Malformed") -> None:
        if isinstance(message, Malformed):
            emit("refused", reason=str(message))
        elif message.get("type") == "hello":
            emit("phase", **self._phase)
            if self._alive is not None:
                emit("alive", nodes=self._alive)
        elif message.get("type") == "start":
            token = message.get("token")
            if not isinstance(token, str) or len(token) != 64 or not set(token) <= set("0123456789abcdef"):
                emit("refused", reason="the token is not 64 hexadecimal digits")
            elif not self._has_token:
                self._write_token(token)
        else:
            emit("refused", reason="the type is neither start nor hello")

    def _write_token(self, token: str) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(TOKEN_PATH)  # left by a launcher that was restarted in the same container
            descriptor = os.open(TOKEN_PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            with open(descriptor, "w") as file:
                file.write(token)
        except OSError as error:
            self._enter("failed", f"the token could not be written: {os.path.dirname(TOKEN_PATH)}: {error.strerror}")
            _kill_all()
            sys.exit(2)
        self._has_token = True

    def _note(self, report: "dict[str, object] | Malformed") -> None:
        if isinstance(report, Malformed):
            return  # cannot happen: the starter is ours
        if report.get("type") == "alive":
            self._alive = [str(address) for address in report["nodes"]]  # type: ignore[union-attr]
            emit("alive", nodes=self._alive)
            if self._phase["phase"] == "starting" and self._settings.node_address in self._alive:
                self._enter("running")
        elif report.get("type") == "phase" and self._stop_by is None:
            self._enter(str(report["phase"]), str(report.get("detail", "")))

    def _enter(self, phase: str, detail: str = "") -> None:
        self._phase = {"phase": phase, "seconds": round(time.monotonic() - self._began_at, 3), "detail": detail}
        emit("phase", **self._phase)

    def _reap(self) -> int | None:
        """Collect ended children, also those that Ray orphaned. Returns the starter's wait status once it ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == 0:
                return None
            if pid == self._starter.pid:
                return status

    def _ended(self, status: int) -> int:
        for report in self._reports.read() if self._reports.is_open else ():
            self._note(report)
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        _kill_all()
        if self._stop_by is not None:
            return 0
        if self._phase["phase"] != "failed":
            self._enter("failed", f"Ray ended with status {code}; its own messages are on stderr")
        return code

    def _on_stop(self, *_: object) -> None:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + STOP_S
            with contextlib.suppress(ProcessLookupError):
                self._starter.send_signal(signal.SIGTERM)


def _can_bind(address: str) -> bool:
    """Whether the mesh address exists here; the mesh container adds it last, behind the firewall."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return False
            raise
        return True


def _kill_all() -> None:
    """End whatever is left in this container: as PID 1 this process takes it down anyway, but not as fast."""
    if os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
