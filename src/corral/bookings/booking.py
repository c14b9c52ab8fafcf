"""Bookings and their lines, as values, and the rules about their time and states."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from corral.core.ids import BookingId, DeviceId, HostId, LineId, PersonId, QuoteId, TransferId

HOURS_MAX = 8760
"""A year: no booking reaches further."""


class BookingState(StrEnum):
    """Where a booking is; `BOOKED` until T1, `RUNNING` from then on."""

    BOOKED = "booked"
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


TRANSITIONS: dict[BookingState, frozenset[BookingState]] = {
    BookingState.BOOKED: frozenset({BookingState.RUNNING, BookingState.ENDED, BookingState.FAILED}),
    BookingState.RUNNING: frozenset({BookingState.ENDED}),
    BookingState.ENDED: frozenset(),
    BookingState.FAILED: frozenset(),
}
"""The legal changes of a booking's state."""

LineState = Literal["active", "ended", "replaced", "refunded"]


@dataclass(frozen=True)
class Booking:
    """The contract of one cluster."""

    id: BookingId
    renter_id: PersonId
    quote_id: QuoteId
    name: str
    state: BookingState
    hours: int
    """Booked hours, extensions included."""
    hours_held: int
    """Hours whose price was held so far; later ones are held as time goes on."""
    hold_hours_max: int
    fee_basis_points: int
    rate_uc_per_hour: int
    """Of all quoted lines: what holds and extensions are reckoned with, even if a replacement is cheaper."""
    quoted_at: datetime
    created_at: datetime
    began_at: datetime | None = None
    """T1, the instant of *ready*."""
    ended_at: datetime | None = None
    settled_at: datetime | None = None
    reason: str = ""
    movements: int = 0
    """How many transfers this booking has made; see `transfer_id`."""

    @property
    def ends_at(self) -> datetime | None:
        """T2, the end of the booked hours; None before T1."""
        return None if self.began_at is None else self.began_at + timedelta(hours=self.hours)

    @property
    def is_over(self) -> bool:
        """Whether its bill is final."""
        return self.state in (BookingState.ENDED, BookingState.FAILED)


@dataclass(frozen=True)
class Line:
    """One device in a booking: the `position`-th to serve the quoted line number `slot`, both from 0."""

    id: LineId
    booking_id: BookingId
    slot: int
    position: int
    device_id: DeviceId
    host_id: HostId
    host_name: str
    provider_id: PersonId
    provider_name: str
    kind: Literal["gpu", "cpu"]
    model: str
    cores: float
    memory_bytes: int
    disk_bytes: int
    gpu_memory_bytes: int
    rate_uc_per_hour: int
    is_head: bool
    traffic_cap_bytes: int | None = None
    """What it may have with the internet in an hour, as quoted; None is no cap."""
    from_at: datetime | None = None
    to_at: datetime | None = None
    state: LineState = "active"
    minutes_posted: int = 0
    provider_posted_uc: int = 0
    fee_posted_uc: int = 0

    @property
    def device_label(self) -> str:
        """The device in words."""
        return self.model if self.kind == "gpu" else f"{self.cores:g} cores of {self.model}"


def stop_after(booking: Booking) -> datetime:
    """
    The end of the hours already held: a node ends itself then, whatever it can reach.

    Before T1 it counts from the booking, and moves with T1.
    """
    return (booking.began_at or booking.created_at) + timedelta(hours=booking.hours_held)


def hours_to_hold(booking: Booking, *, hours: int, now: datetime) -> int:
    """How many of `hours` booked hours should be held by now in all: what has passed, and `hold_hours_max` ahead."""
    passed = 0 if booking.began_at is None else max(0, (now - booking.began_at) // timedelta(hours=1))
    return max(booking.hours_held, min(hours, passed + booking.hold_hours_max))


def transfer_id(booking_id: BookingId, number: int, purpose: str) -> TransferId:
    """
    The id of a booking's transfer: the same for the same step, so that a step that is done again is done once.

    It is well formed (`core.ids`): the time part is the booking's, the rest 80 bits of SHA-256 over booking, number and
    purpose. `number` counts the booking's transfers and is stored in the transaction that records the transfer.
    """
    digest = int.from_bytes(hashlib.sha256(f"{booking_id}:{number}:{purpose}".encode()).digest()[:10], "big")
    alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
    tail = "".join(alphabet[digest >> 5 * place & 31] for place in range(15, -1, -1))
    return TransferId(f"tr_{booking_id.partition('_')[2][:10]}{tail}")
