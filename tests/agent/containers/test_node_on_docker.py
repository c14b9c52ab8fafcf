"""Whole nodes on a real engine with the project's images: mesh, Ray, adoption, and an end that leaves nothing."""

import asyncio
import contextlib
import json
import secrets
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corral.agent.bodies import HostFacts, node_bodies
from corral.agent.docker import DockerRuntime
from corral.agent.nodes import NodeKeeper
from corral.agent.pacing import until_set
from corral.core.clock import SystemClock
from corral.core.ids import TimeOrderedIds
from corral.core.randomness import SystemRandomness
from corral.core.units import GIB, MIB
from corral.protocol.roster import GENESIS, Member, Roster, payload_of, sign
from corral.wire.agent import Desired, LeafSpec, NodeReport, NodeSpec, Revision, Secrets, SignedRoster

from .builders import CLUSTER, ROSTER_KEY, a_desired, a_device, a_leaf, a_node, facts

pytestmark = [pytest.mark.docker]

IMAGES = Path(__file__).parents[3] / ".cache" / "images.json"


class Machine:
    """This machine's engine, and one host id on it that only this test uses."""

    def __init__(self, folder: Path, host_facts: HostFacts, ray_image: str) -> None:
        self.folder, self.facts, self.ray_image = folder, host_facts, ray_image
        self.ids = TimeOrderedIds(SystemClock(), SystemRandomness())

    def node(self) -> NodeSpec:
        """A head on the machine's one device."""
        stop_after = datetime.now(UTC) + timedelta(seconds=600)
        spec = a_node(1, image=self.ray_image, object_store_bytes=80 * MIB, stop_after=stop_after)
        return msgspec.structs.replace(spec, node_id=self.ids.new("no"))

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[NodeKeeper]:
        """An agent that is killed at the end of the block."""
        async with DockerRuntime(self.facts.host_id) as runtime:
            keeper = NodeKeeper(runtime, self.facts, self.folder, SystemClock())
            running = asyncio.create_task(keeper.run())
            try:
                yield keeper
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    def containers(self) -> list[str]:
        """Names of all containers with this host's label."""
        shown = docker("ps", "-a", "--filter", f"label=corral.host={self.facts.host_id}", "--format", "{{.Names}}")
        return shown.split()


def docker(*arguments: str) -> str:
    """The engine's own command line, as an independent witness."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine with one slice of a core and 3 GiB."""
    if not IMAGES.exists():
        pytest.skip("the project's images have not been built: scripts/setup")
    images = json.loads(IMAGES.read_text())
    async with DockerRuntime("") as runtime:
        engine_id = (await runtime.info()).engine_id
    host_facts = replace(
        facts([a_device(cores=1.0, memory_bytes=3 * GIB)]),
        host_id=f"test-{secrets.token_hex(6)}",
        engine_id=engine_id,
        net_image=images["corral-net"],
        publish_ip="127.0.0.1",
        nofile_max=int(
            docker("run", "--rm", "--network=none", "--pull=never", images["corral-net"], "sh", "-c", "ulimit -Hn")
        ),
    )
    machine = Machine(tmp_path, host_facts, images["corral-ray"])
    yield machine
    for name in machine.containers():
        with contextlib.suppress(subprocess.CalledProcessError):
            docker("rm", "-f", "-v", name)


async def until(keeper: NodeKeeper, holds: Callable[[NodeReport], Any], *, seconds: float = 120) -> NodeReport:
    """The node's report, once `holds` is true of it."""
    async with asyncio.timeout(seconds):
        await keeper.ready()
        while True:
            keeper.changed.clear()
            (report,) = keeper.reports()
            if holds(report):
                return report
            assert report.fault is None, report.fault
            await keeper.changed.wait()


def with_roster(desired: Desired, report: NodeReport, engine_id: str) -> Desired:
    """The next document, with the signed roster of its only member."""
    member = Member(
        node_id=report.node_id,
        name="host-1",
        kind="node",
        address="10.128.0.1",
        direct_key=report.mesh_keys.direct if report.mesh_keys else "",
        relayed_key=report.mesh_keys.relayed if report.mesh_keys else "",
        engine_id=engine_id,
        endpoints=report.endpoints,
    )
    payload = payload_of(Roster(cluster_id=CLUSTER, serial=1, previous=GENESIS, members=(member,)))
    signed = SignedRoster(payload=payload, signature=sign(payload, ROSTER_KEY))
    revision = Revision(desired.revision.epoch, desired.revision.number + 1)
    return msgspec.structs.replace(desired, revision=revision, rosters={CLUSTER: signed})


async def test_a_node_lives_from_key_to_ray_and_leaves_nothing(machine: Machine) -> None:
    """Key, roster, Ray alive; adopted by a new agent; then gone with its network. It never has a volume."""
    desired = a_desired(1, machine.node())
    async with machine.agent() as keeper:
        await keeper.converge(desired, datetime.now(UTC))
        report = await until(keeper, lambda one: one.mesh_keys and one.endpoints)
        assert len(report.endpoints) == 2
        desired = with_roster(desired, report, machine.facts.engine_id)
        await keeper.converge(desired, datetime.now(UTC))
        report = await until(keeper, lambda one: one.ray_phase == "running" and one.alive)
        assert report.roster_serial == 1
        assert report.alive == ("10.128.0.1",)
    before = docker("inspect", *machine.containers(), "--format", "{{.Id}}")
    assert docker("inspect", *machine.containers(), "--format", "{{json .Mounts}}").split() == ["[]"] * 3
    async with machine.agent() as keeper:
        adopted = await until(keeper, lambda one: one.ray_phase == "running" and one.alive and one.mesh_keys)
        assert adopted.mesh_keys == report.mesh_keys
        assert adopted.endpoints == report.endpoints
        assert docker("inspect", *machine.containers(), "--format", "{{.Id}}") == before
        await keeper.converge(a_desired(3), datetime.now(UTC))
        async with asyncio.timeout(60):
            while keeper.applied() != Revision(1, 3):
                keeper.changed.clear()
                await keeper.changed.wait()
    assert machine.containers() == []


