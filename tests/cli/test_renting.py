"""Renting from the command line: plan, booking, progress, bill."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from corral.cli import clusters, progress
from corral.protocol.roster import Member
from corral.sdk import Client
from corral.testing.clock import FakeClock
from corral.wire.api import Cluster
from sdk.fake_control_plane import FakeControlPlane, a_member, an_id

from .conftest import Corral

Compare = Callable[..., None]


def test_up_shows_plan_and_phases_and_then_the_name(corral: Corral, matches_snapshot: Compare) -> None:
    """The plan, what it costs at most and at least, and who could read along, come before anything is booked."""
    matches_snapshot(corral("up", "--cpu", "1", "--nodes", "3", "--for", "90m", "--name", "mnist", "-y"))


def test_up_asks_and_takes_no_for_an_answer(
    corral: Corral, control_plane: FakeControlPlane, matches_snapshot: Compare
) -> None:
    """Nothing is booked."""
    matches_snapshot(corral("up", "--cpu", "1", answers="n\n"))
    assert control_plane.bookings == {}


def test_up_with_nobody_to_ask_is_refused_before_a_quote(
    corral: Corral, control_plane: FakeControlPlane, matches_snapshot: Compare
) -> None:
    """A script must say -y; so must one that reads JSON."""
    matches_snapshot(corral("up", "--cpu", "1"), corral("up", "--cpu", "1", "--json"))
    assert control_plane.requests == []


def test_up_without_money_says_what_is_missing(
    corral: Corral, control_plane: FakeControlPlane, matches_snapshot: Compare
) -> None:
    """Exit 1, with the server's reason and hint."""
    control_plane.balance_uc = 5
    matches_snapshot(corral("up", "--cpu", "1", "-y"), corral("up", "--cpu", "1", "-y", "--json"))


def test_up_that_fails_to_start_tells_why(
    corral: Corral, control_plane: FakeControlPlane, matches_snapshot: Compare
) -> None:
    """Exit 1; nothing was charged."""
    control_plane.start_fails = "beta did not answer for 60 s"
    matches_snapshot(corral("up", "--cpu", "1", "--nodes", "2", "-y"))


