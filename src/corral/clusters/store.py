"""All SQL of clusters and nodes that changes something, and the reading of snapshots."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from corral import bookings, devices, mesh
from corral.clusters import guest_store
from corral.clusters.errors import ClusterUnknown
from corral.clusters.sizes import RaySize
from corral.clusters.snapshot import Limits, NodeView, PhaseView, Snapshot
from corral.clusters.states import OVER, ClusterState, NodeEnd, check_transition
from corral.clusters.tables import cluster, cluster_history, guest, node, node_line, phase, ticket, web_session
from corral.clusters.traffic import cap_of
from corral.core.ids import BookingId, ClusterId, HostId, LineId, NodeId, PersonId
from corral.platform.database import Tx
from corral.platform.nudges import notify
from corral.platform.settings import ServerSettings
from corral.wire.agent import NodeReport

CLUSTER_TOPIC = "cluster"
"""Nudges of this topic carry ids of clusters of which something visible changed."""

WORK_TOPIC = "cluster-work"
"""Nudges of this topic carry ids of clusters that a reconciler should look at."""


async def cluster_row(tx: Tx, cluster_id: ClusterId, *, lock: bool = False) -> sa.Row[Any]:
    """A cluster's row; with `lock`, nobody else changes it until the end of the transaction."""
    query = sa.select(cluster).where(cluster.c.id == cluster_id)
    return (await tx.execute(query.with_for_update() if lock else query)).one()


async def own_cluster(tx: Tx, renter_id: PersonId, name_or_id: str, *, lock: bool = False) -> sa.Row[Any]:
    """
    A renter's cluster by id, or by name: the living one, or else the last that had it.

    Raises:
        ClusterUnknown: this renter has none; somebody else's is not told apart from none.
    """
    query = (
        sa.select(cluster)
        .where(cluster.c.renter_id == renter_id, sa.or_(cluster.c.id == name_or_id, cluster.c.name == name_or_id))
        .order_by(cluster.c.ended_at.is_(None).desc(), cluster.c.created_at.desc(), cluster.c.id.desc())
        .limit(1)
    )
    row = (await tx.execute(query.with_for_update() if lock else query)).first()
    if row is None:
        raise ClusterUnknown(name_or_id)
    return row


async def change(tx: Tx, cluster_id: ClusterId, **columns: Any) -> None:
    """Writes columns of a cluster, and tells those who wait for a change of it."""
    statement = sa.update(cluster).where(cluster.c.id == cluster_id)
    await tx.execute(statement.values(version=cluster.c.version + 1, **columns))
    await notify(tx, CLUSTER_TOPIC, cluster_id)


async def look_again(tx: Tx, cluster_id: ClusterId, now: datetime) -> None:
    """Wakes the reconciler of a cluster."""
    await change(tx, cluster_id, due_at=now)
    await notify(tx, WORK_TOPIC, cluster_id)


async def transition(
    tx: Tx, cluster_id: ClusterId, wanted: ClusterState, now: datetime, *, reason: str = "", **columns: Any
) -> None:
    """
    Takes a cluster, whose row is locked here, to another state.

    Raises:
        TransitionIllegal: the table of `states` has no such step.
    """
    row = await cluster_row(tx, cluster_id, lock=True)
    steps = sa.select(cluster_history).where(cluster_history.c.cluster_id == cluster_id).order_by(cluster_history.c.id)
    history = [(step.state, step.at) for step in await tx.execute(steps)]
    check_transition(cluster_id, ClusterState(row.state), wanted, history)
    await tx.execute(
        sa.insert(cluster_history).values(cluster_id=cluster_id, at=now, state=wanted.value, reason=reason)
    )
    if wanted in OVER:
        columns["ended_at"] = now
    if reason:
        columns["reason"] = reason
    await change(tx, cluster_id, state=wanted.value, due_at=now, **columns)
    await notify(tx, WORK_TOPIC, cluster_id)


async def add_node(
    tx: Tx,
    *,
    node_id: NodeId,
    cluster_id: ClusterId,
    host_id: HostId,
    kind: str,
    role: str,
    name: str,
    member: int,
    address: str,
    lines: Sequence[bookings.Line],
    size: RaySize,
    replaces: NodeId | None,
    now: datetime,
) -> None:
    """Stores a node or a leaf that is wanted from now on. The caller raises the host's revision."""
    await tx.execute(
        sa.insert(node).values(
            id=node_id,
            cluster_id=cluster_id,
            host_id=host_id,
            kind=kind,
            role=role,
            name=name,
            member=member,
            address=address,
            num_cpus=size.num_cpus,
            num_gpus=size.num_gpus,
            object_store_bytes=size.object_store_bytes,
            traffic_cap_bytes=cap_of(line.traffic_cap_bytes for line in lines),
            replaces=replaces,
            created_at=now,
        )
    )
    if lines:
        rows = await devices.devices_by_id(tx, [line.device_id for line in lines])
        values = [
            {
                "line_id": line.id,
                "node_id": node_id,
                "device_id": line.device_id,
                "device_key": rows[line.device_id].key,
            }
            for line in lines
        ]
        await tx.execute(sa.insert(node_line).values(values))


