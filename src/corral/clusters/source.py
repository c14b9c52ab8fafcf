"""What clusters want of a host, and what a host says about their nodes."""

from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from corral import bookings, devices, mesh
from corral.clusters.access import ray_token
from corral.clusters.book import WORK_IMAGE
from corral.clusters.store import WORK_TOPIC, change, lock_clusters
from corral.clusters.tables import cluster, node, node_line
from corral.clusters.traffic import Counts, total_after
from corral.core.errors import invariant
from corral.core.ids import BookingId, ClusterId, HostId, LineId
from corral.devices import DesiredParts
from corral.platform.database import Tx
from corral.platform.http import Platform
from corral.platform.nudges import notify
from corral.protocol.addresses import MTU
from corral.wire.agent import LeafSpec, MeshSpec, NodeReport, NodeSpec, RaySpec, Report, Revision, Secrets


class ClusterSource:
    """The clusters' part in the exchange with hosts (`devices.DesiredSource`)."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def desired_for(self, tx: Tx, host_id: HostId) -> DesiredParts:
        """Specs, secrets and rosters of every node and leaf that is wanted on a host."""
        query = (
            sa.select(
                node,
                cluster.c.name.label("cluster_name"),
                cluster.c.booking_id,
                cluster.c.internet,
                cluster.c.roster_key,
            )
            .join(cluster, cluster.c.id == node.c.cluster_id)
            .where(node.c.host_id == host_id, node.c.removed_at.is_(None))
            .order_by(node.c.id)
        )
        rows = (await tx.execute(query)).all()
        if not rows:
            # Only relays have mailboxes, and relays have no nodes.
            return DesiredParts(mailboxes=await mesh.mailboxes_at(tx, host_id))
        cluster_ids = sorted({ClusterId(row.cluster_id) for row in rows})
        keys = await self._device_keys(tx, [row.id for row in rows])
        heads = await _head_addresses(tx, cluster_ids)
        networks = {cluster_id: (await mesh.mesh_of(tx, cluster_id)).network for cluster_id in cluster_ids}
        nodes: list[NodeSpec] = []
        leaves: list[LeafSpec] = []
        for row in rows:
            cluster_id = ClusterId(row.cluster_id)
            booking = await bookings.get(tx, BookingId(row.booking_id))
            spec = MeshSpec(
                address=row.address,
                network=str(networks[cluster_id]),
                mtu=MTU,
                roster_key=row.roster_key or mesh.roster_public_key(self._platform.master_key, cluster_id),
            )
            stop_after = bookings.stop_after(booking)
            if row.kind == "leaf":
                leaves.append(_leaf_spec(row, spec, heads.get(cluster_id) or row.address, stop_after))
            else:
                nodes.append(self._node_spec(row, spec, heads.get(cluster_id) or row.address, keys[row.id], stop_after))
        return DesiredParts(
            nodes=tuple(nodes),
            leaves=tuple(leaves),
            secrets={
                row.id: Secrets(ray_token=ray_token(self._platform.master_key, ClusterId(row.cluster_id)))
                for row in rows
            },
            rosters=await mesh.signed_rosters(tx, cluster_ids),
        )

    async def observe(self, tx: Tx, host: devices.Host, report: Report, now: datetime) -> frozenset[LineId]:
        """Stores what changed of a host's nodes, wakes their reconciler, and tells which lines are still shown."""
        shown = {said.node_id for said in report.nodes} | set(report.foreign_nodes)
        known = sa.select(node).where(node.c.host_id == host.host_id, node.c.gone_at.is_(None)).order_by(node.c.id)
        rows = (await tx.execute(known)).all()
        said_of = {said.node_id: said for said in report.nodes}
        news: list[tuple[Any, dict[str, Any]]] = []
        changed: set[ClusterId] = set()
        for row in rows:
            said = said_of.get(row.id)
            if row.removed_at is None and said is not None:
                values, is_news = _news(row, said, host, now)
                news.append((row, values))
                if is_news:
                    changed.add(ClusterId(row.cluster_id))
            elif row.id not in shown and _is_confirmed(row, report.applied):
                news.append((row, {"gone_at": now}))
                changed.add(ClusterId(row.cluster_id))
        if report.relay is not None and host.role == "relay":
            changed |= await mesh.note_relay(tx, host.host_id, report.relay)
        await lock_clusters(tx, changed)
        for row, values in news:
            if values:
                await tx.execute(sa.update(node).where(node.c.id == row.id).values(**values))
        for cluster_id in sorted(changed):
            await change(tx, cluster_id, due_at=now)
        if changed:
            await notify(tx, WORK_TOPIC, *changed)
        present = sorted(shown & {row.id for row in rows})
        lines = await tx.execute(sa.select(node_line.c.line_id).where(node_line.c.node_id.in_(present)))
        return frozenset(LineId(row.line_id) for row in lines)

    def _node_spec(
        self, row: Any, spec: MeshSpec, head_address: str, keys: tuple[str, ...], stop_after: datetime
    ) -> NodeSpec:
        image = self._platform.images.get(WORK_IMAGE)
        invariant(image is not None, f"the image {WORK_IMAGE} is known before anything is booked")
        return NodeSpec(
            node_id=row.id,
            cluster_id=row.cluster_id,
            cluster_name=row.cluster_name,
            node_name=row.name,
            image=image or "",
            devices=keys,
            mesh=spec,
            ray=RaySpec(
                role=row.role,
                head_address=head_address,
                num_cpus=row.num_cpus,
                num_gpus=row.num_gpus,
                object_store_bytes=row.object_store_bytes,
            ),
            stop_after=stop_after,
            has_internet=row.internet,
            internet_cap_bytes=row.traffic_cap_bytes or 0,
        )

    async def _device_keys(self, tx: Tx, node_ids: list[str]) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {node_id: [] for node_id in node_ids}
        query = sa.select(node_line).where(node_line.c.node_id.in_(node_ids)).order_by(node_line.c.line_id)
        for row in await tx.execute(query):
            found[row.node_id].append(row.device_key)
        return {node_id: tuple(keys) for node_id, keys in found.items()}


