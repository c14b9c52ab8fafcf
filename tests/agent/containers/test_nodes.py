"""The node keeper on a fake engine and a fake clock: whole lives of nodes, and what may go wrong in them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corral.agent.bodies import HostFacts
from corral.agent.nodes import ENGINE_PATIENCE_S, PERIOD_S, NodeKeeper
from corral.agent.renewals import PAUSES_S
from corral.agent.runtime import ContainerRefused, EngineUnreachable
from corral.protocol.roster import payload_hash
from corral.testing.clock import FakeClock
from corral.testing.fake_runtime import Exiting, FakeEngine, FakeMesh, FakeProcess, FakeRay, FakeRuntime, FakeWeb
from corral.testing.ids import numbered_id
from corral.wire.agent import LeafSpec, MeshKeys, NodeReport, Revision, Secrets

from .builders import HOST, NET_IMAGE, NOW, RAY_IMAGE, TOKEN, a_desired, a_leaf, a_node, a_roster, facts

NODE = a_node(1).node_id


class Configurer:
    """Texts that show what went into them."""

    def leaf_configuration(self, leaf: LeafSpec, secrets: Secrets, leaf_secret: str) -> str:
        return f"leaf {leaf.head_address} {secrets.ray_token} {leaf_secret}"

    def front_configuration(self, leaves: Sequence[tuple[str, str, str]]) -> str:
        return f"front {list(leaves)}"


class Host:
    """A fake machine with one agent on it, which may come and go."""

    def __init__(self, folder: Path) -> None:
        self.engine = FakeEngine(images={NET_IMAGE, RAY_IMAGE})
        self.clock = FakeClock(NOW)
        self.folder = folder

    @asynccontextmanager
    async def agent(self, host_facts: HostFacts | None = None) -> AsyncIterator[NodeKeeper]:
        """An agent that runs until the end of the block, and then is killed: its connections break."""
        runtime = FakeRuntime(self.engine, HOST)
        keeper = NodeKeeper(runtime, host_facts or facts(), self.folder, self.clock, Configurer())
        running = asyncio.create_task(keeper.run())
        try:
            yield keeper
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await runtime.close()

    async def quiet(self, keeper: NodeKeeper, *, seconds: float = 0.1) -> None:
        """Lets everything happen that happens at once, or within `seconds`."""
        for _ in range(10):
            await self.clock.run_for(seconds / 10)
        async with asyncio.timeout(5):
            await keeper.settled()

    def names(self) -> set[str]:
        """Names of all containers on the machine."""
        return set(self.engine.processes)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A machine with the images and nothing else."""
    return Host(tmp_path)


def report_of(keeper: NodeKeeper, node_id: str = NODE) -> NodeReport:
    """The report about one node."""
    return next(report for report in keeper.reports() if report.node_id == node_id)


def parts(report: NodeReport) -> tuple[str, str, str]:
    """The states of its three containers."""
    return (report.pause, report.mesh, report.work)


async def test_a_node_comes_up_and_is_reported(host: Host) -> None:
    """Three containers, the key as soon as it is printed, the token by stdin, endpoints bridge first."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        report = report_of(keeper)
        assert parts(report) == ("running", "running", "running")
        assert report.mesh_keys is not None
        assert [endpoint.partition(":")[0] for endpoint in report.endpoints] == ["172.17.0.3", "0.0.0.0"]  # noqa: S104
        assert report.ray_phase == "running"
        assert report.alive == ("10.128.0.1",)
        assert report.fault is None
        assert keeper.applied() == keeper.seen() == Revision(1, 1)
        assert keeper.changed.is_set()


async def test_the_token_is_neither_in_a_body_nor_on_disk(host: Host) -> None:
    """It goes over stdin into the workload and stays in memory."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        (ray,) = [process.program for process in host.engine.running("work")]
        assert isinstance(ray, FakeRay)
        assert ray.token == TOKEN
        assert all(TOKEN not in json.dumps(process.body) for process in host.engine.processes.values())
        assert all(TOKEN.encode() not in file.read_bytes() for file in host.folder.iterdir())


