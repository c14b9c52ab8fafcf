"""
Network coordinates of all hosts and relays, kept by one replica at a time from the round trips that relays have stated.

The fit is central and starts from the one before. It is made outside of any transaction, in a thread, and stored only
by whoever still holds the claim.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from corral.core.ids import HostId
from corral.devices.coordinates import DIMENSIONS, Floats, Ints, fit, guessed_ms, relative_errors
from corral.devices.tables import host, place, place_fit, relay_measure
from corral.platform.database import Tx
from corral.platform.http import Platform

CLAIM = timedelta(minutes=10)
"""Far longer than a fit takes; a replica that dies in one delays the next by as much."""
FRESH = timedelta(days=2)
"""Older round trips are of hosts and relays that do not meet any more."""
SEED = 1
ROWS_AT_ONCE = 2000

_log = structlog.get_logger("corral.devices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a host or relay is among the others; milliseconds."""

    host_id: HostId
    at_ms: tuple[float, float, float]
    height_ms: float
    pairs: int
    """Measured round trips that it follows from; with fewer than four it is hardly more than a guess."""
    error: float
    """Median relative error of these."""

    def rtt_ms(self, other: "Place") -> float:
        """The round trip between two places, as far as coordinates tell: never promise it."""
        apart = sum((mine - theirs) ** 2 for mine, theirs in zip(self.at_ms, other.at_ms, strict=True)) ** 0.5
        return apart + self.height_ms + other.height_ms


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """One measured round trip."""

    one: HostId
    other: HostId
    rtt_ms: float


def placed(trips: Sequence[RoundTrip], before: Iterable[Place] = ()) -> list[Place]:
    """
    The places that fit round trips, in the order of the ids.

    Args:
        trips: what was measured.
        before: the last places, to go on from.
    """
    ids = sorted({host_id for trip in trips for host_id in (trip.one, trip.other)})
    index = {host_id: number for number, host_id in enumerate(ids)}
    pairs: Ints = np.array([(index[trip.one], index[trip.other]) for trip in trips], dtype=np.int64).reshape(-1, 2)
    rtts_ms: Floats = np.array([trip.rtt_ms for trip in trips], dtype=np.float64)
    start: Floats = np.full((len(ids), DIMENSIONS + 1), np.nan)
    for known in before:
        if (number := index.get(known.host_id)) is not None:
            start[number] = (*known.at_ms, known.height_ms)
    at = fit(pairs, rtts_ms, len(ids), seed=SEED, start=start)
    errors = relative_errors(guessed_ms(at, pairs), rtts_ms)
    of_host = [list[float]() for _ in ids]
    for trip, error in zip(trips, errors, strict=True):
        of_host[index[trip.one]].append(float(error))
        of_host[index[trip.other]].append(float(error))
    return [
        Place(
            host_id=host_id,
            at_ms=(float(row[0]), float(row[1]), float(row[2])),
            height_ms=float(row[3]),
            pairs=len(of_host[number]),
            error=float(np.median(of_host[number])),
        )
        for number, (host_id, row) in enumerate(zip(ids, at, strict=True))
    ]


async def places_of(tx: Tx, host_ids: Iterable[HostId]) -> dict[HostId, Place]:
    """Places of those hosts and relays that have one."""
    rows = await tx.execute(sa.select(place).where(place.c.host_id.in_(sorted(set(host_ids)))))
    return {found.host_id: found for found in map(_place, rows)}


async def run(platform: Platform, stop: asyncio.Event) -> None:
    """Fits again and again until `stop` is set. An absent database costs a delay, not the process."""
    failing = False
    while not await _is_over(platform, stop):
        try:
            await turn(platform)
            failing = False
        except (DBAPIError, OSError) as error:
            if not failing:
                _log.warning("places.fit_failed", reason=type(error).__name__)
            failing = True