def test_up_interrupted_says_how_to_go_on(
    corral: Corral, matches_snapshot: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster keeps starting: only the showing ends."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "_follow_lines", interrupted)
    matches_snapshot(corral("up", "--cpu", "1", "--name", "mnist", "-y"))


def test_up_detached_does_not_wait(corral: Corral, matches_snapshot: Compare) -> None:
    """`show --follow` goes on."""
    up = corral("up", "--cpu", "1", "--name", "mnist", "-y", "--detach")
    matches_snapshot(up, corral("show", "mnist", "--follow"))


def test_up_without_internet_says_so_before_and_after(corral: Corral, matches_snapshot: Compare) -> None:
    """In the plan, and with the cluster."""
    up = corral("up", "--cpu", "1", "--name", "shut", "--no-internet", "-y", "--detach")
    matches_snapshot(up, corral("show", "shut"))


def test_members_that_are_pinned_are_signed_on_this_machine_alone(
    corral: Corral, control_plane: FakeControlPlane, matches_snapshot: Compare
) -> None:
    """`up` signs what it agreed to; later changes wait until their renter signs them."""
    up = corral("up", "--cpu", "1", "--nodes", "2", "--name", "mine", "--pin-members", "-y")
    [cluster] = control_plane.bookings.values()
    control_plane.propose(cluster, msgspec.structs.replace(a_member(1), node_id=cluster.nodes[0].id))
    matches_snapshot(
        up,
        corral("show", "mine"),
        corral("members", "mine"),
        corral("members", "mine", "--approve", answers="n\n"),
        corral("members", "mine", "--approve", "-y"),
        corral("members", "mine"),
    )
    assert "roster 2, signed by" in corral("show", "mine", "--members").out


def test_up_signs_no_host_that_the_plan_did_not_name(
    corral: Corral, control_plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was replaced before the first signature is a question for its renter."""
    propose = control_plane.propose

    def elsewhere(cluster: Cluster, *members: Member) -> None:
        cluster.nodes[0].host = "strange"
        propose(cluster, *members)

    monkeypatch.setattr(control_plane, "propose", elsewhere)
    ran = corral("up", "--cpu", "1", "--name", "mine", "--pin-members", "-y")
    assert ran.code == 1
    assert "strange, which the plan did not name; nothing was signed" in ran.err
    assert list(control_plane.proposals), "it still waits"


def test_up_asks_for_gpus_in_all(corral: Corral, matches_snapshot: Compare) -> None:
    """More than exist: the reason."""
    matches_snapshot(corral("up", "--gpu", "H100:8", "-y"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("up",),
        ("up", "--cpu", "-1"),
        ("up", "--cpu", "1", "--nodes", "0"),
        ("up", "--cpu", "1", "--for", "soon"),
        ("up", "--cpu", "1", "--for", "0h"),
        ("up", "--cpu", "1", "--for", "9999d"),
        ("up", "--gpu", "H100:0"),
        ("up", "--gpu", ":8"),
        ("up", "--gpu", "H100:999999", "-y"),
        ("up", "--cpus", "1"),
        ("rent",),
        ("extend", "mnist"),
        ("credit", "add", "ada", "-5"),
        ("credit", "add", "ada", "much"),
        ("credit", "add", "ada", "0"),
        ("credit", "add", "Bad!Name", "5"),
        ("keys", "create", ""),
        ("keys", "create", "x" * 300),
        ("keys", "create", "x", "--expires", "99999d"),
        ("keys", "create", "x", "--expires", "0m"),
        ("keys", "revoke", "x"),
        ("fleet", "token", "--expires", "99d"),
        ("show", "a/b"),
        ("host", "show", "a/b"),
        ("host", "join", "--slice", "a"),
        ("host", "join", "--gateway-bind", "127.0.0.1:1"),
        ("host", "join", "--advertise", "not-an-ip"),
        ("host", "join", "--development", "--memory", "inf"),
        ("host", "join", "--development", "--cores", "nan"),
        ("host", "join", "--development", "--slice", "A b", "--run"),
        ("host", "join", "--role", "gateway", "--gateway-bind", "8471"),
        ("host", "join", "--role", "gateway", "--gateway-bind", "127.0.0.1:99999"),
        ("job", "submit"),
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_wrong_usage_ends_with_two_and_asks_nothing(
    corral: Corral, control_plane: FakeControlPlane, matches_snapshot: Compare, arguments: tuple[str, ...]
) -> None:
    """The message names what is wrong."""
    ran = corral(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert control_plane.requests == []
    matches_snapshot(ran)
    ran = corral(*arguments, "--json")
    assert (ran.code, ran.out) == (2, "")
    assert json.loads(ran.err)["detail"]


def test_life_of_a_cluster_reads_well(corral: Corral, matches_snapshot: Compare) -> None:
    """From `ps` to the final bill."""
    corral("up", "--cpu", "1", "--nodes", "2", "--for", "2h", "--name", "mnist", "-y")
    matches_snapshot(
        corral("ps"),
        corral("show", "mnist"),
        corral("dashboard", "mnist"),
        corral("extend", "mnist", "--for", "3h", "-y"),
        corral("cost"),
        corral("cost", "mnist"),
        corral("down", "mnist", answers="y\n"),
        corral("ps"),
        corral("ps", "--all"),
        corral("cost"),
    )


def test_json_of_renting_is_the_wire_s_own(corral: Corral) -> None:
    """One document on stdout, nothing else; money in micro-credits."""
    up = json.loads(corral("up", "--cpu", "1", "--nodes", "2", "--name", "mnist", "-y", "--json").out)
    assert up["quote"]["total_uc"] == 240_000
    assert up["cluster"]["state"] == "ready"
    shown = corral("show", "mnist", "--json")
    assert shown.err == ""
    assert json.loads(shown.out)["phases"][-1]["name"] == "ready"
    assert [each["name"] for each in json.loads(corral("ps", "--json").out)] == ["mnist"]
    assert json.loads(corral("extend", "mnist", "--for", "1h", "-y", "--json").out)["hours"] == 2
    assert json.loads(corral("dashboard", "mnist", "--json").out)["url"].startswith("http://mnist.localhost")
    assert json.loads(corral("cost", "--json").out)["charged_uc"] == 0
    assert json.loads(corral("down", "mnist", "-y", "--json").out)["final"] is True
    assert json.loads(corral("cost", "mnist", "--json").out)["ledger_sum_uc"] == 0
    assert json.loads(corral("offers", "--json").out)["offers"][0]["devices"] == 3


def test_cluster_that_is_over_is_not_extended_and_shows_no_plan(
    corral: Corral, control_plane: FakeControlPlane, matches_snapshot: Compare
) -> None:
    """A plan is for something that can be done; of one that starts, the end is not known yet."""
    corral("up", "--cpu", "1", "--name", "mnist", "-y", "--detach")
    starting = corral("extend", "mnist", "--for", "1h", answers="n\n")
    corral("down", "mnist", "-y")
    matches_snapshot(starting, corral("extend", "mnist", "--for", "1h", "-y"))
    assert control_plane.extensions == set()


def test_unknown_cluster_is_an_error_with_a_hint(corral: Corral, matches_snapshot: Compare) -> None:
    """On stderr, exit 1; as a problem with --json."""
    matches_snapshot(corral("show", "nope"), corral("down", "nope", "-y", "--json"))


@pytest.fixture
def chain(corral: Corral, control_plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cluster `mnist` with two rosters, and its id; the renter's clock stands still."""

    @contextmanager
    def still() -> Iterator[Client]:
        with Client(clock=FakeClock()) as connected:
            yield connected

    monkeypatch.setattr(clusters, "client", still)
    corral("up", "--cpu", "1", "--nodes", "2", "--name", "mnist", "-y")
    cluster_id = an_id("cl", 1)
    control_plane.publish(cluster_id, a_member(1), a_member(2))
    control_plane.publish(cluster_id, a_member(1), a_member(2), a_member(3, leaf=True))
    return cluster_id


def test_members_are_shown_by_the_signed_chain(
    corral: Corral, control_plane: FakeControlPlane, chain: str, matches_snapshot: Compare
) -> None:
    """Who is in the mesh, since which roster, and how much was verified; then what is new, and who has gone."""
    first = corral("show", "mnist", "--members")
    control_plane.publish(chain, a_member(1), a_member(2, start=2), a_member(3, leaf=True))
    matches_snapshot(first, corral("show", "mnist", "--members"), corral("show", chain, "--members", "--follow"))


def test_members_of_a_cluster_without_a_roster_are_none(
    corral: Corral, control_plane: FakeControlPlane, chain: str, matches_snapshot: Compare
) -> None:
    """It has just been booked: the key is told, and kept."""
    control_plane.rosters.clear()
    matches_snapshot(corral("show", "mnist", "--members"))


def test_broken_chain_is_an_error_that_says_what_to_do(
    corral: Corral, control_plane: FakeControlPlane, chain: str, matches_snapshot: Compare
) -> None:
    """Exit 1, no table; the same with --json."""
    corral("show", "mnist", "--members")
    control_plane.rosters[chain].pop()
    matches_snapshot(corral("show", "mnist", "--members"), corral("show", "mnist", "--members", "--json"))


def test_json_of_members_holds_the_whole_keys(corral: Corral, control_plane: FakeControlPlane, chain: str) -> None:
    """One document on stdout, nothing else."""
    ran = corral("show", "mnist", "--members", "--json")
    shown = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert (shown["cluster_id"], shown["serial"], shown["rosters_verified"]) == (chain, 2, 2)
    assert shown["members"][0]["direct_key"] == a_member(1).direct_key
    assert [each["since_serial"] for each in shown["members"]] == [1, 1, 2]
    assert shown["former"] == []


def test_signed_name_cannot_command_the_terminal(corral: Corral, control_plane: FakeControlPlane, chain: str) -> None:
    """Whoever signs rosters must not be able to wipe a line of the table."""
    control_plane.publish(chain, msgspec.structs.replace(a_member(1), name="n1\x1b[1A\x1b[2K\r"))
    ran = corral("show", "mnist", "--members")
    assert ran.code == 0
    assert "n1\ufffd[1A" in ran.out
    assert not set("\x1b\r") & set(ran.out)


def test_machine_that_cannot_join_a_mesh_is_told_why(
    corral: Corral, matches_snapshot: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is asked of the control plane, with a way that needs no rights."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    matches_snapshot(corral("connect", "mnist"), corral("connect", "mnist", "--json"))


@pytest.mark.parametrize("port", ["x", "0", "70000", "1:2:3"])
def test_port_that_is_none_is_wrong_usage(corral: Corral, control_plane: FakeControlPlane, port: str) -> None:
    """Nothing is asked, nothing opened."""
    ran = corral("connect", "mnist", "--forward", port)
    assert (ran.code, control_plane.requests) == (2, [])
    assert port in ran.err
