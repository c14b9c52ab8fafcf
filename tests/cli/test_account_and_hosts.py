"""Accounts, keys, credit, hosts and the program itself."""

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from corral.sdk import config
from sdk.fake_control_plane import KEY, FakeControlPlane

from .conftest import Corral

Compare = Callable[..., None]


def test_signup_keeps_the_key_and_shows_it_once(
    corral: Corral, monkeypatch: pytest.MonkeyPatch, matches_snapshot: Compare
) -> None:
    """The settings file is private, and is used from then on; a second signup does not lose the key."""
    monkeypatch.delenv("CORRAL_API_KEY")
    first = corral("signup", "bob")
    matches_snapshot(first, corral("whoami"), corral("signup", "carl"))
    path = config.config_path()
    assert config.load(path).api_key == first.out.strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_login_reads_the_key_from_stdin_alone(
    corral: Corral, monkeypatch: pytest.MonkeyPatch, matches_snapshot: Compare
) -> None:
    """A wrong key is not kept."""
    monkeypatch.delenv("CORRAL_API_KEY")
    matches_snapshot(corral("login", stdin=""), corral("login", stdin="key_x.wrong\n"), corral("whoami"))
    assert not config.config_path().exists()
    ran = corral("login", stdin=f"{KEY}\n")
    assert ran.code == 0
    assert "secret" not in ran.out + ran.err
    assert config.load(config.config_path()).api_key == KEY


def test_keys_and_credit_read_well(corral: Corral, matches_snapshot: Compare) -> None:
    """Made, listed, revoked; credit added; earnings shown."""
    matches_snapshot(
        corral("keys", "create", "ci", "--expires", "30d"),
        corral("keys", "list"),
        corral("keys", "revoke", "key_00000000000000000000000007"),
        corral("keys", "revoke", "nope"),
        corral("credit", "add", "ada", "12.5"),
        corral("earnings"),
        corral("offers"),
        corral("whoami", "--json"),
    )


def test_host_join_shows_one_line_that_hides_the_token_from_process_lists(
    corral: Corral, matches_snapshot: Compare
) -> None:
    """The token goes through a pipe."""
    development = ("--development", "--slice", "a", "--cores", "0.4", "--memory", "1.5", "--name", "alpha")
    matches_snapshot(
        corral("host", "join"),
        corral("host", "join", *development, "--advertise", "192.0.2.7"),
        corral("host", "join", "--role", "gateway", "--gateway-bind", "127.0.0.1:8471"),
        corral("fleet", "token", "--uses", "20", "--expires", "7d"),
    )


def test_host_join_here_gives_docker_the_token_on_stdin(
    corral: Corral, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never as an argument; docker's end is ours."""
    script = tmp_path / "bin" / "docker"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/stdin\nexit 3\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    ran = corral("host", "join", "--run")
    assert ran.code == 1
    assert (tmp_path / "stdin").read_text() == "jt_token-of-one-use"
    assert "jt_token" not in (tmp_path / "arguments").read_text()


def test_host_join_without_an_agent_image_shows_no_line(corral: Corral, control_plane: FakeControlPlane) -> None:
    """A line that cannot work is not offered for pasting; the token in it would be wasted."""
    control_plane.agent_image = ""
    ran = corral("host", "join")
    assert (ran.code, ran.out) == (1, "")
    assert "names no image of the agent" in ran.err


def test_hosts_read_well(corral: Corral, matches_snapshot: Compare) -> None:
    """Listed, shown, paused, resumed, leaving."""
    matches_snapshot(
        corral("host", "list"),
        corral("host", "show", "alpha"),
        corral("host", "pause", "alpha"),
        corral("host", "resume", "alpha"),
        corral("host", "leave", "alpha"),
        corral("host", "leave", "alpha", "-y"),
        corral("host", "show", "nope"),
    )


def test_json_of_hosts_and_keys_is_the_wire_s_own(corral: Corral) -> None:
    """One document each."""
    assert json.loads(corral("host", "list", "--json").out)[0]["name"] == "alpha"
    assert json.loads(corral("host", "show", "alpha", "--json").out)["checks"][1]["outcome"] == "relaxed"
    assert json.loads(corral("host", "pause", "alpha", "--json").out)["intent"] == "paused"
    assert json.loads(corral("host", "join", "--json").out)["line"].startswith("printf %s jt_token-of-one-use | docker")
    assert json.loads(corral("fleet", "token", "--json").out)["uses_max"] == 100
    assert json.loads(corral("keys", "list", "--json").out)[0]["label"] == "first"
    assert json.loads(corral("keys", "create", "ci", "--json").out)["secret"].endswith("a-new-secret")
    assert json.loads(corral("credit", "add", "ada", "1", "--json").out)["amount_uc"] == 1_000_000
    assert json.loads(corral("earnings", "--json").out)["total_net_uc"] == 114_000


def test_unknown_key_ends_with_one_and_nobody_there_with_three(
    corral: Corral, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    """The exit code tells the situations apart."""
    monkeypatch.setenv("CORRAL_API_KEY", "key_x.unknown")
    assert corral("whoami").code == 1
    monkeypatch.setenv("CORRAL_URL", f"http://127.0.0.1:{unused_tcp_port}")
    ran = corral("whoami", "--json")
    assert ran.code == 3
    assert json.loads(ran.err)["code"] == "unreachable"
    monkeypatch.setenv("CORRAL_URL", "http://corral.example")
    assert corral("whoami").code == 2


def test_help_pages_and_version_are_there(corral: Corral, matches_snapshot: Compare) -> None:
    """Without a word the help is shown, and the exit code is that of wrong usage."""
    assert corral("--version").out == "corral 0.1.0\n"
    assert corral().code == 2
    matches_snapshot(corral("--help"), corral("job", "submit", "--help"))


_ISOLATION = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"fastapi", "sqlalchemy", "asyncpg", "uvicorn", "alembic", "aiodocker",
                                      "starlette", "aiohttp", "structlog", "psutil", "jwt"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from corral.cli.main import run
import corral
"""


def test_base_install_needs_no_server_and_help_loads_no_sdk() -> None:
    """The command line starts on what `pip install corral` brings, and `serve` says what to install."""
    code = _ISOLATION + (
        "assert run(['--help']) == 0\n"
        "heavy = {'httpx', 'pydantic', 'rich', 'websockets', 'corral.wire.api'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "corral.Client, corral.AsyncClient\n"
        "raise SystemExit(run(['serve']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "hint: pip install 'corral[server]'" in done.stderr


def test_foreign_control_plane_gets_no_stored_key(corral: Corral, control_plane: FakeControlPlane) -> None:
    """The file's key belongs to the file's address."""
    config.save(config.Config(url="https://other.example", api_key=KEY), config.config_path())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CORRAL_API_KEY")
        assert corral("whoami").code == 2
    assert control_plane.requests == []


def test_word_that_cannot_be_a_name_is_wrong_usage_everywhere(corral: Corral, matches_snapshot: Compare) -> None:
    """Said before anything is sent, in the same words."""
    matches_snapshot(
        corral("signup", "Dora"),
        corral("up", "--cpu", "1", "--name", "my_cluster"),
        corral("host", "join", "--name", "-x"),
    )
