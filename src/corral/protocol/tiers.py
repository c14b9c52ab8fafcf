"""
What a host's connection must be, and the tiers by which it is sold.

Mbit/s is a million bits per second, always, and written out: a byte is eight of them.
"""

from typing import Literal, NamedTuple

MBIT = 1_000_000
DOWNLOAD_MBIT_S_MIN = UPLOAD_MBIT_S_MIN = 250
"""Below this a host is not lent."""
DOWNLOAD_MBIT_S_RECOMMENDED, UPLOAD_MBIT_S_RECOMMENDED = 500, 250
RTT_MS_RECOMMENDED = 30
"""To the nearest relay, less than this."""

TierName = Literal["", "low", "medium", "high", "ultra-high"]


class Tier(NamedTuple):
    """A tier needs both."""

    name: TierName
    download_mbit_s: int
    upload_mbit_s: int


TIERS = (
    Tier("low", 250, 250),
    Tier("medium", 500, 250),
    Tier("high", 800, 600),
    Tier("ultra-high", 1600, 1200),
)
"""From the lowest; docs/provider.md publishes it, docs/decisions/0008 has the reason."""


def tier_of(download_bit_s: int, upload_bit_s: int) -> TierName:
    """The highest tier that a connection reaches in both directions; empty below the lowest, or where not measured."""
    reached: list[TierName] = [
        tier.name
        for tier in TIERS
        if download_bit_s >= tier.download_mbit_s * MBIT and upload_bit_s >= tier.upload_mbit_s * MBIT
    ]
    return reached[-1] if reached else ""


def is_recommended(download_bit_s: int, upload_bit_s: int, rtt_us: int) -> bool:
    """Whether a connection is as fast and as near as is recommended; False where not measured."""
    return (
        download_bit_s >= DOWNLOAD_MBIT_S_RECOMMENDED * MBIT
        and upload_bit_s >= UPLOAD_MBIT_S_RECOMMENDED * MBIT
        and 0 < rtt_us < RTT_MS_RECOMMENDED * 1000
    )
