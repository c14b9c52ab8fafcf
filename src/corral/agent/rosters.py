"""A signed roster on this host: checked once more, against what the node's own description said."""

from ipaddress import IPv4Network

from corral.agent.records import RosterMark
from corral.protocol.addresses import MEMBERS_MAX
from corral.protocol.peers import ipv4_or_none
from corral.protocol.roster import Roster, RosterRefused, accept
from corral.wire.agent import LeafSpec, NodeSpec, SignedRoster


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
        if (address := ipv4_or_none(member.address)) is None or address not in network:
            raise RosterRefused(
                f"roster {roster.serial} has a member outside of {network}: {member.address[:40]!r}; not applied"
            )
    return roster
