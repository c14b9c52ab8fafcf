"""A small market for tests: three providers' hosts, renters with credit, and a way to book."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from corral import bookings, identity, ledger, market
from corral.core.ids import BookingId, IdSource, PersonId, QuoteId, TransferId
from corral.core.randomness import SeededRandomness
from corral.platform.database import Tx
from corral.platform.settings import ServerSettings
from corral.testing.fleet import add_host
from corral.wire import api


@dataclass
class Town:
    """The market's people, and what they can do in a transaction."""

    ids: IdSource
    settings: ServerSettings
    prices: market.Prices
    randomness: SeededRandomness
    renter: PersonId = field(init=False)
    other: PersonId = field(init=False)
    providers: tuple[PersonId, ...] = ()

    async def build(self, tx: Tx, now: datetime, *, hosts: int = 4, credit_uc: int = 100_000_000) -> None:
        """Signs everybody up, gives the renters credit, adds hosts of two slices each."""
        made = [await self._person(tx, name, now) for name in ("renter", "other", "ada", "bob", "eve")]
        self.renter, self.other, *providers = made
        self.providers = tuple(providers)
        for person in (self.renter, self.other):
            await ledger.issue(tx, TransferId(self.ids.new("tr")), person, credit_uc, now)
        for number in range(hosts):
            await add_host(tx, number + 1, self.providers[number % 3], now, cpus=2)

    async def quote(self, tx: Tx, now: datetime, *, renter: PersonId | None = None, **wish: Any) -> market.Quote:
        """Quotes a wish; by default one slice on one host for an hour."""
        request = api.ClusterRequest.model_validate({"cpu": 1, **wish})
        return await market.quote(
            tx,
            request,
            renter_id=renter or self.renter,
            prices=self.prices,
            settings=self.settings,
            ids=self.ids,
            randomness=self.randomness,
            now=now,
        )

    async def accept(
        self, tx: Tx, quote_id: QuoteId, now: datetime, *, booking_id: str | None = None, renter: PersonId | None = None
    ) -> bookings.Booking:
        """Books a quote."""
        return await bookings.accept(
            tx,
            booking_id=BookingId(booking_id or self.ids.new("bk")),
            quote_id=quote_id,
            renter_id=renter or self.renter,
            settings=self.settings,
            now=now,
            ids=self.ids,
        )

    async def running(self, tx: Tx, now: datetime, **wish: Any) -> bookings.Booking:
        """Quotes, books and begins at once."""
        booked = await self.accept(tx, (await self.quote(tx, now, **wish)).id, now)
        return await bookings.begin(tx, booked.id, t1=now)

    async def free_uc(self, tx: Tx, person: PersonId | None = None) -> int:
        """What a person may spend."""
        return (await ledger.balances(tx, ledger.balance_of(person or self.renter))).free_uc

    async def _person(self, tx: Tx, name: str, now: datetime) -> PersonId:
        person, _, _ = await identity.sign_up(tx, name, now, ids=self.ids, randomness=self.randomness)
        return person.id
