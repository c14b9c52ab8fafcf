"""Bookings in PostgreSQL: all their SQL. Nothing here commits or decides."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert

from corral.bookings.booking import Booking, BookingState, Line
from corral.bookings.charge import Outage
from corral.bookings.errors import BookingUnknown, LineUnknown
from corral.bookings.tables import booking, booking_extension, booking_line, booking_outage
from corral.core.ids import BookingId, LineId, PersonId
from corral.platform.database import Instant, Tx


async def find(tx: Tx, booking_id: BookingId, *, lock: bool = False) -> Booking | None:
    """A booking; with `lock`, nobody else changes it until the transaction ends."""
    query = select(booking).where(booking.c.id == booking_id)
    row = (await tx.execute(query.with_for_update() if lock else query)).first()
    return _booking(row) if row is not None else None


async def get(tx: Tx, booking_id: BookingId, *, lock: bool = False) -> Booking:
    """
    A booking; with `lock`, nobody else changes it until the transaction ends.

    Raises:
        BookingUnknown: there is none.
    """
    found = await find(tx, booking_id, lock=lock)
    if found is None:
        raise BookingUnknown(booking_id)
    return found


async def add(tx: Tx, new: Booking) -> bool:
    """Stores a new booking; False if the id is taken."""
    statement = insert(booking).values(**asdict(new)).on_conflict_do_nothing().returning(booking.c.id)
    return (await tx.execute(statement)).first() is not None


async def change(tx: Tx, booking_id: BookingId, **columns: Any) -> None:
    """Writes columns of a booking that is locked."""
    await tx.execute(update(booking).where(booking.c.id == booking_id).values(**columns))


async def lines_of(tx: Tx, booking_id: BookingId) -> list[Line]:
    """All lines of a booking, replaced ones too, by slot and then in the order in which they served."""
    rows = await tx.execute(
        select(booking_line)
        .where(booking_line.c.booking_id == booking_id)
        .order_by(booking_line.c.slot, booking_line.c.position)
    )
    return [_line(row) for row in rows]


async def line(tx: Tx, line_id: LineId) -> Line:
    """
    One line.

    Raises:
        LineUnknown: there is none.
    """
    row = (await tx.execute(select(booking_line).where(booking_line.c.id == line_id))).first()
    if row is None:
        raise LineUnknown(line_id)
    return _line(row)


async def add_lines(tx: Tx, lines: Sequence[Line]) -> None:
    """Stores new lines."""
    await tx.execute(insert(booking_line).values([asdict(one) for one in lines]))


async def change_lines(tx: Tx, line_ids: Collection[LineId], **columns: Any) -> None:
    """Writes columns of lines whose booking is locked."""
    if line_ids:
        await tx.execute(update(booking_line).where(booking_line.c.id.in_(list(line_ids))).values(**columns))


async def end_lines(tx: Tx, line_ids: Collection[LineId], ended_at: datetime) -> None:
    """
    Ends lines whose booking is locked, none before it began.

    `ended_at` may be the earlier one: who ends a booking read the clock before it waited for the lock, in which a
    replacement began.
    """
    if line_ids:
        at = func.greatest(booking_line.c.from_at, literal(ended_at, Instant))
        await tx.execute(update(booking_line).where(booking_line.c.id.in_(list(line_ids))).values(to_at=at))


async def outages_of(tx: Tx, booking_id: BookingId) -> dict[LineId, tuple[Outage, ...]]:
    """When the lines of a booking did not serve."""
    rows = await tx.execute(
        select(booking_outage)
        .join(booking_line, booking_line.c.id == booking_outage.c.line_id)
        .where(booking_line.c.booking_id == booking_id)
        .order_by(booking_outage.c.line_id, booking_outage.c.from_at)
    )
    outages: defaultdict[LineId, list[Outage]] = defaultdict(list)
    for row in rows:
        outages[LineId(row.line_id)].append(Outage(row.from_at, row.to_at))
    return {line_id: tuple(found) for line_id, found in outages.items()}


async def put_outage(tx: Tx, line_id: LineId, outage: Outage) -> None:
    """Stores an outage, or closes the one that began at the same instant; one that is closed stays as it is."""
    statement = insert(booking_outage).values(line_id=line_id, from_at=outage.from_at, to_at=outage.to_at)
    await tx.execute(
        statement.on_conflict_do_update(
            index_elements=["line_id", "from_at"],
            set_={"to_at": func.coalesce(booking_outage.c.to_at, statement.excluded.to_at)},
        )
    )


async def extension(tx: Tx, extension_id: str) -> tuple[BookingId, int] | None:
    """The booking and hours of an extension."""
    row = (await tx.execute(select(booking_extension).where(booking_extension.c.id == extension_id))).first()
    return (BookingId(row.booking_id), row.hours) if row is not None else None


async def add_extension(tx: Tx, extension_id: str, booking_id: BookingId, hours: int, now: datetime) -> bool:
    """Stores an extension; False if the id is taken."""
    statement = insert(booking_extension).values(id=extension_id, booking_id=booking_id, hours=hours, at=now)
    added = await tx.execute(statement.on_conflict_do_nothing().returning(booking_extension.c.id))
    return added.first() is not None


async def due_to_end(tx: Tx, now: datetime) -> list[BookingId]:
    """Running bookings whose held hours are over at `now`."""
    held_until = booking.c.began_at + booking.c.hours_held * text("interval '1 hour'")
    query = select(booking.c.id).where(booking.c.state == "running", held_until <= now).order_by(booking.c.id)
    return [BookingId(row.id) for row in await tx.execute(query)]


async def due_to_settle(tx: Tx, now: datetime) -> list[BookingId]:
    """Running bookings that have not been settled since the last full clock hour."""
    hour = func.date_trunc("hour", literal(now, Instant), "UTC")
    query = (
        select(booking.c.id)
        .where(booking.c.state == "running", func.coalesce(booking.c.settled_at, booking.c.began_at) < hour)
        .order_by(booking.c.id)
    )
    return [BookingId(row.id) for row in await tx.execute(query)]


async def lines_of_provider(tx: Tx, provider_id: PersonId, *, limit: int) -> list[tuple[Line, BookingState]]:
    """A provider's latest lines in bookings that became ready, newest first, with the state of their bookings."""
    rows = await tx.execute(
        select(booking_line, booking.c.state.label("booking_state"))
        .join(
            booking,
            and_(booking.c.id == booking_line.c.booking_id, booking.c.began_at.is_not(None)),
        )
        .where(booking_line.c.provider_id == provider_id, booking_line.c.from_at.is_not(None))
        .order_by(booking_line.c.id.desc())
        .limit(limit)
    )
    return [(_line(row), BookingState(row.booking_state)) for row in rows]


def _booking(row: Row[Any]) -> Booking:
    columns = dict(row._mapping)  # pyright: ignore[reportPrivateUsage]  # SQLAlchemy's public name for it
    columns["state"] = BookingState(columns["state"])
    return Booking(**columns)


_LINE_COLUMNS = tuple(column.name for column in booking_line.columns)


def _line(row: Row[Any]) -> Line:
    mapping = row._mapping  # pyright: ignore[reportPrivateUsage]  # SQLAlchemy's public name for it
    return Line(**{name: mapping[name] for name in _LINE_COLUMNS})
