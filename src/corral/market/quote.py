"""A quote: a priced placement with an expiry. Its rates are what is charged."""

from dataclasses import dataclass
from datetime import datetime

from corral.core.ids import PersonId, QuoteId
from corral.market.placement import QuotedLine
from corral.wire import api


@dataclass(frozen=True)
class Quote:
    """What a renter was offered, on which terms, and until when."""

    id: QuoteId
    renter_id: PersonId
    name: str
    hours: int
    hold_hours_max: int
    """Hours that are held ahead, at most."""
    fee_basis_points: int
    single_provider: bool
    """Wished, and so kept by replacements too."""
    internet: bool
    """Whether the cluster's workloads may reach the internet."""
    lines: tuple[QuotedLine, ...]
    created_at: datetime
    expires_at: datetime

    @property
    def rate_uc_per_hour(self) -> int:
        """Of all lines together."""
        return sum(line.rate_uc_per_hour for line in self.lines)

    @property
    def hold_uc(self) -> int:
        """What is held when it is accepted."""
        return self.rate_uc_per_hour * min(self.hours, self.hold_hours_max)


def shown_quote(quote: Quote) -> api.Quote:
    """A quote, as its renter sees it."""
    return api.Quote(
        id=quote.id,
        name=quote.name,
        lines=[
            api.QuoteLine(
                device_id=line.device_id,
                host=line.host_name,
                provider=line.provider_name,
                kind=line.kind,
                model=line.model,
                cores=line.cores,
                memory_bytes=line.memory_bytes,
                rate_uc_per_hour=line.rate_uc_per_hour,
                development=line.development,
                is_head=line.is_head,
                traffic_cap_bytes=line.traffic_cap_bytes,
            )
            for line in quote.lines
        ],
        hours=quote.hours,
        rate_uc_per_hour=quote.rate_uc_per_hour,
        total_uc=quote.rate_uc_per_hour * quote.hours,
        hold_uc=quote.hold_uc,
        minimum_uc=quote.rate_uc_per_hour,
        fee_basis_points=quote.fee_basis_points,
        expires_at=quote.expires_at,
        as_of=quote.created_at,
        internet=quote.internet,
    )
