"""Devices that can be rented, are hired, or are being cleaned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from corral.core.ids import DeviceId, HostId, LineId, PersonId
from corral.devices.errors import DeviceTaken
from corral.devices.revisions import bump
from corral.devices.state import DeviceStatus
from corral.devices.tables import device, hire, host, host_presence
from corral.identity import names_of
from corral.platform.database import Tx
from corral.protocol.tiers import TierName
from corral.wire.agent import Revision


@dataclass(frozen=True, slots=True)
class RentableDevice:
    """A device that can be rented at this moment."""

    device_id: DeviceId
    host_id: HostId
    host_name: str
    provider_id: PersonId
    provider_name: str
    kind: Literal["gpu", "cpu"]
    model: str
    cores: float
    memory_bytes: int
    disk_bytes: int
    gpu_memory_bytes: int
    development: bool
    engine_id: str
    traffic_cap_bytes: int | None
    """With the internet in an hour; None is no cap."""
    tier: TierName
    """Of the host's connection."""


@dataclass(frozen=True, slots=True)
class CensusRow:
    """How many devices of one model are in one status."""

    kind: Literal["gpu", "cpu"]
    model: str
    status: DeviceStatus
    count: int


async def rentable(tx: Tx, now: datetime, *, offline_after_s: float) -> list[RentableDevice]:
    """
    Devices of active, healthy, online hosts that nobody hires, in the order of their ids.

    `offline_after_s`: silence after which a host is offline, seconds (here and below).
    """
    rows = (await tx.execute(_idle(now, offline_after_s).order_by(device.c.id))).all()
    names = await names_of(tx, {PersonId(row.provider_id) for row in rows})
    return [
        RentableDevice(
            device_id=DeviceId(row.id),
            host_id=HostId(row.host_id),
            host_name=row.host_name,
            provider_id=PersonId(row.provider_id),
            provider_name=names[PersonId(row.provider_id)],
            kind=row.kind,
            model=row.model,
            cores=row.cores,
            memory_bytes=row.memory_bytes,
            disk_bytes=row.disk_bytes,
            gpu_memory_bytes=row.gpu_memory_bytes,
            development=row.development,
            engine_id=row.engine_id,
            traffic_cap_bytes=row.traffic_cap_bytes,
            tier=row.tier,
        )
        for row in rows
    ]


async def take(tx: Tx, wanted: Sequence[tuple[DeviceId, LineId]], now: datetime, *, offline_after_s: float) -> None:
    """
    Hires devices, each for its line: all or none.

    The unique rule decides a race; whether the hosts still offer them is read in the same transaction.

    Raises:
        DeviceTaken: some are hired, being cleaned, or no longer offered; the transaction must be rolled back.
    """
    device_ids = [device_id for device_id, _ in wanted]
    idle = _idle(now, offline_after_s).where(device.c.id.in_(device_ids)).order_by(device.c.id)
    offered = {row.id for row in await tx.execute(idle.with_for_update(of=device, key_share=True))}
    inserted: set[str] = set()
    if offered:
        rows = [
            {"device_id": device_id, "line_id": line_id, "taken_at": now}
            for device_id, line_id in sorted(wanted)
            if device_id in offered
        ]
        open_hire = hire.c.released_at.is_(None)
        statement = (
            insert(hire).values(rows).on_conflict_do_nothing(index_elements=["device_id"], index_where=open_hire)
        )
        inserted = {row.device_id for row in await tx.execute(statement.returning(hire.c.device_id))}
    missing = [device_id for device_id in device_ids if device_id not in inserted]
    if missing:
        raise DeviceTaken(missing)


async def start_cleaning(tx: Tx, line_ids: Iterable[LineId], now: datetime) -> None:
    """
    Notes that the nodes of these lines end with this transaction.

    The devices stay unavailable until their hosts have confirmed the revision that is made here, the first without
    those nodes. A line that is being cleaned or was released already is left as it is.
    """
    wanted = sorted(set(line_ids))
    if not wanted:
        return
    ending = (
        sa.select(hire.c.line_id, device.c.host_id)
        .join(device, device.c.id == hire.c.device_id)
        .where(hire.c.line_id.in_(wanted), hire.c.cleaning_since.is_(None), hire.c.released_at.is_(None))
        .order_by(hire.c.line_id)
        .with_for_update(of=hire)
    )
    rows = (await tx.execute(ending)).all()
    revisions = await bump(tx, {HostId(row.host_id) for row in rows})
    by_host: dict[HostId, list[str]] = {}
    for row in rows:
        by_host.setdefault(HostId(row.host_id), []).append(row.line_id)
    for host_id, lines in by_host.items():
        clean = revisions[host_id]
        await tx.execute(
            sa.update(hire)
            .where(hire.c.line_id.in_(lines))
            .values(cleaning_since=now, clean_epoch=clean.epoch, clean_number=clean.number)
        )


