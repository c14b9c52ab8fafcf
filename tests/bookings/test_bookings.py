"""Bookings in PostgreSQL: what is taken, held, charged and given back."""

import asyncio
from datetime import datetime, timedelta

import pytest

from corral import bookings, devices, ledger, market
from corral.bookings.store import lines_of
from corral.core.ids import PersonId, QuoteId
from corral.platform.database import Database
from corral.testing.fleet import keep_alive
from corral.testing.ids import numbered_id
from corral.testing.town import Town

HOUR = timedelta(hours=1)
RATE = 24_000
"""Two cores at 0.012 credits."""


async def test_quote_is_booked_held_charged_and_billed_to_the_micro_credit(
    database: Database, town: Town, now: datetime
) -> None:
    """Three hosts of three owners for two hours, left after 90.5 minutes: 90 are charged, the rest goes back."""
    async with database.transaction() as tx:
        await town.build(tx, now)
        quote = await town.quote(tx, now, nodes=3, hours=2)
        assert (quote.rate_uc_per_hour, quote.hold_uc) == (3 * RATE, 6 * RATE)
        booking = await town.accept(tx, quote.id, now)
        assert await town.free_uc(tx) == 100_000_000 - 6 * RATE
        assert bookings.stop_after(booking) == now + 2 * HOUR
        t1 = now + timedelta(seconds=40)
        booking = await bookings.begin(tx, booking.id, t1=t1)
        assert booking.ends_at == bookings.stop_after(booking) == t1 + 2 * HOUR
        bill = await bookings.end(tx, booking.id, now=t1 + timedelta(minutes=90, seconds=30))
        assert bill.final
        assert [(line.minutes, line.amount_uc, line.fee_uc, line.state) for line in bill.lines] == [
            (90, 36_000, 1_800, "ended")
        ] * 3
        assert (bill.amount_uc, bill.fee_uc, bill.held_uc, bill.returned_uc) == (108_000, 5_400, 144_000, 36_000)
        assert bill.ledger_sum_uc == 0
        assert await town.free_uc(tx) == 100_000_000 - 108_000
        for provider in town.providers:
            earned = await bookings.earnings(tx, provider)
            assert earned.total_net_uc == sum(line.net_uc for line in earned.lines) == 34_200
            assert [(line.minutes, line.settled) for line in earned.lines] == [(90, True)]
        assert await bookings.end(tx, booking.id, now=t1 + 9 * HOUR) == bill
        assert await ledger.check(tx) == []


async def test_same_booking_id_twice_is_one_booking(database: Database, town: Town, now: datetime) -> None:
    """A request that is repeated, even at the same time, books once; for another quote it is refused."""
    async with database.transaction() as tx:
        await town.build(tx, now)
        quote, other = await town.quote(tx, now), await town.quote(tx, now)
        foreign = await town.quote(tx, now, renter=town.other)
    booking_id = numbered_id("bk", 77)

    async def accept() -> bookings.Booking:
        async with database.transaction() as tx:
            return await town.accept(tx, quote.id, now, booking_id=booking_id)

    first, *more = await asyncio.gather(*(accept() for _ in range(4)))
    assert all(one == first for one in more)
    async with database.transaction() as tx:
        assert await town.free_uc(tx) == 100_000_000 - RATE
        assert len(await lines_of(tx, first.id)) == 1
        with pytest.raises(bookings.BookingConflict):
            await town.accept(tx, other.id, now, booking_id=booking_id)
        with pytest.raises(bookings.BookingConflict):
            await town.accept(tx, foreign.id, now, booking_id=booking_id, renter=town.other)


async def test_two_renters_race_for_the_last_device_and_one_gets_it(
    database: Database, town: Town, now: datetime
) -> None:
    """The unique rule decides; the loser has a clear answer and nothing held."""
    async with database.transaction() as tx:
        await town.build(tx, now, hosts=1)
        await town.accept(tx, (await town.quote(tx, now)).id, now)
        quotes = {person: await town.quote(tx, now, renter=person) for person in (town.renter, town.other)}
        free_before = {person: await town.free_uc(tx, person) for person in quotes}

    async def accept(person: PersonId, quote_id: QuoteId) -> str:
        try:
            async with database.transaction() as tx:
                await town.accept(tx, quote_id, now, renter=person)
        except devices.DeviceTaken:
            return "taken"
        return "booked"

    outcomes = await asyncio.gather(*(accept(person, quote.id) for person, quote in quotes.items()))
    assert sorted(outcomes) == ["booked", "taken"]
    async with database.transaction() as tx:
        for person, outcome in zip(quotes, outcomes, strict=True):
            expected = RATE if outcome == "booked" else 0
            assert free_before[person] - await town.free_uc(tx, person) == expected
        assert await devices.rentable(tx, now, offline_after_s=75) == []
        assert await ledger.check(tx) == []


