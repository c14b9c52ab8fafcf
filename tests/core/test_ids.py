"""Ids sort by time and never collide by chance; names are DNS labels."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.ids import ID_PATTERN, TimeOrderedIds, is_name, made_at
from corral.core.randomness import SeededRandomness


class StoppedClock:
    """A clock that shows what it is set to."""

    def __init__(self, now: datetime) -> None:
        self.instant = now

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.instant.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.instant += timedelta(seconds=seconds)


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - zone is given
    st.integers(1, 10**9),
)
def test_id_made_later_sorts_later_and_tells_its_time(at, milliseconds):
    """New rows land at the end of an index, and an id shows when it was made."""
    clock = StoppedClock(at)
    ids = TimeOrderedIds(clock, SeededRandomness(1))
    earlier = ids.new("bk")
    clock.instant = at + timedelta(milliseconds=milliseconds)
    assert earlier < ids.new("bk")
    assert abs(made_at(earlier) - at) <= timedelta(milliseconds=1)
    assert re.match(ID_PATTERN, earlier)


def test_thousand_ids_of_one_millisecond_are_distinct():
    """80 random bits tell apart what the clock cannot."""
    ids = TimeOrderedIds(StoppedClock(datetime(2026, 11, 22, tzinfo=UTC)), SeededRandomness(2))
    assert len({ids.new("ln") for _ in range(1000)}) == 1000


@pytest.mark.parametrize("name", ["a", "mnist", "host-1", "a" * 40])
def test_dns_label_is_a_name(name):
    """A cluster's name becomes its web origin."""
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "1a", "A", "a.b", "a_b", "a" * 41, "ünder", "a\n", "a b", "../a", "x" * 1000]
)
def test_anything_else_is_no_name(name):
    """What is not a DNS label could escape into a path, a header or a host name."""
    assert not is_name(name)
