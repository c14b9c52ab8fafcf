"""Container bodies: golden ones, and what no control plane can obtain."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.agent.bodies import (
    DeviceBusy,
    DeviceUnknown,
    NodeTooSmall,
    SpecRefused,
    front_body,
    leaf_bodies,
    node_bodies,
    spec_digest,
)
from corral.core.units import GIB, MIB
from corral.protocol.peers import mesh_port
from corral.testing.ids import numbered_id
from corral.wire.agent import ImageDigest, NodeSpec, Revision

from .builders import NOW, RAY_IMAGE, ROSTER_PUBLIC, a_device, a_gpu, a_leaf, a_node, facts

REVISION = Revision(1, 7)
GOLDEN = Path(__file__).parent / "golden"

NVIDIA = [a_gpu("nvidia", number) for number in range(3)]
AMD = [a_gpu("amd", number) for number in range(3)]


def golden_cases() -> dict[str, dict[str, Any]]:
    """Every kind of body that this agent makes."""
    gpu_keys = tuple(device.offer.key for device in NVIDIA[:2])
    return {
        "cpu": {**node_bodies(a_node(), facts(), revision=REVISION)},
        "cpu-no-internet": {
            **node_bodies(
                msgspec.structs.replace(a_node(), has_internet=False, internet_cap_bytes=10**9),
                facts(),
                revision=REVISION,
            )
        },
        "nvidia": {**node_bodies(a_node(devices=gpu_keys), facts(NVIDIA), revision=REVISION)},
        "amd": {**node_bodies(a_node(devices=(AMD[1].offer.key,)), facts(AMD), revision=REVISION)},
        "leaf": {**leaf_bodies(a_leaf(), facts(gateway=True), revision=REVISION)},
        "front": {"front": front_body(facts(gateway=True))},
    }


@pytest.mark.parametrize("name", ["cpu", "cpu-no-internet", "nvidia", "amd", "leaf", "front"])
def test_bodies_are_exactly_the_golden_ones(name: str) -> None:
    """Every change of a body is a change of what a stranger's code may do: it is made on purpose and reviewed."""
    body, path = golden_cases()[name], GOLDEN / f"{name}.json"
    if os.environ.get("CORRAL_WRITE_GOLDEN"):
        path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    assert body == json.loads(path.read_text())


HOST_DEVICES = [a_device("cpu-0", cores=0.4, memory_bytes=2 * GIB), a_device("cpu-1"), *NVIDIA, *AMD[:1]]
keys = st.sampled_from([*(device.offer.key for device in HOST_DEVICES), "/dev/sda", "cpu-9", "all", "../kfd"])
text = st.text(max_size=30)
anything = st.one_of(
    text, st.integers(), st.none(), st.lists(text, max_size=2), st.dictionaries(text, text, max_size=2)
)


@st.composite
def hostile_documents(draw: st.DrawFn) -> bytes:
    """What a control plane in the wrong hands may send: every field odd, and fields that do not exist."""
    document: dict[str, Any] = {
        "node_id": numbered_id("no", 1),
        "cluster_id": numbered_id("cl", 1),
        "cluster_name": draw(st.one_of(st.just("mnist"), text)),
        "node_name": draw(st.one_of(st.just("host-a"), text)),
        "image": draw(
            st.one_of(st.just(RAY_IMAGE), st.just("evil/image:latest"), st.just("evil/x@" + RAY_IMAGE), text)
        ),
        "devices": draw(st.lists(keys, max_size=5)),
        "mesh": {
            "address": draw(st.sampled_from(["10.128.0.1", "10.0.0.1", "127.0.0.1", "10.1.2.3\nX=1"])),
            "network": draw(st.sampled_from(["10.128.0.0/18", "10.0.0.0/0", "0.0.0.0/0"])),
            "mtu": draw(st.sampled_from([1280, 8920, -1, 10**9])),
            "roster_key": ROSTER_PUBLIC,
        },
        "ray": {
            "role": draw(st.sampled_from(["head", "worker", "root"])),
            "head_address": "10.128.0.1",
            "num_cpus": draw(st.sampled_from([0, 1, 4096, -5])),
            "num_gpus": draw(st.sampled_from([0, 64])),
            "object_store_bytes": draw(st.sampled_from([80 * MIB, 2**44, 0])),
        },
        "stop_after": NOW.isoformat(),
    }
    for field in draw(
        st.lists(st.sampled_from(["Binds", "privileged", "mounts", "env", "command", "cap_add"]), max_size=1)
    ):
        document[field] = draw(anything)
    return json.dumps(document).encode()