async def test_the_port_is_told_at_the_hosts_own_addresses_too(host: Host) -> None:
    """For members behind the same router; a port that is published at one address alone is nowhere else."""
    at = ("192.168.1.7", "10.9.8.7")
    for number, (publish_ip, wanted) in enumerate((("0.0.0.0", at), ("127.0.0.1", ()))):  # noqa: S104
        async with host.agent(replace(facts(), lan=at, publish_ip=publish_ip)) as keeper:
            await keeper.converge(a_desired(2 * number + 1, a_node(1)), NOW)
            await host.quiet(keeper)
            report = report_of(keeper)
            port = report.endpoints[1].partition(":")[2]
            assert report.lan == tuple(f"{address}:{port}" for address in wanted)
            await keeper.converge(a_desired(2 * number + 2), NOW)
            await host.quiet(keeper)


async def test_a_roster_reaches_the_mesh_with_the_right_paths(host: Host) -> None:
    """On the same engine by the bridge, from elsewhere by the published port."""
    async with host.agent(replace(facts(), advertise="203.0.113.9")) as keeper:
        nodes = (a_node(1), a_node(2, devices=("cpu-1",), role="worker"))
        await keeper.converge(a_desired(1, *nodes), NOW)
        await host.quiet(keeper)
        roster = a_roster(1, keeper.reports())
        await keeper.converge(a_desired(2, *nodes, roster=roster), NOW)
        await host.quiet(keeper)
        meshes = [process.program for process in host.engine.running("mesh")]
        reports = keeper.reports()
        assert [report.roster_serial for report in reports] == [1, 1]
        assert [report.handshaken for report in reports] == [("10.128.0.2",), ("10.128.0.1",)]
        first = meshes[0]
        assert isinstance(first, FakeMesh)
        assert [peer["endpoints"] for peer in first.peers] == [[reports[1].endpoints[0]]]

        abroad = a_roster(2, reports, previous=payload_hash(roster.payload), engine_id="ANOTHER")
        await keeper.converge(a_desired(3, *nodes, roster=abroad), NOW)
        await host.quiet(keeper)
        assert [peer["endpoints"] for peer in first.peers] == [[reports[1].endpoints[1]]]


async def test_a_forged_or_older_roster_is_refused_and_said_so(host: Host) -> None:
    """Also after a restart of the agent: the last serial is on disk."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        first = a_roster(1, keeper.reports())
        second = a_roster(2, keeper.reports(), previous=payload_hash(first.payload))
        for number, roster in ((2, first), (3, second)):
            await keeper.converge(a_desired(number, a_node(1), roster=roster), NOW)
            await host.quiet(keeper)
    async with host.agent() as keeper:
        await keeper.converge(a_desired(4, a_node(1), roster=first), NOW)
        await host.quiet(keeper)
        fault = report_of(keeper).fault
        assert fault is not None
        assert (fault.code, report_of(keeper).roster_serial) == ("roster_refused", 2)
        forged = msgspec.structs.replace(second, signature=first.signature)
        await keeper.converge(a_desired(5, a_node(1), roster=forged), NOW)
        await host.quiet(keeper)
        assert "signature" in str(report_of(keeper).fault)
        await keeper.converge(a_desired(6, a_node(1), roster=second), NOW)
        await host.quiet(keeper)
        assert report_of(keeper).fault is None


async def test_a_roster_made_for_an_earlier_key_waits(host: Host) -> None:
    """A mesh container that was started anew has a new key; feeding it the old roster would only cut it off."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        earlier = MeshKeys(direct="A" * 43 + "=", relayed="B" * 42 + "A=")
        stale = msgspec.structs.replace(report_of(keeper), mesh_keys=earlier)
        await keeper.converge(a_desired(2, a_node(1), roster=a_roster(1, [stale])), NOW)
        await host.quiet(keeper)
        assert report_of(keeper).roster_serial == 0
        assert report_of(keeper).fault is None


