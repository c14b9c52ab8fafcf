"""Clusters as their renters see them."""

from datetime import datetime
from typing import Any, cast

import msgspec
import sqlalchemy as sa

from corral import bookings, devices, mesh
from corral.clusters.snapshot import PHASES
from corral.clusters.tables import node, node_line, phase
from corral.clusters.urls import jobs_url
from corral.core.ids import BookingId, ClusterId, HostId, LineId
from corral.platform.database import Tx
from corral.wire import api
from corral.wire.agent import NodeReport


async def cluster_view(tx: Tx, row: Any, now: datetime) -> api.Cluster:
    """A cluster with its phases, nodes and money, by its row."""
    booking = await bookings.get(tx, BookingId(row.booking_id))
    lines = await bookings.lines_of(tx, booking.id)
    money = await bookings.money(tx, booking.id, now=now)
    query = sa.select(node).where(node.c.cluster_id == row.id)
    rows = (await tx.execute(query.order_by(node.c.created_at, node.c.member, node.c.id))).all()
    gateway = await devices.host_by_id(tx, HostId(row.gateway_id))
    running = booking.began_at is not None and not booking.is_over
    serving = [line for line in lines if line.state == "active"] or [line for line in lines if line.state != "replaced"]
    is_open = row.ended_at is None and row.state != "ending"
    return api.Cluster(
        id=row.id,
        booking_id=row.booking_id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        phases=await _phases(tx, row.id),
        nodes=await _nodes(tx, rows, lines),
        providers=sorted({line.provider_name for line in serving}),
        rate_uc_per_hour=sum(line.rate_uc_per_hour for line in serving),
        held_uc=money.held_uc,
        charged_uc=money.charged_uc,
        hours=booking.hours,
        created_at=row.created_at,
        ready_at=row.ready_at,
        ends_at=booking.ends_at if running else None,
        ended_at=row.ended_at,
        jobs_url=jobs_url(gateway.gateway_address, row.name) if gateway is not None and is_open else None,
        version=row.version,
        internet=row.internet,
        is_pinned=row.roster_key is not None,
        awaits_signature=is_open and await mesh.proposed_roster(tx, ClusterId(row.id)) is not None,
    )


def node_state(row: Any) -> str:
    """The one word for a node, from what its host reported last."""
    if row.removed_at is not None:
        return row.removed_as
    if row.report is None:
        return "waiting"
    report = msgspec.convert(row.report, NodeReport)
    if report.fault is not None:
        return "failed"
    if row.away_since is not None:
        return "mending"
    if "exited" in (report.pause, report.mesh, report.work):
        return "failed"
    if report.ray_phase == "running":
        return "running"
    if report.roster_serial:
        return report.ray_phase or "joined"
    return "created" if report.pause == report.mesh == report.work == "running" else "creating"


def _told(report: NodeReport) -> str:
    """What its host says about a node that does not work, or was mended."""
    if report.fault is not None:
        return report.fault.message
    if report.renewed_for is not None:
        return f"mended {report.renewals}×: {report.renewed_for.message.partition(chr(10))[0]}"
    return ""


async def _phases(tx: Tx, cluster_id: str) -> list[api.Phase]:
    rows = {row.name: row for row in await tx.execute(sa.select(phase).where(phase.c.cluster_id == cluster_id))}
    shown: list[api.Phase] = []
    for name in PHASES:
        row = rows.get(name)
        if row is None:
            shown.append(api.Phase(name=cast(Any, name), at=None, seconds=None))
        else:
            shown.append(api.Phase(name=cast(Any, name), at=row.at, seconds=row.seconds, detail=row.detail))
    return shown


async def _nodes(tx: Tx, rows: Any, lines: list[bookings.Line]) -> list[api.Node]:
    by_id = {line.id: line for line in lines}
    of_node: dict[str, list[bookings.Line]] = {}
    query = sa.select(node_line).where(node_line.c.node_id.in_([row.id for row in rows])).order_by(node_line.c.line_id)
    for pair in await tx.execute(query):
        of_node.setdefault(pair.node_id, []).append(by_id[LineId(pair.line_id)])
    shown: list[api.Node] = []
    members = {row.address: row.name for row in rows if row.removed_at is None}
    for row in rows:
        if row.kind != "node":
            continue
        mine = of_node.get(row.id, [])
        report = None if row.report is None else msgspec.convert(row.report, NodeReport)
        told = _told(report) if report is not None else ""
        shown.append(
            api.Node(
                id=row.id,
                name=row.name,
                role=row.role,
                host=mine[0].host_name if mine else "",
                provider=mine[0].provider_name if mine else "",
                address=row.address,
                state=node_state(row),
                devices=[line.device_label for line in mine],
                received_bytes=row.received_bytes,
                sent_bytes=row.sent_bytes,
                reason=row.reason or told,
                internet_received_bytes=row.internet_received_bytes,
                internet_sent_bytes=row.internet_sent_bytes,
                relayed=_relayed(row, report, members),
                traffic_cap_bytes=row.traffic_cap_bytes,
                is_slowed=report is not None and report.is_slowed and row.removed_at is None,
            )
        )
    return shown


def _relayed(row: Any, report: NodeReport | None, members: dict[str, str]) -> list[str]:
    """Names of the members that a node of a cluster reaches through a relay alone."""
    if report is None or row.removed_at is not None:
        return []
    return [members[address] for address in report.relayed if address in members]
