"""
Money: integer micro-credits (uc); one credit is one US dollar.

Every division names its rounding and who gets the remainder.
"""

import re
from typing import NewType

from corral.core.errors import CorralError

Uc = NewType("Uc", int)
"""Micro-credits: 1_000_000 uc = 1 credit = 1 USD."""

UC_PER_CREDIT = 1_000_000
AMOUNT_UC_MAX = 10**15
"""One thousand million credits: more than any one amount may be, and far below the 64 bits that PostgreSQL keeps."""

_DECIMAL = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,6}))?")


class AmountMalformed(CorralError):
    """A text that should be an amount of credits is none."""

    code = "amount_malformed"


def amount_uc(*, rate_uc_per_hour: int, minutes: int) -> Uc:
    """
    What `minutes` cost at an hourly rate, in micro-credits, rounded down: the remainder stays with the renter.

    A line is charged cumulatively (this function of all its minutes, less what was charged before), so that rounding
    never adds up.
    """
    return Uc(rate_uc_per_hour * minutes // 60)


def fee_uc(amount: int, *, fee_basis_points: int) -> Uc:
    """The network's share of a renter's `amount`, rounded down: the remainder is the provider's."""
    return Uc(amount * fee_basis_points // 10_000)


def parse_credits(text: str) -> Uc:
    """
    Reads a decimal amount of credits ("12", "0.5", "1.000001") as micro-credits, exactly.

    Raises:
        AmountMalformed: not a plain decimal with at most 9 digits before and 6 behind the point.
    """
    match = _DECIMAL.fullmatch(text.strip())
    if match is None:
        raise AmountMalformed(
            f"{text!r} is not an amount of credits", hint="write it as a plain decimal, for example 12.50", text=text
        )
    whole, fraction = match.groups()
    return Uc(int(whole) * UC_PER_CREDIT + int((fraction or "").ljust(6, "0")))


def format_credits(amount: int, *, digits_min: int = 2) -> str:
    """Writes micro-credits as credits, exactly, with at least `digits_min` digits behind the point."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), UC_PER_CREDIT)
    digits = f"{fraction:06d}".rstrip("0").ljust(digits_min, "0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"