async def test_a_dropped_node_leaves_nothing_and_only_then_is_it_applied(host: Host) -> None:
    """The device is lent again on our word."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        gate = host.engine.blocked["stop", f"corral-{NODE}-work"] = asyncio.Event()
        await keeper.converge(a_desired(2), NOW)
        await host.clock.run_for(1)
        assert keeper.applied() == Revision(1, 1)
        gate.set()
        await host.quiet(keeper)
        assert host.names() == set()
        assert keeper.applied() == Revision(1, 2)
        ended = [name for act, name in host.engine.log if act == "remove"]
        assert [name.rpartition("-")[2] for name in ended] == ["work", "mesh", "pause"]


async def test_an_older_document_is_ignored(host: Host) -> None:
    """A late reply changes nothing."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(5, a_node(1)), NOW)
        await host.quiet(keeper)
        await keeper.converge(a_desired(4), NOW)
        await host.quiet(keeper)
        assert keeper.seen() == Revision(1, 5)
        assert len(host.names()) == 3


async def test_an_agent_that_restarts_adopts_what_runs(host: Host) -> None:
    """Same containers, all facts known again without the control plane."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        await keeper.converge(a_desired(2, a_node(1), roster=a_roster(1, keeper.reports())), NOW)
        await host.quiet(keeper)
        before = report_of(keeper)
    host.engine.log.clear()
    async with host.agent() as keeper:
        await host.quiet(keeper)
        assert report_of(keeper) == before
        assert host.engine.log == []
        await keeper.converge(a_desired(2, a_node(1)), NOW)
        await host.quiet(keeper)
        assert host.engine.log == []


async def test_an_agent_that_died_between_create_and_start_completes_the_node(host: Host) -> None:
    """The token arrives with the next document."""
    host.engine.failures["start", f"corral-{NODE}-work"] = ContainerRefused("no")
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        assert parts(report_of(keeper)) == ("running", "running", "created")
    host.engine.failures.clear()
    async with host.agent() as keeper:
        await host.quiet(keeper)
        assert parts(report_of(keeper)) == ("running", "running", "running")
        assert report_of(keeper).ray_phase == "waiting_mesh"
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        assert report_of(keeper).ray_phase == "running"


async def test_nodes_end_at_stop_after_without_a_control_plane(host: Host) -> None:
    """From the document on disk; an extension in it counts."""
    node = a_node(1, stop_after=NOW + timedelta(minutes=10))
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1, stop_after=NOW + timedelta(minutes=5))), NOW)
        await keeper.converge(a_desired(2, node), NOW)
        await host.quiet(keeper)
    async with host.agent() as keeper:
        await host.clock.run_for(599)
        assert len(host.names()) == 3
        await host.clock.run_for(2)
        assert host.names() == set()
        assert parts(report_of(keeper)) == ("missing", "missing", "missing")


async def test_server_time_decides_about_stop_after(host: Host) -> None:
    """A host whose clock is wrong by an hour ends its nodes when everybody else does."""
    async with host.agent() as keeper:
        node = a_node(1, stop_after=NOW + timedelta(minutes=70))
        await keeper.converge(a_desired(1, node), NOW + timedelta(hours=1))
        await host.quiet(keeper)
        assert len(host.names()) == 3
        await host.clock.run_for(601)
        assert host.names() == set()


async def test_one_node_that_hangs_delays_no_other(host: Host) -> None:
    """Each is changed by a task of its own."""
    host.engine.blocked["create", f"corral-{NODE}-mesh"] = asyncio.Event()
    async with host.agent() as keeper:
        other = a_node(2, devices=("cpu-1",))
        await keeper.converge(a_desired(1, a_node(1), other), NOW)
        await host.clock.run_for(1)
        assert parts(report_of(keeper, other.node_id)) == ("running", "running", "running")
        assert report_of(keeper).work != "running"


async def test_a_missing_image_is_a_fault_and_is_tried_again_with_patience(host: Host) -> None:
    """No pull; once the image is there the node comes up."""
    host.engine.images.remove(RAY_IMAGE)
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        fault = report_of(keeper).fault
        assert fault is not None
        assert fault.code == "image_missing"
        assert RAY_IMAGE in fault.message
        host.engine.images.add(RAY_IMAGE)
        await host.clock.run_for(2)
        assert parts(report_of(keeper)) == ("running", "running", "running")
        assert report_of(keeper).fault is None


async def test_a_container_that_ends_is_explained(host: Host) -> None:
    """With the status and the last lines of stderr, without anything that looks like a secret, and bounded."""

    class Waiting(FakeRay):
        def obey(self, process: FakeProcess, message: dict[str, Any]) -> None:
            """Never gets as far as running."""

    host.engine.programs[("/corral/ray",)] = Waiting
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        keeper.changed.clear()
        (ray,) = host.engine.running("work")
        for line in ("x" * 3000, f"token {TOKEN}", "Authorization: Bearer abc", "raylet died"):
            ray.complain(line)
        ray.exit(1)
        await host.quiet(keeper)
        report = report_of(keeper)
        assert report.renewals == 0
        assert parts(report) == ("running", "running", "exited")
        assert report.fault is not None
        assert report.fault.code == "ray_exited"
        assert "status 1" in report.fault.message
        assert report.fault.message.endswith("raylet died")
        assert TOKEN not in report.fault.message
        assert "abc" not in report.fault.message
        assert len(report.fault.message) <= 2000
        assert keeper.changed.is_set()


async def test_a_mesh_that_cannot_start_says_what_is_missing(host: Host) -> None:
    """Its own words, with the remedy."""

    class Lame(FakeMesh):
        def begin(self, process) -> None:  # type: ignore[no-untyped-def]
            self.emit(process, "fatal", reason="this container lacks NET_ADMIN")
            process.exit(1)

    host.engine.programs[("/corral/mesh",)] = Lame
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        fault = report_of(keeper).fault
        assert fault is not None
        assert fault.code == "mesh_failed"
        assert "NET_ADMIN" in fault.message


async def test_a_workload_that_worked_is_made_anew_in_its_network(host: Host) -> None:
    """Ray ended, the network and the mesh stay: a new container with the token, told with the reason, and no fault."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        before = {process.name: process.container_id for process in host.engine.processes.values()}
        (ray,) = host.engine.running("work")
        ray.complain("raylet died")
        ray.exit(1)
        await host.quiet(keeper, seconds=2)
        after = {process.name: process.container_id for process in host.engine.processes.values()}
        assert [name for name in before if before[name] != after[name]] == [f"corral-{NODE}-work"]
        (ray,) = host.engine.running("work")
        assert isinstance(ray.program, FakeRay)
        assert ray.program.token == TOKEN
        report = report_of(keeper)
        assert (report.ray_phase, report.alive, report.fault) == ("running", ("10.128.0.1",), None)
        assert report.renewals == 1
        assert report.renewed_for is not None
        assert report.renewed_for.code == "ray_exited"
        assert "raylet died" in report.renewed_for.message


