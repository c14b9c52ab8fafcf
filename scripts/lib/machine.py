"""What the machine itself must have: Debian packages, and a Docker Engine that answers."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lib.steps import CACHE, SetupFailed, run, say, step

ENGINE_START_S = 60.0
PYTHON_MIN = (3, 11)


def engine_socket() -> str:
    """Path of the Engine's Unix socket."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not address.startswith("unix://"):
        raise SetupFailed(f"DOCKER_HOST is {address}: Corral talks to an Engine on this machine, by its Unix socket")
    return address.removeprefix("unix://")


def ask_engine(path: str) -> tuple[int, Any]:
    """Status and decoded answer of one GET; the status is 0 where no Engine answers."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(10)
    try:
        connection.sock.connect(engine_socket())
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read()
    except OSError:
        return 0, None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(content)
    except ValueError:
        return answer.status, None


def is_debian() -> bool:
    """Whether apt-get can be used here as on Debian."""
    try:
        fields = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    except OSError:
        return False
    kinds = f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".replace('"', "").split()
    return "debian" in kinds and shutil.which("apt-get") is not None


def install(missing: dict[str, str]) -> None:
    """Install Debian packages.

    Args:
        missing: package name → what it is needed for.

    Raises:
        SetupFailed: this is not Debian, we are not root, or apt-get failed.
    """
    if not missing:
        return
    names = sorted(missing)
    reasons = "\n".join(f"  {name}: {missing[name]}" for name in names)
    if not is_debian():
        raise SetupFailed(
            f"missing on this machine (names as in Debian 12):\n{reasons}\ninstall these, then run this again"
        )
    command = f"apt-get install --no-install-recommends {' '.join(names)}"
    if os.geteuid() != 0:
        raise SetupFailed(f"missing on this machine:\n{reasons}\nrun as root: {command}")

    def work() -> None:
        options = ("-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(("apt-get", "update", "-q", *options[3:]), what="apt-get update", env=environment)
        # Packages start their daemons only where systemd runs; elsewhere we do it below.
        run(("apt-get", "install", *options, *names), what=f"installing {' '.join(names)}", env=environment)

    step(f"installing {', '.join(names)}", work)


def missing_packages(*, is_docker_wanted: bool, is_browser_wanted: bool) -> dict[str, str]:
    """Debian packages whose programs are not here yet, with what each is needed for."""
    missing: dict[str, str] = {}
    if sys.version_info < PYTHON_MIN:
        raise SetupFailed(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}")
    if not _has_module("ensurepip"):
        missing["python3-venv"] = "makes the virtual environment"
    if not Path("/etc/ssl/certs/ca-certificates.crt").exists() and is_debian():
        missing["ca-certificates"] = "checks the certificates of package servers"
    if is_docker_wanted:
        if not shutil.which("docker"):
            missing["docker.io"] = "runs the containers"
        if ask_engine("/_ping")[0] != 200 and not shutil.which("dockerd"):
            missing["docker.io"] = "the Docker daemon: none answers on its socket, and dockerd is not installed"
        if not shutil.which("ip"):
            missing["iproute2"] = "network namespaces in tests"
    if is_browser_wanted and not shutil.which("chromium"):
        missing["chromium"] = "tests of the dashboard in a browser"
    return missing


def ensure_engine() -> str:
    """Make sure that a Docker Engine answers. Returns its architecture, "amd64" or "arm64".

    Raises:
        SetupFailed: none answers and none could be started, or this user may not use it.
    """
    status, version = ask_engine("/version")
    if status != 200:
        if os.geteuid() != 0:
            path = engine_socket()
            if os.path.exists(path) and not os.access(path, os.W_OK):
                raise SetupFailed(
                    f"{path} is not open to this user; as root: usermod -aG docker {os.environ.get('USER', 'NAME')}"
                )
            raise SetupFailed(
                "no Docker Engine answers; as root: systemctl start docker   (without systemd: dockerd &)"
            )
        version = step("starting the Docker daemon", _start_engine)
    if version.get("Os") != "linux" or version.get("Arch") not in ("amd64", "arm64"):
        raise SetupFailed(
            f"the Engine runs on {version.get('Os')}/{version.get('Arch')}; Linux on amd64 or arm64 is needed"
        )
    return version["Arch"]


def _start_engine() -> Any:
    log_path = CACHE / "dockerd.log"
    CACHE.mkdir(exist_ok=True)
    process: subprocess.Popen[bytes] | None = None
    if Path("/run/systemd/system").is_dir():
        run(("systemctl", "start", "docker"), what="starting docker.service")
    else:
        _mount_cgroups()
        with log_path.open("ab") as log:
            # In a session of its own: it outlives this script and the terminal.
            process = subprocess.Popen(
                ("dockerd",), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
    deadline = time.monotonic() + ENGINE_START_S
    while time.monotonic() < deadline:
        status, version = ask_engine("/version")
        if status == 200:
            return version
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.1)
    tail = log_path.read_text(errors="replace").splitlines()[-12:] if process is not None else ["journalctl -u docker"]
    raise SetupFailed("\n".join(["the Docker daemon did not start; its last words:", *tail]))


def _mount_cgroups() -> None:
    """Without systemd nobody may have mounted the control groups, which the daemon needs."""
    target = Path("/sys/fs/cgroup")
    if not target.is_dir() or any(target.iterdir()):
        return
    done = subprocess.run(("mount", "-t", "cgroup2", "cgroup2", str(target)), capture_output=True, check=False)
    say("mounted cgroup2" if done.returncode == 0 else f"no control groups: {done.stderr.decode().strip()}")


def _has_module(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
