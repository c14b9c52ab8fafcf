"""The contract of one cluster: its lines, T1, T2, the money held, and the exact bill."""

from corral.bookings.accept import accept
from corral.bookings.bill import Money, bill, earnings, money
from corral.bookings.booking import Booking, BookingState, Line, stop_after
from corral.bookings.errors import (
    BookingConflict,
    BookingOver,
    BookingsError,
    BookingStarted,
    BookingTooLong,
    BookingUnknown,
    ExtensionConflict,
    ExtensionTooDear,
    ExtensionUnaffordable,
    LineUnknown,
)
from corral.bookings.extend import extend
from corral.bookings.progress import begin, begin_line, record_outage, replace_line
from corral.bookings.routes import router
from corral.bookings.settle import end, fail, settle
from corral.bookings.store import due_to_end, due_to_settle, get, lines_of

__all__ = [
    "Booking",
    "BookingConflict",
    "BookingOver",
    "BookingStarted",
    "BookingState",
    "BookingTooLong",
    "BookingUnknown",
    "BookingsError",
    "ExtensionConflict",
    "ExtensionTooDear",
    "ExtensionUnaffordable",
    "Line",
    "LineUnknown",
    "Money",
    "accept",
    "begin",
    "begin_line",
    "bill",
    "due_to_end",
    "due_to_settle",
    "earnings",
    "end",
    "extend",
    "fail",
    "get",
    "lines_of",
    "money",
    "record_outage",
    "replace_line",
    "router",
    "settle",
    "stop_after",
]
