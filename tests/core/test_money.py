"""Amounts are exact integers; every division says who keeps the remainder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.money import AmountMalformed, amount_uc, fee_uc, format_credits, parse_credits

RATES = st.integers(0, 10**9)
MINUTES = st.integers(0, 10**6)


@given(RATES, st.lists(st.integers(0, 600), max_size=20))
def test_amount_charged_in_parts_equals_the_amount_charged_at_once(rate, parts):
    """A line is charged cumulatively, so that settling every hour costs no more than settling once."""
    charged = minutes = 0
    for part in parts:
        minutes += part
        charged += amount_uc(rate_uc_per_hour=rate, minutes=minutes) - charged
    assert charged == amount_uc(rate_uc_per_hour=rate, minutes=sum(parts))


@given(RATES, MINUTES)
def test_amount_is_rounded_down_by_less_than_one_micro_credit(rate, minutes):
    """The remainder of a division stays with the renter."""
    assert 0 <= rate * minutes - 60 * amount_uc(rate_uc_per_hour=rate, minutes=minutes) < 60


@given(st.integers(0, 10**15), st.integers(0, 10_000))
def test_fee_and_providers_share_make_up_the_whole_amount(amount, basis_points):
    """The fee is taken out of the amount, rounded down; nothing is lost between the two."""
    fee = fee_uc(amount, fee_basis_points=basis_points)
    assert 0 <= fee <= amount
    assert 0 <= amount * basis_points - 10_000 * fee < 10_000


@given(st.integers(0, 10**15 - 1))
def test_amount_written_as_credits_reads_back_unchanged(amount):
    """Six digits behind the point are all that a micro-credit needs."""
    assert parse_credits(format_credits(amount)) == amount


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0.00"), (1, "0.000001"), (2_100_000, "2.10"), (-1_500_000, "-1.50"), (10**6, "1.00")]
)
def test_amount_is_written_with_two_digits_or_as_many_as_it_needs(amount, text):
    """People see cents; nothing is hidden by rounding."""
    assert format_credits(amount) == text


@pytest.mark.parametrize("text", ["", "-1", "1,50", "1e3", "NaN", "inf", "0.0000001", "1_000", "1234567890", "٣"])
def test_text_that_is_no_plain_decimal_is_refused(text):
    """A misread amount would move the wrong money."""
    with pytest.raises(AmountMalformed):
        parse_credits(text)
