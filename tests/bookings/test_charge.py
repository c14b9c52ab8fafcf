"""What a slot costs: the examples of the rules, and the laws over random histories."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.bookings.charge import LineCharge, LineUse, Outage, slot_charges
from corral.core.ids import LineId

T1 = datetime.fromisoformat("2026-01-01T12:00:17.250000+00:00")
RATE = 1_000_003
FIRST, SECOND = LineId("ln_1"), LineId("ln_2")


def after(minutes: float) -> datetime:
    return T1 + timedelta(minutes=minutes)


def charge(
    *lines: LineUse, until: float, is_final: bool = True, minimum: int = 60, began: bool = True
) -> list[LineCharge]:
    return slot_charges(
        lines,
        starts_at=T1 if began else None,
        until=after(until),
        is_final=is_final,
        fee_basis_points=500,
        minimum_minutes=minimum,
    )


@pytest.mark.parametrize(
    ("used", "minutes"), [(0, 60), (5, 60), (60, 60), (60.99, 60), (61, 61), (125.5, 125), (180, 180)]
)
def test_slot_is_charged_for_at_least_an_hour_and_for_whole_minutes(used: float, minutes: int) -> None:
    """A renter who leaves early pays max(60, used) minutes."""
    [line] = charge(LineUse(FIRST, RATE, T1), until=used)
    assert (line.minutes, line.minutes_not_delivered) == (minutes, 0)
    assert line.amount_uc == RATE * minutes // 60
    assert line.fee_uc == line.amount_uc * 500 // 10_000
    assert line.provider_uc + line.fee_uc == line.amount_uc


def test_slot_that_still_runs_is_charged_for_what_it_ran() -> None:
    """The minimum applies when the use has ended."""
    [line] = charge(LineUse(FIRST, RATE, T1), until=12.5, is_final=False)
    assert line.minutes == 12


def test_line_added_later_is_charged_from_its_own_start_without_a_minimum() -> None:
    """The minimum hour is the quoted lines'."""
    [line] = charge(LineUse(FIRST, RATE, T1), until=12.5, minimum=0)
    assert line.minutes == 12


def test_booking_that_never_became_ready_costs_nothing() -> None:
    """A failed start is refunded in full."""
    [line] = charge(LineUse(FIRST, RATE, None), until=30, began=False)
    assert (line.minutes, line.amount_uc) == (0, 0)


@pytest.mark.parametrize(
    ("outages", "undelivered"),
    [
        ([(10.0, 20.0)], 10),
        ([(10.5, 10.6)], 1),
        ([(10.5, 11.5)], 2),
        ([(10.0, 20.0), (15.0, 25.0), (12.0, 13.0)], 15),
        ([(-10.0, 5.0)], 5),
        ([(85.0, 400.0)], 5),
        ([(10.0, 10.0)], 0),
        ([(30.0, None)], 60),
    ],
)
def test_minutes_not_delivered_are_not_charged(outages: list[tuple[float, float | None]], undelivered: int) -> None:
    """Outages count once, within the use, and a minute that one touches is the renter's."""
    found = tuple(Outage(after(start), None if stop is None else after(stop)) for start, stop in outages)
    [line] = charge(LineUse(FIRST, RATE, T1, outages=found), until=90)
    assert (line.minutes, line.minutes_not_delivered) == (90 - undelivered, undelivered)


def test_outage_that_was_open_at_the_end_covers_the_rest_of_the_minimum() -> None:
    """Who leaves because the device is lost does not pay for the hour that it could not serve."""
    [line] = charge(LineUse(FIRST, RATE, T1, outages=(Outage(after(10)),)), until=12)
    assert (line.minutes, line.minutes_not_delivered) == (10, 50)


def test_replacement_shares_its_predecessors_minimum() -> None:
    """One hour in all, however many lines served it; the minutes between them are not charged."""
    lost = LineUse(FIRST, RATE, T1, after(10.5))
    first, second = charge(lost, LineUse(SECOND, 600_000, after(14.2)), until=20)
    assert (first.minutes, first.minutes_not_delivered) == (10, 5)
    assert (second.minutes, second.minutes_not_delivered) == (45, 0)
    assert second.amount_uc == 450_000


