"""What a gauge makes of what it counts and times: laws about rates, round trips, and whose turn it is."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.units import MIB
from corral.protocol.gauge import BUSY, DOWNLOAD, GRANTED, NO_NONCE, REFUSED, UPLOAD, Ask
from corral.relay.gauge.book import Book, Meter
from corral.relay.gauge.limits import GaugeLimits

A, B = "ho_a", "ho_b"


def a_book(**limits: float) -> Book:
    """A book that begins at 0, whose numbers count up."""
    count = iter(range(1, 10**6))
    nonce: Callable[[int], bytes] = lambda size: next(count).to_bytes(size, "big")  # noqa: E731
    return Book("ho_relay", GaugeLimits(**limits), 0.0, nonce)  # type: ignore[arg-type]


@given(st.floats(min_value=10, max_value=20_000), st.integers(1, 8), st.floats(0.02, 0.6))
def test_a_steady_line_is_measured_as_it_is(mbit: float, streams: int, ramp_s: float) -> None:
    """Whatever the number of streams, and however long TCP took to begin."""
    meter, now = Meter(), 0.0
    meter.begin(0.0)
    while now < 3.0:
        now += 0.01
        share = min(1.0, now / ramp_s)
        for _ in range(streams):
            meter.count(int(mbit * 1e6 / 8 * 0.01 * share / streams), now)
    assert meter.rate_bit_s() == pytest.approx(mbit * 1e6, rel=0.03)


@given(st.lists(st.tuples(st.integers(1, 10**7), st.floats(0.001, 0.5)), min_size=1, max_size=40))
def test_a_rate_is_never_more_than_the_best_step(transfers: list[tuple[int, float]]) -> None:
    """However the bytes come in: what was not there in any step is not measured."""
    meter, now, steps = Meter(), 0.0, dict[int, int]()
    meter.begin(0.0)
    for size, pause_s in transfers:
        now += pause_s
        meter.count(size, now)
        steps[int(now / 0.05)] = steps.get(int(now / 0.05), 0) + size
    assert 0 < meter.rate_bit_s() <= max(max(steps.values()) * 8 / 0.05, meter.total_bytes * 8 / now) * 1.01


def test_a_round_trip_counts_only_with_the_number_of_the_last_answer() -> None:
    """Who asks before the answer has arrived cannot know it: a link is never shorter than it is."""
    book = a_book()
    first = book.answer(A, Ask(b"", 7, 1, NO_NONCE), 0.0)
    assert first is not None
    book.answer(A, Ask(b"", 7, 2, b"\xff" * 8), 0.001)
    late = book.answer(A, Ask(b"", 7, 3, first.nonce), 0.002)
    assert late is not None
    book.answer(A, Ask(b"", 7, 4, late.nonce), 0.042)
    found = book.statement(A, 1.0, unix_s=5)
    assert (found.round_trips, found.rtt_us) == (1, 40_000)
    assert found.loss_ppm == pytest.approx(666_667)


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.floats(0.001, 0.4))
def test_loss_is_the_share_of_round_trips_that_did_not_come_back(lost: list[bool], rtt_s: float) -> None:
    """A lost one breaks one number, not the series."""
    book, now, nonce, came_back = a_book(), 0.0, NO_NONCE, 0
    for sequence, is_lost in enumerate(lost, start=1):
        answer = book.answer(A, Ask(b"", 1, sequence, nonce), now)
        assert answer is not None
        nonce = NO_NONCE if is_lost else answer.nonce
        came_back += not is_lost and sequence < len(lost)
        now += 1.0 if is_lost else rtt_s
    found = book.statement(A, now, unix_s=0)
    assert found.round_trips == came_back
    assert found.loss_ppm == round(1e6 * (len(lost) - 1 - came_back) / (len(lost) - 1))
    if came_back:
        assert found.rtt_us == pytest.approx(rtt_s * 1e6, abs=2)


def test_a_turn_ends_by_a_statement_by_rest_and_by_time() -> None:
    """Nobody keeps the others waiting for longer than 30 s, or after 3 s of silence."""
    book = a_book()
    assert book.open(A, 1, DOWNLOAD, 0.0).status == GRANTED
    assert book.open(B, 1, UPLOAD, 1.0) == (BUSY, 29)
    book.close(A, 2.0)
    assert book.open(B, 1, UPLOAD, 4.9).status == BUSY
    assert book.open(B, 1, UPLOAD, 5.0).status == GRANTED
    assert book.open(A, 2, UPLOAD, 34.9).status == BUSY
    assert book.left_bytes(B, 34.9) > 0
    assert book.open(A, 2, UPLOAD, 35.0).status == GRANTED
    assert book.left_bytes(B, 35.0) == 0
    book.close(A, 36.0)
    book.statement(A, 36.0, unix_s=0)
    assert book.open(B, 2, UPLOAD, 36.0).status == REFUSED  # Its old stream is still open.
    book.close(B, 36.0)
    assert book.open(B, 2, UPLOAD, 36.0).status == GRANTED


def test_turns_without_use_run_out() -> None:
    """A host that takes every turn and moves nothing is held up, and others come in."""
    book, granted = a_book(), 0
    for number in range(100):
        now = number * 30.0
        if book.open(A, number, DOWNLOAD, now).status == GRANTED:
            granted += 1
            book.close(A, now)
    assert granted <= 12 + math.ceil(3000 / 3600 * 12)


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 4 * MIB)), max_size=60))
def test_no_host_and_not_all_together_get_more_than_their_bytes(moves: list[tuple[str, int]]) -> None:
    """But for the one step that is under way when the end is reached."""
    book, now, moved = a_book(host_bytes_hour=16 * MIB, bytes_hour=24 * MIB, turns_hour=1000.0), 0.0, {A: 0, B: 0}
    for number, (host, size) in enumerate(moves):
        now += 0.001
        if book.open(host, number, DOWNLOAD, now).status != GRANTED:
            continue
        if book.left_bytes(host, now) > 0:
            book.count(host, DOWNLOAD, size, now)
            moved[host] += size
        book.close(host, now)
        book.statement(host, now, unix_s=0)
    assert all(total <= 16 * MIB + 4 * MIB + 1000 for total in moved.values())
    assert sum(moved.values()) <= 24 * MIB + 4 * MIB + 1000


def test_asking_has_a_bound_and_so_has_what_is_remembered() -> None:
    """A host that floods us is answered at its rate; many hosts push out the oldest."""
    book = a_book(hosts_max=8)
    answered = sum(book.answer(A, Ask(b"", 1, number, NO_NONCE), 0.0) is not None for number in range(1000))
    assert answered == 200
    for number in range(50):
        book.answer(f"ho_{number}", Ask(b"", 1, 1, NO_NONCE), 1.0)
    assert book.hosts == 8
