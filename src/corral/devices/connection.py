"""What is known of a host's connection, from what relays' gauges have stated. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from corral.core.ids import HostId
from corral.protocol.tiers import TierName, tier_of

SAME_TIME = timedelta(hours=1)
"""Bandwidths measured within this time are of one measurement, at several relays: the best of them counts."""
STALE_AFTER = timedelta(days=2)
"""A round trip that was measured so much earlier than the newest is to a relay that is no longer used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayMeasure:
    """What one relay's gauge has stated of one host."""

    relay_id: HostId
    rtt_us: int
    """Median; 0: no round trip came back."""
    rtt_us_min: int
    jitter_us: int
    loss_ppm: int
    measured_at: datetime
    download_bit_s: int
    upload_bit_s: int
    bandwidth_at: datetime | None


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A host's connection. Zero where it was not measured."""

    download_bit_s: int = 0
    upload_bit_s: int = 0
    bandwidth_at: datetime | None = None
    nearest_id: str = ""
    """The relay with the shortest round trip, to which the next three belong."""
    rtt_us: int = 0
    jitter_us: int = 0
    loss_ppm: int = 0
    measured_at: datetime

    @property
    def tier(self) -> TierName:
        """Empty below the lowest, or where not measured."""
        return tier_of(self.download_bit_s, self.upload_bit_s)


def connection_of(measures: Iterable[RelayMeasure]) -> Connection | None:
    """A host's connection by all that was stated of it; None if nothing was."""
    known = sorted(measures, key=lambda one: one.relay_id)
    if not known:
        return None
    newest = max(one.measured_at for one in known)
    bandwidth_at = max((one.bandwidth_at for one in known if one.bandwidth_at is not None), default=None)
    together = [
        one
        for one in known
        if one.bandwidth_at is not None and bandwidth_at is not None and one.bandwidth_at > bandwidth_at - SAME_TIME
    ]
    near = [one for one in known if one.rtt_us and one.measured_at > newest - STALE_AFTER]
    nearest = min(near, key=lambda one: one.rtt_us, default=None)
    return Connection(
        download_bit_s=max((one.download_bit_s for one in together), default=0),
        upload_bit_s=max((one.upload_bit_s for one in together), default=0),
        bandwidth_at=bandwidth_at,
        nearest_id=nearest.relay_id if nearest else "",
        rtt_us=nearest.rtt_us if nearest else 0,
        jitter_us=nearest.jitter_us if nearest else 0,
        loss_ppm=nearest.loss_ppm if nearest else 0,
        measured_at=newest,
    )
