"""The control plane's side of clusters' meshes: network and member numbers, signed rosters, relays."""

from corral.mesh.errors import MeshError, NoNetworkLeft, NothingProposed, ProposalOutdated
from corral.mesh.network import Mesh, close_mesh, mesh_of, new_members, open_mesh
from corral.mesh.relays import RelayView, mailboxes_at, note_relay, observed_endpoints, relays, wanted_relays
from corral.mesh.rosters import (
    LatestRoster,
    ProposedRoster,
    chain,
    in_order,
    latest_roster,
    propose_roster,
    proposed_roster,
    publish_roster,
    roster_public_key,
    signed_rosters,
    take_signature,
)

__all__ = [
    "LatestRoster",
    "Mesh",
    "MeshError",
    "NoNetworkLeft",
    "NothingProposed",
    "ProposalOutdated",
    "ProposedRoster",
    "RelayView",
    "chain",
    "close_mesh",
    "in_order",
    "latest_roster",
    "mailboxes_at",
    "mesh_of",
    "new_members",
    "note_relay",
    "observed_endpoints",
    "open_mesh",
    "propose_roster",
    "proposed_roster",
    "publish_roster",
    "relays",
    "roster_public_key",
    "signed_rosters",
    "take_signature",
    "wanted_relays",
]
