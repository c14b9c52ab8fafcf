"""`corral serve` as a process: several sockets, TLS of its own, an orderly end, clear refusals."""

import asyncio
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest
from msgspec.structs import replace
from sqlalchemy import text

from corral.cli.serve import serve_app
from corral.core.clock import SystemClock
from corral.core.errors import CorralError
from corral.devices import AgentDesk
from corral.platform import logs
from corral.platform.database import Database
from corral.platform.postgres import EmbeddedPostgres
from corral.testing.local_network import free_port
from corral.testing.postgres import PostgresServer
from corral.testing.simulated_host import SimulatedHost, World
from corral.wire.agent import Revision, encode

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


def start(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts the server command."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments], stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    """The line that the server writes when it is ready."""
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("corral: ready at "):
            return line
    raise AssertionError("".join(said))


def refusal(*arguments: str) -> str:
    """The code of the error with which the server command ends, in this process."""
    with pytest.raises(CorralError) as refused:
        serve_app(list(arguments), standalone_mode=False)
    return refused.value.code


def test_the_server_serves_several_addresses_by_tls_and_stops_in_order(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
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
    monkeypatch.setattr(logs, "configure_logs", lambda **_: None)  # The tests' own process keeps its logs.
    assert refusal("init", "--data-dir", str(data_dir)) == "operator_exists"
    restored = subprocess.run(
        [sys.executable, "-c", _PROGRAM, "restored", "--data-dir", str(data_dir), "--json"],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=True,
    )
    assert json.loads(restored.stdout) == {"epoch": 2}  # A restore starts an epoch that hosts have not seen.
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
        assert refusal("--data-dir", str(data_dir / "other"), "--bind", addresses[0]) == "listen_refused"
        same = ["--data-dir", str(data_dir), "--bind", f"127.0.0.1:{free_port()}"]
        assert refusal(*same) == "data_folder_in_use"
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
def test_what_cannot_be_served_is_refused_with_a_reason(
    data_dir: Path, arguments: list[str], code: str, monkeypatch: pytest.MonkeyPatch
):
    """And nothing is left running or half made."""
    monkeypatch.setattr(logs, "configure_logs", lambda **_: None)  # The tests' own process keeps its logs.
    assert refusal("--data-dir", str(data_dir), *arguments) == code
    assert not (data_dir / "postgres").exists()


async def test_a_given_database_is_used_and_hosts_that_wait_are_answered_when_the_server_stops(
    data_dir: Path, postgres: PostgresServer
):
    """CORRAL_DATABASE_URL: no server of our own; broken connections cost a moment; SIGTERM answers who is held."""
    url, port = await postgres.empty_database(), free_port()
    environment = {**os.environ, "CORRAL_DATABASE_URL": url.replace("postgresql+asyncpg://", "postgres://")}
    made = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, "init", "--data-dir", str(data_dir)),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    key = (await made.communicate())[0].decode().strip()
    process = start("--data-dir", str(data_dir), "--bind", f"127.0.0.1:{port}", "--no-tls", environment=environment)
    try:
        await asyncio.to_thread(wait_until_ready, process)
        assert not (data_dir / "postgres").exists()
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WITHIN_S) as client:
            token = (await client.post("/v1/hosts/tokens", json={}, headers=headers)).json()["token"]
            host = SimulatedHost(World(SystemClock(), random.Random(1)), cast(AgentDesk, None), "barn")
            answer = await client.post("/agent/v1/enrol", content=encode(host.enrol_request(token)))
            host.host_id, host.audience = answer.json()["host_id"], answer.json()["audience"]
            as_host = {"Authorization": f"Bearer {host.token()}"}
            first = await client.post("/agent/v1/exchange", content=encode(host.report()), headers=as_host)
            host.seen = Revision(*first.json()["revision"])

            await _cut_connections(url)
            async with asyncio.timeout(WITHIN_S):
                while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110  (told by nobody)
                    await asyncio.sleep(0.05)

            report = encode(replace(host.report(), hold_s=25.0))
            waiting = asyncio.create_task(client.post("/agent/v1/exchange", content=report, headers=as_host))
            _, pending = await asyncio.wait({waiting}, timeout=1)
            assert pending
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            answer = await waiting
            assert answer.status_code == 200
            assert time.monotonic() - began < 20, "it was held to its end"
        _, said = await asyncio.to_thread(process.communicate, timeout=WITHIN_S)
        assert process.returncode == 0, said
        assert "loop.died" not in said
        assert url.partition("://")[2].partition("@")[0].rpartition(":")[2] not in said
    finally:
        process.kill()
        process.wait()


async def _cut_connections(url: str) -> None:
    """PostgreSQL ends every connection to this database, as at its restart."""
    database = Database(url, connections_max=1)
    try:
        async with database.transaction() as tx:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            await tx.execute(text(f"{others} AND pid <> pg_backend_pid()"))
    finally:
        await database.dispose()
