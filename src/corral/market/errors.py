"""What a renter's wish can run into. Nothing is ever stored, booked or charged when one of these is raised."""

from collections.abc import Sequence
from datetime import datetime

from corral.core.errors import CorralError
from corral.core.ids import QuoteId


class MarketError(CorralError):
    """Base of the market's errors."""

    code = "market_error"


class PricesMalformed(MarketError):
    """The price file cannot be used."""

    code = "prices_malformed"

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"price file {where}: {reason}; no price was taken from it", where=where, reason=reason)


class WishUnclear(MarketError):
    """A wish that contradicts itself or asks for nothing."""

    code = "wish_unclear"

    def __init__(self, wish: str, reason: str, *, hint: str | None = None) -> None:
        self.wish, self.reason = wish, reason
        super().__init__(f"{wish}: {reason}; nothing was quoted", hint=hint, wish=wish, reason=reason)


class ModelUnknown(MarketError):
    """Nobody knows a GPU by this name."""

    code = "model_unknown"

    def __init__(self, model: str, near: Sequence[str]) -> None:
        self.model, self.near = model, tuple(near)
        super().__init__(
            f"no GPU model is called {model!r}; nothing was quoted",
            hint=f"did you mean {' or '.join(near)}?" if near else "`corral offers` lists all models",
            gpu_model=model,
            near=list(near),
        )


class NothingFits(MarketError):
    """The network has no placement for a wish at this moment."""

    code = "nothing_fits"

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__(
            f"nothing fits: {'; '.join(reasons)}; nothing was quoted",
            hint="`corral offers` shows what can be rented now",
            reasons=list(reasons),
        )


class QuoteUnknown(MarketError):
    """The caller has no quote of that id; a foreign one is not told apart."""

    code = "quote_unknown"

    def __init__(self, quote_id: QuoteId) -> None:
        self.quote_id = quote_id
        super().__init__(f"you have no quote {quote_id}; nothing was booked or charged", quote_id=quote_id)


class QuoteExpired(MarketError):
    """The quote lapsed before it was accepted."""

    code = "quote_expired"

    def __init__(self, quote_id: QuoteId, expired_at: datetime) -> None:
        self.quote_id, self.expired_at = quote_id, expired_at
        super().__init__(
            f"quote {quote_id} expired at {expired_at.isoformat()}; nothing was booked or charged",
            hint="ask for a new quote",
            quote_id=quote_id,
            expired_at=expired_at.isoformat(),
        )
