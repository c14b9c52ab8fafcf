"""Doing what was planned: one transaction per action, each harmless when its work was done before."""

from datetime import datetime
from typing import assert_never

import sqlalchemy as sa

from corral import bookings, devices, market, mesh
from corral.clusters.book import add_leaf, add_worker_or_head, free_node_name
from corral.clusters.gateway_choice import choose_gateway
from corral.clusters.plan import (
    Action,
    Away,
    BecomeReady,
    Begin,
    Drop,
    End,
    FailStart,
    Finish,
    Joined,
    MoveLeaf,
    Publish,
    Replace,
    Returned,
    Stamp,
    Tell,
)
from corral.clusters.snapshot import Snapshot
from corral.clusters.states import ClusterState, NodeEnd
from corral.clusters.store import (
    change,
    close_doors,
    cluster_row,
    lines_of_nodes,
    remove_nodes,
    stamp,
    transition,
    wanted_nodes,
)
from corral.clusters.tables import node
from corral.core.ids import BookingId, ClusterId, HostId, LineId, NodeId
from corral.platform.database import Tx
from corral.platform.http import Platform


async def apply(
    tx: Tx, platform: Platform, prices: market.Prices, snapshot: Snapshot, action: Action, now: datetime
) -> None:
    """
    Does one action on a cluster whose row is locked and whose state is the snapshot's.

    Raises:
        DeviceTaken: a replacement was hired by somebody else meanwhile. Roll back; the next pass finds another.
    """
    cluster_id = snapshot.cluster_id
    match action:
        case Begin():
            await transition(tx, cluster_id, ClusterState.STARTING, now)
        case Stamp(phase, detail):
            await stamp(tx, cluster_id, phase, detail, now)
            await change(tx, cluster_id)
        case Tell(phase, detail):
            await stamp(tx, cluster_id, phase, detail, None)
            await change(tx, cluster_id)
        case Publish(members) if snapshot.is_pinned:
            await mesh.propose_roster(tx, cluster_id, members, snapshot.relays, now, hosts=hosts_of(snapshot))
            await change(tx, cluster_id)
        case Publish(members):
            master_key, hosts = platform.master_key, hosts_of(snapshot)
            await mesh.publish_roster(tx, master_key, cluster_id, members, snapshot.relays, now, hosts=hosts)
            await devices.bump(tx, {one.host_id for one in snapshot.nodes})
            await change(tx, cluster_id)  # Whoever watches the cluster looks at its roster again.
        case BecomeReady():
            await _become_ready(tx, snapshot, now)
        case Replace(node_id, reason, lost_at):
            await _replace(tx, platform, prices, snapshot, node_id, reason, lost_at, now)
        case Drop(node_id, reason, lost_at):
            await _drop(tx, snapshot, node_id, reason, lost_at, now)
        case Joined(node_id):
            for line_id in await _lines(tx, [node_id]):
                await bookings.begin_line(tx, line_id, at=now)
            await change(tx, cluster_id)
        case Away(node_id, since, reason):
            await _note_away(tx, cluster_id, node_id, since, reason)
        case Returned(node_id):
            await _note_returned(tx, cluster_id, node_id, now)
        case MoveLeaf(node_id, reason):
            await _move_leaf(tx, platform, snapshot, node_id, reason, now)
        case FailStart(reason):
            await fail_start(tx, cluster_id, snapshot.booking_id, reason, now)
        case End(reason, lost_at):
            await end_running(tx, cluster_id, snapshot.booking_id, reason, now, lost_at=lost_at)
        case Finish():
            await transition(tx, cluster_id, ClusterState.ENDED, now)
            await mesh.close_mesh(tx, cluster_id, now)
        case _:
            assert_never(action)


def hosts_of(snapshot: Snapshot) -> dict[str, HostId]:
    """By node, the host that it is on."""
    return {str(one.node_id): one.host_id for one in snapshot.nodes}


async def fail_start(tx: Tx, cluster_id: ClusterId, booking_id: BookingId, reason: str, now: datetime) -> None:
    """A start fails as a whole: everything is refunded, and nothing of it is wanted any more."""
    await bookings.fail(tx, booking_id, now=now, reason=reason)
    await _dismantle(tx, cluster_id, now)
    await transition(tx, cluster_id, ClusterState.FAILED, now, reason=reason, ending_at=now)
    await mesh.close_mesh(tx, cluster_id, now)


