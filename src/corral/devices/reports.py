"""What a host reports of itself: stored when it changed, refused when it is absurd."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from corral.core.ids import HostId, IdSource
from corral.devices.capacity import check_checks, check_devices, check_hardware
from corral.devices.errors import ReportRefused
from corral.devices.hosts import Host
from corral.devices.state import health_of
from corral.devices.tables import device, host
from corral.platform.database import Tx
from corral.wire.agent import DeviceOffer, Report, Revision, encode

DEVICE_PREFIX = "dev"
SKEW_STEP_S = 1.0
"""Smaller changes of a host's clock skew are the network's, and not worth a row."""

LATE_S = 30.0
"""A report that arrives within this time after a later one is a late one; afterwards its agent started anew."""


REVISION_MAX = 2**62
"""Above this a number does not fit PostgreSQL's bigint, and no revision ever gets there."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What this process stored last of a host."""

    sequence: int
    facts_hash: bytes
    at: datetime


def facts_hash(report: Report, observed_address: str) -> bytes:
    """A hash of everything in a report that is stored; equal hashes say that nothing changed."""
    said = msgspec.structs.replace(report, sequence=0, seen=report.applied, hold_s=0, wall_clock=None)
    return hashlib.sha256(encode(said) + observed_address.encode()).digest()


def is_late(report: Report, heard: Heard | None, now: datetime) -> bool:
    """
    Whether a report was overtaken by a later one, so that its facts are older than those stored.

    An agent that starts anew counts from the beginning and sends its hardware: that is no late report.
    """
    if heard is None or report.hardware is not None:
        return False
    return report.sequence < heard.sequence and (now - heard.at).total_seconds() < LATE_S


def is_unchanged(report: Report, hashed: bytes, heard: Heard | None) -> bool:
    """
    Whether a report repeats what this process stored last.

    Only the direct successor counts: after a gap another replica may have stored something else.
    """
    return heard is not None and heard.facts_hash == hashed and report.sequence in (heard.sequence, heard.sequence + 1)


def clock_skew_s(report: Report, now: datetime) -> float | None:
    """The host's wall clock less ours, seconds; the message's way is included. None if it did not tell."""
    if report.wall_clock is None:
        return None
    if report.wall_clock.tzinfo is None:
        raise ReportRefused("the wall clock has no time zone")
    return round((report.wall_clock - now).total_seconds(), 1)


async def store_host_facts(tx: Tx, ids: IdSource, known: Host, report: Report, observed: str, now: datetime) -> None:
    """
    Stores what a host says of itself; writes only what differs from `known`.

    Raises:
        ReportRefused: it contradicts itself or claims the absurd.
    """
    if not all(0 <= number <= REVISION_MAX for number in (*_numbers(report.applied), *_numbers(report.seen))):
        raise ReportRefused("a revision is out of range")
    said = {
        "agent_version": report.agent_version,
        "advertise": report.advertise,
        "observed_address": observed,
        "gateway_address": report.gateway_address,
        "gauge_port": report.relay.gauge_port if report.relay is not None and known.role == "relay" else 0,
    }
    stored = (
        known.agent_version,
        known.advertise,
        known.observed_address,
        known.gateway_address,
        known.gauge_port,
    )
    changed: dict[str, Any] = {
        column: value for (column, value), old in zip(said.items(), stored, strict=True) if value != old
    }
    skew = clock_skew_s(report, now)
    if skew is not None and (known.clock_skew_s is None or abs(skew - known.clock_skew_s) > SKEW_STEP_S):
        changed["clock_skew_s"] = skew
    if report.hardware is not None and report.hardware != known.hardware:
        check_hardware(report.hardware)
        changed["hardware"] = msgspec.to_builtins(report.hardware)
    if report.checks is not None and report.checks != known.checks:
        check_checks(report.checks)
        health, rule = health_of(report.checks)
        changed |= {"checks": msgspec.to_builtins(report.checks), "health": health.value, "failing_rule": rule}
    if report.devices is not None:
        hardware = report.hardware or known.hardware
        if hardware is None:
            raise ReportRefused("devices are claimed without the hardware that holds them")
        check_devices(report.devices, hardware)
        await _store_devices(tx, ids, known.host_id, report.devices)
    if changed:
        await tx.execute(sa.update(host).where(host.c.id == known.host_id).values(**changed))


def _numbers(revision: Revision) -> tuple[int, int]:
    return revision.epoch, revision.number


async def _store_devices(tx: Tx, ids: IdSource, host_id: HostId, offers: tuple[DeviceOffer, ...]) -> None:
    """Adds and updates devices. One that vanished is kept, not present: bookings speak of it."""
    keys = [offer.key for offer in offers]
    await tx.execute(
        sa.update(device)
        .where(device.c.host_id == host_id, device.c.present, device.c.key.not_in(keys))
        .values(present=False)
    )
    if not offers:
        return
    rows = [
        {"id": ids.new(DEVICE_PREFIX), "host_id": host_id, "present": True, **msgspec.to_builtins(offer)}
        for offer in offers
    ]
    statement = insert(device)
    said = ("kind", "model", "cores", "memory_bytes", "disk_bytes", "gpu_memory_bytes", "present")
    upsert = statement.on_conflict_do_update(
        index_elements=["host_id", "key"],
        set_={column: statement.excluded[column] for column in said},
        where=sa.or_(*(device.c[column] != statement.excluded[column] for column in said)),
    )
    for first in range(0, len(rows), 1000):  # A statement takes at most 32,767 parameters.
        await tx.execute(upsert.values(rows[first : first + 1000]))
