"""The embedded PostgreSQL: private, always stopped with its process, and back after every kind of end."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from corral.platform.database import Database
from corral.platform.errors import DataFolderInUse
from corral.platform.postgres import EmbeddedPostgres

WITHIN_S = 30

_SERVE = """
import sys, time
from pathlib import Path
from corral.platform.postgres import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]), is_durable=False)
postgres.start()
print("pid", postgres.pid, flush=True)
time.sleep(600)
"""


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true within a generous time."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder for a control plane's data, in one that PostgreSQL's user can enter."""
    parent = Path(tempfile.mkdtemp(prefix="corral-tests-"))
    parent.chmod(0o711)
    folder = parent / "data"
    yield folder
    EmbeddedPostgres(folder).destroy()
    shutil.rmtree(parent)


# ruff: noqa: ASYNC220, ASYNC240  (starting a server blocks; no loop waits for anything else meanwhile)


async def rows(url: str, statement: str) -> list[object]:
    """The first column of a statement's result."""
    database = Database(url, connections_max=1)
    try:
        async with database.transaction() as tx:
            result = await tx.execute(text(statement))
            return [row[0] for row in result] if result.returns_rows else []
    finally:
        await database.dispose()


async def test_data_survives_a_restart(data_dir: Path):
    """The second start finds what the first one's server stored."""
    with EmbeddedPostgres(data_dir) as first:
        await rows(first.url, "create table kept as select 7 as number")
        assert await rows(first.url, "select current_setting('fsync')") == ["on"]
    with EmbeddedPostgres(data_dir) as second:
        assert await rows(second.url, "select number from kept") == [7]


async def test_a_killed_control_plane_takes_its_server_along_and_the_data_is_there_afterwards(data_dir: Path):
    """SIGKILL leaves nothing running: the kernel stops the server, and the next start recovers."""
    process = subprocess.Popen([sys.executable, "-c", _SERVE, str(data_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server_pid = next(int(line.split()[1]) for line in process.stdout if line.startswith("pid "))
    password = (data_dir / "postgres" / "password").read_text()
    socket_folder = data_dir / "postgres" / "socket"
    await rows(f"postgresql+asyncpg://corral:{password}@/corral?host={socket_folder}", "create table kept as select 7")
    process.kill()
    process.wait()
    process.stdout.close()
    assert eventually(lambda: not is_alive(server_pid))
    with EmbeddedPostgres(data_dir, is_durable=False) as again:
        assert await rows(again.url, "select count(*) from kept") == [1]


async def test_a_killed_server_recovers_at_the_next_start(data_dir: Path):
    """A stale pid file, even one whose number belongs to another program by now, stops nobody."""
    with EmbeddedPostgres(data_dir) as first:
        await rows(first.url, "create table kept as select 7")
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        assert eventually(lambda: first.pid is None)
    pid_file = data_dir / "postgres" / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with EmbeddedPostgres(data_dir) as second:
        assert await rows(second.url, "select count(*) from kept") == [1]


async def test_a_server_that_was_left_running_is_stopped_and_replaced(data_dir: Path):
    """Should a server ever outlive its control plane, the next one takes the folder over."""
    left = EmbeddedPostgres(data_dir)
    left.start()
    left_pid = left.pid
    assert left_pid is not None
    assert left._lock is not None
    os.close(left._lock)  # As if its control plane were gone, and the kernel had not told the server.
    left._lock = None
    with EmbeddedPostgres(data_dir) as second:
        assert second.pid != left_pid
        assert await rows(second.url, "select 1") == [1]
    left.stop()


def test_two_control_planes_on_one_folder_are_refused(data_dir: Path):
    """The second one says so and disturbs nothing."""
    with EmbeddedPostgres(data_dir) as first:
        with pytest.raises(DataFolderInUse) as refused:
            EmbeddedPostgres(data_dir).start()
        assert str(data_dir) in refused.value.message
        assert first.pid is not None


async def test_the_password_is_needed_and_nothing_listens_on_the_network(data_dir: Path):
    """Another user of the machine who reaches the socket still has no access."""
    with EmbeddedPostgres(data_dir) as postgres:
        socket_folder = str(data_dir / "postgres" / "socket")
        for password in (None, "", "wrong"):
            with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError)):
                await asyncpg.connect(host=socket_folder, user="corral", database="corral", password=password)
        assert await rows(postgres.url, "select current_setting('listen_addresses')") == [""]
        assert await rows(postgres.url, "select distinct auth_method from pg_hba_file_rules") == ["scram-sha-256"]
        arguments = Path(f"/proc/{postgres.pid}/cmdline").read_text()
        assert (data_dir / "postgres" / "password").read_text() not in arguments


def test_only_own_folders_are_made_and_nobody_else_may_enter_them(data_dir: Path):
    """No folder above changes its mode; what is ours is closed to others, whatever the umask."""
    parent = data_dir.parent
    before = {path: path.stat().st_mode for path in (parent, *parent.parents)}
    umask = os.umask(0)
    try:
        with EmbeddedPostgres(data_dir):
            pass
    finally:
        os.umask(umask)
    assert {path: path.stat().st_mode for path in before} == before
    for path in data_dir.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert not mode & 0o077, f"{path} has mode {mode:o}"
    assert not stat.S_IMODE(data_dir.stat().st_mode) & 0o066


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_as_root_the_server_runs_as_another_user(data_dir: Path):
    """PostgreSQL refuses root, and root's rights are not its business."""
    with EmbeddedPostgres(data_dir) as postgres:
        status = Path(f"/proc/{postgres.pid}/status").read_text()
        uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
        assert "0" not in uids
        assert "NoNewPrivs:\t1" in status


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
async def test_below_a_closed_folder_the_server_gets_a_place_of_its_own(data_dir: Path):
    """Root's home is closed to the server's user: nothing is opened for it, its files lie elsewhere, with a link."""
    closed = data_dir.parent / "closed"
    closed.mkdir(mode=0o700)
    postgres = EmbeddedPostgres(closed / "data", is_durable=False)
    with postgres:
        assert await rows(postgres.url, "select 1") == [1]
        elsewhere = postgres.folder
        assert (closed / "data" / "postgres").readlink() == elsewhere
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700
    with EmbeddedPostgres(closed / "data", is_durable=False) as again:
        assert again.folder == elsewhere
    postgres.destroy()
    assert not elsewhere.exists()


async def test_a_path_too_long_for_a_socket_is_no_hindrance(data_dir: Path):
    """The socket then lies in a short folder of its own, 0700, removed at the end."""
    postgres = EmbeddedPostgres(data_dir / ("long-" * 20), is_durable=False)
    with postgres:
        assert await rows(postgres.url, "select 1") == [1]
        socket_folder = Path((postgres.folder / "socket-folder").read_text())
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert not socket_folder.exists()