async def end_running(
    tx: Tx, cluster_id: ClusterId, booking_id: BookingId, reason: str, now: datetime, *, lost_at: datetime | None
) -> None:
    """Ends a cluster with its final bill; what was not delivered since `lost_at` is not charged."""
    if lost_at is not None:
        for line_id in await _lines(tx, await wanted_nodes(tx, cluster_id)):
            await bookings.record_outage(tx, line_id, from_at=lost_at, to_at=None)
    await bookings.end(tx, booking_id, now=now)
    await _dismantle(tx, cluster_id, now)
    await transition(tx, cluster_id, ClusterState.ENDING, now, reason=reason, ending_at=now)


async def end_by_renter(tx: Tx, cluster_id: ClusterId, now: datetime) -> None:
    """Ends a living cluster because its renter says so; one that ends or has ended is left as it is."""
    row = await cluster_row(tx, cluster_id, lock=True)
    state = ClusterState(row.state)
    if state is ClusterState.READY:
        await end_running(tx, cluster_id, BookingId(row.booking_id), "ended by its renter", now, lost_at=None)
    elif state in (ClusterState.BOOKED, ClusterState.STARTING):
        reason = "ended by its renter before it was ready"
        await bookings.fail(tx, BookingId(row.booking_id), now=now, reason=reason)
        await _dismantle(tx, cluster_id, now)
        await transition(tx, cluster_id, ClusterState.ENDING, now, reason=reason, ending_at=now)


async def _become_ready(tx: Tx, snapshot: Snapshot, now: datetime) -> None:
    workers = len(snapshot.workers)
    await stamp(tx, snapshot.cluster_id, "workers", f"{workers} of {workers}", now)
    await stamp(tx, snapshot.cluster_id, "ready", "", now)
    await bookings.begin(tx, snapshot.booking_id, t1=now)
    await transition(tx, snapshot.cluster_id, ClusterState.READY, now, ready_at=now)
    # The end of the hours held moved with T1, and every node carries it.
    await devices.bump(tx, {one.host_id for one in snapshot.nodes})


async def _replace(
    tx: Tx,
    platform: Platform,
    prices: market.Prices,
    snapshot: Snapshot,
    node_id: NodeId,
    reason: str,
    lost_at: datetime | None,
    now: datetime,
) -> None:
    """Puts another host in the place of a lost node; without one, a start fails and a running cluster goes on."""
    lost = (await tx.execute(sa.select(node).where(node.c.id == node_id, node.c.removed_at.is_(None)))).one_or_none()
    if lost is None:
        return
    line_ids = set(await _lines(tx, [node_id]))
    lines = [line for line in await bookings.lines_of(tx, snapshot.booking_id) if line.id in line_ids]
    used = sa.select(node.c.host_id).where(node.c.cluster_id == snapshot.cluster_id)
    excluded = {HostId(row.host_id) for row in await tx.execute(used)}
    booking = await bookings.get(tx, snapshot.booking_id)
    found = await market.replacement(
        tx,
        lines,
        quote_id=booking.quote_id,
        prices=prices,
        settings=platform.settings,
        excluded_hosts=excluded,
        now=now,
    )
    if found is None:
        if lost_at is None:
            why = f"{reason}; nobody else offers the same at no higher rate"
            await fail_start(tx, snapshot.cluster_id, snapshot.booking_id, why, now)
        else:
            why = f"{reason}; it goes on without this node: nobody else offers the same at no higher rate"
            await _drop(tx, snapshot, node_id, why, lost_at, now)
        return
    if lost_at is not None:
        for line in lines:
            await bookings.record_outage(tx, line.id, from_at=lost_at, to_at=now)
    new_lines = [
        await bookings.replace_line(tx, line.id, quoted, settings=platform.settings, now=now, ids=platform.ids)
        for line, quoted in zip(lines, found, strict=True)
    ]
    # Both hosts at once, in the order of their ids: two clusters that move towards each other's hosts never wait in a
    # circle.
    await devices.bump(tx, [HostId(lost.host_id), new_lines[0].host_id])
    await remove_nodes(tx, [node_id], NodeEnd.REPLACED, now, reason=reason)
    await devices.start_cleaning(tx, line_ids, now)
    await add_worker_or_head(
        tx,
        platform,
        snapshot.cluster_id,
        new_lines,
        role=lost.role,
        name=await free_node_name(tx, snapshot.cluster_id, new_lines[0].host_name),
        # All others are told where the head is; another head before anybody joined takes the same place.
        member=lost.member if lost.role == "head" else None,
        replaces=node_id,
        now=now,
    )
    # A replacement at the start is a fact for the table of nodes, not what became of the cluster.
    await change(tx, snapshot.cluster_id, **({"reason": f"{reason}; replaced"} if lost_at is not None else {}))


