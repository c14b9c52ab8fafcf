"""What a control plane in the wrong hands, or a stranger's container, can make of an agent: nothing beyond bounds."""

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from corral.agent.bodies import SpecRefused, node_bodies
from corral.agent.channels import CHANGES_AT_ONCE, CHANGES_PER_S
from corral.agent.documents import LEAVES_MAX, UNATTENDED_MAX, DocumentRefused
from corral.agent.nodes import NodeKeeper
from corral.protocol.peers import mesh_port, told_of
from corral.protocol.roster import GENESIS, Member, Roster, payload_of, sign
from corral.wire.agent import Desired, Revision, SignedRoster, encode

from .builders import CLUSTER, HOST, NOW, ROSTER_KEY, a_desired, a_leaf, a_mesh, a_node, facts
from .test_nodes import NODE, Host, host, parts, report_of

__all__ = ["host"]


# --- the control plane ------------------------------------------------------------------------------------------------


async def test_a_node_does_not_outlive_the_last_word_by_more_than_a_day(host: Host) -> None:
    """A document may say the year 2099: a host that hears nothing more ends its nodes all the same, even restarted."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1, stop_after=NOW + timedelta(days=30000))), NOW)
        await host.quiet(keeper)
    (label,) = {process.labels["corral.stop_after"] for process in host.engine.processes.values()}
    assert datetime.fromisoformat(label) == NOW + UNATTENDED_MAX
    async with host.agent() as keeper:
        await host.clock.run_for(UNATTENDED_MAX.total_seconds() + 1)
        assert host.names() == set()


async def test_a_document_that_contradicts_itself_changes_nothing(host: Host) -> None:
    """Two nodes of one id, the host as a node, too many leaves, an impossible time."""
    twice = a_desired(2, a_node(1), a_node(1, devices=("cpu-1",)))
    ourselves = a_desired(2, msgspec.structs.replace(a_node(1), node_id=HOST))
    many = a_desired(2, leaves=tuple(a_leaf(number) for number in range(1, LEAVES_MAX + 2)))
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        for document in (twice, ourselves, many):
            with pytest.raises(DocumentRefused):
                await keeper.converge(document, NOW)
        with pytest.raises(DocumentRefused):
            await keeper.converge(a_desired(2), datetime.max.replace(tzinfo=NOW.tzinfo))
        await host.quiet(keeper)
        assert keeper.seen() == Revision(1, 1)
        assert len(host.names()) == 3


def test_a_time_without_a_zone_is_no_desired_state() -> None:
    """It could not be compared; kept on disk, it would end every agent that reads it."""
    good = encode(a_desired(1, a_node(1)))
    assert msgspec.json.decode(good, type=Desired).nodes
    for field in ("stop_after", "server_time"):
        document = json.loads(good)
        (document["nodes"][0] if field == "stop_after" else document)[field] = "2026-01-01T00:00:00"
        with pytest.raises(msgspec.ValidationError, match="timezone"):
            msgspec.json.decode(json.dumps(document).encode(), type=Desired)


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("10.0.0.0/8", "10.128.0.1"),
        ("10.128.0.0/18", "10.99.0.1"),
        ("10.128.0.0/18", "10.128.0.999"),
        ("10.1.2.3/24", "10.1.2.3"),
    ],
)
def test_a_mesh_stays_in_its_own_network(network: str, address: str) -> None:
    """A wider route would shadow the engine's bridge."""
    spec = msgspec.structs.replace(a_node(1), mesh=msgspec.structs.replace(a_mesh(), network=network, address=address))
    with pytest.raises(SpecRefused):
        node_bodies(spec, facts(), revision=Revision(1, 1))


def a_member(number: int, *endpoints: str, engine_id: str = "AWAY") -> Member:
    """A member of a roster."""
    return Member(
        node_id=f"no_{number:026d}", name="x", kind="node", address=f"10.128.{number // 250}.{number % 250 + 1}",
        direct_key=f"{number:043d}=", relayed_key=f"{number:042d}R=", engine_id=engine_id, endpoints=endpoints,
    )  # fmt: skip


