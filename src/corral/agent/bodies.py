"""
Container-create bodies: all that a container of ours can ever be.

Closed by construction. A body is written out here field by field from three sources: the enumerated fields of a
`NodeSpec` or `LeafSpec`, what this host knows of its *own* devices, and constants. There is no way to ask for a bind
mount, a host namespace, a privilege, a foreign device or another capability, because no line below could produce one.
`docs/security.md` relies on it; `tests/agent/containers/test_bodies.py` holds golden bodies and the property.

Memory is a store and is split exactly: pause and mesh get a fixed part, the workload the rest, and what fills up inside
(tmpfs, shared memory) is sized so that it is full before the node's memory is. CPU is a rate: the workload may use all
of the node's cores, and the mesh, which only works when the workload talks, may use up to half as much beside it.
"""

import hashlib
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Literal

import msgspec

from corral.agent.runtime import (
    LABEL_DEVICES,
    LABEL_HOST,
    LABEL_NODE,
    LABEL_PART,
    LABEL_REVISION,
    LABEL_SPEC,
    LABEL_STOP_AFTER,
    Body,
)
from corral.core.errors import CorralError
from corral.core.units import MIB
from corral.protocol.addresses import CLUSTER_PREFIX, SPACE
from corral.protocol.peers import mesh_port
from corral.wire.agent import DeviceOffer, Gpu, LeafSpec, NodeSpec, Revision

Part = Literal["pause", "mesh", "work", "web", "front"]

FRONT_PORT = 8471
AUTH_MOUNT = "/run/auth"
"""Where the front finds the agent's authorisation socket."""

PAUSE_MEMORY_BYTES = 16 * MIB
MESH_MEMORY_BYTES = 256 * MIB
"""Two wireguard-go, 7 MiB each at rest; their heaps are kept within 96 MiB each, however fast bytes move."""
WORK_MEMORY_BYTES_MIN = 512 * MIB
"""Ray's worker node takes 240 MiB before it has done anything."""
WEB_MEMORY_BYTES = 128 * MIB
FRONT_MEMORY_BYTES = 256 * MIB
OBJECT_STORE_BYTES_MIN = 80 * MIB
"""Ray refuses less than 75 MiB."""
SHM_EXTRA_BYTES = 16 * MIB
"""Shared memory beside the object store: semaphores and PyTorch's small tensors."""
TMP_BYTES_MIN = 64 * MIB

PAUSE_PIDS, MESH_PIDS, WEB_PIDS = 16, 512, 256
WORK_PIDS_MIN, WORK_PIDS_PER_CORE, WORK_PIDS_MAX = 8192, 1024, 65536
"""A head has 434 threads before the first task, and about 100 more for every process that it starts."""

MESH_CORES_MIN = 0.5
"""So that a mesh comes up in a moment on a slice that is a fraction of a core; never more than the node has."""
PAUSE_CORES = 0.05
GATEWAY_CORES = 1.0

_NEVER = datetime.min.replace(tzinfo=UTC)

NOFILE = 65536
"""Open files wished for: Ray holds a socket to every worker of every node."""


class SpecRefused(CorralError):
    """What the control plane asks for is not possible on this host; no container was made."""

    code = "spec_refused"


class DeviceUnknown(SpecRefused):
    """A node names a device that this host does not have."""

    code = "device_unknown"


class DeviceBusy(SpecRefused):
    """A node names a device that another node holds, or the same device twice."""

    code = "device_busy"


class NodeTooSmall(SpecRefused):
    """A node's devices carry too little memory for Ray to start."""

    code = "node_too_small"


