"""Hosts as rows: who they are, what they reported, what their provider wants."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from corral.core.ids import DeviceId, HostId, PersonId
from corral.devices.connection import Connection
from corral.devices.errors import HostHasLeft, HostUnknown
from corral.devices.location import Location
from corral.devices.revisions import bump
from corral.devices.state import Health, Intent, may_become
from corral.devices.tables import device, hire, host, host_presence, host_revision
from corral.platform.database import Tx
from corral.protocol.tiers import TierName
from corral.wire.agent import Check, EnrolRequest, Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host, as stored."""

    host_id: HostId
    provider_id: PersonId
    name: str
    role: str
    machine_id: str
    engine_id: str
    slice: str
    public_key: str
    development: bool
    intent: Intent
    health: Health
    failing_rule: str
    hardware: Hardware | None
    checks: tuple[Check, ...]
    agent_version: str
    advertise: str
    observed_address: str
    gateway_address: str
    gauge_port: int
    connection: Connection | None
    tier: TierName
    location: Location | None
    location_note: str
    clock_skew_s: float | None
    last_seen_at: datetime | None
    created_at: datetime
    left_at: datetime | None
    traffic_cap_bytes: int | None = None
    """What each device may have with the internet in an hour; None is no cap."""

    @property
    def reachable_at(self) -> str:
        """The address that other hosts are told: the advertised one, or the one that its exchanges come from."""
        return self.advertise or self.observed_address


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device, as stored."""

    device_id: DeviceId
    host_id: HostId
    key: str
    kind: str
    model: str
    cores: float
    memory_bytes: int
    disk_bytes: int
    gpu_memory_bytes: int
    present: bool


async def insert_host(
    tx: Tx, host_id: HostId, request: EnrolRequest, *, provider_id: PersonId, token_id: str, name: str, now: datetime
) -> None:
    """Stores a new host, seen now, with the first revision of an empty desired state."""
    await tx.execute(
        sa.insert(host).values(
            id=host_id,
            provider_id=provider_id,
            name=name,
            role=request.role,
            machine_id=request.identity.machine_id,
            engine_id=request.identity.engine_id,
            slice=request.identity.slice,
            public_key=request.public_key,
            join_token_id=token_id,
            development=request.development,
            intent=Intent.ACTIVE.value,
            # A relay lends nothing, so there is nothing to check.
            health=(Health.OK if request.role == "relay" else Health.CHECKING).value,
            agent_version=request.agent_version,
            created_at=now,
        )
    )
    await tx.execute(sa.insert(host_revision).values(host_id=host_id, number=1))
    await tx.execute(sa.insert(host_presence).values(host_id=host_id, last_seen_at=now))


async def host_of_identity(tx: Tx, request: EnrolRequest) -> Host | None:
    """The living host with the identity of a request."""
    found = await _hosts(
        tx,
        host.c.machine_id == request.identity.machine_id,
        host.c.engine_id == request.identity.engine_id,
        host.c.slice == request.identity.slice,
        host.c.left_at.is_(None),
    )
    return found[0] if found else None


async def host_by_id(tx: Tx, host_id: HostId) -> Host | None:
    """The host, also one that has left; None if there never was one."""
    found = await _hosts(tx, host.c.id == host_id)
    return found[0] if found else None


async def hosts_by_id(tx: Tx, host_ids: Iterable[HostId]) -> dict[HostId, Host]:
    """Hosts by id, those included that have left."""
    wanted = sorted(set(host_ids))
    return {found.host_id: found for found in await _hosts(tx, host.c.id.in_(wanted))} if wanted else {}


async def hosts_of(tx: Tx, provider_id: PersonId) -> list[Host]:
    """A provider's hosts in the order of their enrolment; those that left come last."""
    found = await _hosts(tx, host.c.provider_id == provider_id)
    return sorted(found, key=lambda one: (one.left_at is not None, one.created_at, one.host_id))


