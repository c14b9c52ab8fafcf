"""Where hosts may measure their connection, and what comes of it."""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert

from corral.core.ids import HostId
from corral.devices.connection import RelayMeasure, connection_of
from corral.devices.errors import HostHasLeft, LocationContradicted
from corral.devices.hosts import Host, hosts_by_id
from corral.devices.location import Location, contradiction
from corral.devices.state import Intent
from corral.devices.tables import host, host_presence, relay_measure
from corral.platform.database import Tx
from corral.platform.master_key import MasterKey
from corral.protocol.gauge import Statement, StatementRefused, new_permit, read_statement, verify_statement
from corral.wire.agent import GaugeSpec, SignedStatement

GAUGES_MAX = 16
"""Relays at which one host measures: round trips to so many place it among the others (bench/coordinates.py)."""
NEAREST = 4
"""Of them so many are the nearest known; the rest are drawn, another draw for each host."""
PERMIT_STEP_S = 3600
"""Permits of one hour are alike, so that a desired state does not change for nothing; they live for one to two."""
STATEMENT_LATE = timedelta(hours=1)
STATEMENT_EARLY = timedelta(minutes=5)
"""Of a relay's clock before ours."""

_PURPOSE = "gauge key"
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}\Z")
_log = structlog.get_logger("corral.devices")


def gauge_key(master_key: MasterKey, relay_id: str) -> bytes:
    """The key with which one relay checks permits: derived, never stored."""
    return master_key.derive(_PURPOSE, relay_id)


def chosen_relays(host_id: str, rtts_us: dict[str, int]) -> list[str]:
    """
    The relays at which a host measures, at most GAUGES_MAX: the nearest known first.

    Args:
        host_id: the host.
        rtts_us: by relay; 0 where it is not known.
    """
    near = sorted((rtt_us, relay_id) for relay_id, rtt_us in rtts_us.items() if rtt_us)
    nearest = [relay_id for _, relay_id in near[:NEAREST]]
    rest = sorted(rtts_us.keys() - set(nearest), key=lambda one: hashlib.sha256(f"{host_id} {one}".encode()).digest())
    return nearest + rest[: GAUGES_MAX - len(nearest)]


