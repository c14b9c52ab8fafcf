"""`corral serve` as a process: several sockets, TLS of its own, an orderly end, clear refusals."""

import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from corral.platform.postgres import EmbeddedPostgres

WITHIN_S = 60

_PROGRAM = """
import sys
from corral.cli.serve import serve_app
from corral.core.errors import CorralError
try:
    serve_app(sys.argv[1:], standalone_mode=False)
except CorralError as error:
    sys.exit(f"{error.code}: {error.message}")
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder for one control plane, in one that PostgreSQL's user can enter."""
    with tempfile.TemporaryDirectory(prefix="corral-tests-") as parent:
        Path(parent).chmod(0o711)
        yield Path(parent) / "data"
        EmbeddedPostgres(Path(parent) / "data").destroy()


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(*arguments: str) -> subprocess.Popen[str]:
    """Starts the server command."""
    return subprocess.Popen([sys.executable, "-c", _PROGRAM, *arguments], stderr=subprocess.PIPE, text=True)


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    """The line that the server writes when it is ready."""
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("corral: ready at "):
            return line
    raise AssertionError("".join(said))


def test_the_server_serves_several_addresses_by_tls_and_stops_in_order(data_dir: Path):
    """Operators see one line when it is ready; people pin the CA; SIGTERM leaves nothing running."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, "init", "--data-dir", str(data_dir), "--operator", "root-op"],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=True,
    )
    key = done.stdout.strip()
    assert key not in done.stderr
    again = subprocess.run(
        [sys.executable, "-c", _PROGRAM, "init", "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode != 0
    assert "operator_exists" in again.stderr
    assert not again.stdout
    first, second = free_port(), free_port()
    addresses = [f"127.0.0.1:{first}", f"127.0.0.2:{second}"]
    process = start("--data-dir", str(data_dir), "--bind", addresses[0], "--bind", addresses[1])
    try:
        ready = wait_until_ready(process)
        assert all(address in ready for address in addresses)
        trust = ssl.create_default_context(cafile=str(data_dir / "tls" / "ca.pem"))
        for address in addresses:
            answer = httpx.get(f"https://{address}/v1/whoami", headers={"Authorization": f"Bearer {key}"}, verify=trust)
            assert answer.json()["person"]["is_operator"] is True
        taken = subprocess.run(
            [sys.executable, "-c", _PROGRAM, "--data-dir", str(data_dir / "other"), "--bind", addresses[0]],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert "listen_refused" in taken.stderr
        same = subprocess.run(
            [sys.executable, "-c", _PROGRAM, "--data-dir", str(data_dir), "--bind", f"127.0.0.1:{free_port()}"],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert "data_folder_in_use" in same.stderr
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=WITHIN_S)
        assert process.returncode == 0, said
        assert time.monotonic() - began < WITHIN_S
        assert key not in said
    finally:
        process.kill()
        process.wait()
    assert not (data_dir / "postgres" / "data" / "postmaster.pid").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--bind", "0.0.0.0:18470", "--no-tls"], "listen_refused"),
        (["--bind", "nonsense"], "listen_refused"),
        (["--bind", "127.0.0.1:70000"], "listen_refused"),
        (["--images", "/nonexistent.json"], "file_malformed"),
        (["--prices", "/nonexistent.toml"], "prices_malformed"),
        (["--log-format", "rhymes"], "setting_invalid"),
        (["--tls-cert", "/nonexistent.pem"], "usage"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_reason(data_dir: Path, arguments: list[str], code: str):
    """And nothing is left running or half made."""
    process = start("--data-dir", str(data_dir), *arguments)
    _, said = process.communicate(timeout=WITHIN_S)
    assert process.returncode != 0
    assert said.startswith(f"{code}: "), said
