"""Several members on one host behind a NAT: the world sees each of them at a port of its own."""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.agent.containers.builders import a_device, a_node, facts

from corral.agent.bodies import container_name, node_bodies
from corral.agent.docker import DockerRuntime
from corral.core.units import GIB
from corral.protocol.peers import mesh_port
from corral.testing.lab.lab import Lab
from corral.testing.lab.nat import NatKind
from corral.wire.agent import Revision

from .conftest import why_no_namespaces

pytestmark = [pytest.mark.lab, pytest.mark.docker, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
WITHIN_S = 60
OBSERVERS = ("one", "two")
LISTEN = """
import socket
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("0.0.0.0", 5000))
while True:
    said, (address, port) = own.recvfrom(2048)
    print(address, port, len(said), flush=True)
"""


@pytest.fixture
def town() -> Iterator[Lab]:
    """A host behind a cone NAT, and two observers."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    images = json.loads((ROOT / ".cache/images.json").read_text())
    with Lab(images=images, cache=ROOT / ".cache/lab") as made:
        made.add_machine("ben", nat=NatKind.cone, has_engine=True)
        for name in OBSERVERS:
            made.add_machine(name)
            made.spawn(name, ["python3", "-ISB", "-c", LISTEN], name="listen")
        made.start_engines("ben")
        yield made
    assert made.left_behind() == []


def seen_by(lab: Lab, observer: str) -> set[str]:
    """Address and port of all that called an observer."""
    return {line.rpartition(" ")[0] for line in lab.machine(observer).log_file("listen").read_text().splitlines()}


async def test_members_of_one_host_are_seen_at_ports_of_their_own(town: Lab) -> None:
    """The same port for everybody, because the engine's masquerading and a cone NAT keep it while nobody else has it.

    With one port for all, the second one to call would be seen at a port that is good for that observer alone.
    """
    specs = [a_node(n, devices=(f"cpu-{n}",)) for n in (1, 2)]
    devices = [a_device(f"cpu-{n}", memory_bytes=GIB) for n in (1, 2)]
    host = replace(facts(devices), net_image=town.images["corral-net"])
    observers = [
        {"public_key": b64encode(name.ljust(32).encode()).decode(), "endpoint": f"{town.places[name].outer}:5000"}
        for name in OBSERVERS
    ]
    message = {"type": "roster", "serial": 1, "peers": [], "observers": observers}
    async with DockerRuntime(host.host_id, socket=town.engine("ben").host.removeprefix("unix://")) as runtime:
        for spec in specs:
            bodies = node_bodies(spec, host, revision=Revision(1, 1))
            for part in ("pause", "mesh"):
                await runtime.create(container_name(spec.node_id, part), bodies[part])
                await runtime.start(container_name(spec.node_id, part))
            channel = await runtime.attach(container_name(spec.node_id, "mesh"))
            await channel.send(msgspec.json.encode(message))
        wanted = {f"{town.places['ben'].outer} {mesh_port(spec.node_id)}" for spec in specs}
        for name in OBSERVERS:
            deadline = time.monotonic() + WITHIN_S
            while len(seen := seen_by(town, name)) < len(wanted):
                assert time.monotonic() < deadline, seen
                await asyncio.sleep(0.05)
            assert seen == wanted