async def _is_over(platform: Platform, stop: asyncio.Event) -> bool:
    """Waits for the next pass; True as soon as the process stops."""
    waits = {
        asyncio.ensure_future(platform.clock.sleep(platform.settings.places_period_s)),
        asyncio.ensure_future(stop.wait()),
    }
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
    return stop.is_set()


async def turn(platform: Platform) -> int:
    """One pass; returns how many were placed: none if nothing was measured since, or another replica is at it."""
    now = platform.clock.now()
    token = platform.ids.new("pf")
    async with platform.database.transaction() as tx:
        newest_at = await _claim(tx, token, now)
        if newest_at is None:
            return 0
        trips = await _round_trips(tx, now)
        before = [_place(row) for row in await tx.execute(sa.select(place))]
    found = await asyncio.to_thread(placed, trips, before)
    async with platform.database.transaction() as tx:
        if not await _release(tx, token, newest_at):
            return 0  # It took too long, and somebody else has begun.
        await _store(tx, found, now)
    return len(found)


async def _claim(tx: Tx, token: str, now: datetime) -> datetime | None:
    """The newest measurement, if this pass is ours: nobody is at it, and the last fit did not know that one."""
    await tx.execute(insert(place_fit).values(only=True).on_conflict_do_nothing())
    newest_at = (await tx.execute(sa.select(sa.func.max(relay_measure.c.measured_at)))).scalar_one()
    if newest_at is None:
        return None
    is_free = sa.or_(place_fit.c.claimed_until.is_(None), place_fit.c.claimed_until < now)
    claimed = await tx.execute(
        sa.update(place_fit)
        .where(is_free, place_fit.c.newest_at.is_distinct_from(newest_at))
        .values(claim_token=token, claimed_until=now + CLAIM)
    )
    return newest_at if claimed.rowcount else None


async def _release(tx: Tx, token: str, newest_at: datetime) -> bool:
    released = await tx.execute(
        sa.update(place_fit)
        .where(place_fit.c.claim_token == token)
        .values(claim_token="", claimed_until=None, newest_at=newest_at)
    )
    return released.rowcount > 0


async def _round_trips(tx: Tx, now: datetime) -> list[RoundTrip]:
    query = (
        sa.select(relay_measure.c.host_id, relay_measure.c.relay_id, relay_measure.c.rtt_us)
        .join(host, host.c.id == relay_measure.c.host_id)
        .where(relay_measure.c.rtt_us > 0, relay_measure.c.measured_at > now - FRESH, host.c.left_at.is_(None))
        .order_by(relay_measure.c.host_id, relay_measure.c.relay_id)
    )
    return [RoundTrip(row.host_id, row.relay_id, row.rtt_us / 1000) for row in await tx.execute(query)]


async def _store(tx: Tx, found: Sequence[Place], now: datetime) -> None:
    await tx.execute(sa.delete(place).where(place.c.host_id.not_in([one.host_id for one in found])))
    for first in range(0, len(found), ROWS_AT_ONCE):
        rows = [_columns(one, now) for one in found[first : first + ROWS_AT_ONCE]]
        statement = insert(place).values(rows)
        said = {name: statement.excluded[name] for name in rows[0] if name != "host_id"}
        await tx.execute(statement.on_conflict_do_update(index_elements=["host_id"], set_=said))


def _columns(one: Place, now: datetime) -> dict[str, Any]:
    x_ms, y_ms, z_ms = one.at_ms
    return {
        "host_id": one.host_id,
        "x_ms": x_ms,
        "y_ms": y_ms,
        "z_ms": z_ms,
        "height_ms": one.height_ms,
        "pairs": one.pairs,
        "error": one.error,
        "fitted_at": now,
    }


def _place(row: sa.Row[Any]) -> Place:
    return Place(
        host_id=HostId(row.host_id),
        at_ms=(row.x_ms, row.y_ms, row.z_ms),
        height_ms=row.height_ms,
        pairs=row.pairs,
        error=row.error,
    )
