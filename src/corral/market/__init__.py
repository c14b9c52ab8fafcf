"""What can be rented, what it costs, and which devices fulfil a wish."""

from corral.market.errors import (
    MarketError,
    ModelUnknown,
    NothingFits,
    PricesMalformed,
    QuoteExpired,
    QuoteUnknown,
    WishUnclear,
)
from corral.market.placement import QuotedLine
from corral.market.prices import Prices
from corral.market.quote import Quote, shown_quote
from corral.market.routes import PricesDep, router
from corral.market.store import offers, quote, quote_for_booking, quote_of, replacement

__all__ = [
    "MarketError",
    "ModelUnknown",
    "NothingFits",
    "Prices",
    "PricesDep",
    "PricesMalformed",
    "Quote",
    "QuoteExpired",
    "QuoteUnknown",
    "QuotedLine",
    "WishUnclear",
    "offers",
    "quote",
    "quote_for_booking",
    "quote_of",
    "replacement",
    "router",
    "shown_quote",
]
