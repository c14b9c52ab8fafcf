"""What a renter, or a race with one, can cause on a booking. Nothing is changed when one of these is raised."""

from datetime import datetime

from corral.core.errors import CorralError
from corral.core.ids import BookingId, LineId
from corral.core.money import format_credits


class BookingsError(CorralError):
    """Base of this domain's errors."""

    code = "bookings_error"


class BookingUnknown(BookingsError):
    """There is no such booking."""

    code = "booking_unknown"

    def __init__(self, booking_id: BookingId) -> None:
        super().__init__(f"booking {booking_id} is not known", booking_id=booking_id)


class LineUnknown(BookingsError):
    """There is no such line."""

    code = "line_unknown"

    def __init__(self, line_id: LineId) -> None:
        super().__init__(f"line {line_id} is not known", line_id=line_id)


class BookingConflict(BookingsError):
    """A booking id that was already used for another quote."""

    code = "booking_conflict"

    def __init__(self, booking_id: BookingId) -> None:
        super().__init__(
            f"booking {booking_id} already exists for another quote; nothing was booked or charged",
            hint="make a new id for a new booking",
            booking_id=booking_id,
        )


class BookingOver(BookingsError):
    """The booking has ended, or its held time is over."""

    code = "booking_over"

    def __init__(self, name: str, ended_at: datetime | None) -> None:
        when = f" at {ended_at.isoformat()}" if ended_at else ""
        super().__init__(f"the booking of cluster {name} is over{when}; nothing was changed", cluster=name)


class BookingStarted(BookingsError):
    """A start can only fail before the cluster was ready."""

    code = "booking_started"

    def __init__(self, name: str, began_at: datetime) -> None:
        super().__init__(
            f"cluster {name} has been ready since {began_at.isoformat()}; its start cannot fail any more", cluster=name
        )


class ExtensionConflict(BookingsError):
    """An extension id that was already used for something else."""

    code = "extension_conflict"

    def __init__(self, extension_id: str) -> None:
        super().__init__(
            f"extension {extension_id} already exists with other content; nothing was extended",
            hint="make a new id for a new extension",
            extension_id=extension_id,
        )


class ExtensionUnaffordable(BookingsError):
    """The renter's free credit does not cover what an extension holds."""

    code = "extension_unaffordable"

    def __init__(self, name: str, hours: int, *, needed_uc: int, free_uc: int, hours_affordable: int) -> None:
        self.needed_uc, self.free_uc = needed_uc, free_uc
        super().__init__(
            f"cluster {name} cannot be extended by {hours} h: {format_credits(needed_uc)} credits are needed, "
            f"{format_credits(free_uc)} are free",
            hint=(f"`corral extend {name} --for {hours_affordable}h`, or add" if hours_affordable else "add")
            + " credit with `corral credit add`",
            cluster=name,
            needed_uc=needed_uc,
            free_uc=free_uc,
        )


class ExtensionTooDear(BookingsError):
    """An extension costs more than the renter allowed."""

    code = "extension_too_dear"

    def __init__(self, name: str, hours: int, *, total_uc: int, total_uc_max: int) -> None:
        super().__init__(
            f"extending cluster {name} by {hours} h costs {format_credits(total_uc)} credits, "
            f"more than the allowed {format_credits(total_uc_max)}; nothing was extended",
            cluster=name,
            total_uc=total_uc,
            total_uc_max=total_uc_max,
        )


class BookingTooLong(BookingsError):
    """A booking would reach further than a year."""

    code = "booking_too_long"

    def __init__(self, name: str, hours: int, hours_max: int) -> None:
        super().__init__(
            f"cluster {name} would be booked for {hours} h, at most {hours_max} h are possible; nothing was extended",
            cluster=name,
            hours=hours,
            hours_max=hours_max,
        )