def endpoints(*members: Member) -> list[str | None]:
    """Where the mesh is told to send first."""
    roster = Roster(cluster_id=CLUSTER, serial=1, previous=GENESIS, members=members)
    told = told_of(roster, a_member(4000), engine_id="HERE")
    return [next(iter(peer["endpoints"]), None) for peer in told["peers"]]


@pytest.mark.parametrize("endpoint", [
    "198.51.100.7:53", "198.51.100.7:123", "224.0.0.1:51820", "255.255.255.255:9999", "127.0.0.1:51820",
    "169.254.169.254:8080", "0.0.0.0:51820", "1.2.3:51820", "1.2.3.4:70000", "1.2.3.4", "x" * 5000,
])  # fmt: skip
def test_no_handshake_is_sent_where_no_host_can_be(endpoint: str) -> None:
    """The member stays in the roster and may come to us; a hostile host's own endpoint must not stop its cluster."""
    odd, good = a_member(1, "172.17.0.2:51820", endpoint), a_member(2, "172.17.0.3:51820", "198.51.100.7:40001")
    assert endpoints(odd, good) == [None, "198.51.100.7:40001"]


def test_many_members_cannot_be_aimed_at_one_victim() -> None:
    """One endpoint is one member's; and one address has at most as many as a large site."""
    same = [a_member(number, "172.17.0.2:51820", "203.0.113.5:40000") for number in range(1, 4)]
    assert endpoints(*same) == [None, None, None]
    crowd = [a_member(number, "172.17.0.2:51820", f"203.0.113.5:{40000 + number}") for number in range(1, 100)]
    assert set(endpoints(*crowd)) == {None}
    assert None not in endpoints(*crowd[:64])


def test_on_the_bridge_only_wireguard_is_spoken_to() -> None:
    """Neighbours of the same engine: each member has a port of its own there, the provider's containers others."""
    ports = [mesh_port(a_member(number).node_id) for number in (1, 2, 3)]
    near = [a_member(number, endpoint, engine_id="HERE") for number, endpoint in enumerate(
        (f"172.17.0.2:{ports[0]}", f"172.17.0.9:{ports[0]}", f"8.8.8.8:{ports[2]}"), 1
    )]  # fmt: skip
    assert endpoints(*near) == [f"172.17.0.2:{ports[0]}", None, None]


def tried(own: Member, *others: Member) -> list[list[str]]:
    """Where the mesh of `own` is told to send, in order."""
    roster = Roster(cluster_id=CLUSTER, serial=1, previous=GENESIS, members=(own, *others))
    return [peer["endpoints"] for peer in told_of(roster, own, engine_id=own.engine_id)["peers"]]


def behind(member: Member, router: str, *lan: str) -> Member:
    """The member, behind a router with others."""
    return msgspec.structs.replace(member, router=router, lan=lan)


def test_a_lan_is_tried_first_by_those_behind_the_same_router_and_by_nobody_else() -> None:
    """The same private address is a stranger's machine in every other network."""
    public = ("172.17.0.2:20000", "203.0.113.5:40000", "203.0.113.5:20000")
    other = behind(a_member(1, *public), "no_1", "192.168.1.7:40000", "10.9.8.7:40000")
    near = behind(a_member(2, engine_id="HERE"), "no_1")
    assert tried(near, other) == [["192.168.1.7:40000", "10.9.8.7:40000", *public[1:]]]
    for router in ("", "no_9"):
        assert tried(behind(near, router), other) == [list(public[1:])]
    assert tried(behind(near, ""), behind(other, "", *other.lan)) == [list(public[1:])]


@pytest.mark.parametrize("endpoint", [
    "192.168.1.7:53", "192.168.1.7:1023", "127.0.0.1:40000", "169.254.1.1:40000", "224.0.0.1:40000", "8.8.8.8:40000",
    "100.64.0.1:40000", "192.168.1.300:40000", "192.168.1.9:40000", "0.0.0.0:40000", "x",
])  # fmt: skip
def test_on_a_lan_only_addresses_of_neighbours_are_tried(endpoint: str) -> None:
    """Services have low ports; public addresses are no LAN's; what we have ourselves is not the neighbour's."""
    own = behind(a_member(2, engine_id="HERE"), "no_1", "192.168.1.9:40001")
    assert tried(own, behind(a_member(1, "172.17.0.2:20000"), "no_1", endpoint)) == [[]]