def test_replacement_that_never_began_costs_nothing() -> None:
    """The renter does not pay for waiting."""
    first, second = charge(LineUse(FIRST, RATE, T1, after(10)), LineUse(SECOND, RATE, None), until=90)
    assert (first.minutes, first.minutes_not_delivered) == (10, 80)
    assert (second.minutes, second.minutes_not_delivered) == (0, 0)


def test_line_replaced_before_the_cluster_was_ready_costs_nothing() -> None:
    """Its replacement serves from T1."""
    first, second = charge(LineUse(FIRST, RATE, None), LineUse(SECOND, RATE, T1), until=5)
    assert (first.minutes, second.minutes) == (0, 60)


MOMENTS = st.integers(0, 3 * 3600).map(lambda seconds: T1 + timedelta(seconds=seconds))


@st.composite
def slots(draw: st.DrawFn) -> list[LineUse]:
    """A chain of lines, each begun some time after the one before was lost, with outages anywhere."""
    rate = draw(st.integers(1, 10**7))
    lines: list[LineUse] = []
    begins: datetime | None = T1
    count = draw(st.integers(1, 4))
    for number in range(count):
        outages = draw(st.lists(st.tuples(MOMENTS, st.none() | MOMENTS), max_size=4))
        found = tuple(Outage(start, stop if stop is None else max(start, stop)) for start, stop in outages)
        is_last = number == count - 1
        lost_at = None if is_last or begins is None else max(begins, draw(MOMENTS))
        lines.append(LineUse(LineId(f"ln_{number}"), rate, begins, lost_at, found))
        rate = draw(st.integers(1, rate))
        begins = (
            None
            if lost_at is None
            else draw(st.none() | st.just(lost_at + timedelta(seconds=draw(st.integers(0, 900)))))
        )
        if begins is None:
            break
    return lines


@given(slots(), st.integers(0, 3 * 3600), st.integers(0, 10_000))
def test_charge_never_exceeds_what_the_slot_may_cost(lines: list[LineUse], used_s: int, fee: int) -> None:
    """Charge ≤ hold: a slot costs at most its quoted rate for the hours begun, whoever served it."""
    until = T1 + timedelta(seconds=used_s)
    charges = slot_charges(lines, starts_at=T1, until=until, is_final=True, fee_basis_points=fee)
    hours_held = max(1, -(-used_s // 3600))
    assert sum(one.amount_uc for one in charges) <= lines[0].rate_uc_per_hour * hours_held
    assert all(0 <= one.fee_uc <= one.amount_uc for one in charges)
    assert sum(one.minutes + one.minutes_not_delivered for one in charges) == max(60, used_s // 60)


@given(slots(), st.integers(0, 3 * 3600), st.integers(0, 3600))
def test_charge_of_a_running_slot_only_grows_and_ends_at_the_bill(lines: list[LineUse], at_s: int, more_s: int) -> None:
    """Given the same facts, what is posted early is never more than what is posted late or in the end."""
    early = slot_charges(lines, starts_at=T1, until=T1 + timedelta(seconds=at_s), is_final=False, fee_basis_points=500)
    end = T1 + timedelta(seconds=at_s + more_s)
    late = slot_charges(lines, starts_at=T1, until=end, is_final=False, fee_basis_points=500)
    final = slot_charges(lines, starts_at=T1, until=end, is_final=True, fee_basis_points=500)
    for before, after_, last in zip(early, late, final, strict=True):
        assert before.amount_uc <= after_.amount_uc <= last.amount_uc
        assert before.provider_uc <= after_.provider_uc <= last.provider_uc


@given(slots(), st.integers(0, 3 * 3600), MOMENTS, st.none() | MOMENTS)
def test_another_outage_never_makes_a_slot_dearer(
    lines: list[LineUse], used_s: int, start: datetime, stop: datetime | None
) -> None:
    """Evidence against a line is the renter's."""
    until = T1 + timedelta(seconds=used_s)
    worse = [
        LineUse(one.line_id, one.rate_uc_per_hour, one.from_at, one.to_at, (*one.outages, Outage(start, stop)))
        for one in lines
    ]
    before = slot_charges(lines, starts_at=T1, until=until, is_final=True, fee_basis_points=500)
    after_ = slot_charges(worse, starts_at=T1, until=until, is_final=True, fee_basis_points=500)
    assert all(b.amount_uc <= a.amount_uc for a, b in zip(before, after_, strict=True))
