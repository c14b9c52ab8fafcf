"""What happens to a booking while it runs: T1, a lost line and its replacement, an outage. Each may be said twice."""

from dataclasses import replace
from datetime import datetime

from corral import devices, market
from corral.bookings import store
from corral.bookings.accept import new_line
from corral.bookings.booking import TRANSITIONS, Booking, BookingState, Line
from corral.bookings.charge import Outage
from corral.bookings.errors import BookingOver
from corral.core.errors import invariant
from corral.core.ids import BookingId, IdSource, LineId
from corral.platform.database import Tx
from corral.platform.settings import ServerSettings


async def begin(tx: Tx, booking_id: BookingId, *, t1: datetime) -> Booking:
    """
    The cluster is ready: its lines are charged from `t1`. Said again, the first T1 stays.

    Raises:
        BookingUnknown, BookingOver: there is nothing to begin.
    """
    booking = await store.get(tx, booking_id, lock=True)
    if booking.state is BookingState.RUNNING:
        return booking
    _refuse_change(booking, BookingState.RUNNING)
    await store.change(tx, booking_id, state=BookingState.RUNNING.value, began_at=t1)
    active = [line.id for line in await store.lines_of(tx, booking_id) if line.state == "active"]
    await store.change_lines(tx, active, from_at=t1)
    return replace(booking, state=BookingState.RUNNING, began_at=t1)


async def begin_line(tx: Tx, line_id: LineId, *, at: datetime) -> None:
    """A replacement works: it is charged from `at`, never from before T1. Said again, the first instant stays."""
    booking, line = await _locked(tx, line_id)
    if booking.began_at is None or line.from_at is not None or line.state != "active":
        return
    lines = [one for one in await store.lines_of(tx, booking.id) if one.slot == line.slot]
    earliest = max([booking.began_at, *(one.to_at for one in lines if one.to_at is not None)])
    await store.change_lines(tx, [line_id], from_at=max(at, earliest))


async def replace_line(
    tx: Tx, line_id: LineId, new: market.QuotedLine, *, settings: ServerSettings, now: datetime, ids: IdSource
) -> Line:
    """
    Ends a line whose device is lost and hires another in its place, at no higher rate. Said again: the first successor.

    Before T1 the new line begins with the booking; afterwards it is charged from `begin_line` on.

    Raises:
        LineUnknown, BookingOver: there is nothing to replace.
        DeviceTaken: the other device is gone. Roll back.
    """
    booking, line = await _locked(tx, line_id)
    if line.state == "replaced":
        successors = [one for one in await store.lines_of(tx, booking.id) if one.slot == line.slot]
        return next(one for one in successors if one.position == line.position + 1)
    if booking.is_over:
        raise BookingOver(booking.name, booking.ended_at)
    invariant(new.rate_uc_per_hour <= line.rate_uc_per_hour, f"{line_id} would be replaced at a higher rate")
    successor = new_line(booking, new, slot=line.slot, position=line.position + 1, ids=ids)
    ended_at = None if line.from_at is None else max(now, line.from_at)
    await store.change_lines(tx, [line_id], state="replaced", to_at=ended_at)
    await store.add_lines(tx, [successor])
    wanted = [(successor.device_id, successor.id)]
    await devices.take(tx, wanted, now, offline_after_s=settings.host_offline_after_s)
    return successor


async def record_outage(tx: Tx, line_id: LineId, *, from_at: datetime, to_at: datetime | None) -> bool:
    """
    Notes that a line did not serve; its minutes then are not charged, and money already posted for them comes back.

    `to_at` None means until further notice: a lost device without a replacement. A call with the same
    `from_at` closes it.

    Returns:
        False if nothing was noted: the bill is final.

    Raises:
        LineUnknown: there is no such line.
    """
    booking, _ = await _locked(tx, line_id)
    if booking.is_over:
        return False
    await store.put_outage(tx, line_id, Outage(from_at, to_at if to_at is None else max(from_at, to_at)))
    return True


def _refuse_change(booking: Booking, wanted: BookingState) -> None:
    if wanted not in TRANSITIONS[booking.state]:
        raise BookingOver(booking.name, booking.ended_at)


async def _locked(tx: Tx, line_id: LineId) -> tuple[Booking, Line]:
    """A line and its booking, both read after the booking was locked."""
    booking_id = (await store.line(tx, line_id)).booking_id
    booking = await store.get(tx, booking_id, lock=True)
    return booking, await store.line(tx, line_id)