def _leaf_spec(row: Any, spec: MeshSpec, head_address: str, stop_after: datetime) -> LeafSpec:
    return LeafSpec(
        node_id=row.id,
        cluster_id=row.cluster_id,
        cluster_name=row.cluster_name,
        mesh=spec,
        head_address=head_address,
        stop_after=stop_after,
    )


async def _head_addresses(tx: Tx, cluster_ids: list[ClusterId]) -> dict[ClusterId, str]:
    heads = sa.select(node.c.cluster_id, node.c.address).where(
        node.c.cluster_id.in_(cluster_ids), node.c.role == "head", node.c.removed_at.is_(None)
    )
    return {ClusterId(row.cluster_id): row.address for row in await tx.execute(heads)}


def _is_confirmed(row: Any, applied: Revision) -> bool:
    """Whether a host has applied a state without a removed node: before, the node may only not be there yet."""
    if row.removed_at is None or row.gone_number is None:
        return False
    return Revision(epoch=row.gone_epoch, number=row.gone_number) <= applied


def _news(row: Any, said: NodeReport, host: devices.Host, now: datetime) -> tuple[dict[str, Any], bool]:
    """Columns of a node that a report changes, and whether more than its traffic counters did."""
    counters = _counted(row, said)
    facts = said.without_counts()
    before = None if row.report is None else msgspec.convert(row.report, NodeReport)
    if before == facts:
        return counters, False
    values: dict[str, Any] = {"report": msgspec.to_builtins(facts), "reported_at": now, **counters}
    if before is not None and _works(before) and not _works(said):
        # Until this report only the one before it proves that the node worked.
        values["alive_at"] = max(host.last_seen_at or row.created_at, row.reported_at or row.created_at)
    return values, True


def _works(report: NodeReport) -> bool:
    return report.pause == report.mesh == report.work == "running" and report.fault is None


def _counted(row: Any, said: NodeReport) -> dict[str, Any]:
    """Columns of a node's traffic that a report changes."""
    counts = Counts(*said.counts())
    last = Counts(*(row.counts_said or ()))
    if counts == last or not any(counts):
        return {}
    total = Counts(row.received_bytes, row.sent_bytes, row.internet_received_bytes, row.internet_sent_bytes)
    return {**total_after(total, last, counts)._asdict(), "counts_said": list(counts)}