async def gauges_for(
    tx: Tx, master_key: MasterKey, host_id: HostId, now: datetime, *, offline_after_s: float
) -> tuple[GaugeSpec, ...]:
    """Where a host may measure now: at relays that are online and have a gauge."""
    mine = sa.and_(relay_measure.c.relay_id == host.c.id, relay_measure.c.host_id == host_id)
    query = (
        sa.select(host.c.id, host.c.advertise, host.c.observed_address, host.c.gauge_port, relay_measure.c.rtt_us)
        .join(host_presence, host_presence.c.host_id == host.c.id)
        .outerjoin(relay_measure, mine)
        .where(
            host.c.role == "relay",
            host.c.intent == Intent.ACTIVE.value,
            host.c.gauge_port > 0,
            host_presence.c.last_seen_at > now - timedelta(seconds=offline_after_s),
        )
    )
    found = {row.id: row for row in await tx.execute(query)}
    addresses = {relay_id: row.advertise or row.observed_address for relay_id, row in found.items()}
    rtts_us = {relay_id: row.rtt_us or 0 for relay_id, row in found.items() if _IPV4.match(addresses[relay_id])}
    expires_at = (int(now.timestamp()) // PERMIT_STEP_S + 2) * PERMIT_STEP_S
    specs: list[GaugeSpec] = []
    for relay_id in chosen_relays(host_id, rtts_us):
        permit, key = new_permit(gauge_key(master_key, relay_id), host_id=host_id, expires_at=expires_at)
        specs.append(
            GaugeSpec(
                relay_id=relay_id,
                address=addresses[relay_id],
                port=found[relay_id].gauge_port,
                permit=base64.b64encode(permit).decode(),
                permit_key=base64.b64encode(key).decode(),
            )
        )
    return tuple(specs)


async def store_statements(tx: Tx, known: Host, statements: Sequence[SignedStatement], now: datetime) -> None:
    """
    Stores what gauges have stated of a host; what is forged, late or about somebody else is left out.

    A claimed location that a round trip contradicts is refused then.
    """
    if not statements:
        return
    read = [(one, stated) for one in statements if (stated := _read(one)) is not None]
    relays = await hosts_by_id(tx, {HostId(stated.relay_id) for _, stated in read})
    for signed, stated in read:
        try:
            _check(signed, stated, known, relays.get(HostId(stated.relay_id)), now)
        except StatementRefused as error:
            _log.warning("statement.refused", host_id=known.host_id, relay_id=stated.relay_id, reason=error.message)
            continue
        await _upsert(tx, known.host_id, stated)
    measures = (await measures_of(tx, [known.host_id])).get(known.host_id, [])
    connection = connection_of(measures)
    if connection is None:
        return
    changed: dict[str, Any] = {"connection": msgspec.to_builtins(connection), "tier": connection.tier}
    if known.location is not None:
        places = await located_relays(tx, measures)
        if (found := contradiction(known.location, measures, places)) is not None:
            changed |= {"location": None, "location_note": found.note(known.location)}
            _log.warning("location.refused", host_id=known.host_id, reason=changed["location_note"])
    await tx.execute(sa.update(host).where(host.c.id == known.host_id).values(**changed))


async def measures_of(tx: Tx, host_ids: Iterable[HostId]) -> dict[HostId, list[RelayMeasure]]:
    """What relays have stated, by host."""
    query = sa.select(relay_measure).where(relay_measure.c.host_id.in_(sorted(set(host_ids))))
    found: dict[HostId, list[RelayMeasure]] = {}
    for row in await tx.execute(query.order_by(relay_measure.c.host_id, relay_measure.c.relay_id)):
        measure = RelayMeasure(
            relay_id=HostId(row.relay_id),
            rtt_us=row.rtt_us,
            rtt_us_min=row.rtt_us_min,
            jitter_us=row.jitter_us,
            loss_ppm=row.loss_ppm,
            measured_at=row.measured_at,
            download_bit_s=row.download_bit_s,
            upload_bit_s=row.upload_bit_s,
            bandwidth_at=row.bandwidth_at,
        )
        found.setdefault(HostId(row.host_id), []).append(measure)
    return found


async def rtts_to_relays(tx: Tx, host_ids: Iterable[HostId]) -> dict[HostId, dict[str, int]]:
    """Median round trips in microseconds by host and relay, as far as they were measured."""
    measured = await measures_of(tx, host_ids)
    return {
        host_id: {one.relay_id: one.rtt_us for one in of_host if one.rtt_us} for host_id, of_host in measured.items()
    }


async def located_relays(tx: Tx, measures: Iterable[RelayMeasure]) -> dict[str, tuple[str, Location]]:
    """Name and place of those relays whose operators have told where they are, by id."""
    relays = await hosts_by_id(tx, {one.relay_id for one in measures})
    return {relay_id: (one.name, one.location) for relay_id, one in relays.items() if one.location is not None}


async def claim(tx: Tx, known: Host, place: Location) -> None:
    """
    Takes down where a host is, as its provider says; for a relay its operator says it, and is believed.

    Raises:
        HostHasLeft: it has left.
        LocationContradicted: a relay answers it sooner than light could from there.
    """
    if known.intent is Intent.LEFT:
        raise HostHasLeft(known.name)
    measures = (await measures_of(tx, [known.host_id])).get(known.host_id, [])
    found = contradiction(place, measures, await located_relays(tx, measures))
    if found is not None:
        raise LocationContradicted(
            known.name, place.words, relay=found.relay, distance_km=found.distance_km, rtt_ms=found.rtt_ms
        )
    values = {"location": msgspec.to_builtins(place), "location_note": ""}
    await tx.execute(sa.update(host).where(host.c.id == known.host_id).values(**values))


def _read(signed: SignedStatement) -> Statement | None:
    try:
        return read_statement(signed.payload)
    except StatementRefused:
        return None


def _check(signed: SignedStatement, stated: Statement, known: Host, relay: Host | None, now: datetime) -> None:
    if relay is None or relay.role != "relay" or relay.intent is Intent.LEFT:
        raise StatementRefused("it names no relay of ours")
    verify_statement(signed.payload, signed.signature, relay_key=relay.public_key)
    if stated.host_id != known.host_id:
        raise StatementRefused("it is about another host")
    at = _instant(stated.at)
    if not now - STATEMENT_LATE <= at <= now + STATEMENT_EARLY:
        raise StatementRefused(f"it is of {at.isoformat()}")
    if min(stated.download_bit_s, stated.upload_bit_s, stated.rtt_us, stated.rtt_us_min, stated.jitter_us) < 0:
        raise StatementRefused("it has negative figures")


async def _upsert(tx: Tx, host_id: HostId, stated: Statement) -> None:
    at = _instant(stated.at)
    values: dict[str, Any] = {"host_id": host_id, "relay_id": stated.relay_id, "measured_at": at}
    if stated.round_trips:
        values |= {name: getattr(stated, name) for name in ("rtt_us", "rtt_us_min", "jitter_us", "loss_ppm")}
    if stated.download_bytes and stated.upload_bytes:
        values |= {"download_bit_s": stated.download_bit_s, "upload_bit_s": stated.upload_bit_s, "bandwidth_at": at}
    statement = insert(relay_measure).values(**values)
    said = {name: statement.excluded[name] for name in values if name not in ("host_id", "relay_id")}
    await tx.execute(
        # A statement that was overtaken by a later one says nothing new.
        statement.on_conflict_do_update(
            index_elements=["host_id", "relay_id"], set_=said, where=relay_measure.c.measured_at <= at
        )
    )


def _instant(unix_s: int) -> datetime:
    try:
        return datetime.fromtimestamp(unix_s, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
