"""Quotes in PostgreSQL: what was shown is what is stored."""

from datetime import timedelta

import pytest

from corral import bookings, market
from corral.core.ids import IdSource
from corral.core.randomness import SeededRandomness
from corral.platform.database import Database
from corral.platform.settings import ServerSettings
from corral.testing.clock import FakeClock
from corral.testing.fleet import add_host
from corral.testing.town import Town


@pytest.fixture
def town(ids: IdSource, settings: ServerSettings) -> Town:
    """A town that is not built yet."""
    return Town(ids, settings, market.Prices.load(), SeededRandomness(7))


async def test_quote_is_kept_as_it_was_shown_until_it_expires(database: Database, town: Town, clock: FakeClock) -> None:
    """Five minutes for its renter alone; a made name is a valid one."""
    now = clock.now()
    async with database.transaction() as tx:
        await town.build(tx, now)
        quote = await town.quote(tx, now, nodes=2, hours=30)
        assert await market.quote_of(tx, quote.id, town.renter) == quote
        shown = market.shown_quote(quote)
        assert (shown.rate_uc_per_hour, shown.total_uc, shown.hold_uc, shown.minimum_uc) == (
            48_000,
            48_000 * 30,
            48_000 * 24,
            48_000,
        )
        assert shown.expires_at == now + timedelta(minutes=5)
        assert len(shown.name.split("-")) == 3
        assert (await town.quote(tx, now, name="mnist")).name == "mnist"
        with pytest.raises(market.QuoteUnknown):
            await market.quote_of(tx, quote.id, town.other)
        with pytest.raises(market.QuoteExpired):
            await market.quote_for_booking(tx, quote.id, town.renter, now + timedelta(minutes=5))


async def test_offers_shrink_with_every_booking_and_say_why_nothing_is_left(
    database: Database, town: Town, clock: FakeClock
) -> None:
    """Counts shown equal what can be rented at that moment."""
    now = clock.now()
    async with database.transaction() as tx:
        await town.build(tx, now, hosts=2)
        await add_host(tx, 9, town.providers[0], now, gpus=2, gpu_model="NVIDIA GeForce GTX 1080")
        offered = await market.offers(tx, prices=town.prices, settings=town.settings, now=now)
        assert sum(offer.devices for offer in offered.offers) == 4
        assert [one.devices for one in offered.unavailable] == [2]
        await town.accept(tx, (await town.quote(tx, now, nodes=2)).id, now)
        offered = await market.offers(tx, prices=town.prices, settings=town.settings, now=now)
        assert sum(offer.devices for offer in offered.offers) == 2
        with pytest.raises(
            market.NothingFits, match="4 CPU slices exist; 2 are hired; 2 hosts have 1 CPU slice free, 3 are wished"
        ):
            await town.quote(tx, now, nodes=3)
        with pytest.raises(market.NothingFits, match="2 GTX 1080 exist; 2 have no price"):
            await town.quote(tx, now, cpu=0, gpu_model="GTX 1080", gpu_count=1)
        with pytest.raises(market.ModelUnknown) as unknown:
            await town.quote(tx, now, cpu=0, gpu_model="RTX 409O", gpu_count=1)
        assert unknown.value.near[0] == "RTX 4090"
        assert await bookings.due_to_end(tx, now) == []
