"""What is reported of one node: facts from the engine and from its programs, as far as each may speak."""

from collections.abc import Iterable, Mapping, Set

from corral.agent.channels import Heard
from corral.agent.runtime import Container
from corral.protocol.peers import mesh_port
from corral.wire.agent import ContainerState, Fault, LeafSpec, NodeReport, NodeSpec


def node_report(
    spec: NodeSpec | LeafSpec,
    parts: Mapping[str, Container],
    *,
    mesh: Heard,
    ray: Heard,
    members: Set[str],
    advertise: str,
    lan: Iterable[str] = (),
    fault: Fault | None,
    renewals: int,
    renewed_for: Fault | None,
) -> NodeReport:
    """
    The report about one wanted node or leaf. A leaf's `serves` and `alive` are the prober's to fill in.

    Args:
        spec: what is wanted.
        parts: its containers.
        mesh: what its mesh has said; the only one that may state a key.
        ray: what its workload has said; a stranger's word, of which only the head's is asked who is alive.
        members: mesh addresses that its programs may speak of: others say nothing, and could fill a report.
        advertise: the address to put in published endpoints; empty leaves the engine's.
        lan: private addresses of the host, at which a port is published too that is published at every address.
        fault: what does not work.
        renewals: how often what had ended of it was made anew.
        renewed_for: what had ended the last time.
    """
    is_head = isinstance(spec, NodeSpec) and spec.ray.role == "head"
    return NodeReport(
        node_id=spec.node_id,
        pause=_state(parts.get("pause")),
        mesh=_state(parts.get("mesh")),
        work=_state(parts.get("work" if isinstance(spec, NodeSpec) else "web")),
        mesh_keys=mesh.mesh_keys,
        endpoints=_endpoints(parts.get("pause"), mesh_port(spec.node_id), advertise),
        lan=_lan(parts.get("pause"), mesh_port(spec.node_id), lan),
        roster_serial=mesh.roster_serial,
        handshaken=_known(mesh.handshaken, members),
        relayed=_known(mesh.relayed, members),
        ray_phase=ray.ray_phase,
        alive=_known(ray.alive, members) if is_head else (),
        received_bytes=mesh.received_bytes,
        sent_bytes=mesh.sent_bytes,
        fault=fault,
        renewals=renewals,
        renewed_for=renewed_for,
        internet_received_bytes=mesh.internet_received_bytes,
        internet_sent_bytes=mesh.internet_sent_bytes,
        is_slowed=mesh.is_slowed,
    )


def _known(addresses: Iterable[str], members: Set[str]) -> tuple[str, ...]:
    return tuple(address for address in dict.fromkeys(addresses) if address in members)


def _endpoints(pause: Container | None, inside: int, advertise: str) -> tuple[str, ...]:
    if pause is None or pause.state != "running" or not pause.address:
        return ()
    published = [
        f"{advertise or address}:{port}" for address, port, inner in pause.published if inner == f"{inside}/udp"
    ]
    return (f"{pause.address}:{inside}", *published)


def _lan(pause: Container | None, inside: int, addresses: Iterable[str]) -> tuple[str, ...]:
    if pause is None or pause.state != "running":
        return ()
    ports = [
        port
        for address, port, inner in pause.published
        if inner == f"{inside}/udp" and address == "0.0.0.0"  # noqa: S104 - compared, not bound
    ]
    return tuple(f"{address}:{port}" for port in ports[:1] for address in addresses)


def _state(container: Container | None) -> ContainerState:
    return container.state if container is not None else "missing"
