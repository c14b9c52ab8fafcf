"""What a booking cost, and what its lines earned: read from the facts and checked against the ledger."""

from dataclasses import dataclass
from datetime import datetime

from corral import ledger
from corral.bookings import store
from corral.bookings.booking import Booking, Line, stop_after
from corral.bookings.charge import LineCharge
from corral.bookings.payments import charges_of
from corral.core.errors import invariant
from corral.core.ids import BookingId, LineId, PersonId
from corral.platform.database import Tx
from corral.wire import api

EARNINGS_LINES_MAX = 500
"""Lines that one answer about earnings lists; the total counts all."""


@dataclass(frozen=True)
class Money:
    """What a booking holds now, and what it has cost so far; micro-credits."""

    held_uc: int
    charged_uc: int


async def bill(tx: Tx, booking_id: BookingId, *, now: datetime) -> api.Bill:
    """
    A booking's bill. While it runs: what it would be if the use ended at `now`, the minimum included.

    `held_uc` is what was set aside for the booking in all, of which `returned_uc` went back at the end.

    Raises:
        BookingUnknown: there is none.
    """
    booking = await store.get(tx, booking_id)
    lines = await store.lines_of(tx, booking_id)
    charges = await _charges(tx, booking, lines, now)
    held_uc, returned_uc = await _held_and_returned(tx, booking)
    shown = [_shown_line(line, charges[line.id]) for line in lines]
    amount_uc = sum(line.amount_uc for line in shown)
    fee_uc = sum(line.fee_uc for line in shown)
    sums = await ledger.sums_of_booking(tx, booking_id)
    if booking.is_over:
        paid_uc = -sums.get(ledger.balance_of(booking.renter_id), 0)
        invariant(paid_uc == amount_uc, f"booking {booking_id} paid {paid_uc} uc for lines of {amount_uc} uc")
        invariant(held_uc == amount_uc + returned_uc, f"booking {booking_id} does not add up to its hold")
    return api.Bill(
        booking_id=booking.id,
        cluster=booking.name,
        final=booking.is_over,
        lines=shown,
        amount_uc=amount_uc,
        held_uc=held_uc,
        returned_uc=returned_uc,
        fee_uc=fee_uc,
        ledger_sum_uc=sum(sums.values()),
    )


async def money(tx: Tx, booking_id: BookingId, *, now: datetime) -> Money:
    """
    What a booking holds now, and what it has cost so far (as in its bill).

    Raises:
        BookingUnknown: there is none.
    """
    booking = await store.get(tx, booking_id)
    charges = await _charges(tx, booking, await store.lines_of(tx, booking_id), now)
    holds = await ledger.holds_of(tx, booking_id)
    return Money(
        held_uc=sum(held.remaining_uc for held in holds),
        charged_uc=sum(charge.amount_uc for charge in charges.values()),
    )


async def earnings(tx: Tx, provider_id: PersonId) -> api.Earnings:
    """What a provider has earned, line by line as posted so far, newest first."""
    account = await ledger.balances(tx, ledger.earnings_of(provider_id))
    found = await store.lines_of_provider(tx, provider_id, limit=EARNINGS_LINES_MAX)
    return api.Earnings(
        total_net_uc=account.balance_uc,
        lines=[
            api.EarningsLine(
                booking_id=line.booking_id,
                line_id=line.id,
                host=line.host_name,
                device=line.device_label,
                minutes=line.minutes_posted,
                rate_uc_per_hour=line.rate_uc_per_hour,
                gross_uc=line.provider_posted_uc + line.fee_posted_uc,
                fee_uc=line.fee_posted_uc,
                net_uc=line.provider_posted_uc,
                settled=state in ("ended", "failed"),
            )
            for line, state in found
        ],
    )


async def _charges(tx: Tx, booking: Booking, lines: list[Line], now: datetime) -> dict[LineId, LineCharge]:
    until = booking.ended_at or min(now, stop_after(booking))
    return charges_of(booking, lines, await store.outages_of(tx, booking.id), until=until, is_final=True)


async def _held_and_returned(tx: Tx, booking: Booking) -> tuple[int, int]:
    """What was set aside in all (what came back from a provider and was held again counts once), and what was freed."""
    renter = ledger.balance_of(booking.renter_id)
    held_uc = returned_uc = 0
    for transfer in await ledger.transfers_of_booking(tx, booking.id):
        if transfer.kind is ledger.Kind.HOLD:
            held_uc += transfer.amount_uc
        elif transfer.kind is ledger.Kind.VOID:
            returned_uc += transfer.amount_uc
        elif transfer.kind is ledger.Kind.TRANSFER and transfer.credit == renter:
            held_uc -= transfer.amount_uc
    return held_uc, returned_uc


def _shown_line(line: Line, charge: LineCharge) -> api.BillLine:
    return api.BillLine(
        line_id=line.id,
        host=line.host_name,
        provider=line.provider_name,
        device=line.device_label,
        rate_uc_per_hour=line.rate_uc_per_hour,
        from_at=line.from_at,
        to_at=line.to_at,
        minutes=charge.minutes,
        minutes_not_delivered=charge.minutes_not_delivered,
        amount_uc=charge.amount_uc,
        provider_uc=charge.provider_uc,
        fee_uc=charge.fee_uc,
        state=line.state,
    )
