"""Hosts, specs and desired states for tests of the node keeper."""

import base64
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from corral.agent.bodies import HostFacts, OwnDevice
from corral.core.units import GIB, MIB
from corral.protocol.roster import GENESIS, Member, Roster, payload_of, sign
from corral.testing.ids import numbered_id
from corral.wire.agent import (
    Desired,
    DeviceOffer,
    Gpu,
    LeafSpec,
    MeshSpec,
    NodeReport,
    NodeSpec,
    RaySpec,
    Revision,
    Secrets,
    SignedRoster,
)

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
HOST = numbered_id("ho", 1)
CLUSTER = numbered_id("cl", 1)
NET_IMAGE = "sha256:" + "a" * 64
RAY_IMAGE = "sha256:" + "b" * 64
TOKEN = "0123456789abcdef" * 4
ROSTER_KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
ROSTER_PUBLIC = base64.b64encode(ROSTER_KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def a_device(key: str = "cpu-0", *, cores: float = 1.0, memory_bytes: int = 4 * GIB) -> OwnDevice:
    """A CPU slice."""
    offer = DeviceOffer(key=key, kind="cpu", model="EPYC", cores=cores, memory_bytes=memory_bytes, disk_bytes=50 * GIB)
    return OwnDevice(offer=offer)


def a_gpu(vendor: str, number: int) -> OwnDevice:
    """A GPU with its share."""
    uuid = f"GPU-{number:08d}-0000-0000-0000-000000000000"
    is_amd = vendor == "amd"
    gpu = Gpu(
        uuid=uuid,
        vendor="amd" if is_amd else "nvidia",
        model="AMD Instinct MI300X" if is_amd else "NVIDIA H100 80GB HBM3",
        memory_bytes=80 * GIB,
        index=number,
        render_node=f"renderD{128 + number}" if is_amd else "",
    )
    offer = DeviceOffer(
        key=uuid,
        kind="gpu",
        model=gpu.model,
        cores=16.0,
        memory_bytes=128 * GIB,
        disk_bytes=1024 * GIB,
        gpu_memory_bytes=gpu.memory_bytes,
    )
    return OwnDevice(offer=offer, gpu=gpu, device_gids=(44, 109) if is_amd else ())


def facts(devices: Iterable[OwnDevice] = (a_device("cpu-0"), a_device("cpu-1")), *, gateway: bool = False) -> HostFacts:
    """A host with these devices."""
    return HostFacts(
        host_id=HOST,
        engine_id="ENGINE:FAKE",
        nofile_max=1_048_576,
        net_image=NET_IMAGE,
        devices={device.offer.key: device for device in devices},
        role="gateway" if gateway else "host",
        auth_volume="corral-test-auth" if gateway else "",
    )


def a_mesh(member: int = 1) -> MeshSpec:
    """A place in the mesh."""
    return MeshSpec(address=f"10.128.0.{member}", network="10.128.0.0/18", mtu=1280, roster_key=ROSTER_PUBLIC)


def a_node(
    number: int = 1,
    *,
    devices: tuple[str, ...] = ("cpu-0",),
    role: str = "head",
    stop_after: datetime = NOW + timedelta(hours=1),
    image: str = RAY_IMAGE,
    object_store_bytes: int = 200 * MIB,
) -> NodeSpec:
    """A node of the cluster."""
    return NodeSpec(
        node_id=numbered_id("no", number),
        cluster_id=CLUSTER,
        cluster_name="mnist",
        node_name=f"host-{number}",
        image=image,
        devices=devices,
        mesh=a_mesh(number),
        ray=RaySpec(
            role="head" if role == "head" else "worker",
            head_address="10.128.0.1",
            num_cpus=1,
            num_gpus=0,
            object_store_bytes=object_store_bytes,
        ),
        stop_after=stop_after,
    )


def a_leaf(number: int = 9, *, stop_after: datetime = NOW + timedelta(hours=1)) -> LeafSpec:
    """A gateway's leaf of the cluster."""
    return LeafSpec(
        node_id=numbered_id("no", number),
        cluster_id=CLUSTER,
        cluster_name="mnist",
        mesh=a_mesh(number),
        head_address="10.128.0.1",
        stop_after=stop_after,
    )


def a_desired(
    number: int,
    *nodes: NodeSpec,
    leaves: tuple[LeafSpec, ...] = (),
    epoch: int = 1,
    roster: SignedRoster | None = None,
) -> Desired:
    """A desired state with everybody's secrets."""
    return Desired(
        revision=Revision(epoch, number),
        server_time=NOW,
        intent="active",
        nodes=nodes,
        leaves=leaves,
        secrets={spec.node_id: Secrets(ray_token=TOKEN) for spec in (*nodes, *leaves)},
        rosters={CLUSTER: roster} if roster else {},
    )


def a_roster(
    serial: int, reports: Iterable[NodeReport], *, previous: str = GENESIS, engine_id: str = "ENGINE:FAKE"
) -> SignedRoster:
    """A signed roster of the nodes in these reports, which must have their keys."""
    members = tuple(
        Member(
            node_id=report.node_id,
            name=f"host-{int(report.node_id[3:])}",
            kind="node",
            address=f"10.128.0.{int(report.node_id[3:])}",
            direct_key=report.mesh_keys.direct if report.mesh_keys else "",
            relayed_key=report.mesh_keys.relayed if report.mesh_keys else "",
            engine_id=engine_id,
            endpoints=report.endpoints,
        )
        for report in reports
    )
    payload = payload_of(Roster(cluster_id=CLUSTER, serial=serial, previous=previous, members=members))
    return SignedRoster(payload=payload, signature=sign(payload, ROSTER_KEY))
