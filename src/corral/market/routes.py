"""Routes of the market: what is offered, and what a wish would cost."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Request

from corral.core.ids import ID_PATTERN, QuoteId
from corral.identity import CallerDep
from corral.market import store
from corral.market.prices import Prices
from corral.market.quote import shown_quote
from corral.platform.http import PlatformDep
from corral.wire import api

router = APIRouter(prefix="/v1", tags=["market"])


def prices_of(request: Request) -> Prices:
    """The prices of the application that received `request`, at `app.state.prices`."""
    return cast(Prices, request.app.state.prices)


PricesDep = Annotated[Prices, Depends(prices_of)]
"""Route parameter: what devices cost."""


@router.get("/offers")
async def list_offers(_: CallerDep, platform: PlatformDep, prices: PricesDep) -> api.Offers:
    """All that can be rented at this moment, like devices as one row; cheapest first."""
    async with platform.database.transaction() as tx:
        return await store.offers(tx, prices=prices, settings=platform.settings, now=platform.clock.now())


@router.post("/quotes", status_code=201)
async def make_quote(
    wish: api.ClusterRequest, caller: CallerDep, platform: PlatformDep, prices: PricesDep
) -> api.Quote:
    """Prices a wish. Nothing is reserved or held until you book the quote; it lapses after a few minutes."""
    async with platform.database.transaction() as tx:
        made = await store.quote(
            tx,
            wish,
            renter_id=caller.person_id,
            prices=prices,
            settings=platform.settings,
            ids=platform.ids,
            randomness=platform.randomness,
            now=platform.clock.now(),
        )
    return shown_quote(made)


@router.get("/quotes/{quote_id}")
async def show_quote(
    quote_id: Annotated[str, Path(pattern=ID_PATTERN)], caller: CallerDep, platform: PlatformDep
) -> api.Quote:
    """One of your quotes, expired or not."""
    async with platform.database.transaction() as tx:
        return shown_quote(await store.quote_of(tx, QuoteId(quote_id), caller.person_id))
