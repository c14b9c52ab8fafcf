"""Accepting a quote: devices, hold and booking in one transaction, all or nothing."""

from datetime import datetime

from corral import devices, ledger, market
from corral.bookings import store
from corral.bookings.booking import Booking, BookingState, Line, transfer_id
from corral.bookings.errors import BookingConflict
from corral.core.errors import invariant
from corral.core.ids import BookingId, IdSource, LineId, PersonId, QuoteId
from corral.platform.database import Tx
from corral.platform.settings import ServerSettings


async def accept(
    tx: Tx,
    *,
    booking_id: BookingId,
    quote_id: QuoteId,
    renter_id: PersonId,
    settings: ServerSettings,
    now: datetime,
    ids: IdSource,
) -> Booking:
    """
    Books a quote. The same booking id again returns the first booking and does nothing.

    Raises:
        BookingConflict: the id stands for another quote or another renter.
        QuoteUnknown, QuoteExpired: there is no such quote of this renter any more.
        DeviceTaken: somebody was faster, or a host is gone. Roll back.
        InsufficientCredit: the hold is more than what is free. Roll back.
    """
    earlier = await store.find(tx, booking_id)
    if earlier is not None:
        return _same(earlier, quote_id, renter_id)
    quote = await market.quote_for_booking(tx, quote_id, renter_id, now)
    new = Booking(
        id=booking_id,
        renter_id=renter_id,
        quote_id=quote_id,
        name=quote.name,
        state=BookingState.BOOKED,
        hours=quote.hours,
        hours_held=min(quote.hours, quote.hold_hours_max),
        hold_hours_max=quote.hold_hours_max,
        fee_basis_points=quote.fee_basis_points,
        rate_uc_per_hour=quote.rate_uc_per_hour,
        quoted_at=quote.created_at,
        created_at=now,
        movements=1,
    )
    if not await store.add(tx, new):
        # The same request ran at the same time; ours waited for its end.
        earlier = await store.find(tx, booking_id)
        invariant(earlier is not None, f"booking {booking_id} neither inserted nor found")
        assert earlier is not None
        return _same(earlier, quote_id, renter_id)
    lines = [new_line(new, quoted, slot=slot, position=0, ids=ids) for slot, quoted in enumerate(quote.lines)]
    await store.add_lines(tx, lines)
    wanted = sorted((line.device_id, line.id) for line in lines)
    await devices.take(tx, wanted, now, offline_after_s=settings.host_offline_after_s)
    await ledger.hold(
        tx,
        transfer_id(booking_id, 1, "hold"),
        renter_id,
        quote.hold_uc,
        now,
        booking_id,
        memo=f"{new.hours_held} h of cluster {new.name}",
    )
    return new


def new_line(booking: Booking, quoted: market.QuotedLine, *, slot: int, position: int, ids: IdSource) -> Line:
    """A line that serves a slot of a booking from now on."""
    return Line(
        id=LineId(ids.new("ln")),
        booking_id=booking.id,
        slot=slot,
        position=position,
        device_id=quoted.device_id,
        host_id=quoted.host_id,
        host_name=quoted.host_name,
        provider_id=quoted.provider_id,
        provider_name=quoted.provider_name,
        kind=quoted.kind,
        model=quoted.model,
        cores=quoted.cores,
        memory_bytes=quoted.memory_bytes,
        disk_bytes=quoted.disk_bytes,
        gpu_memory_bytes=quoted.gpu_memory_bytes,
        rate_uc_per_hour=quoted.rate_uc_per_hour,
        is_head=quoted.is_head,
        traffic_cap_bytes=quoted.traffic_cap_bytes,
    )


def _same(earlier: Booking, quote_id: QuoteId, renter_id: PersonId) -> Booking:
    if (earlier.quote_id, earlier.renter_id) != (quote_id, renter_id):
        raise BookingConflict(earlier.id)
    return earlier