@given(hostile_documents())
def test_a_hostile_control_plane_obtains_neither_a_mount_nor_a_privilege(document: bytes) -> None:
    """Whatever can be decoded becomes bodies that are closed, on own devices, within their own limits."""
    host = facts(HOST_DEVICES)
    try:
        spec = msgspec.json.decode(document, type=NodeSpec)
        bodies = node_bodies(spec, host, revision=REVISION)
    except (msgspec.ValidationError, SpecRefused):
        return
    booked = [host.devices[key] for key in spec.devices]
    cores, memory = sum(one.offer.cores for one in booked), sum(one.offer.memory_bytes for one in booked)
    for part, body in bodies.items():
        config = body["HostConfig"]
        assert_closed(body)
        assert config["CapAdd"] == (["NET_ADMIN"] if part == "mesh" else [])
        assert config["NetworkMode"] == ("bridge" if part == "pause" else f"container:corral-{spec.node_id}-pause")
        assert config["NanoCpus"] <= cores * 1e9
        assert body["Image"] in (spec.image, host.net_image)
        assert msgspec.convert(body["Image"], ImageDigest)
    assert sum(body["HostConfig"]["Memory"] for body in bodies.values()) <= memory
    work = bodies["work"]["HostConfig"]
    uuids = [one.gpu.uuid for one in booked if one.gpu and one.gpu.vendor == "nvidia"]
    nodes = [f"/dev/dri/{one.gpu.render_node}" for one in booked if one.gpu and one.gpu.vendor == "amd"]
    assert [entry["DeviceIDs"] for entry in work["DeviceRequests"]] == ([uuids] if uuids else [])
    assert [entry["PathOnHost"] for entry in work["Devices"]] == (["/dev/kfd", *nodes] if nodes else [])
    assert all("\n" not in entry for entry in bodies["work"]["Env"] + bodies["mesh"]["Env"])


def assert_closed(body: Any) -> None:
    """What holds for every container of ours."""
    config = body["HostConfig"]
    assert config["Privileged"] is False
    assert config["ReadonlyRootfs"] is True
    assert config["CapDrop"] == ["ALL"]
    assert config["SecurityOpt"] == ["no-new-privileges"]
    assert config["Binds"] == []
    assert [mount["Type"] for mount in config["Mounts"]] in ([], ["volume"])
    assert (config["IpcMode"], config["PidMode"], config["UTSMode"]) == ("private", "", "")
    assert config["CgroupnsMode"] == "private"
    assert config["RestartPolicy"] == {"Name": "no"}
    assert config["Memory"] == config["MemorySwap"] > 0
    assert config["NanoCpus"] > 0
    assert config["PidsLimit"] > 0
    assert config["LogConfig"]["Config"]["max-size"]
    assert all("size=" in options and "nosuid" in options for options in config["Tmpfs"].values())


def test_only_the_front_has_a_volume_and_nothing_runs_as_root_but_the_mesh() -> None:
    """The mesh has one capability and needs to be root inside for it."""
    for name, bodies in golden_cases().items():
        for part, body in bodies.items():
            assert_closed(body)
            assert (body["HostConfig"]["Mounts"] != []) == (name == "front")
            assert (body["User"] == "0:0") == (part == "mesh")


def test_a_full_scratch_leaves_half_of_the_memory_to_processes() -> None:
    """Scratch and shared memory count as memory: full, they must be full before the node is."""
    for memory in (1 * GIB, 2 * GIB, 128 * GIB):
        host = facts([a_device(memory_bytes=memory)])
        work = node_bodies(a_node(object_store_bytes=2**44), host, revision=REVISION)["work"]["HostConfig"]
        sizes = [int(options.split("size=")[1].split(",")[0]) for options in work["Tmpfs"].values()]
        assert sum(sizes) + work["ShmSize"] <= work["Memory"] * 0.55


def test_a_node_that_cannot_be_is_refused_with_the_reason() -> None:
    """An unknown device, one device twice, or too little memory for Ray."""
    with pytest.raises(DeviceUnknown, match="cpu-7"):
        node_bodies(a_node(devices=("cpu-7",)), facts(), revision=REVISION)
    with pytest.raises(DeviceBusy, match="twice"):
        node_bodies(a_node(devices=("cpu-0", "cpu-0")), facts(), revision=REVISION)
    with pytest.raises(NodeTooSmall, match="512 MiB"):
        node_bodies(a_node(), facts([a_device(memory_bytes=512 * MIB)]), revision=REVISION)
    with pytest.raises(SpecRefused, match="no gateway"):
        leaf_bodies(a_leaf(), facts(), revision=REVISION)


def test_extending_a_booking_does_not_change_the_digest() -> None:
    """`stop_after` moves while the node runs on; everything else makes it another node."""
    later = msgspec.structs.replace(a_node(), stop_after=NOW)
    assert spec_digest(later) == spec_digest(a_node())
    assert spec_digest(a_node(devices=("cpu-1",))) != spec_digest(a_node())


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_members_of_a_host_have_ports_of_their_own(one: int, other: int) -> None:
    """Two neighbouring ports each, one for a plane, outside of those that the engine publishes."""
    ports = [mesh_port(numbered_id("no", number)) for number in (one, other)]
    assert all(20_000 <= port < 32_767 for port in ports)
    assert ports[0] == ports[1] or abs(ports[0] - ports[1]) > 1


def test_a_member_listens_where_its_port_is_published() -> None:
    """The port inside is the member's; which one the engine publishes it at is the engine's choice."""
    bodies = node_bodies(a_node(3), facts(), revision=REVISION)
    port = mesh_port(numbered_id("no", 3))
    assert list(bodies["pause"]["HostConfig"]["PortBindings"]) == [f"{port}/udp"]
    assert f"CORRAL_MESH_PORT={port}" in bodies["mesh"]["Env"]
    assert len({mesh_port(numbered_id("no", number)) for number in range(1, 9)}) == 8
