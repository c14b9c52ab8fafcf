"""Booking more hours of a cluster, at the rates that it was booked at."""

from dataclasses import replace
from datetime import datetime

from corral import ledger
from corral.bookings import store
from corral.bookings.booking import HOURS_MAX, Booking, BookingState, hours_to_hold, stop_after
from corral.bookings.errors import (
    BookingOver,
    BookingTooLong,
    ExtensionConflict,
    ExtensionTooDear,
    ExtensionUnaffordable,
)
from corral.bookings.payments import Purse
from corral.core.ids import BookingId
from corral.core.money import AMOUNT_UC_MAX
from corral.platform.database import Tx


async def extend(
    tx: Tx, *, extension_id: str, booking_id: BookingId, hours: int, total_uc_max: int | None, now: datetime
) -> Booking:
    """
    Adds hours. What lies within the hours that are held ahead is held at once, the rest when time comes near it.

    The same extension id again changes nothing and returns the booking as it is.

    Raises:
        BookingUnknown: there is none.
        ExtensionConflict: the id stands for another booking or other hours.
        BookingOver: the booking, or its held time, has ended.
        BookingTooLong: it would reach further than a year, or cost more than any amount may be.
        ExtensionTooDear: it costs more than `total_uc_max`.
        ExtensionUnaffordable: the free credit does not cover what is held at once.
    """
    booking = await store.get(tx, booking_id, lock=True)
    earlier = await store.extension(tx, extension_id)
    if earlier is not None:
        if earlier != (booking_id, hours):
            raise ExtensionConflict(extension_id)
        return booking
    total_uc = booking.rate_uc_per_hour * hours
    _refuse(booking, hours=hours, total_uc=total_uc, total_uc_max=total_uc_max, now=now)
    hours_held = hours_to_hold(booking, hours=booking.hours + hours, now=now)
    purse = Purse(booking, now, movements=booking.movements)
    needed_uc = booking.rate_uc_per_hour * (hours_held - booking.hours_held)
    if needed_uc:
        try:
            await purse.hold(tx, needed_uc, f"cluster {booking.name} extended by {hours} h")
        except ledger.InsufficientCredit as error:
            affordable = min(hours - 1, error.free_uc // booking.rate_uc_per_hour)
            raise ExtensionUnaffordable(
                booking.name, hours, needed_uc=needed_uc, free_uc=error.free_uc, hours_affordable=affordable
            ) from error
    if not await store.add_extension(tx, extension_id, booking_id, hours, now):
        # Taken at the same moment for another booking: the same booking would have waited for our lock.
        raise ExtensionConflict(extension_id)
    changed = replace(booking, hours=booking.hours + hours, hours_held=hours_held, movements=purse.movements)
    await store.change(tx, booking_id, hours=changed.hours, hours_held=changed.hours_held, movements=changed.movements)
    return changed


def _refuse(booking: Booking, *, hours: int, total_uc: int, total_uc_max: int | None, now: datetime) -> None:
    if booking.is_over:
        raise BookingOver(booking.name, booking.ended_at)
    if booking.state is BookingState.RUNNING and now >= stop_after(booking):
        raise BookingOver(booking.name, stop_after(booking))
    hours_in_all = booking.hours + hours
    if hours_in_all > HOURS_MAX or booking.rate_uc_per_hour * hours_in_all > AMOUNT_UC_MAX:
        raise BookingTooLong(booking.name, hours_in_all, min(HOURS_MAX, AMOUNT_UC_MAX // booking.rate_uc_per_hour))
    if total_uc_max is not None and total_uc > total_uc_max:
        raise ExtensionTooDear(booking.name, hours, total_uc=total_uc, total_uc_max=total_uc_max)