async def _note_away(tx: Tx, cluster_id: ClusterId, node_id: NodeId, since: datetime, reason: str) -> None:
    """From `since` on a node is not charged, until it returns or another takes its place."""
    gone = await tx.execute(
        sa.update(node)
        .where(node.c.id == node_id, node.c.removed_at.is_(None), node.c.away_since.is_(None))
        .values(away_since=since)
        .returning(node.c.id)
    )
    if gone.first() is None:
        return
    for line_id in await _lines(tx, [node_id]):
        await bookings.record_outage(tx, line_id, from_at=since, to_at=None)
    await change(tx, cluster_id, **({"reason": reason} if reason else {}))


async def _note_returned(tx: Tx, cluster_id: ClusterId, node_id: NodeId, now: datetime) -> None:
    """A node that was away is charged again."""
    query = sa.select(node.c.away_since).where(node.c.id == node_id, node.c.removed_at.is_(None)).with_for_update()
    row = (await tx.execute(query)).one_or_none()
    if row is None or row.away_since is None:
        return
    await tx.execute(sa.update(node).where(node.c.id == node_id).values(away_since=None, returned_at=now))
    for line_id in await _lines(tx, [node_id]):
        await bookings.record_outage(tx, line_id, from_at=row.away_since, to_at=now)
    await change(tx, cluster_id)


async def _drop(tx: Tx, snapshot: Snapshot, node_id: NodeId, reason: str, lost_at: datetime, now: datetime) -> None:
    lines = await _lines(tx, [node_id])
    for line_id in lines:
        await bookings.record_outage(tx, line_id, from_at=lost_at, to_at=None)
    await remove_nodes(tx, [node_id], NodeEnd.LOST, now, reason=reason)
    await devices.start_cleaning(tx, lines, now)
    await change(tx, snapshot.cluster_id, reason=reason)


async def _move_leaf(
    tx: Tx, platform: Platform, snapshot: Snapshot, node_id: NodeId, reason: str, now: datetime
) -> None:
    """Moves a cluster to another gateway; without one, a start fails and a running cluster waits for its own."""
    present = (await tx.execute(sa.select(node).where(node.c.id == node_id, node.c.removed_at.is_(None)))).one_or_none()
    if present is None:
        return
    gateway = await choose_gateway(tx, platform.settings, now, excluded={HostId(present.host_id)})
    if gateway is None:
        if snapshot.state is not ClusterState.READY:
            why = f"{reason}; no other gateway is online"
            await fail_start(tx, snapshot.cluster_id, snapshot.booking_id, why, now)
        return
    await devices.bump(tx, [HostId(present.host_id), gateway.host_id])
    await remove_nodes(tx, [node_id], NodeEnd.REPLACED, now, reason=reason)
    await add_leaf(tx, platform, snapshot.cluster_id, gateway, replaces=node_id, now=now)
    await change(tx, snapshot.cluster_id, gateway_id=gateway.host_id)


async def _dismantle(tx: Tx, cluster_id: ClusterId, now: datetime) -> None:
    """Wants nothing of a cluster any more; its devices stay unavailable until their hosts confirm that."""
    nodes = await wanted_nodes(tx, cluster_id)
    lines = await _lines(tx, nodes)
    await remove_nodes(tx, nodes, NodeEnd.ENDED, now)
    await devices.start_cleaning(tx, lines, now)
    await close_doors(tx, cluster_id)


async def _lines(tx: Tx, node_ids: list[NodeId]) -> list[LineId]:
    found = await lines_of_nodes(tx, node_ids)
    return sorted(line_id for lines in found.values() for line_id in lines)
