"""
What a booking's lines cost: a plain function of what happened.

**Slots.** A booking has as many slots as its quote had lines. A slot is served by one line after the other: the quoted
line first, then its replacements, each at no higher rate than the one before. The renter pays for a slot, never for two
lines of it at once.

**Minutes.** A slot's time is cut into minutes counted from its start: T1 for what was quoted, its own begin for what
was added later. A minute is charged if one line served all of it: it lies within the line's time and touches no outage
of that line. A minute that an outage, an end or a replacement only touches is not charged: the rounding is the
renter's.

**How many minutes.** While the cluster runs, the whole minutes so far. At the end max(60, whole minutes used) for a
quoted slot: the minimum is an hour of the slot, shared by all its lines, and counts from T1 even if the renter leaves
earlier; the part that nobody used belongs to the line that served last. It is less the minutes not delivered: an outage
that was open at the end covers the rest of the minimum too, and so does a replacement that never began. What was added
later has no minimum. A booking that never became ready costs nothing.

**Amounts.** A line costs floor(rate × its minutes / 60), always of all its minutes together; the network's fee is taken
out of that amount and rounded down, the rest is the provider's. With R the quoted rate of a slot and h the hours held,
a slot has at most 60 × h minutes at no more than R, so its lines cost at most R × h: charge ≤ hold ≤ plan.

The result depends on the facts alone, not on when or how often they were settled. Evidence that comes in after the end
does not change a bill: how long undelivered money waits for it is decided where proofs are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from corral.core.errors import invariant
from corral.core.ids import LineId
from corral.core.money import amount_uc, fee_uc

MINIMUM_MINUTES = 60
"""Every quoted slot is booked for at least one hour."""

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Outage:
    """A time in which a line did not serve; `to_at` None: until further notice."""

    from_at: datetime
    to_at: datetime | None = None


@dataclass(frozen=True)
class LineUse:
    """
    How one line served its slot.

    `from_at` None: it never began. `to_at` is set only if another line replaced it; the last line serves until the end.
    """

    line_id: LineId
    rate_uc_per_hour: int
    from_at: datetime | None
    to_at: datetime | None = None
    outages: tuple[Outage, ...] = ()


@dataclass(frozen=True)
class LineCharge:
    """What one line costs, and where it goes: `amount_uc == provider_uc + fee_uc`."""

    line_id: LineId
    minutes: int
    minutes_not_delivered: int
    amount_uc: int
    fee_uc: int

    @property
    def provider_uc(self) -> int:
        """What the provider receives."""
        return self.amount_uc - self.fee_uc


def slot_charges(
    lines: Sequence[LineUse],
    *,
    starts_at: datetime | None,
    until: datetime,
    is_final: bool,
    fee_basis_points: int,
    minimum_minutes: int = MINIMUM_MINUTES,
) -> list[LineCharge]:
    """
    What each line of one slot costs.

    Args:
        lines: in the order in which they served; each begins no earlier than the one before was replaced.
        starts_at: from when the slot is charged; None: it never began, and costs nothing.
        until: the present or, at the end, the instant at which the renter's use ended.
        is_final: whether the use has ended, so that the minimum applies.
        fee_basis_points: the network's share, in 1/10,000 of the amount.
        minimum_minutes: 60 for what was quoted, 0 for what was added later.
    """
    limit = 0
    if starts_at is not None:
        limit = max(0, (until - starts_at) // _MINUTE)
        if is_final:
            limit = max(limit, minimum_minutes)
    charges: list[LineCharge] = []
    for line, window in zip(lines, _windows(lines, starts_at, limit), strict=True):
        minutes = _delivered(line, window, starts_at) if starts_at is not None else 0
        amount = amount_uc(rate_uc_per_hour=line.rate_uc_per_hour, minutes=minutes)
        fee = fee_uc(amount, fee_basis_points=fee_basis_points)
        charges.append(LineCharge(line.line_id, minutes, len(window) - minutes, amount, fee))
    invariant(
        sum(charge.minutes + charge.minutes_not_delivered for charge in charges) in (0, limit),
        "the minutes of a slot do not add up",
    )
    return charges


def _windows(lines: Sequence[LineUse], starts_at: datetime | None, limit: int) -> list[range]:
    """
    Which of the slot's minutes each line answers for: from its begin (the first: from the slot's) to the next one's.

    A line that never began answers for none, so the minutes until a replacement works are the lost line's.
    """
    windows = [range(0)] * len(lines)
    begun = [index for index, line in enumerate(lines) if line.from_at is not None]
    if starts_at is None or not begun:
        return windows
    begins = [0, *(min(limit, _minutes_up(lines[index].from_at, starts_at)) for index in begun[1:])]
    for index, first, last in zip(begun, begins, [*begins[1:], limit], strict=True):
        windows[index] = range(first, max(first, last))
    return windows


def _delivered(line: LineUse, window: range, starts_at: datetime) -> int:
    """How many minutes of the window the line served from begin to end."""
    if line.from_at is None or not window:
        return 0
    first = max(window.start, _minutes_up(line.from_at, starts_at))
    last = window.stop if line.to_at is None else min(window.stop, (line.to_at - starts_at) // _MINUTE)
    if first >= last:
        return 0
    touched = (
        (
            max(first, (outage.from_at - starts_at) // _MINUTE),
            last if outage.to_at is None else min(last, _minutes_up(outage.to_at, starts_at)),
        )
        for outage in line.outages
        if outage.to_at is None or outage.to_at > outage.from_at
    )
    return last - first - _covered(touched)


def _covered(intervals: Iterable[tuple[int, int]]) -> int:
    """How many minutes the union of half-open intervals has."""
    total, reached = 0, None
    for start, stop in sorted(intervals):
        start = start if reached is None else max(start, reached)
        if stop > start:
            total += stop - start
            reached = stop
    return total


def _minutes_up(at: datetime | None, starts_at: datetime) -> int:
    """Whole minutes from `starts_at` to `at`, rounded up."""
    invariant(at is not None, "a line that never began has no minutes")
    assert at is not None
    return -((starts_at - at) // _MINUTE)