async def test_a_mesh_that_worked_is_made_anew_beside_its_workload(host: Host) -> None:
    """It has new keys, so that a new roster can name it."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        keys, (ray,) = report_of(keeper).mesh_keys, host.engine.running("work")
        (mesh,) = host.engine.running("mesh")
        mesh.exit(137)
        await host.quiet(keeper, seconds=2)
        report = report_of(keeper)
        assert parts(report) == ("running", "running", "running")
        assert report.mesh_keys not in (keys, None)
        assert host.engine.running("work") == [ray]
        await keeper.converge(a_desired(2, a_node(1), roster=a_roster(1, [report])), NOW)
        await host.quiet(keeper)
        assert report_of(keeper).roster_serial == 1


async def test_a_workload_that_ends_again_and_again_is_a_fault(host: Host) -> None:
    """Each renewal waits longer than the one before; after the last one the control plane must decide."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        for count, pause in enumerate(PAUSES_S, start=1):
            (ray,) = host.engine.running("work")
            ray.exit(1)
            await host.clock.run_for(pause + PERIOD_S + 2)
            assert (report_of(keeper).renewals, report_of(keeper).fault) == (count, None)
        (ray,) = host.engine.running("work")
        ray.exit(1)
        await host.clock.run_for(300)
        report = report_of(keeper)
        assert (report.work, report.renewals) == ("exited", len(PAUSES_S))
        assert report.fault is not None
        assert report.fault.code == "ray_exited"