async def test_quote_that_cannot_be_accepted_changes_nothing(database: Database, town: Town, now: datetime) -> None:
    """Expired, foreign, or dearer than the credit: no device is taken and nothing is held."""
    async with database.transaction() as tx:
        await town.build(tx, now, credit_uc=2 * RATE)
        quote = await town.quote(tx, now)
        dear = await town.quote(tx, now, nodes=3)
    late = now + timedelta(seconds=300)
    for quote_id, at, renter, expected in [
        (quote.id, late, town.renter, market.QuoteExpired),
        (quote.id, now, town.other, market.QuoteUnknown),
        (QuoteId(numbered_id("qt", 99)), now, town.renter, market.QuoteUnknown),
        (dear.id, now, town.renter, ledger.InsufficientCredit),
    ]:
        with pytest.raises(expected):
            async with database.transaction() as tx:
                await town.accept(tx, quote_id, at, renter=renter)
    async with database.transaction() as tx:
        assert len(await devices.rentable(tx, now, offline_after_s=75)) == 8
        assert await town.free_uc(tx) == await town.free_uc(tx, town.other) == 2 * RATE


async def test_failed_start_costs_nothing(database: Database, town: Town, now: datetime) -> None:
    """All that was held goes back, also after a replacement; a start that succeeded cannot fail."""
    async with database.transaction() as tx:
        await town.build(tx, now)
        booking = await town.accept(tx, (await town.quote(tx, now, nodes=2)).id, now)
        line, _ = await bookings.lines_of(tx, booking.id)
        hosts = {one.host_id for one in await bookings.lines_of(tx, booking.id)}
        found = await market.replacement(
            tx,
            [line],
            quote_id=booking.quote_id,
            prices=town.prices,
            settings=town.settings,
            excluded_hosts=hosts,
            now=now,
        )
        assert found is not None
        new = await bookings.replace_line(tx, line.id, found[0], settings=town.settings, now=now, ids=town.ids)
        assert await bookings.replace_line(tx, line.id, found[0], settings=town.settings, now=now, ids=town.ids) == new
        bill = await bookings.fail(tx, booking.id, now=now + timedelta(minutes=3), reason="no head")
        assert (bill.final, bill.amount_uc, bill.returned_uc) == (True, 0, 2 * RATE)
        assert sorted(one.state for one in bill.lines) == ["refunded", "refunded", "replaced"]
        assert (await bookings.get(tx, booking.id)).reason == "no head"
        assert await bookings.fail(tx, booking.id, now=now + HOUR, reason="again") == bill
        running = await town.running(tx, now)
        with pytest.raises(bookings.BookingStarted):
            await bookings.fail(tx, running.id, now=now, reason="too late")
        assert await ledger.check(tx) == []


async def test_booking_given_up_before_it_was_ready_costs_nothing(
    database: Database, town: Town, now: datetime
) -> None:
    """There is no T1, so nothing is charged."""
    async with database.transaction() as tx:
        await town.build(tx, now)
        booking = await town.accept(tx, (await town.quote(tx, now)).id, now)
        assert (await bookings.end(tx, booking.id, now=now)).amount_uc == 0
        with pytest.raises(bookings.BookingOver):
            await bookings.begin(tx, booking.id, t1=now)
        assert await town.free_uc(tx) == 100_000_000


async def test_lost_line_is_not_charged_and_its_posted_minutes_come_back(
    database: Database, town: Town, now: datetime
) -> None:
    """An outage found after it was settled takes the money back from the provider, and holds it for the replacement."""
    async with database.transaction() as tx:
        await town.build(tx, now)
        booking = await town.running(tx, now, hours=2)
        [line] = await bookings.lines_of(tx, booking.id)
        await bookings.settle(tx, booking.id, now=now + timedelta(minutes=30))
        assert (await bookings.earnings(tx, line.provider_id)).total_net_uc == 11_400
        lost_at = now + timedelta(minutes=20)
        assert await bookings.record_outage(tx, line.id, from_at=lost_at, to_at=None)
        await keep_alive(tx, now + timedelta(minutes=31))
        found = await market.replacement(
            tx,
            [line],
            quote_id=booking.quote_id,
            prices=town.prices,
            settings=town.settings,
            excluded_hosts=[line.host_id],
            now=now + timedelta(minutes=31),
        )
        assert found is not None
        new = await bookings.replace_line(
            tx, line.id, found[0], settings=town.settings, now=now + timedelta(minutes=31), ids=town.ids
        )
        await bookings.begin_line(tx, new.id, at=now + timedelta(minutes=40))
        bill = await bookings.end(tx, booking.id, now=now + 5 * HOUR)
        assert [(one.minutes, one.minutes_not_delivered, one.state) for one in bill.lines] == [
            (20, 20, "replaced"),
            (80, 0, "ended"),
        ]
        assert (bill.amount_uc, bill.held_uc, bill.returned_uc) == (40_000, 48_000, 8_000)
        assert not await bookings.record_outage(tx, new.id, from_at=now, to_at=None)
        assert await ledger.check(tx) == []