def test_a_member_cannot_have_many_lan_addresses_tried() -> None:
    """Nobody's network is searched: four addresses, and eight endpoints in all."""
    lan = [f"192.168.1.{n}:40000" for n in range(1, 100)]
    public = [f"203.0.113.{n}:40000" for n in range(1, 100)]
    own = behind(a_member(2, engine_id="HERE"), "no_1")
    [found] = tried(own, behind(a_member(1, "172.17.0.2:20000", *public), "no_1", *lan))
    assert found == [*lan[:4], *public[:4]]


async def test_a_member_outside_of_the_mesh_spoils_a_roster(host: Host) -> None:
    """WireGuard would let in what comes from its address."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        report = report_of(keeper)
        members = (
            a_member(1, *report.endpoints),
            msgspec.structs.replace(a_member(2), address="172.17.0.1"),
        )
        payload = payload_of(Roster(cluster_id=CLUSTER, serial=1, previous=GENESIS, members=members))
        roster = SignedRoster(payload=payload, signature=sign(payload, ROSTER_KEY))
        await keeper.converge(a_desired(2, a_node(1), roster=roster), NOW)
        await host.quiet(keeper)
        fault = report_of(keeper).fault
        assert fault is not None
        assert (fault.code, report_of(keeper).roster_serial) == ("roster_refused", 0)


# --- the machine ------------------------------------------------------------------------------------------------------


async def test_a_wall_clock_that_is_set_ends_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """NTP corrects a clock by hours while nodes run: what counts is the server's time and what has passed since."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        real = host.clock.now
        monkeypatch.setattr(host.clock, "now", lambda: real() + timedelta(hours=5))
        await host.clock.run_for(20)
        assert len(host.names()) == 3


async def test_an_agent_that_restarts_alone_still_knows_how_wrong_its_clock_is(host: Host) -> None:
    """The server is two hours ahead of this machine; the node ends when everybody else's does."""
    async with host.agent() as keeper:
        ahead = NOW + timedelta(hours=2)
        await keeper.converge(a_desired(1, a_node(1, stop_after=ahead + timedelta(minutes=10))), ahead)
        await host.quiet(keeper)
    async with host.agent() as keeper:
        await host.clock.run_for(590)
        assert len(host.names()) == 3
        await host.clock.run_for(12)
        assert host.names() == set()


