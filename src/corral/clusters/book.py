"""Booking: the contract, the cluster, its nodes and its place at a gateway, in one transaction."""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from corral import bookings, devices, market, mesh
from corral.clusters.errors import ClusterNameTaken, GatewayUnavailable, ImageUnavailable
from corral.clusters.gateway_choice import choose_gateway
from corral.clusters.sizes import RaySize, ray_size
from corral.clusters.states import ClusterState
from corral.clusters.store import WORK_TOPIC, add_node, stamp
from corral.clusters.tables import cluster, cluster_history, node
from corral.core.ids import BookingId, ClusterId, HostId, NodeId, PersonId, QuoteId
from corral.platform.database import Tx
from corral.platform.http import Platform
from corral.platform.nudges import notify
from corral.protocol.addresses import leaf_address, node_address

CLUSTER_PREFIX = "cl"
NODE_PREFIX = "nd"
WORK_IMAGE = "corral-ray"
LEAF_SIZE = RaySize(0, 0, 0)


async def book(
    tx: Tx,
    platform: Platform,
    *,
    booking_id: BookingId,
    quote_id: QuoteId,
    renter_id: PersonId,
    now: datetime,
    roster_key: str | None = None,
) -> ClusterId:
    """
    Accepts a quote and wants its cluster from now on. The same booking id again returns the first cluster.

    With a `roster_key` only the renter, who holds its other half, signs who is a member.

    Raises:
        QuoteUnknown, QuoteExpired, BookingConflict: there is no such quote, or the id is used.
        ClusterNameTaken: a living cluster has the name. Roll back.
        GatewayUnavailable, ImageUnavailable: none could serve it, or hosts could not run it. Roll back.
        DeviceTaken, InsufficientCredit: somebody was faster, or the credit is not enough. Roll back.
    """
    booking = await bookings.accept(
        tx,
        booking_id=booking_id,
        quote_id=quote_id,
        renter_id=renter_id,
        settings=platform.settings,
        now=now,
        ids=platform.ids,
    )
    earlier = await tx.execute(sa.select(cluster.c.id).where(cluster.c.booking_id == booking_id))
    found = earlier.scalar_one_or_none()
    if found is not None:
        return ClusterId(found)
    if WORK_IMAGE not in platform.images:
        raise ImageUnavailable(WORK_IMAGE)
    await _check_name(tx, booking.name)
    gateway = await choose_gateway(tx, platform.settings, now)
    if gateway is None:
        raise GatewayUnavailable
    cluster_id = ClusterId(platform.ids.new(CLUSTER_PREFIX))
    values: dict[str, Any] = {"id": cluster_id, "booking_id": booking_id, "renter_id": renter_id, "name": booking.name}
    values["roster_key"] = roster_key
    values["internet"] = (await market.quote_of(tx, quote_id, renter_id)).internet
    state = ClusterState.BOOKED.value
    await tx.execute(
        sa.insert(cluster).values(**values, state=state, gateway_id=gateway.host_id, created_at=now, due_at=now)
    )
    await tx.execute(sa.insert(cluster_history).values(cluster_id=cluster_id, at=now, state=state))
    await stamp(tx, cluster_id, "quoted", "", booking.quoted_at)
    await stamp(tx, cluster_id, "booked", "", now)
    lines = await bookings.lines_of(tx, booking_id)
    await mesh.open_mesh(tx, cluster_id, renter_id)
    await _add_first_nodes(tx, platform, cluster_id, lines, now)
    await add_leaf(tx, platform, cluster_id, gateway, replaces=None, now=now)
    await devices.bump(tx, {line.host_id for line in lines} | {gateway.host_id})
    await notify(tx, WORK_TOPIC, cluster_id)
    return cluster_id


async def add_worker_or_head(
    tx: Tx,
    platform: Platform,
    cluster_id: ClusterId,
    lines: Sequence[bookings.Line],
    *,
    role: str,
    name: str,
    member: int | None,
    replaces: NodeId | None,
    now: datetime,
) -> NodeId:
    """Wants a node on the host of `lines`, under a new member number unless one is given. The caller bumps the host."""
    number = member if member is not None else (await mesh.new_members(tx, cluster_id, 1))[0]
    size = ray_size(lines)
    node_id = NodeId(platform.ids.new(NODE_PREFIX))
    await add_node(
        tx,
        node_id=node_id,
        cluster_id=cluster_id,
        host_id=lines[0].host_id,
        kind="node",
        role=role,
        name=name,
        member=number,
        address=str(node_address((await mesh.mesh_of(tx, cluster_id)).network, number)),
        lines=lines,
        size=size,
        replaces=replaces,
        now=now,
    )
    return node_id


async def add_leaf(
    tx: Tx, platform: Platform, cluster_id: ClusterId, gateway: devices.Host, *, replaces: NodeId | None, now: datetime
) -> None:
    """Wants a leaf on a gateway. The caller bumps the gateway."""
    number = (await mesh.new_members(tx, cluster_id, 1))[0]
    await add_node(
        tx,
        node_id=NodeId(platform.ids.new(NODE_PREFIX)),
        cluster_id=cluster_id,
        host_id=gateway.host_id,
        kind="leaf",
        role="gateway",
        name="gateway",
        member=number,
        address=str(leaf_address((await mesh.mesh_of(tx, cluster_id)).network, number)),
        lines=(),
        size=LEAF_SIZE,
        replaces=replaces,
        now=now,
    )


async def free_node_name(tx: Tx, cluster_id: ClusterId, host_name: str) -> str:
    """The host's name, or with a number behind it where another node of the cluster has had it."""
    names = sa.select(node.c.name).where(node.c.cluster_id == cluster_id)
    taken = {row.name for row in await tx.execute(names)}
    if host_name not in taken:
        return host_name
    stem = host_name[:34].rstrip("-")
    return next(name for number in range(2, len(taken) + 3) if (name := f"{stem}-{number}") not in taken)


async def _add_first_nodes(
    tx: Tx, platform: Platform, cluster_id: ClusterId, lines: Sequence[bookings.Line], now: datetime
) -> None:
    ordered = sorted(lines, key=lambda line: (not line.is_head, line.host_id, line.slot))
    for (is_head, _), share in groupby(ordered, key=lambda line: (line.is_head, HostId(line.host_id))):
        mine = list(share)
        await add_worker_or_head(
            tx,
            platform,
            cluster_id,
            mine,
            role="head" if is_head else "worker",
            name=await free_node_name(tx, cluster_id, mine[0].host_name),
            member=None,
            replaces=None,
            now=now,
        )


async def _check_name(tx: Tx, name: str) -> None:
    # Two bookings of one name wait for each other here, instead of failing on the unique index.
    await tx.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"cluster name {name}", 0))))
    taken = await tx.execute(sa.select(cluster.c.id).where(cluster.c.name == name, cluster.c.ended_at.is_(None)))
    if taken.first() is not None:
        raise ClusterNameTaken(name)