async def remove_nodes(tx: Tx, node_ids: Iterable[NodeId], how: NodeEnd, now: datetime, *, reason: str = "") -> None:
    """Takes nodes out of the desired states of their hosts; one that was removed before stays as it is."""
    removed = await tx.execute(
        sa.update(node)
        .where(node.c.id.in_(sorted(node_ids)), node.c.removed_at.is_(None))
        .values(removed_at=now, removed_as=how.value, reason=reason)
        .returning(node.c.id, node.c.host_id)
    )
    by_host: dict[HostId, list[str]] = {}
    for row in removed:
        by_host.setdefault(HostId(row.host_id), []).append(row.id)
    for host_id, revision in (await devices.bump(tx, by_host)).items():
        without = {"gone_epoch": revision.epoch, "gone_number": revision.number}
        await tx.execute(sa.update(node).where(node.c.id.in_(by_host[host_id])).values(**without))


async def wanted_nodes(tx: Tx, cluster_id: ClusterId) -> list[NodeId]:
    """Nodes and leaves of a cluster that are wanted on hosts."""
    query = sa.select(node.c.id).where(node.c.cluster_id == cluster_id, node.c.removed_at.is_(None))
    return [NodeId(row.id) for row in await tx.execute(query.order_by(node.c.id))]


async def head_address(tx: Tx, cluster_id: ClusterId) -> str | None:
    """Where a cluster's head is inside its mesh; None if it has none."""
    wanted = (node.c.cluster_id == cluster_id, node.c.role == "head", node.c.removed_at.is_(None))
    return (await tx.execute(sa.select(node.c.address).where(*wanted))).scalar_one_or_none()


async def lines_of_nodes(tx: Tx, node_ids: Iterable[NodeId]) -> dict[NodeId, list[LineId]]:
    """The lines on which nodes run."""
    query = sa.select(node_line).where(node_line.c.node_id.in_(sorted(node_ids))).order_by(node_line.c.line_id)
    found: dict[NodeId, list[LineId]] = {}
    for row in await tx.execute(query):
        found.setdefault(NodeId(row.node_id), []).append(LineId(row.line_id))
    return found


async def stamp(tx: Tx, cluster_id: ClusterId, name: str, detail: str, now: datetime | None) -> None:
    """Notes that a phase was reached at `now`, or, with None, what it tells on the way; a reached one stays."""
    seconds: float | None = None
    if now is not None:
        last = await tx.execute(sa.select(sa.func.max(phase.c.at)).where(phase.c.cluster_id == cluster_id))
        before = last.scalar_one()
        seconds = 0.0 if before is None else max(0.0, (now - before).total_seconds())
    statement = insert(phase).values(cluster_id=cluster_id, name=name, at=now, seconds=seconds, detail=detail)
    said = {"at": statement.excluded.at, "seconds": statement.excluded.seconds, "detail": statement.excluded.detail}
    await tx.execute(
        statement.on_conflict_do_update(index_elements=["cluster_id", "name"], set_=said, where=phase.c.at.is_(None))
    )


async def close_doors(tx: Tx, cluster_id: ClusterId) -> None:
    """Ends every ticket, session and guest of a cluster."""
    await tx.execute(sa.delete(guest).where(guest.c.cluster_id == cluster_id))
    await tx.execute(sa.delete(ticket).where(ticket.c.cluster_id == cluster_id))
    await tx.execute(sa.delete(web_session).where(web_session.c.cluster_id == cluster_id))


async def claim(tx: Tx, token: str, now: datetime, *, claim_s: float, count_max: int, poll_s: float) -> list[ClusterId]:
    """
    Claims living clusters that are due, for this reconciler alone, until the claim expires.

    The next look is set here, before anything is observed, so that a nudge during the work is not lost.
    """
    due = (
        sa.select(cluster.c.id)
        .where(
            cluster.c.ended_at.is_(None),
            cluster.c.due_at <= now,
            sa.or_(cluster.c.claimed_until.is_(None), cluster.c.claimed_until <= now),
        )
        .order_by(cluster.c.due_at)
        .limit(count_max)
        .with_for_update(skip_locked=True)
    )
    claimed = await tx.execute(
        sa.update(cluster)
        .where(cluster.c.id.in_(due.scalar_subquery()))
        .values(
            claim_token=token, claimed_until=now + timedelta(seconds=claim_s), due_at=now + timedelta(seconds=poll_s)
        )
        .returning(cluster.c.id)
    )
    return sorted(ClusterId(row.id) for row in claimed)


