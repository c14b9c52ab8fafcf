"""The laws of a booking's money, over random histories in PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral import bookings, ledger, market
from corral.core.randomness import SeededRandomness
from corral.platform.database import Database, Tx
from corral.platform.settings import ServerSettings
from corral.testing.clock import START
from corral.testing.fleet import keep_alive
from corral.testing.ids import CountingIds, numbered_id
from corral.testing.town import Town
from corral.wire import api


@dataclass(frozen=True)
class Event:
    """Something that happens to one of the cluster's lines, `after_s` later than what happened before."""

    kind: Literal["settle", "outage", "close", "replace", "begin_line", "extend"]
    after_s: int
    line: int
    lasted_s: int


EVENTS = st.lists(
    st.builds(
        Event,
        kind=st.sampled_from(["settle", "outage", "close", "replace", "begin_line", "extend"]),
        after_s=st.integers(0, 2400),
        line=st.integers(0, 9),
        lasted_s=st.integers(0, 1800),
    ),
    max_size=8,
)


async def live(tx: Tx, town: Town, events: list[Event], *, hours: int, end_after_s: int, settled: bool) -> api.Bill:
    """Books two nodes, lets everything happen (with or without settling in between), and ends the booking, twice."""
    now = START
    await town.build(tx, now, hosts=7)
    booking = await town.running(tx, now, nodes=2, hours=hours)
    open_outages: dict[str, datetime] = {}
    for number, event in enumerate(events):
        now += timedelta(seconds=event.after_s)
        await keep_alive(tx, now)
        booking = await bookings.get(tx, booking.id)
        lines = [line for line in await bookings.lines_of(tx, booking.id) if line.state == "active"]
        line = lines[event.line % len(lines)]
        match event.kind:
            case "settle":
                if settled:
                    await bookings.settle(tx, booking.id, now=now)
                    await bookings.settle(tx, booking.id, now=now)
            case "outage":
                since = open_outages.setdefault(line.id, now - timedelta(seconds=event.lasted_s))
                await bookings.record_outage(tx, line.id, from_at=since, to_at=None)
            case "close":
                if line.id in open_outages:
                    await bookings.record_outage(tx, line.id, from_at=open_outages.pop(line.id), to_at=now)
            case "replace":
                await _replace(tx, town, booking, line, now)
            case "begin_line":
                await bookings.begin_line(tx, line.id, at=now)
            case "extend":
                if now < bookings.stop_after(booking):
                    await bookings.extend(
                        tx,
                        extension_id=numbered_id("ex", number),
                        booking_id=booking.id,
                        hours=1,
                        total_uc_max=None,
                        now=now,
                    )
        if settled:
            assert await ledger.check(tx) == []
    now += timedelta(seconds=end_after_s)
    bill = await bookings.end(tx, booking.id, now=now)
    assert await bookings.end(tx, booking.id, now=now + timedelta(hours=3)) == bill
    booking = await bookings.get(tx, booking.id)
    assert bill.amount_uc <= booking.rate_uc_per_hour * booking.hours_held == bill.held_uc
    assert bill.held_uc <= booking.rate_uc_per_hour * booking.hours
    assert (await bookings.money(tx, booking.id, now=now)).held_uc == 0
    assert bill.ledger_sum_uc == 0
    assert await ledger.check(tx) == []
    return bill


async def _replace(tx: Tx, town: Town, booking: bookings.Booking, line: bookings.Line, now: datetime) -> None:
    hosts = {one.host_id for one in await bookings.lines_of(tx, booking.id)}
    found = await market.replacement(
        tx, [line], quote_id=booking.quote_id, prices=town.prices, settings=town.settings, excluded_hosts=hosts, now=now
    )
    if found is not None:
        await bookings.replace_line(tx, line.id, found[0], settings=town.settings, now=now, ids=town.ids)


@given(events=EVENTS, hours=st.integers(1, 3), end_after_s=st.integers(0, 9000))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.timeout(120)
async def test_bill_depends_on_what_happened_and_not_on_when_it_was_settled(
    database: Database, settings: ServerSettings, events: list[Event], hours: int, end_after_s: int
) -> None:
    """Charge ≤ hold ≤ plan, all sums are zero, and settling early, often or never makes the same bill."""
    bills: list[api.Bill] = []
    for settled in (True, False):
        async with rolled_back(database) as tx:
            town = Town(CountingIds(), settings, market.Prices.load(), SeededRandomness(7))
            bills.append(await live(tx, town, events, hours=hours, end_after_s=end_after_s, settled=settled))
    assert bills[0] == bills[1]


@asynccontextmanager
async def rolled_back(database: Database) -> AsyncIterator[Tx]:
    """A transaction that leaves nothing."""
    try:
        async with database.transaction() as tx:
            yield tx
            raise _Undo
    except _Undo:
        pass


class _Undo(Exception):
    pass