async def test_a_node_ends_at_stop_after_without_a_control_plane(machine: Machine) -> None:
    """An agent that was restarted and hears of nobody ends it all the same."""
    spec = machine.node()
    async with machine.agent() as keeper:
        await keeper.converge(a_desired(1, spec), datetime.now(UTC))
        await until(keeper, lambda one: one.work == "running")
        soon = msgspec.structs.replace(spec, stop_after=datetime.now(UTC) + timedelta(seconds=3))
        await keeper.converge(a_desired(2, soon), datetime.now(UTC))
    async with machine.agent() as keeper:
        await until(keeper, lambda one: one.pause == one.mesh == one.work == "missing", seconds=60)
    assert machine.containers() == []


async def test_a_container_that_is_killed_is_noticed_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine's events: without them nobody would look again for an hour."""
    monkeypatch.setattr("corral.agent.nodes.PERIOD_S", 3600.0)
    async with machine.agent() as keeper:
        await keeper.converge(a_desired(1, machine.node()), datetime.now(UTC))
        await until(keeper, lambda one: one.work == "running" and one.mesh_keys)
        (mesh,) = [name for name in machine.containers() if name.endswith("-mesh")]
        killed = asyncio.create_task(asyncio.to_thread(docker, "kill", mesh))
        report = await until(keeper, lambda one: one.mesh == "exited", seconds=60)
        await killed
        assert report.fault is not None
        assert report.fault.code == "mesh_failed"


async def test_a_full_scratch_is_no_space_left_and_not_the_end(machine: Machine) -> None:
    """The body of a node's workload, with a shell in it: tmpfs and shared memory full, and the shell goes on."""
    spec = machine.node()
    body = dict(node_bodies(spec, machine.facts, revision=Revision(1, 1))["work"])
    body["Image"], body["Entrypoint"] = machine.facts.net_image, ["/bin/sh", "-c", FILL]
    body["HostConfig"] = {**body["HostConfig"], "NetworkMode": "none"}
    async with DockerRuntime(machine.facts.host_id) as runtime:
        name = f"corral-{spec.node_id}-work"
        await runtime.create(name, body)
        channel = await runtime.attach(name)
        await runtime.start(name)
        async with asyncio.timeout(60):
            lines = [line async for line in channel.lines()]
        assert lines == [b"full", b"full", b"alive 1000"]
        await channel.close()
        await runtime.remove(name)


FILL = """
dd if=/dev/zero of=/tmp/fill bs=1M 2>&1 | grep -q 'No space left' && echo full
dd if=/dev/zero of=/dev/shm/fill bs=1M 2>&1 | grep -q 'No space left' && echo full
touch /root/x /x 2>/dev/null && echo 'the root file system is writable'
echo alive $(id -u)
"""


class PlainConfigurer:
    """nginx configurations that answer one word."""

    def leaf_configuration(self, leaf: LeafSpec, secrets: Secrets, leaf_secret: str) -> str:
        return NGINX.format(port=8080, word="leaf")

    def front_configuration(self, leaves: Sequence[tuple[str, str, str]]) -> str:
        return NGINX.format(port=8471, word="front")


NGINX = """
pid /tmp/nginx.pid; error_log stderr; events {{}}
http {{ access_log off; client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c;
  uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e; server {{ listen {port}; return 200 {word}; }} }}
"""


async def test_a_gateway_serves_its_front_and_its_leaf(machine: Machine) -> None:
    """The front on its published port, the leaf on the engine's bridge alone."""
    gateway = replace(machine.facts, role="gateway", gateway_bind="127.0.0.1:0")
    leaf = msgspec.structs.replace(a_leaf(), node_id=machine.ids.new("no"), stop_after=machine.node().stop_after)
    async with DockerRuntime(gateway.host_id) as runtime:
        keeper = NodeKeeper(runtime, gateway, machine.folder, SystemClock(), PlainConfigurer())
        running = asyncio.create_task(keeper.run())
        await keeper.converge(a_desired(1, leaves=(leaf,)), datetime.now(UTC))
        async with asyncio.timeout(60):
            while not keeper.leaves()[0].is_serving:
                # That a leaf serves is asked for, not reported: the gateway's own services look at it.
                await until_set(keeper.changed, SystemClock(), 0.1)
                keeper.changed.clear()
        address = keeper.leaves()[0].address
        assert (await asyncio.to_thread(fetch, f"http://{address}:8080/")) == b"leaf"
        front = await runtime.inspect(f"corral-{gateway.host_id}-front")
        assert front is not None
        ((ip, port, _),) = front.published
        async with asyncio.timeout(60):
            while (await asyncio.to_thread(fetch, f"http://{ip}:{port}/")) != b"front":
                pass
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def fetch(url: str) -> bytes:
    """The body behind a URL; empty while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read()
    except OSError:
        return b""
