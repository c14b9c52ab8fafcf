"""Accounts, keys, credit, hosts and the program itself."""

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from corral.cli import hosts
from corral.sdk import config
from sdk.fake_control_plane import KEY, FakeControlPlane, a_host

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
        corral("keys", "revoke", "key_00000000000000000000000009"),
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


Docker = Callable[..., None]


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Docker:
    """Makes a `docker` whose `run` writes down what it gets and ends by script; an agent is there as `host_id`."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    def make(run: str = "exit 0", *, host_id: str = a_host().id) -> None:
        program.write_text(
            f'#!/bin/sh\nif [ "$1" = inspect ]; then\n  echo "$@" > {tmp_path}/inspected; echo {host_id}; exit 0\nfi\n'
            f'echo "$@" > {tmp_path}/arguments\ncat > {tmp_path}/stdin\n{run}\n'
        )
        program.chmod(0o755)

    make()
    monkeypatch.setattr(hosts, "HEARD_OF_S_MAX", 0.0)
    return make


def test_host_join_here_gives_docker_the_token_on_stdin(corral: Corral, docker: Docker, tmp_path: Path) -> None:
    """Never as an argument; docker's end is ours."""
    docker("exit 3")
    ran = corral("host", "join", "--run")
    assert ran.code == 1
    assert ran.err == "error: the agent was not installed: docker ended with 3; the reason is above\n"
    assert (tmp_path / "stdin").read_text() == "jt_token-of-one-use"
    assert "jt_token" not in (tmp_path / "arguments").read_text()


def test_host_join_here_that_fails_is_one_json_object_with_json(corral: Corral, docker: Docker) -> None:
    """With the reason that docker or the agent gave, and nothing beside it."""
    docker("echo table; echo 'pulling' >&2; echo 'error: alpha is taken' >&2; echo 'hint: say beta' >&2; exit 1")
    ran = corral("host", "join", "--run", "--json")
    assert (ran.code, ran.out) == (1, "")
    problem = json.loads(ran.err)
    assert problem["code"] == "join_failed"
    assert problem["detail"] == "the agent was not installed: docker ended with 1: alpha is taken"
    assert problem["hint"] == "say beta"
    assert problem["facts"]["exit_status"] == 1
    assert problem["facts"]["stdout"] == "table\n"
    assert "pulling" in problem["facts"]["stderr"]


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ("docker: no such image.\nRun 'docker run --help' for more information", "no such image."),
        ("something\nThis machine does not meet the requirements", "This machine does not meet the requirements"),
        ("", "no reason was given"),
    ],
)
def test_reason_of_a_failed_join_is_the_line_that_tells_it(
    corral: Corral, docker: Docker, tmp_path: Path, errors: str, reason: str
) -> None:
    """The agent's, docker's, or the last."""
    (tmp_path / "errors").write_text(errors)
    docker(f"cat {tmp_path}/errors >&2; exit 125")
    problem = json.loads(corral("host", "join", "--run", "--json").err)
    assert problem["detail"] == f"the agent was not installed: docker ended with 125: {reason}"


def test_host_joined_again_is_told_once_it_has_reported_since(
    corral: Corral, control_plane: FakeControlPlane, docker: Docker
) -> None:
    """Its own report counts: neither one of before, nor that of another host of the same provider."""
    control_plane.hosts["beta"] = a_host("beta", 2)
    control_plane.reporting = {"beta"}
    assert corral("host", "join", "--run").err.startswith("the agent runs, but has not reported yet")
    control_plane.reporting = {"alpha", "beta"}
    ran = corral("host", "join", "--run")
    assert (ran.code, ran.err) == (0, "alpha is idle\n")
    assert json.loads(corral("host", "join", "--run", "--json").out)["name"] == "alpha"


def test_host_joined_for_the_first_time_is_told_once_its_checks_are_in(
    corral: Corral, control_plane: FakeControlPlane, docker: Docker, tmp_path: Path
) -> None:
    """The host is looked up by the label of its slice's container; with --json it is shown either way."""
    new = a_host("gamma", 3)
    new.status = "checking"
    docker(host_id=new.id)
    control_plane.enrolling = [new]
    words = ("host", "join", "--run", "--development", "--slice", "c")
    assert "has not reported yet" in corral(*words).err
    assert (tmp_path / "inspected").read_text().endswith(" corral-agent-c\n")
    assert json.loads(corral(*words, "--json").out)["status"] == "checking"
    control_plane.hosts.pop("gamma")
    new.status = "idle"
    assert corral(*words).err == "gamma is idle\n"


def test_host_whose_agent_is_gone_after_the_installation_is_an_error(corral: Corral, docker: Docker) -> None:
    """Nobody waits a minute for it."""
    docker(host_id="")
    ran = corral("host", "join", "--run", "--json")
    assert ran.code == 1
    assert json.loads(ran.err)["facts"] == {"container": "corral-agent"}


def test_host_join_here_without_docker_makes_no_token(
    corral: Corral, control_plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would be wasted."""
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = corral("host", "join", "--run", "--json")
    assert (ran.code, json.loads(ran.err)["code"]) == (2, "usage")
    assert control_plane.requests == []


@pytest.mark.parametrize("key", ["ü.ü", "zebra\nzebra"])
def test_key_of_the_environment_that_cannot_be_one_is_wrong_usage_and_not_printed(
    corral: Corral, control_plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Whoever reads the terminal or the log gets no part of it."""
    monkeypatch.setenv("CORRAL_API_KEY", key)
    for ran in (corral("whoami"), corral("whoami", "--json")):
        assert ran.code == 2
        assert "CORRAL_API_KEY" in ran.err
        assert key[:5] not in ran.err
    assert control_plane.requests == []


def test_login_replaces_a_kept_key_that_cannot_be_one(
    corral: Corral, control_plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint of the error must work."""
    monkeypatch.delenv("CORRAL_API_KEY")
    config.save(config.Config(url=control_plane.base_url, api_key="a b"), config.config_path())
    ran = corral("whoami")
    assert (ran.code, ran.err.splitlines()[-1]) == (2, "hint: `corral login`")
    assert corral("login", stdin="a\x7fb\n").code == 2
    assert corral("login", stdin=f"{KEY}\n").code == 0
    assert corral("whoami").code == 0


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
        corral("host", "set", "alpha", "--location", "de/Hesse/Frankfurt", "--at", "50.11,8.68"),
        corral("host", "show", "alpha"),
        corral("host", "set", "alpha", "--location", "Germany", "--at", "50.11,8.68"),
        corral("host", "set", "alpha", "--location", "DE", "--at", "north"),
        corral("host", "pause", "alpha"),
        corral("host", "resume", "alpha"),
        corral("host", "leave", "alpha"),
        corral("host", "leave", "alpha", "-y"),
        corral("host", "show", "nope"),
    )


def test_cap_on_traffic_is_set_and_shown(corral: Corral, matches_snapshot: Compare) -> None:
    """In decimal units, or none; what is offered from now on."""
    matches_snapshot(
        corral("host", "set", "alpha", "--traffic-cap", "5GB"),
        corral("host", "set", "alpha", "--traffic-cap", "none"),
        corral("host", "set", "alpha", "--traffic-cap", "1 MB"),
        corral("host", "set", "alpha", "--traffic-cap", "much"),
    )
    assert (
        json.loads(corral("host", "set", "alpha", "--traffic-cap", "0.5tb", "--json").out)["traffic_cap_bytes"]
        == 500 * 10**9
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
    matches_snapshot(corral("--help"), corral("job", "submit", "--help"), corral("host", "join", "--help"))


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