async def test_a_full_disk_ends_no_agent(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document counts, and is written as soon as there is room."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with host.agent() as keeper:
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            await keeper.converge(a_desired(1, a_node(1)), NOW)
            await host.quiet(keeper)
            assert parts(report_of(keeper)) == ("running", "running", "running")
            assert not (host.folder / "desired.json").exists()
        await host.clock.run_for(6)
        assert (host.folder / "desired.json").exists()


async def test_a_poisoned_record_counts_as_absent(host: Host) -> None:
    """An agent must never be kept from starting by what it once was told."""
    poison = a_desired(1, a_node(1), a_node(1))
    (host.folder / "desired.json").write_bytes(encode(msgspec.structs.replace(poison, secrets={})))
    async with host.agent() as keeper:
        await host.quiet(keeper)
        assert keeper.seen() == Revision(0, 0)


# --- containers -------------------------------------------------------------------------------------------------------


async def alive_after(host: Host, keeper: NodeKeeper) -> bool:
    """Whether the agent still does its work."""
    await host.quiet(keeper)
    await keeper.converge(a_desired(9), NOW)
    await host.quiet(keeper)
    return host.names() == set()


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"phase","phase":"\xff"}',
        b'{"type":"\xff"}',
        b'{"type":"phase","phase":"\\ud800"}',
        b'{"type":"phase","phase":"x","more":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"type":"phase","phase":"x","seconds":1e999}',
        b'{"type":"alive","nodes":' + b"9" * 5000 + b"}",
    ],
    ids=["utf8", "tag", "surrogate", "deep", "infinite", "number"],
)
async def test_no_line_of_a_workload_ends_the_agent(host: Host, line: bytes) -> None:
    """Whatever a stranger's program prints."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        host.engine.running("work")[0].say(line)
        host.engine.running("mesh")[0].say(line)
        assert await alive_after(host, keeper)


async def test_a_workload_states_neither_keys_nor_strangers(host: Host) -> None:
    """Keys are the mesh's to state; who is alive the head's, and only of its own cluster."""
    async with host.agent() as keeper:
        nodes = (a_node(1), a_node(2, devices=("cpu-1",), role="worker"))
        await keeper.converge(a_desired(1, *nodes), NOW)
        await host.quiet(keeper)
        keys = report_of(keeper).mesh_keys
        crowd = [f"10.{a}.{b}.1" for a in range(40) for b in range(200)]
        for process in host.engine.running("work"):
            process.say(b'{"type":"keys","direct":"' + b"A" * 43 + b'=","relayed":"' + b"A" * 43 + b'="}')
            process.say(b'{"type":"configured","serial":99}')
            process.say(json.dumps({"type": "alive", "nodes": [*crowd, "10.128.0.1", "10.128.0.1"]}).encode())
        await host.quiet(keeper)
        head, worker = (report_of(keeper, node.node_id) for node in nodes)
        assert (head.mesh_keys, head.roster_serial, head.alive) == (keys, 0, ("10.128.0.1",))
        assert worker.alive == ()


async def test_a_workload_that_never_stops_talking_is_slowed_down(host: Host) -> None:
    """Every change it tells costs the control plane a report: so many at once, and then a few a second."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        (ray,) = host.engine.running("work")
        for number in range(2000):
            ray.say(json.dumps({"type": "phase", "phase": f"p{number}"}).encode())
        await host.quiet(keeper)
        first = int(report_of(keeper).ray_phase[1:])
        assert first <= CHANGES_AT_ONCE + 5
        await host.clock.run_for(10)
        assert int(report_of(keeper).ray_phase[1:]) <= first + 10 * CHANGES_PER_S + 5
        assert await alive_after(host, keeper)


async def test_a_fault_of_one_node_says_nothing_of_another(host: Host) -> None:
    """A workload that dies loudly is its own node's affair."""
    async with host.agent() as keeper:
        nodes = (a_node(1), a_node(2, devices=("cpu-1",), role="worker"))
        await keeper.converge(a_desired(1, *nodes), NOW)
        await host.quiet(keeper)
        before = report_of(keeper, nodes[1].node_id)
        ray = next(one for one in host.engine.running("work") if NODE in one.name)
        ray.say(b'{"type":"fatal","reason":"the sky falls"}')
        ray.exit(1)
        await host.quiet(keeper)
        assert "the sky falls" in str(report_of(keeper).renewed_for)
        assert report_of(keeper, nodes[1].node_id) == before


async def test_an_agent_killed_in_any_line_of_a_node_s_life_finishes_it(host: Host, tmp_path: Path) -> None:
    """Create, attach and start of each part: the next agent brings the node up, and then ends it, without a rest."""
    steps = [(act, part) for act in ("create", "attach", "start") for part in ("pause", "mesh", "work")]
    for number, (act, part) in enumerate([*steps, ("stop", "work"), ("remove", "work"), ("remove", "mesh")], 1):
        name = f"corral-{NODE}-{part}"
        host.engine.blocked[act, name] = asyncio.Event()
        is_end = act in ("stop", "remove")
        if is_end:
            async with host.agent() as keeper:
                host.engine.blocked.clear()
                await keeper.converge(a_desired(10 * number, a_node(1)), NOW)
                await host.quiet(keeper)
            host.engine.blocked[act, name] = asyncio.Event()
        async with host.agent() as keeper:
            await keeper.converge(a_desired(10 * number + 1, *(() if is_end else (a_node(1),))), NOW)
            await host.clock.run_for(1)  # and is killed while this one act hangs
        host.engine.blocked.clear()
        async with host.agent() as keeper:
            if not is_end:
                await keeper.converge(a_desired(10 * number + 1, a_node(1)), NOW)
                await host.quiet(keeper)
                assert parts(report_of(keeper)) == ("running", "running", "running"), (act, part)
                assert report_of(keeper).ray_phase == "running", (act, part)
            await keeper.converge(a_desired(10 * number + 2), NOW)
            await host.quiet(keeper)
            assert host.names() == set(), (act, part)
