"""
What a roster becomes for one member: the peers that its mesh program is told of.

A roster's signature shows that the control plane made it, not that its content is harmless. Endpoints come from other
hosts' reports, and WireGuard sends to them unasked; so they are held to what another host of the network could have.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from corral.protocol import relays
from corral.protocol.roster import Member, Roster

MESH_PORT_FIRST, MESH_PORTS = 20_000, 6_384
"""Below the ephemeral ports of Linux, from which the engine chooses what it publishes."""
PRIVATE = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
"""RFC 1918: what a router with NAT gives to the hosts behind it."""
LAN_ADDRESSES_MAX = 4
"""Addresses of a host on its own network that others are told."""
PORT_MIN = 1024
"""Engines publish on ephemeral ports; below this are the services that send back more than they are sent."""
MEMBERS_BEHIND_ONE_ADDRESS_MAX = 64
"""A site may have many hosts behind one router. Beyond this, a cluster's handshakes would be aimed at one victim."""
CANDIDATES_MAX = 8
"""Endpoints of one member that are tried."""


def mesh_port(node_id: str) -> int:
    """
    The UDP port at which a member's WireGuard listens in its namespace: another one for each member of a host.

    The engine's masquerading keeps the port of what leaves a container as long as no other container has it. With one
    port for all, a NAT in front of the host would show several members as one. The relayed plane has the next port.
    """
    draw = int.from_bytes(hashlib.sha256(f"mesh port {node_id}".encode()).digest()[:8], "big")
    return MESH_PORT_FIRST + 2 * (draw % MESH_PORTS)


def told_of(roster: Roster, own: Member, *, engine_id: str) -> dict[str, Any]:
    """
    The other members and the relays, as the mesh container of `own` is told of them.

    On the same engine a member is reached at its first endpoint, which is on the engine's bridge; from behind the same
    router at its host's own addresses first; from elsewhere at those that are published. One without an endpoint for
    us, or with one that no host could have, opens the path itself. On the relayed plane every peer has our own mailbox
    at the relay that the pair uses for its endpoint.
    """
    others = [member for member in roster.members if member.node_id != own.node_id]
    endpoints = {member.node_id: _endpoints(member, own, engine_id) for member in others}
    crowded = _crowded(endpoint for found in endpoints.values() for endpoint in found)
    mailboxes = _mailboxes(roster, own)
    return {
        "peers": [
            {
                "address": member.address,
                "direct_key": member.direct_key,
                "relayed_key": member.relayed_key,
                "endpoints": [endpoint for endpoint in endpoints[member.node_id] if endpoint not in crowded],
                "relays": [mailboxes[relay_id] for relay_id in _relays(roster, own, member) if relay_id in mailboxes],
                "passive": member.kind == "leaf",
            }
            for member in others
        ],
        "observers": [
            {"public_key": relay.observer_key, "endpoint": mailboxes[relay.relay_id]}
            for relay in roster.relays
            if relay.relay_id in mailboxes
        ],
    }


def _mailboxes(roster: Roster, own: Member) -> dict[str, str]:
    """By relay: the endpoint of our own mailbox."""
    addresses = {relay.relay_id: relay.address for relay in roster.relays}
    found = {box.relay_id: _public_endpoint(f"{addresses.get(box.relay_id, '')}:{box.port}") for box in own.mailboxes}
    return {relay_id: endpoint for relay_id, endpoint in found.items() if endpoint is not None}


def _relays(roster: Roster, own: Member, other: Member) -> tuple[str, ...]:
    """The relays of a pair: primary, then backup. Both ends come to the same, as both read the same roster."""
    sites = {relay.relay_id: relay.site for relay in roster.relays}
    mine, theirs = (
        [
            relays.Mailbox(member.node_id, box.relay_id, sites.get(box.relay_id, ""), box.rtt_us or None)
            for box in member.mailboxes
        ]
        for member in (own, other)
    )
    return relays.choose(mine, theirs, salt=roster.cluster_id)


def _endpoints(member: Member, own: Member, engine_id: str) -> tuple[str, ...]:
    if member.engine_id != engine_id:
        published = [_public_endpoint(endpoint) for endpoint in member.endpoints[1:CANDIDATES_MAX]]
        found = [*_on_lan(member, own), *(endpoint for endpoint in published if endpoint is not None)]
        return tuple(dict.fromkeys(found))[:CANDIDATES_MAX]
    near = [_public_endpoint(endpoint) for endpoint in member.endpoints[:1]]
    # On the bridge a member listens at its own port; nothing else there is any of a peer's business.
    return tuple(one for one in near if one is not None and _is_on_bridge(one, mesh_port(member.node_id)))


def _on_lan(member: Member, own: Member) -> tuple[str, ...]:
    """
    Endpoints on the LAN that we share with a member; none unless the control plane sees both hosts at one address.

    The same private address is somebody else's in every other network, so that nobody elsewhere may try it. Ours is
    left out, too: what virtual machines have on their hosts is the same on all of them.
    """
    if not own.router or member.router != own.router:
        return ()
    ours = {endpoint.rpartition(":")[0] for endpoint in own.lan}
    found = [_public_endpoint(endpoint) for endpoint in member.lan[:LAN_ADDRESSES_MAX]]
    return tuple(
        endpoint
        for endpoint in found
        if endpoint is not None
        and (host := endpoint.rpartition(":")[0]) not in ours
        and any(IPv4Address(host) in network for network in PRIVATE)
    )


def _is_on_bridge(endpoint: str, port: int) -> bool:
    host, _, found = endpoint.rpartition(":")
    return IPv4Address(host).is_private and int(found) == port


def _public_endpoint(text: str) -> str | None:
    """An endpoint that another host of the network could have; None for any other."""
    if len(text) > len("255.255.255.255:65535"):
        return None
    host, _, port = text.rpartition(":")
    address = ipv4_or_none(host)
    if address is None or not (port.isascii() and port.isdecimal()):
        return None
    if address.is_unspecified or address.is_loopback or address.is_link_local or address.is_multicast:
        return None
    if address.is_reserved or not PORT_MIN <= int(port) <= 65535:
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


def ipv4_or_none(text: str) -> IPv4Address | None:
    """The IPv4 address that this text is, if it is one."""
    try:
        return IPv4Address(text)
    except ValueError:
        return None