async def test_long_booking_is_held_a_day_ahead_and_ends_where_the_credit_ends(
    database: Database, town: Town, now: datetime
) -> None:
    """At most 24 hours are held; each settlement holds what came within reach, as long as there is credit."""
    async with database.transaction() as tx:
        await town.build(tx, now, credit_uc=26 * RATE)
        booking = await town.running(tx, now, hours=48)
        assert bookings.stop_after(booking) == now + 24 * HOUR
        assert await bookings.due_to_settle(tx, now + timedelta(minutes=59)) == []
        assert await bookings.due_to_settle(tx, now + HOUR) == [booking.id]
        await bookings.settle(tx, booking.id, now=now + HOUR)
        assert await bookings.due_to_settle(tx, now + HOUR) == []
        assert (await bookings.get(tx, booking.id)).hours_held == 25
        assert await bookings.money(tx, booking.id, now=now + HOUR) == bookings.Money(24 * RATE, RATE)
        await bookings.settle(tx, booking.id, now=now + 9 * HOUR)
        booking = await bookings.get(tx, booking.id)
        assert booking.hours_held == 26
        assert await bookings.due_to_end(tx, now + 26 * HOUR - timedelta(seconds=1)) == []
        assert await bookings.due_to_end(tx, now + 26 * HOUR) == [booking.id]
        bill = await bookings.end(tx, booking.id, now=now + 30 * HOUR)
        assert (bill.amount_uc, bill.returned_uc) == (26 * RATE, 0)
        assert await ledger.check(tx) == []


async def test_extension_is_held_at_the_booked_rate_once(database: Database, town: Town, now: datetime) -> None:
    """The same id extends once; with other content, without credit or beyond the limit it changes nothing."""
    async with database.transaction() as tx:
        await town.build(tx, now, credit_uc=4 * RATE)
        booking = await town.running(tx, now, name="mnist")

    async def extend(
        number: int, hours: int, *, at: datetime = now, total_uc_max: int | None = None
    ) -> bookings.Booking:
        async with database.transaction() as tx:
            return await bookings.extend(
                tx,
                extension_id=numbered_id("ex", number),
                booking_id=booking.id,
                hours=hours,
                total_uc_max=total_uc_max,
                now=at,
            )

    first, again = await asyncio.gather(extend(1, 2), extend(1, 2))
    assert first == again
    assert (first.hours, bookings.stop_after(first)) == (3, now + 3 * HOUR)
    with pytest.raises(bookings.ExtensionConflict):
        await extend(1, 3)
    with pytest.raises(bookings.ExtensionUnaffordable) as refused:
        await extend(2, 3)
    assert refused.value.message == (
        "cluster mnist cannot be extended by 3 h: 0.072 credits are needed, 0.024 are free"
    )
    assert refused.value.hint == "`corral extend mnist --for 1h`, or add credit with `corral credit add`"
    with pytest.raises(bookings.ExtensionTooDear):
        await extend(3, 1, total_uc_max=RATE - 1)
    with pytest.raises(bookings.BookingTooLong):
        await extend(4, 8760)
    with pytest.raises(bookings.BookingOver):
        await extend(5, 1, at=now + 3 * HOUR)
    async with database.transaction() as tx:
        assert (await bookings.get(tx, booking.id)).hours == 3
        bill = await bookings.end(tx, booking.id, now=now + timedelta(minutes=150))
        assert (bill.held_uc, bill.amount_uc, bill.returned_uc) == (3 * RATE, 60_000, 12_000)
    with pytest.raises(bookings.BookingOver):
        await extend(6, 1)


async def test_settlements_of_shared_providers_at_once_all_come_through(
    database: Database, town: Town, now: datetime
) -> None:
    """Two clusters on the same three owners: their accounts are locked in one order."""
    async with database.transaction() as tx:
        await town.build(tx, now)
        one = await town.running(tx, now, nodes=3)
        two = await town.running(tx, now, nodes=4)

    async def settle(booking_id: bookings.Booking, minute: int) -> None:
        async with database.transaction() as tx:
            await bookings.settle(tx, booking_id.id, now=now + timedelta(minutes=minute))

    await asyncio.gather(*(settle(booking, minute) for minute in range(1, 9) for booking in (one, two)))
    async with database.transaction() as tx:
        bills = [await bookings.end(tx, booking.id, now=now + timedelta(minutes=10)) for booking in (one, two)]
        assert [bill.amount_uc for bill in bills] == [3 * RATE, 4 * RATE]
        assert await ledger.check(tx) == []


async def test_replacement_of_a_single_provider_s_cluster_stays_with_that_provider(
    database: Database, town: Town, now: datetime
) -> None:
    """Who trusts one provider alone is not given to another when a node is lost."""
    async with database.transaction() as tx:
        await town.build(tx, now)
        wished = await town.accept(tx, (await town.quote(tx, now, single_provider=True)).id, now)
        free = await town.accept(tx, (await town.quote(tx, now)).id, now)
        rentable = await devices.rentable(tx, now, offline_after_s=town.settings.host_offline_after_s)
        for booking, is_found in ((wished, False), (free, True)):
            [line] = await bookings.lines_of(tx, booking.id)
            of_the_same = {line.host_id} | {one.host_id for one in rentable if one.provider_id == line.provider_id}
            found = await market.replacement(
                tx,
                [line],
                quote_id=booking.quote_id,
                prices=town.prices,
                settings=town.settings,
                excluded_hosts=of_the_same,
                now=now,
            )
            assert (found is not None) is is_found