async def host_of(tx: Tx, provider_id: PersonId, name_or_id: str) -> Host:
    """
    A provider's host by id, or the living one of that name; a name of the past finds the last that had it.

    Raises:
        HostUnknown: this provider has none; that somebody else may have one makes no difference.
    """
    owned = host.c.provider_id == provider_id
    found = await _hosts(tx, owned, sa.or_(host.c.id == name_or_id, host.c.name == name_or_id))
    if not found:
        raise HostUnknown(name_or_id)
    return max(found, key=lambda one: (one.left_at is None, one.created_at))


async def gateways(tx: Tx) -> list[Host]:
    """Active, healthy gateways that have told where people reach them."""
    return await _hosts(
        tx,
        host.c.role == "gateway",
        host.c.intent == Intent.ACTIVE.value,
        host.c.health == Health.OK.value,
        host.c.gateway_address != "",
    )


async def free_name(tx: Tx, provider_id: PersonId, wished: str) -> str:
    """`wished`, or with the smallest number behind it that makes it unique among the provider's living hosts."""
    names = sa.select(host.c.name).where(host.c.provider_id == provider_id, host.c.left_at.is_(None))
    taken = {row.name for row in await tx.execute(names)}
    if wished not in taken:
        return wished
    stem = wished[:34].rstrip("-")
    return next(name for number in range(2, len(taken) + 3) if (name := f"{stem}-{number}") not in taken)


async def set_intent(tx: Tx, host_id: HostId, wanted: Intent) -> Intent:
    """
    Changes what the provider wants of a host, and tells the host.

    Returns:
        The new intent.

    Raises:
        HostHasLeft: it has left; there is no way back.
    """
    row = (await tx.execute(sa.select(host.c.intent, host.c.name).where(host.c.id == host_id).with_for_update())).one()
    present = Intent(row.intent)
    if not may_become(present, wanted) or present is Intent.LEFT:
        raise HostHasLeft(row.name)
    if present is not wanted:
        await tx.execute(sa.update(host).where(host.c.id == host_id).values(intent=wanted.value))
        await bump(tx, [host_id])
    return wanted


async def set_traffic_cap(tx: Tx, host_id: HostId, cap_bytes: int | None) -> None:
    """
    Changes what each device of a host may have with the internet in an hour; None is no cap.

    It is part of what is offered, as the rate is: what is booked already keeps the cap that was quoted.
    """
    await tx.execute(sa.update(host).where(host.c.id == host_id).values(traffic_cap_bytes=cap_bytes))


async def let_leave(tx: Tx, now: datetime, *, silent_since: datetime) -> list[HostId]:
    """
    Lets draining hosts leave on which nothing is hired any more.

    A host that has been silent since `silent_since` or longer cannot confirm that it cleaned up, so it leaves once all
    its hires have ended; its devices are gone with it.

    Returns:
        The hosts that left.
    """
    is_open = (hire.c.device_id == device.c.id) & (device.c.host_id == host.c.id) & hire.c.released_at.is_(None)
    silent = sa.exists().where(host_presence.c.host_id == host.c.id, host_presence.c.last_seen_at < silent_since)
    hired = sa.exists().where(is_open)
    serving = sa.exists().where(is_open, hire.c.cleaning_since.is_(None))
    is_drained = sa.or_(~hired, sa.and_(silent, ~serving))
    drained = sa.select(host.c.id).where(host.c.intent == Intent.DRAINING.value, is_drained).order_by(host.c.id)
    candidates = [row.id for row in await tx.execute(drained.with_for_update(skip_locked=True))]
    if not candidates:
        return []
    # Whoever hires one of their devices at this moment holds its row: wait for that, and look again.
    rows = sa.select(device.c.id).where(device.c.host_id.in_(candidates)).order_by(device.c.id)
    await tx.execute(rows.with_for_update())
    still = sa.select(host.c.id).where(host.c.id.in_(candidates), is_drained).order_by(host.c.id)
    leaving = [HostId(row.id) for row in await tx.execute(still)]
    if leaving:
        cleaning = sa.select(hire.c.line_id).join(device, device.c.id == hire.c.device_id)
        await tx.execute(
            sa.update(hire)
            .where(hire.c.line_id.in_(cleaning.where(device.c.host_id.in_(leaving), hire.c.released_at.is_(None))))
            .values(released_at=now)
        )
        await tx.execute(sa.update(device).where(device.c.host_id.in_(leaving)).values(present=False))
        values = {"intent": Intent.LEFT.value, "left_at": now}
        await tx.execute(sa.update(host).where(host.c.id.in_(leaving)).values(**values))
        await bump(tx, leaving)
    return leaving


