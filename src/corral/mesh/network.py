"""Network and member numbers of clusters."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network

import sqlalchemy as sa

from corral.core.ids import ClusterId, PersonId
from corral.mesh.errors import NoNetworkLeft
from corral.mesh.relays import close_mailboxes
from corral.mesh.tables import mesh_network
from corral.platform.database import Tx
from corral.protocol.addresses import CLUSTER_NETWORKS, MEMBERS_MAX, MeshFull, cluster_network


@dataclass(frozen=True, slots=True)
class Mesh:
    """A cluster's place in the address space."""

    cluster_id: ClusterId
    network: IPv4Network


def lowest_free(used: Iterable[int], limit: int) -> int | None:
    """The lowest number below `limit` that is not used; None if all are."""
    taken = set(used)
    return next((number for number in range(limit) if number not in taken), None)


async def open_mesh(tx: Tx, cluster_id: ClusterId, renter_id: PersonId) -> Mesh:
    """
    Gives a new cluster a network that no other living cluster of its renter has.

    Raises:
        NoNetworkLeft: the renter's living clusters use all of them.
    """
    # Two bookings of one renter wait for each other here, instead of failing on the unique index.
    await tx.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"mesh {renter_id}", 0))))
    living = sa.select(mesh_network.c.number).where(
        mesh_network.c.renter_id == renter_id, mesh_network.c.closed_at.is_(None)
    )
    number = lowest_free((row.number for row in await tx.execute(living)), CLUSTER_NETWORKS)
    if number is None:
        raise NoNetworkLeft(CLUSTER_NETWORKS)
    await tx.execute(sa.insert(mesh_network).values(cluster_id=cluster_id, renter_id=renter_id, number=number))
    return Mesh(cluster_id, cluster_network(number))


async def mesh_of(tx: Tx, cluster_id: ClusterId) -> Mesh:
    """The mesh of a cluster, living or not."""
    number = await tx.execute(sa.select(mesh_network.c.number).where(mesh_network.c.cluster_id == cluster_id))
    return Mesh(cluster_id, cluster_network(number.scalar_one()))


async def new_members(tx: Tx, cluster_id: ClusterId, count: int) -> list[int]:
    """
    Hands out `count` member numbers that this cluster has never used: a late packet finds nobody else there.

    Raises:
        MeshFull: the cluster has had as many members as its network can name.
    """
    raised = await tx.execute(
        sa.update(mesh_network)
        .where(mesh_network.c.cluster_id == cluster_id)
        .values(members=mesh_network.c.members + count)
        .returning(mesh_network.c.members)
    )
    last = raised.scalar_one()
    if last > MEMBERS_MAX:
        raise MeshFull(f"cluster {cluster_id} has no place for another member", held=MEMBERS_MAX)
    return list(range(last - count + 1, last + 1))


async def close_mesh(tx: Tx, cluster_id: ClusterId, now: datetime) -> None:
    """Gives a cluster's network number and mailboxes back; a closed mesh stays closed."""
    await close_mailboxes(tx, cluster_id)
    await tx.execute(
        sa.update(mesh_network)
        .where(mesh_network.c.cluster_id == cluster_id, mesh_network.c.closed_at.is_(None))
        .values(closed_at=now)
    )