async def release(tx: Tx, line_ids: Iterable[LineId], now: datetime) -> None:
    """Frees the devices of lines for others; a line released before stays as it is."""
    await tx.execute(
        sa.update(hire)
        .where(hire.c.line_id.in_(sorted(set(line_ids))), hire.c.released_at.is_(None))
        .values(released_at=now, cleaning_since=sa.func.coalesce(hire.c.cleaning_since, now))
    )


async def release_cleaned(
    tx: Tx, host_id: HostId, applied: Revision, still_present: frozenset[LineId], now: datetime
) -> list[LineId]:
    """
    Frees the devices of a host that has applied a revision without their nodes and shows none of these any more.

    Args:
        tx: the transaction.
        host_id: the host that reports.
        applied: what the host has fully applied.
        still_present: lines whose nodes the same report still shows; they are not freed.
        now: the present.

    Returns:
        The lines that were released.
    """
    revision = sa.tuple_(hire.c.clean_epoch, hire.c.clean_number)
    statement = (
        sa.update(hire)
        .where(
            hire.c.device_id == device.c.id,
            device.c.host_id == host_id,
            hire.c.released_at.is_(None),
            hire.c.cleaning_since.is_not(None),
            revision <= sa.tuple_(sa.literal(applied.epoch), sa.literal(applied.number)),
        )
        .values(released_at=now)
        .returning(hire.c.line_id)
    )
    if still_present:
        statement = statement.where(hire.c.line_id.not_in(sorted(still_present)))
    return [LineId(row.line_id) for row in await tx.execute(statement)]


async def census(tx: Tx, now: datetime, *, offline_after_s: float) -> list[CensusRow]:
    """How many present devices of each model are in each status, by the same rule as `rentable`."""
    hires = sa.select(hire.c.device_id, hire.c.cleaning_since).where(hire.c.released_at.is_(None)).subquery()
    offered = (
        (host.c.intent == "active")
        & (host.c.health == "ok")
        & (host_presence.c.last_seen_at > now - timedelta(seconds=offline_after_s))
    )
    status = sa.case(
        (hires.c.cleaning_since.is_not(None), "cleaning"),
        (hires.c.device_id.is_not(None), "hired"),
        (offered, "idle"),
        else_="unavailable",
    ).label("status")
    count = sa.func.count().label("count")
    rows = await tx.execute(
        sa.select(device.c.kind, device.c.model, status, count)
        .join(host, host.c.id == device.c.host_id)
        .outerjoin(host_presence, host_presence.c.host_id == host.c.id)
        .outerjoin(hires, hires.c.device_id == device.c.id)
        .where(device.c.present, host.c.role == "host", host.c.left_at.is_(None))
        .group_by(device.c.kind, device.c.model, status)
        .order_by(device.c.kind, device.c.model, status)
    )
    # `count` is a method of a row, so the columns are told apart by their places.
    return [CensusRow(kind, model, found, number) for kind, model, found, number in rows]


async def open_hires(tx: Tx, host_ids: Iterable[HostId]) -> dict[HostId, dict[DeviceId, bool]]:
    """Devices that are hired, by host; the value is True while one is being cleaned."""
    rows = await tx.execute(
        sa.select(device.c.host_id, device.c.id, hire.c.cleaning_since)
        .join(hire, hire.c.device_id == device.c.id)
        .where(device.c.host_id.in_(sorted(set(host_ids))), hire.c.released_at.is_(None))
    )
    found: dict[HostId, dict[DeviceId, bool]] = {}
    for row in rows:
        found.setdefault(HostId(row.host_id), {})[DeviceId(row.id)] = row.cleaning_since is not None
    return found


def _idle(now: datetime, offline_after_s: float) -> sa.Select[*tuple[Any, ...]]:
    """Present devices of hosts that offer them (`state.is_offered`, as SQL) without an open hire."""
    hired = sa.exists().where(hire.c.device_id == device.c.id, hire.c.released_at.is_(None))
    return (
        sa.select(
            device.c.id,
            device.c.host_id,
            device.c.kind,
            device.c.model,
            device.c.cores,
            device.c.memory_bytes,
            device.c.disk_bytes,
            device.c.gpu_memory_bytes,
            host.c.name.label("host_name"),
            host.c.provider_id,
            host.c.development,
            host.c.engine_id,
            host.c.traffic_cap_bytes,
            host.c.tier,
        )
        .join(host, host.c.id == device.c.host_id)
        .join(host_presence, host_presence.c.host_id == host.c.id)
        .where(
            device.c.present,
            host.c.role == "host",
            host.c.intent == "active",
            host.c.health == "ok",
            host_presence.c.last_seen_at > now - timedelta(seconds=offline_after_s),
            ~hired,
        )
    )