@dataclass(frozen=True, kw_only=True)
class OwnDevice:
    """A device of this host: what is offered, and how the engine is told to hand it over."""

    offer: DeviceOffer
    gpu: Gpu | None = None
    device_gids: tuple[int, ...] = ()
    """AMD: the groups that own /dev/kfd and the render node on this host."""


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What bodies need to know of this host. Nothing of it comes from the control plane but the id."""

    host_id: str
    engine_id: str
    net_image: str
    """`sha256:…` of the image with /corral/pause, /corral/mesh and /corral/web."""
    devices: Mapping[str, OwnDevice] = field(default_factory=dict[str, OwnDevice])
    role: Literal["host", "gateway"] = "host"
    dns: tuple[str, ...] = ("1.1.1.1", "9.9.9.9")
    """Public resolvers: the host's own are on private addresses, which a workload must not reach."""
    closed: tuple[str, ...] = ()
    """IPv4 addresses of this machine itself: a workload has no business with what listens there."""
    lan: tuple[str, ...] = ()
    """Private IPv4 addresses of this machine on networks that are not the engine's own."""
    publish_ip: str = "0.0.0.0"  # noqa: S104 - the one port that strangers must reach is WireGuard's
    advertise: str = ""
    """Address at which other hosts reach published ports; empty: the control plane knows it better."""
    gateway_bind: str = "127.0.0.1:8471"
    auth_volume: str = ""
    """Named volume with the authorisation socket, shared with the agent's own container."""
    nofile_max: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    """Open files that a container can be given: our own hard limit, as we run in one. Not every engine may raise it."""
    has_ipv6: bool = True
    """Whether the kernel has IPv6, so that there is something to switch off."""


@dataclass(frozen=True, kw_only=True)
class NodeShare:
    """What a node holds of this host: the sum of its devices, and how it is split."""

    devices: tuple[OwnDevice, ...]
    cores: float
    work_memory_bytes: int
    object_store_bytes: int
    shm_bytes: int
    tmp_bytes: int


def container_name(node_id: str, part: Part) -> str:
    """The one name that this part of this node can have."""
    return f"corral-{node_id}-{part}"


def spec_digest(spec: NodeSpec | LeafSpec) -> str:
    """
    SHA-256, hex, of all that a node's containers are made from.

    Without `stop_after`: extending a booking must not replace what runs on it.
    """
    eternal = msgspec.structs.replace(spec, stop_after=_NEVER)
    return hashlib.sha256(msgspec.json.encode(eternal, order="deterministic")).hexdigest()


