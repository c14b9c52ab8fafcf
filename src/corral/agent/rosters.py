"""
What a signed roster becomes on this host: checked once more, then the peers that the mesh container is told of.

A roster's signature shows that the control plane made it, not that its content is harmless. Endpoints come from other
hosts' reports, and WireGuard sends to them unasked; so they are held to what another host of the network could have.
"""

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from corral.agent.bodies import MESH_PORT
from corral.agent.records import RosterMark
from corral.protocol.addresses import MEMBERS_MAX
from corral.protocol.roster import Member, Roster, RosterRefused, accept
from corral.wire.agent import LeafSpec, NodeSpec, SignedRoster

PORT_MIN = 1024
"""Engines publish on ephemeral ports; below this are the services that send back more than they are sent."""
MEMBERS_BEHIND_ONE_ADDRESS_MAX = 64
"""A site may have many hosts behind one router. Beyond this, a cluster's handshakes would be aimed at one victim."""


def accepted_roster(signed: SignedRoster, spec: NodeSpec | LeafSpec, mark: RosterMark | None) -> Roster:
    """
    The roster, if this node may apply it.

    Raises:
        RosterRefused: as `protocol.roster.accept` tells; or it contradicts the node's own spec.
    """
    roster = accept(
        signed.payload,
        signed.signature,
        cluster_id=spec.cluster_id,
        roster_key=spec.mesh.roster_key,
        last_serial=mark.serial if mark else 0,
        last_hash=mark.payload_hash if mark else None,
    )
    if len(roster.members) > 2 * MEMBERS_MAX:
        raise RosterRefused(f"roster {roster.serial} has {len(roster.members)} members; nothing was applied")
    network = IPv4Network(spec.mesh.network)
    for member in roster.members:
        if member.node_id == spec.node_id and member.address != spec.mesh.address:
            raise RosterRefused(
                f"roster {roster.serial} gives node {spec.node_id} the address {member.address}, "
                f"its spec says {spec.mesh.address}; nothing was applied"
            )
        if (address := _ipv4(member.address)) is None or address not in network:
            raise RosterRefused(
                f"roster {roster.serial} has a member outside of {network}: {member.address[:40]!r}; not applied"
            )
    return roster


def peers_of(roster: Roster, *, node_id: str, engine_id: str) -> list[dict[str, Any]]:
    """
    The other members, as the mesh container is told of them.

    On the same engine a member is reached at its first endpoint, which is on the engine's bridge; from elsewhere at the
    first one that is published. One without an endpoint for us, or with one that no host could have, opens the path
    itself.
    """
    others = [member for member in roster.members if member.node_id != node_id]
    endpoints = {member.node_id: _endpoint(member, engine_id) for member in others}
    crowded = _crowded(endpoint for endpoint in endpoints.values() if endpoint is not None)
    return [
        {
            "public_key": member.public_key,
            "address": member.address,
            "endpoint": None if endpoints[member.node_id] in crowded else endpoints[member.node_id],
        }
        for member in others
    ]


def _endpoint(member: Member, engine_id: str) -> str | None:
    is_near = member.engine_id == engine_id
    reachable = member.endpoints[:1] if is_near else member.endpoints[1:2]
    if not reachable or len(reachable[0]) > len("255.255.255.255:65535"):
        return None
    host, _, port = reachable[0].rpartition(":")
    address = _ipv4(host)
    if address is None or not (port.isascii() and port.isdecimal()):
        return None
    if address.is_unspecified or address.is_loopback or address.is_link_local or address.is_multicast:
        return None
    if address.is_reserved or not PORT_MIN <= int(port) <= 65535:
        return None
    # On the bridge every mesh container listens on the same port; nothing else there is any of a peer's business.
    if is_near and not (address.is_private and int(port) == MESH_PORT):
        return None
    return f"{address}:{int(port)}"


def _crowded(endpoints: Iterable[str]) -> frozenset[str]:
    """Endpoints that several members claim, or whose address too many do."""
    count = Counter(endpoints)
    hosts = Counter(endpoint.rpartition(":")[0] for endpoint in count)
    return frozenset(
        endpoint
        for endpoint, times in count.items()
        if times > 1 or hosts[endpoint.rpartition(":")[0]] > MEMBERS_BEHIND_ONE_ADDRESS_MAX
    )


def _ipv4(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except ValueError:
        return None