async def test_a_daemon_that_dies_takes_nodes_with_it_that_are_made_anew(host: Host) -> None:
    """Also by an agent that came back later than the daemon: what has worked is on disk. Its token comes again, too."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
    host.engine.restart()
    async with host.agent() as keeper:
        await host.clock.run_for(8)
        assert parts(report_of(keeper)) == ("running", "running", "running")
        assert report_of(keeper).ray_phase == "waiting_mesh"
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        assert (report_of(keeper).ray_phase, report_of(keeper).renewals) == ("running", 1)


async def test_a_daemon_that_restarts_is_seen_and_survived(host: Host) -> None:
    """Containers die with it: those of a node that had not worked are told as exited."""

    class Waiting(FakeRay):
        def obey(self, process: FakeProcess, message: dict[str, Any]) -> None:
            """Never gets as far as running."""

    host.engine.programs[("/corral/ray",)] = Waiting
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        host.engine.is_reachable = False
        host.engine.restart()
        await host.clock.run_for(8)
        assert parts(report_of(keeper)) == ("running", "running", "running")
        host.engine.is_reachable = True
        await host.clock.run_for(8)
        report = report_of(keeper)
        assert parts(report) == ("exited", "exited", "exited")
        assert report.fault is not None
        assert report.fault.code == "container_failed"
        await keeper.converge(a_desired(2, a_node(2)), NOW)
        await host.quiet(keeper)
        assert parts(report_of(keeper, numbered_id("no", 2))) == ("running", "running", "running")
        assert len(host.names()) == 3


async def test_an_engine_silent_for_too_long_ends_the_agent_and_nothing_else(host: Host) -> None:
    """A daemon that was started anew has a new socket, which only a new process of ours gets; nodes go on meanwhile."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
    keeper = NodeKeeper(FakeRuntime(host.engine, HOST), facts(), host.folder, host.clock)
    running = asyncio.create_task(keeper.run())
    host.engine.is_reachable = False
    await host.clock.run_for(ENGINE_PATIENCE_S - 2)
    host.engine.is_reachable = True
    await host.clock.run_for(ENGINE_PATIENCE_S)
    host.engine.is_reachable = False
    host.engine.break_connections()
    await host.clock.run_for(ENGINE_PATIENCE_S - 2)
    assert not running.done()
    await host.clock.run_for(4)
    assert running.done()
    with pytest.raises(ExceptionGroup) as raised:
        running.result()
    assert raised.group_contains(EngineUnreachable)
    assert {process.state for process in host.engine.processes.values()} == {"running"}


async def test_a_broken_connection_is_mended(host: Host) -> None:
    """The channel is opened again, and the programs asked for everything."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        for process in host.engine.processes.values():
            for channel in tuple(process.channels):
                await channel.close()
        await host.clock.run_for(6)
        assert report_of(keeper).ray_phase == "running"
        (mesh,) = host.engine.running("mesh")
        assert len(mesh.channels) == 1


async def test_orphans_are_told_and_ended_after_their_grace(host: Host) -> None:
    """A restored database that has forgotten a cluster has a minute to remember it."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(9, a_node(1)), NOW)
        await host.quiet(keeper)
        await keeper.converge(a_desired(1, epoch=2), NOW)
        await host.quiet(keeper)
        assert keeper.foreign() == (NODE,)
        assert keeper.applied() == Revision(1, 9)
        await host.clock.run_for(58)
        assert len(host.names()) == 3
        await host.clock.run_for(4)
        assert host.names() == set()
        assert keeper.applied() == Revision(2, 1)