def share_of(spec: NodeSpec, devices: Mapping[str, OwnDevice]) -> NodeShare:
    """
    What a node holds of this host.

    Raises:
        DeviceUnknown: it names a device that is not here.
        DeviceBusy: it names one device twice.
        NodeTooSmall: there is not enough memory for Ray.
    """
    _check_mesh(spec)
    unknown = [key for key in spec.devices if key not in devices]
    if unknown:
        raise DeviceUnknown(
            f"node {spec.node_name} names {_listed(unknown)}, which this host does not have; nothing was started"
        )
    if len(set(spec.devices)) < len(spec.devices):
        raise DeviceBusy(f"node {spec.node_name} names a device twice; nothing was started")
    own = tuple(devices[key] for key in spec.devices)
    memory_bytes = sum(device.offer.memory_bytes for device in own)
    work_bytes = memory_bytes - PAUSE_MEMORY_BYTES - MESH_MEMORY_BYTES
    if work_bytes < WORK_MEMORY_BYTES_MIN:
        need = (WORK_MEMORY_BYTES_MIN + PAUSE_MEMORY_BYTES + MESH_MEMORY_BYTES) // MIB
        raise NodeTooSmall(
            f"node {spec.node_name} has {memory_bytes // MIB} MiB of memory and needs {need} MiB; nothing was started"
        )
    # At most 30 % is object store and 20 % scratch: even with both full, half of the memory is left to processes, so
    # that a full tmpfs is "no space left on device" for one task and not the end of the node.
    store = max(OBJECT_STORE_BYTES_MIN, min(spec.ray.object_store_bytes, work_bytes * 3 // 10))
    tmp = max(TMP_BYTES_MIN, min(work_bytes // 5, sum(device.offer.disk_bytes for device in own)))
    return NodeShare(
        devices=own,
        cores=sum(device.offer.cores for device in own),
        work_memory_bytes=work_bytes,
        object_store_bytes=store,
        shm_bytes=store + SHM_EXTRA_BYTES,
        tmp_bytes=tmp,
    )


def check_leaf(leaf: LeafSpec, facts: HostFacts) -> None:
    """
    Whether this leaf may run here.

    Raises:
        SpecRefused: this host is no gateway, or the leaf's mesh is none.
    """
    if facts.role != "gateway":
        raise SpecRefused(f"this host is no gateway; the leaf of {leaf.cluster_name} was not started")
    _check_mesh(leaf)


def node_bodies(spec: NodeSpec, facts: HostFacts, *, revision: Revision) -> dict[Part, Body]:
    """
    The three containers of a node.

    Raises:
        SpecRefused: this host cannot be what the spec asks for.
    """
    share = share_of(spec, facts.devices)
    labels = _labels(spec, facts, revision) | {LABEL_DEVICES: ",".join(spec.devices)}
    mesh_cores = min(share.cores, max(MESH_CORES_MIN, share.cores / 2))
    return {
        "pause": _pause(spec, facts, labels, hostname=spec.node_name),
        "mesh": _mesh(spec, facts, labels, role="node", cores=mesh_cores),
        "work": _work(spec, share, facts, labels),
    }


def leaf_bodies(leaf: LeafSpec, facts: HostFacts, *, revision: Revision) -> dict[Part, Body]:
    """
    The three containers of a gateway's leaf.

    Raises:
        SpecRefused: this host is no gateway.
    """
    check_leaf(leaf, facts)
    labels = _labels(leaf, facts, revision)
    return {
        "pause": _pause(leaf, facts, labels, hostname="gateway"),
        "mesh": _mesh(leaf, facts, labels, role="leaf", cores=GATEWAY_CORES),
        "web": _web(
            facts,
            labels | {LABEL_PART: "web"},
            memory_bytes=WEB_MEMORY_BYTES,
            network=f"container:{container_name(leaf.node_id, 'pause')}",
        ),
    }


def front_body(facts: HostFacts) -> Body:
    """
    The web server that people reach: one per gateway.

    Its only mount is the named volume in which the agent keeps the authorisation socket, read-only.
    """
    address, _, port = facts.gateway_bind.rpartition(":")
    body = _web(
        facts,
        {LABEL_HOST: facts.host_id, LABEL_NODE: facts.host_id, LABEL_PART: "front", LABEL_SPEC: front_digest(facts)},
        memory_bytes=FRONT_MEMORY_BYTES,
        network="bridge",
    )
    body["Hostname"] = "gateway"
    body["ExposedPorts"] = {f"{FRONT_PORT}/tcp": {}}
    body["HostConfig"]["PortBindings"] = {f"{FRONT_PORT}/tcp": [{"HostIp": address, "HostPort": port}]}
    if facts.auth_volume:
        body["HostConfig"]["Mounts"] = [
            {"Type": "volume", "Source": facts.auth_volume, "Target": AUTH_MOUNT, "ReadOnly": True}
        ]
    return body


def front_digest(facts: HostFacts) -> str:
    """SHA-256, hex, of what the front is made from."""
    return hashlib.sha256(f"{facts.net_image}\n{facts.gateway_bind}\n{facts.auth_volume}".encode()).hexdigest()


def _check_mesh(spec: NodeSpec | LeafSpec) -> None:
    head = spec.ray.head_address if isinstance(spec, NodeSpec) else spec.head_address
    try:
        network = IPv4Network(spec.mesh.network)
        inside = all(IPv4Address(address) in network for address in (spec.mesh.address, head))
    except ValueError as error:
        raise SpecRefused(f"node {spec.node_id} has no proper mesh address: {error}; nothing was started") from error
    if network.prefixlen != CLUSTER_PREFIX or not network.subnet_of(SPACE) or not inside:
        raise SpecRefused(
            f"node {spec.node_id} or its head is outside of its mesh {network}, or that is no cluster's network; "
            "nothing was started"
        )


def _labels(spec: NodeSpec | LeafSpec, facts: HostFacts, revision: Revision) -> dict[str, str]:
    return {
        LABEL_HOST: facts.host_id,
        LABEL_NODE: spec.node_id,
        LABEL_REVISION: f"{revision.epoch}.{revision.number}",
        LABEL_SPEC: spec_digest(spec),
        LABEL_STOP_AFTER: spec.stop_after.isoformat(),
    }


def _pause(spec: NodeSpec | LeafSpec, facts: HostFacts, labels: Mapping[str, str], *, hostname: str) -> Body:
    port = f"{mesh_port(spec.node_id)}/udp"
    body = _container(
        image=facts.net_image,
        command="/corral/pause",
        user="65534:65534",
        labels={**labels, LABEL_PART: "pause"},
        environment={},
        network="bridge",
        memory_bytes=PAUSE_MEMORY_BYTES,
        cores=PAUSE_CORES,
        pids=PAUSE_PIDS,
    )
    sysctls = {
        # Two planes may answer on different paths, and a flow keeps to one of equal paths by its ports.
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.fib_multipath_hash_policy": "1",
    }
    if facts.has_ipv6:
        sysctls["net.ipv6.conf.all.disable_ipv6"] = "1"
    body["Hostname"] = hostname
    body["ExposedPorts"] = {port: {}}
    body["HostConfig"]["PortBindings"] = {port: [{"HostIp": facts.publish_ip, "HostPort": ""}]}
    body["HostConfig"]["Sysctls"] = sysctls
    body["HostConfig"]["Dns"] = list(facts.dns)
    return body


def _mesh(
    spec: NodeSpec | LeafSpec,
    facts: HostFacts,
    labels: Mapping[str, str],
    *,
    role: Literal["node", "leaf"],
    cores: float,
) -> Body:
    body = _container(
        image=facts.net_image,
        command="/corral/mesh",
        # Root inside, because a capability of another user would be lost at exec; it is the only one left.
        user="0:0",
        labels={**labels, LABEL_PART: "mesh"},
        environment={
            "CORRAL_MESH_ADDRESS": spec.mesh.address,
            "CORRAL_MESH_NETWORK": spec.mesh.network,
            "CORRAL_MESH_ROLE": role,
            "CORRAL_MESH_MTU": str(spec.mesh.mtu),
            "CORRAL_MESH_PORT": str(mesh_port(spec.node_id)),
            "CORRAL_MESH_CLOSED": ",".join(facts.closed),
            "CORRAL_MESH_INTERNET": "open" if isinstance(spec, NodeSpec) and spec.has_internet else "closed",
            "CORRAL_MESH_INTERNET_CAP": str(spec.internet_cap_bytes if isinstance(spec, NodeSpec) else 0),
        },
        network=f"container:{container_name(spec.node_id, 'pause')}",
        memory_bytes=MESH_MEMORY_BYTES,
        cores=cores,
        pids=MESH_PIDS,
        tmpfs={"/run": _tmpfs(4 * MIB, mode="0755")},
    )
    body["HostConfig"]["CapAdd"] = ["NET_ADMIN"]
    body["HostConfig"]["Devices"] = [_device("/dev/net/tun")]
    return body


def _work(spec: NodeSpec, share: NodeShare, facts: HostFacts, labels: Mapping[str, str]) -> Body:
    gpus = [device.gpu for device in share.devices if device.gpu is not None]
    nvidia = [gpu.uuid for gpu in gpus if gpu.vendor == "nvidia"]
    amd = [gpu for gpu in gpus if gpu.vendor == "amd"]
    body = _container(
        image=spec.image,
        command="/corral/ray",
        user="1000:1000",
        labels={**labels, LABEL_PART: "work"},
        environment={
            "CORRAL_RAY_ROLE": spec.ray.role,
            "CORRAL_NODE_ADDRESS": spec.mesh.address,
            "CORRAL_HEAD_ADDRESS": spec.ray.head_address,
            "CORRAL_NODE_NAME": spec.node_name,
            "CORRAL_NUM_CPUS": str(spec.ray.num_cpus),
            "CORRAL_NUM_GPUS": str(len(gpus)),
            "CORRAL_MEMORY_BYTES": str(share.work_memory_bytes - share.shm_bytes - share.tmp_bytes),
            "CORRAL_OBJECT_STORE_BYTES": str(share.object_store_bytes),
            "CORRAL_CLOUD_INSTANCE_ID": spec.node_id,
            # An image may say `all`, and where NVIDIA's runtime is the default one that alone hands out every GPU.
            "NVIDIA_VISIBLE_DEVICES": ",".join(nvidia) or "void",
        },
        network=f"container:{container_name(spec.node_id, 'pause')}",
        memory_bytes=share.work_memory_bytes,
        cores=share.cores,
        pids=min(WORK_PIDS_MAX, max(WORK_PIDS_MIN, int(WORK_PIDS_PER_CORE * share.cores))),
        tmpfs={
            "/tmp": _tmpfs(share.tmp_bytes, mode="1777", can_exec=True),  # noqa: S108 - the container's own
            "/run/corral": _tmpfs(1 * MIB, mode="0700", user=1000),
        },
    )
    body["StopTimeout"] = 5
    files = NOFILE if facts.nofile_max == resource.RLIM_INFINITY else min(NOFILE, facts.nofile_max)
    body["HostConfig"]["ShmSize"] = share.shm_bytes
    body["HostConfig"]["Ulimits"] = [{"Name": "nofile", "Soft": files, "Hard": files}]
    if nvidia:
        body["HostConfig"]["DeviceRequests"] = [
            {"Driver": "nvidia", "DeviceIDs": nvidia, "Capabilities": [["gpu", "compute", "utility"]]}
        ]
    if amd:
        paths = ["/dev/kfd", *(f"/dev/dri/{gpu.render_node}" for gpu in amd)]
        gids = sorted({gid for device in share.devices for gid in device.device_gids})
        body["HostConfig"]["Devices"] = [_device(path) for path in paths]
        body["HostConfig"]["GroupAdd"] = [str(gid) for gid in gids]
    return body


def _web(facts: HostFacts, labels: Mapping[str, str], *, memory_bytes: int, network: str) -> dict[str, Any]:
    return _container(
        image=facts.net_image,
        command="/corral/web",
        user="65534:65534",
        labels=labels,
        environment={},
        network=network,
        memory_bytes=memory_bytes,
        cores=GATEWAY_CORES,
        pids=WEB_PIDS,
        # nginx spools what it cannot pass on at once; a quarter of its memory may be that.
        tmpfs={
            "/tmp": _tmpfs(memory_bytes // 4, mode="1777"),  # noqa: S108 - the container's own
            "/run/corral": _tmpfs(8 * MIB, mode="0700", user=65534),
        },
    )


def _container(
    *,
    image: str,
    command: str,
    user: str,
    labels: Mapping[str, str],
    environment: Mapping[str, str],
    network: str,
    memory_bytes: int,
    cores: float,
    pids: int,
    tmpfs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What every container of ours has in common. Everything that could open it is spelt out as closed."""
    return {
        "Image": image,
        "Entrypoint": [command],
        "Cmd": [],
        "User": user,
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": dict(labels),
        "OpenStdin": True,
        "StdinOnce": False,
        "Tty": False,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": network,
            "Privileged": False,
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "CapAdd": [],
            "SecurityOpt": ["no-new-privileges"],
            "IpcMode": "private",
            "PidMode": "",
            "UTSMode": "",
            "CgroupnsMode": "private",
            "Binds": [],
            "Mounts": [],
            "Devices": [],
            "DeviceRequests": [],
            "Memory": memory_bytes,
            "MemorySwap": memory_bytes,
            # The engine counts CPU in steps of a hundredth of a core.
            "NanoCpus": max(1, int(cores * 100)) * 10_000_000,
            "PidsLimit": pids,
            "Tmpfs": dict(tmpfs or {}),
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "2m", "max-file": "2"}},
            "RestartPolicy": {"Name": "no"},
        },
    }


def _tmpfs(size_bytes: int, *, mode: str, user: int | None = None, can_exec: bool = False) -> str:
    owner = "" if user is None else f",uid={user},gid={user}"
    return f"rw,{'exec' if can_exec else 'noexec'},nosuid,nodev,size={size_bytes},mode={mode}{owner}"


def _device(path: str) -> dict[str, str]:
    return {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}


def _listed(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"
