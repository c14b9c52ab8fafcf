"""The control plane's side of clusters' meshes: network numbers, member numbers, signed rosters."""

from corral.mesh.errors import MeshError, NoNetworkLeft
from corral.mesh.network import Mesh, close_mesh, mesh_of, new_members, open_mesh
from corral.mesh.rosters import (
    LatestRoster,
    in_order,
    latest_roster,
    publish_roster,
    roster_public_key,
    signed_rosters,
)

__all__ = [
    "LatestRoster",
    "Mesh",
    "MeshError",
    "NoNetworkLeft",
    "close_mesh",
    "in_order",
    "latest_roster",
    "mesh_of",
    "new_members",
    "open_mesh",
    "publish_roster",
    "roster_public_key",
    "signed_rosters",
]
