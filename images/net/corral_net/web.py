"""The web server of a gateway: nginx with the configuration that comes in on stdin, tested before it is used.

The configuration holds the token of a cluster, so it lives in a tmpfs of this container only.
"""

import hashlib
import os
import select
import signal
import subprocess
import sys
import time
from typing import NoReturn

from corral_program import ControlInput, Malformed, emit, end_as_fatal

FOLDER = "/run/corral"
CONFIGURATION = f"{FOLDER}/nginx.conf"
CANDIDATE = f"{FOLDER}/nginx.next.conf"
STREAMS = f"{FOLDER}/streams.sock"
"""A configuration that passes something on to this socket gets the program that serves it; see `streams`."""
TAKE_EFFECT_S = 5.0
POLL_S = 0.01
WATCH_S = 1.0


class ConfigurationRefused(Exception):
    """nginx does not accept the configuration; the one in force stays."""


def main() -> None:
    os.umask(0o077)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    WebServer().run()


class WebServer:
    """One nginx, kept at the newest configuration that it accepts."""

    def __init__(self) -> None:
        self._nginx: subprocess.Popen[bytes] | None = None
        self._streams: subprocess.Popen[bytes] | None = None
        self._digest: str | None = None
        self._input = ControlInput()

    def run(self) -> NoReturn:
        """Serve until SIGTERM; nginx dying takes this container down."""
        poll = select.poll()
        poll.register(self._input, select.POLLIN)
        while True:
            if poll.poll(WATCH_S * 1000):
                for message in self._input.read():
                    self._obey(message)
                if not self._input.is_open:
                    poll.unregister(self._input)
            if self._nginx is not None and self._nginx.poll() is not None:
                end_as_fatal(f"nginx ended with status {self._nginx.returncode}; its message is on stderr")
            if self._streams is not None and self._streams.poll() is not None:
                end_as_fatal(f"the program of streams ended with status {self._streams.returncode}")

    def _obey(self, message: "dict[str, object] | Malformed") -> None:
        if isinstance(message, Malformed):
            emit("refused", reason=str(message))
        elif message.get("type") == "hello":
            if self._digest is not None:
                emit("serving", digest=self._digest)
        elif message.get("type") == "config" and isinstance(text := message.get("nginx"), str):
            self._take(text)
        else:
            emit("refused", reason="the type is neither config, with its text in nginx, nor hello")

    def _take(self, text: str) -> None:
        try:
            digest = hashlib.sha256(text.encode()).hexdigest()
            if digest != self._digest:
                self._apply(text)
                self._digest = digest
        except UnicodeEncodeError:
            emit("refused", reason="the configuration is not valid Unicode")
        except ConfigurationRefused as refused:
            emit("refused", reason=str(refused))
        except OSError as error:
            emit("refused", reason=f"the configuration could not be written to {FOLDER}: {error.strerror}")
        else:
            emit("serving", digest=digest)

    def _apply(self, text: str) -> None:
        with open(CANDIDATE, "w", encoding="utf-8") as file:
            file.write(text)
        tested = subprocess.run(
            (*_command(CANDIDATE), "-t"), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if tested.returncode != 0:
            os.unlink(CANDIDATE)
            raise ConfigurationRefused(_without_content(tested.stderr))
        os.replace(CANDIDATE, CONFIGURATION)
        if self._streams is None and STREAMS in text:
            command = ("/corral/streams", STREAMS)
            self._streams = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        if self._nginx is None:
            # Both streams go to our stderr: stdout carries messages only.
            self._nginx = subprocess.Popen(
                (*_command(CONFIGURATION), "-g", "daemon off;"), stdin=subprocess.DEVNULL, stdout=sys.stderr
            )
            self._await_new_workers(set())
        else:
            before = _children(self._nginx.pid)
            self._nginx.send_signal(signal.SIGHUP)
            self._await_new_workers(before)

    def _await_new_workers(self, before: set[int]) -> None:
        # nginx acknowledges nothing. It has taken a configuration once there are workers that did not exist before and
        # each older one has closed its listening sockets, which shows in its title; until then it still accepts.
        assert self._nginx is not None
        deadline = time.monotonic() + TAKE_EFFECT_S
        while True:
            present = _children(self._nginx.pid)
            if present - before and not any(_is_accepting(worker) for worker in present & before):
                return
            if self._nginx.poll() is not None:
                end_as_fatal(f"nginx ended with status {self._nginx.returncode}; its message is on stderr")
            if time.monotonic() > deadline:
                raise ConfigurationRefused("nginx did not take the configuration in 5 s; its message is on stderr")
            time.sleep(POLL_S)


def _command(path: str) -> tuple[str, ...]:
    return ("nginx", "-e", "stderr", "-c", path)


def _children(parent: int) -> set[int]:
    """Processes whose parent is `parent`."""
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[1]) == parent:
                found.add(int(entry))
    return found


def _is_accepting(worker: int) -> bool:
    try:
        with open(f"/proc/{worker}/cmdline", "rb") as file:
            return b"shutting down" not in file.read()
    except OSError:
        return False


def _without_content(message: str) -> str:
    """The first error of `nginx -t` without what it quotes of the configuration, which may be a token."""
    for line in message.splitlines():
        if "[emerg]" in line:
            parts = line.partition("[emerg]")[2].split('"')
            reason = "…".join(parts[::2]).strip()
            return reason.partition(": ")[2] or reason
    return "nginx does not accept the configuration"


def _end(*_: object) -> NoReturn:
    os._exit(0)  # PID 1: nginx goes with it