async def test_what_is_not_ours_is_never_touched(host: Host) -> None:
    """Not even where it has a name that we would use."""
    taken = f"corral-{NODE}-mesh"
    host.engine.make(taken, {"Image": NET_IMAGE, "Entrypoint": ["/bin/cat"], "HostConfig": {}, "Labels": {}}).begin()
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        fault = report_of(keeper).fault
        assert fault is not None
        assert "not ours" in fault.message
        await keeper.converge(a_desired(2), NOW)
        await host.quiet(keeper)
        assert host.names() == {taken}
        assert host.engine.processes[taken].state == "running"


async def test_a_gateway_runs_leaves_and_one_front(host: Host) -> None:
    """The leaf gets the token by stdin, the front the leaf's address; after a restart neither is reconfigured."""
    async with host.agent(facts(gateway=True)) as keeper:
        await keeper.converge(a_desired(1, leaves=(a_leaf(),)), NOW)
        await host.quiet(keeper)
        (leaf,) = keeper.leaves()
        assert leaf.is_serving
        (web,), (front,) = host.engine.running("web"), host.engine.running("front")
        assert isinstance(web.program, FakeWeb)
        assert web.program.nginx == f"leaf 10.128.0.1 {TOKEN} {leaf.leaf_secret}"
        assert isinstance(front.program, FakeWeb)
        assert front.program.nginx == f"front {[('mnist', leaf.address, leaf.leaf_secret)]}"
        assert leaf.leaf_secret not in repr(leaf)
        assert parts(report_of(keeper, leaf.node_id)) == ("running", "running", "running")
    async with host.agent(facts(gateway=True)) as keeper:
        await host.quiet(keeper)
        await keeper.converge(a_desired(1, leaves=(a_leaf(),)), NOW)
        await host.quiet(keeper)
        assert keeper.leaves() == (leaf,)


async def test_a_front_that_ends_is_started_again(host: Host) -> None:
    """Patiently, if it ends at once."""
    async with host.agent(facts(gateway=True)) as keeper:
        await keeper.converge(a_desired(1), NOW)
        await host.quiet(keeper)
        (front,) = host.engine.running("front")
        front.exit(1)
        await host.quiet(keeper)
        assert len(host.engine.running("front")) == 1


async def test_a_flood_of_nonsense_from_a_workload_is_dropped(host: Host) -> None:
    """Its stdout is a stranger's: nothing odd gets into a report."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        (ray,) = host.engine.running("work")
        before = report_of(keeper)
        for line in (
            b"\xff\xfe",
            b"[]",
            b'{"type":"phase","phase":7}',
            b'{"type":"alive","nodes":["evil"]}',
            b"{" * 9999,
        ):
            ray.say(line)
        await host.quiet(keeper)
        assert report_of(keeper) == before


async def test_a_device_that_two_nodes_name_is_a_fault_of_the_second(host: Host) -> None:
    """The first keeps running."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
        await keeper.converge(a_desired(2, a_node(1), a_node(2)), NOW)
        await host.quiet(keeper)
        fault = report_of(keeper, numbered_id("no", 2)).fault
        assert fault is not None
        assert fault.code == "device_busy"
        assert parts(report_of(keeper)) == ("running", "running", "running")


async def test_an_unreadable_record_counts_as_absent(host: Host) -> None:
    """A half-written disk must not keep an agent from starting, nor make it end anything."""
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.quiet(keeper)
    (host.folder / "desired.json").write_bytes(b"{half")
    async with host.agent() as keeper:
        await host.quiet(keeper)
        assert keeper.reports() == ()
        assert len(host.names()) == 3
        await host.clock.run_for(3601)
        assert host.names() == set()


async def test_a_workload_that_fails_at_once_is_reported_once(host: Host) -> None:
    """No restart loop: the agent leaves it for the control plane."""
    host.engine.programs[("/corral/ray",)] = lambda: Exiting(2, "no such file")
    async with host.agent() as keeper:
        await keeper.converge(a_desired(1, a_node(1)), NOW)
        await host.clock.run_for(60)
        assert report_of(keeper).work == "exited"
        assert [entry for entry in host.engine.log if entry == ("start", f"corral-{NODE}-work")] == [
            ("start", f"corral-{NODE}-work")
        ]
