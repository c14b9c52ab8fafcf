"""Settling a running booking hour by hour, and ending it. Each may be done again: only the facts decide."""

from datetime import datetime

from corral import ledger
from corral.bookings import store
from corral.bookings.bill import bill
from corral.bookings.booking import Booking, BookingState, hours_to_hold, stop_after
from corral.bookings.errors import BookingStarted
from corral.bookings.payments import Purse, charges_of, pay
from corral.core.ids import BookingId
from corral.platform.database import Tx
from corral.wire import api


async def settle(tx: Tx, booking_id: BookingId, *, now: datetime) -> None:
    """
    Posts what was delivered up to `now` and holds the hours that came within reach.

    If the renter's free credit is not enough for all of these, as many whole hours as it covers are held; the cluster
    ends with the last hour held. A booking that does not run is left as it is.

    Raises:
        BookingUnknown: there is none.
    """
    booking = await store.get(tx, booking_id, lock=True)
    if booking.state is not BookingState.RUNNING:
        return
    lines = await store.lines_of(tx, booking_id)
    until = min(now, stop_after(booking))
    charges = charges_of(booking, lines, await store.outages_of(tx, booking_id), until=until, is_final=False)
    purse = await pay(tx, booking, lines, charges, now)
    hours_held = booking.hours_held
    if now < stop_after(booking):
        hours_held += await _hold_ahead(tx, booking, purse, now)
    await store.change(tx, booking_id, settled_at=now, hours_held=hours_held, movements=purse.movements)


async def end(tx: Tx, booking_id: BookingId, *, now: datetime) -> api.Bill:
    """
    Ends a booking: the final charges are posted, and the rest of the hold goes back to the renter.

    The use ends at `now`, never beyond the hours held. Before T1 nothing is charged. What is over stays as it is.

    Raises:
        BookingUnknown: there is none.
    """
    booking = await store.get(tx, booking_id, lock=True)
    if not booking.is_over:
        await _finish(tx, booking, BookingState.ENDED, booking.reason, now)
    return await bill(tx, booking_id, now=now)


async def fail(tx: Tx, booking_id: BookingId, *, now: datetime, reason: str) -> api.Bill:
    """
    The cluster could not be started: everything that was held goes back. What is over stays as it is.

    Raises:
        BookingUnknown: there is none.
        BookingStarted: the cluster was ready already; it can only end.
    """
    booking = await store.get(tx, booking_id, lock=True)
    if booking.state is BookingState.RUNNING and booking.began_at is not None:
        raise BookingStarted(booking.name, booking.began_at)
    if not booking.is_over:
        await _finish(tx, booking, BookingState.FAILED, reason, now)
    return await bill(tx, booking_id, now=now)


async def _finish(tx: Tx, booking: Booking, state: BookingState, reason: str, now: datetime) -> None:
    lines = await store.lines_of(tx, booking.id)
    active = [line.id for line in lines if line.state == "active"]
    if booking.began_at is None:
        ended_at = now
        purse = Purse(booking, now, movements=booking.movements)
        # Replaced lines stay `replaced`: they cost nothing either, and tell what happened.
        await store.change_lines(tx, active, state="refunded")
    else:
        ended_at = max(booking.began_at, min(now, stop_after(booking)))
        outages = await store.outages_of(tx, booking.id)
        purse = await pay(tx, booking, lines, charges_of(booking, lines, outages, until=ended_at, is_final=True), now)
        served = [line.id for line in lines if line.state == "active" and line.from_at is not None]
        await store.change_lines(tx, active, state="ended")
        await store.end_lines(tx, served, ended_at)
    await purse.release(tx)
    await store.change(
        tx, booking.id, state=state.value, ended_at=ended_at, settled_at=now, reason=reason, movements=purse.movements
    )


async def _hold_ahead(tx: Tx, booking: Booking, purse: Purse, now: datetime) -> int:
    """Holds the hours that are due to be held by now, or as many as the renter's credit covers; returns how many."""
    wanted = hours_to_hold(booking, hours=booking.hours, now=now) - booking.hours_held
    if wanted <= 0:
        return 0
    free_uc = (await ledger.balances(tx, ledger.balance_of(booking.renter_id))).free_uc
    hours = min(wanted, free_uc // booking.rate_uc_per_hour)
    if hours <= 0:
        return 0
    await purse.hold(tx, hours * booking.rate_uc_per_hour, f"{hours} h more of cluster {booking.name}")
    return hours
