"""Quotes in PostgreSQL, and the market's use cases on what can be rented now."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, insert, select

from corral import devices
from corral.core.ids import HostId, IdSource, PersonId, QuoteId
from corral.core.money import AMOUNT_UC_MAX, format_credits
from corral.core.randomness import Randomness
from corral.market.cluster_names import made_name
from corral.market.errors import ModelUnknown, NothingFits, QuoteExpired, QuoteUnknown, WishUnclear
from corral.market.offers import offers_of
from corral.market.placement import LikeLine, NoPlacement, QuotedLine, place, place_replacement
from corral.market.prices import Prices, same_words
from corral.market.quote import Quote
from corral.market.tables import quote as quote_table
from corral.market.wish import read_wish
from corral.platform.database import Tx
from corral.platform.settings import ServerSettings
from corral.wire import api


async def offers(tx: Tx, *, prices: Prices, settings: ServerSettings, now: datetime) -> api.Offers:
    """All that can be rented at `now`, and what is idle but has no price."""
    rentable = await devices.rentable(tx, now, offline_after_s=settings.host_offline_after_s)
    return offers_of(rentable, prices, now=now)


async def quote(
    tx: Tx,
    request: api.ClusterRequest,
    *,
    renter_id: PersonId,
    prices: Prices,
    settings: ServerSettings,
    ids: IdSource,
    randomness: Randomness,
    now: datetime,
) -> Quote:
    """
    Places a wish, prices it and keeps the answer until it expires. Nothing is reserved.

    Raises:
        WishUnclear: the request contradicts itself or asks for nothing.
        ModelUnknown: neither the price file nor any host knows the GPU.
        NothingFits: the reasons say which wish removed how many devices.
    """
    wish = read_wish(request)
    rentable = await devices.rentable(tx, now, offline_after_s=settings.host_offline_after_s)
    census = await devices.census(tx, now, offline_after_s=settings.host_offline_after_s)
    if wish.gpu_model is not None and not prices.models_meant(wish.gpu_model):
        found = {device.model for device in rentable if device.kind == "gpu"}
        found |= {row.model for row in census if row.kind == "gpu"}
        if not any(same_words(model, wish.gpu_model) for model in found):
            raise ModelUnknown(wish.gpu_model, prices.models_near(wish.gpu_model))
    quote_id = QuoteId(ids.new("qt"))
    placement = place(wish, rentable, prices, seed=quote_id, census=census)
    if isinstance(placement, NoPlacement):
        raise NothingFits(placement.reasons)
    if placement.rate_uc_per_hour * request.hours > AMOUNT_UC_MAX:
        raise WishUnclear("hours", f"more than {format_credits(AMOUNT_UC_MAX)} credits cannot be booked at once")
    made = Quote(
        id=quote_id,
        renter_id=renter_id,
        name=request.name or made_name(randomness),
        hours=request.hours,
        hold_hours_max=settings.hold_hours_max,
        fee_basis_points=settings.fee_basis_points,
        single_provider=wish.single_provider,
        internet=request.internet,
        lines=placement.lines,
        created_at=now,
        expires_at=now + timedelta(seconds=settings.quote_expiry_s),
    )
    await tx.execute(insert(quote_table).values(**_columns(made)))
    return made


async def quote_of(tx: Tx, quote_id: QuoteId, renter_id: PersonId) -> Quote:
    """
    A renter's own quote, expired or not.

    Raises:
        QuoteUnknown: there is none, or it is another renter's.
    """
    query = select(quote_table).where(quote_table.c.id == quote_id, quote_table.c.renter_id == renter_id)
    row = (await tx.execute(query)).first()
    if row is None:
        raise QuoteUnknown(quote_id)
    return _quote(row)


async def quote_for_booking(tx: Tx, quote_id: QuoteId, renter_id: PersonId, now: datetime) -> Quote:
    """
    A renter's own quote, while it may be accepted.

    Raises:
        QuoteUnknown: there is none, or it is another renter's.
        QuoteExpired: it lapsed.
    """
    found = await quote_of(tx, quote_id, renter_id)
    if now >= found.expires_at:
        raise QuoteExpired(quote_id, found.expires_at)
    return found


async def replacement(
    tx: Tx,
    lines: Sequence[LikeLine],
    *,
    quote_id: QuoteId,
    prices: Prices,
    settings: ServerSettings,
    excluded_hosts: Collection[HostId],
    now: datetime,
) -> tuple[QuotedLine, ...] | None:
    """
    Devices of one other host for all lines of one lost node, each at no higher rate; None if nobody has them.

    Who wished for a single provider when the quote was made gets another host of the same provider, or none.
    Nothing is taken: the devices are hired with the booking's change, and that may still find them gone.
    """
    rentable = await devices.rentable(tx, now, offline_after_s=settings.host_offline_after_s)
    wished = select(quote_table.c.single_provider).where(quote_table.c.id == quote_id)
    if (await tx.execute(wished)).scalar_one():
        rentable = [device for device in rentable if device.provider_id == lines[0].provider_id]
    return place_replacement(lines, rentable, prices, excluded_hosts=excluded_hosts)


def _columns(made: Quote) -> dict[str, Any]:
    return {
        "id": made.id,
        "renter_id": made.renter_id,
        "name": made.name,
        "hours": made.hours,
        "hold_hours_max": made.hold_hours_max,
        "fee_basis_points": made.fee_basis_points,
        "rate_uc_per_hour": made.rate_uc_per_hour,
        "single_provider": made.single_provider,
        "internet": made.internet,
        "lines": [asdict(line) for line in made.lines],
        "created_at": made.created_at,
        "expires_at": made.expires_at,
    }


def _quote(row: Row[Any]) -> Quote:
    return Quote(
        id=QuoteId(row.id),
        renter_id=PersonId(row.renter_id),
        name=row.name,
        hours=row.hours,
        hold_hours_max=row.hold_hours_max,
        fee_basis_points=row.fee_basis_points,
        single_provider=row.single_provider,
        internet=row.internet,
        lines=tuple(QuotedLine(**line) for line in row.lines),
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