async def is_claimed(tx: Tx, cluster_id: ClusterId, token: str) -> bool:
    """Whether the claim still stands; locks the cluster until the end of the transaction."""
    return (await cluster_row(tx, cluster_id, lock=True)).claim_token == token


async def unclaim(tx: Tx, cluster_id: ClusterId, token: str, *, failures: int, due_at: datetime | None) -> None:
    """Gives a claim back; `due_at` sets a later look, None leaves it as it is."""
    values: dict[str, Any] = {"claim_token": None, "claimed_until": None, "failures": failures}
    if due_at is not None:
        values["due_at"] = due_at
    await tx.execute(
        sa.update(cluster).where(cluster.c.id == cluster_id, cluster.c.claim_token == token).values(**values)
    )


async def snapshot(
    tx: Tx, cluster_id: ClusterId, settings: ServerSettings, *, now: datetime, serving_since: datetime
) -> Snapshot:
    """A cluster as it is now."""
    row = await cluster_row(tx, cluster_id)
    booking = await bookings.get(tx, BookingId(row.booking_id))
    query = sa.select(node).where(node.c.cluster_id == cluster_id).order_by(node.c.created_at, node.c.id)
    nodes = (await tx.execute(query)).all()
    lines = await lines_of_nodes(tx, [NodeId(one.id) for one in nodes])
    begun = {line.id for line in await bookings.lines_of(tx, booking.id) if line.from_at is not None}
    hosts = await devices.hosts_by_id(tx, {HostId(one.host_id) for one in nodes})
    reached = await tx.execute(sa.select(phase).where(phase.c.cluster_id == cluster_id))
    roster = await mesh.latest_roster(tx, cluster_id)
    heard_after = now - timedelta(seconds=settings.host_offline_after_s)
    relays = await mesh.relays(tx, heard_after=heard_after)
    used = {relay.relay_id for relay in roster.relays} if roster is not None else set[str]()
    observed = await mesh.observed_endpoints(tx, cluster_id)
    return Snapshot(
        cluster_id=cluster_id,
        booking_id=BookingId(row.booking_id),
        name=row.name,
        state=ClusterState(row.state),
        created_at=row.created_at,
        ready_at=row.ready_at,
        ending_at=row.ending_at,
        ends_at=None if booking.began_at is None else bookings.stop_after(booking),
        nodes=tuple(
            _node_view(
                one,
                hosts[HostId(one.host_id)],
                settings,
                is_charged=begun.issuperset(lines.get(NodeId(one.id), [])),
                observed=observed.get(one.id, ()),
                now=now,
                serving_since=serving_since,
            )
            for one in nodes
            if one.removed_at is None
        ),
        not_gone=sum(one.removed_at is not None and one.gone_at is None for one in nodes),
        roster=roster,
        is_pinned=row.roster_key is not None,
        proposal=await mesh.proposed_roster(tx, cluster_id),
        relays=mesh.wanted_relays(used, relays),
        guests=await guest_store.members(
            tx, cluster_id, roster, observed, now=now, serving_since=serving_since, lapse_s=settings.guest_lapse_s
        ),
        phases={one.name: PhaseView(at=one.at, detail=one.detail) for one in reached},
        limits=Limits(
            node_start_s=settings.node_start_s,
            cluster_start_s=settings.cluster_start_s,
            orphan_grace_s=settings.orphan_grace_s,
            signature_s=settings.signature_s,
        ),
    )


async def lock_clusters(tx: Tx, cluster_ids: Iterable[ClusterId]) -> None:
    """Locks clusters before any of their nodes is written, in the order of their ids: everybody does it so."""
    query = sa.select(cluster.c.id).where(cluster.c.id.in_(sorted(cluster_ids))).order_by(cluster.c.id)
    await tx.execute(query.with_for_update())


def _node_view(
    row: sa.Row[Any],
    host: devices.Host,
    settings: ServerSettings,
    *,
    is_charged: bool,
    observed: tuple[str, ...],
    now: datetime,
    serving_since: datetime,
) -> NodeView:
    liveness = devices.liveness_of(
        host.last_seen_at, now=now, serving_since=serving_since, offline_after_s=settings.host_offline_after_s
    )
    return NodeView(
        node_id=NodeId(row.id),
        kind=row.kind,
        role=row.role,
        name=row.name,
        address=row.address,
        host_id=HostId(row.host_id),
        host_name=host.name,
        engine_id=host.engine_id,
        observed=observed,
        reachable_at=host.reachable_at,
        seen_at=host.observed_address,
        liveness=liveness,
        last_seen_at=host.last_seen_at,
        created_at=row.created_at,
        is_replacement=row.replaces is not None,
        is_charged=is_charged,
        report=None if row.report is None else msgspec.convert(row.report, NodeReport),
        reported_at=row.reported_at,
        alive_at=row.alive_at,
        away_since=row.away_since,
        returned_at=row.returned_at,
    )