async def flush_presence(tx: Tx, heard: dict[HostId, datetime]) -> None:
    """Stores signs of life, the later one winning, in one statement."""
    if not heard:
        return
    rows = [{"host_id": host_id, "last_seen_at": heard[host_id]} for host_id in sorted(heard)]
    statement = insert(host_presence)
    newer = sa.func.greatest(host_presence.c.last_seen_at, statement.excluded.last_seen_at)
    upsert = statement.on_conflict_do_update(index_elements=["host_id"], set_={"last_seen_at": newer})
    for first in range(0, len(rows), 10_000):  # asyncpg takes at most 32,767 parameters.
        await tx.execute(upsert.values(rows[first : first + 10_000]))


async def devices_of(tx: Tx, host_ids: Iterable[HostId]) -> list[DeviceRow]:
    """Devices of hosts, in a people's order of their keys (cpu-2 before cpu-10)."""
    rows = await tx.execute(sa.select(device).where(device.c.host_id.in_(sorted(set(host_ids)))))
    return sorted((_device(row) for row in rows), key=lambda one: (one.kind != "gpu", _natural(one.key)))


async def devices_by_id(tx: Tx, device_ids: Iterable[DeviceId]) -> dict[DeviceId, DeviceRow]:
    """Devices by id."""
    rows = await tx.execute(sa.select(device).where(device.c.id.in_(sorted(set(device_ids)))))
    return {found.device_id: found for found in (_device(row) for row in rows)}


def _device(row: Any) -> DeviceRow:
    return DeviceRow(
        device_id=DeviceId(row.id),
        host_id=HostId(row.host_id),
        key=row.key,
        kind=row.kind,
        model=row.model,
        cores=row.cores,
        memory_bytes=row.memory_bytes,
        disk_bytes=row.disk_bytes,
        gpu_memory_bytes=row.gpu_memory_bytes,
        present=row.present,
    )


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", key)]


async def _hosts(tx: Tx, *conditions: sa.ColumnElement[bool]) -> list[Host]:
    seen = sa.select(host, host_presence.c.last_seen_at).outerjoin(host_presence, host_presence.c.host_id == host.c.id)
    rows = await tx.execute(seen.where(*conditions).order_by(host.c.id))
    return [_host(cast(Any, row)) for row in rows]


def _host(row: Any) -> Host:
    return Host(
        host_id=HostId(row.id),
        provider_id=PersonId(row.provider_id),
        name=row.name,
        role=row.role,
        machine_id=row.machine_id,
        engine_id=row.engine_id,
        slice=row.slice,
        public_key=row.public_key,
        development=row.development,
        intent=Intent(row.intent),
        health=Health(row.health),
        failing_rule=row.failing_rule,
        hardware=None if row.hardware is None else msgspec.convert(row.hardware, Hardware),
        checks=() if row.checks is None else msgspec.convert(row.checks, tuple[Check, ...]),
        agent_version=row.agent_version,
        advertise=row.advertise,
        observed_address=row.observed_address,
        gateway_address=row.gateway_address,
        gauge_port=row.gauge_port,
        connection=None if row.connection is None else msgspec.convert(row.connection, Connection),
        tier=row.tier,
        location=None if row.location is None else msgspec.convert(row.location, Location),
        location_note=row.location_note,
        clock_skew_s=row.clock_skew_s,
        last_seen_at=row.last_seen_at,
        created_at=row.created_at,
        left_at=row.left_at,
        traffic_cap_bytes=row.traffic_cap_bytes,
    )
