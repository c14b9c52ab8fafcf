"""Where a host says that it is, and whether light could be that fast. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

import msgspec

from corral.devices.connection import RelayMeasure

KM_PER_MS = 100.0
"""Light in glass covers 200 km in a millisecond, so there and back 100 km of distance."""
EARTH_RADIUS_KM = 6371.0


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A place as claimed: words for people, degrees for arithmetic."""

    country: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{2}\Z")]
    """ISO 3166-1, two capitals."""
    region: Annotated[str, msgspec.Meta(max_length=60)]
    city: Annotated[str, msgspec.Meta(max_length=60)]
    latitude: Annotated[float, msgspec.Meta(ge=-90, le=90)]
    longitude: Annotated[float, msgspec.Meta(ge=-180, le=180)]

    @property
    def words(self) -> str:
        """Country, region and city, as far as they were told."""
        return "/".join(word for word in (self.country, self.region, self.city) if word)


class Contradiction(NamedTuple):
    """A relay that answers sooner than it could over that distance."""

    relay: str
    distance_km: float
    rtt_ms: float

    def note(self, claimed: Location) -> str:
        """The reason why the claim was refused."""
        return (
            f"{claimed.words} was refused: relay {self.relay} would be {self.distance_km:.0f} km away, "
            f"but a round trip to it takes {self.rtt_ms:.1f} ms, so it is within {self.rtt_ms * KM_PER_MS:.0f} km"
        )


def distance_km(one: Location, other: Location) -> float:
    """The way between two places over the earth's surface (great circle), km."""
    here, there = math.radians(one.latitude), math.radians(other.latitude)
    across = math.radians(other.longitude - one.longitude)
    chord = math.sin((there - here) / 2) ** 2 + math.cos(here) * math.cos(there) * math.sin(across / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(chord)))


def contradiction(
    claimed: Location, measures: Iterable[RelayMeasure], relays: Mapping[str, tuple[str, Location]]
) -> Contradiction | None:
    """
    The relay whose round trips contradict a claim the most; None if none does.

    Args:
        claimed: where the host says that it is.
        measures: what relays have stated of it; their shortest round trips count.
        relays: name and place by id, of those whose place is known.
    """
    worst: Contradiction | None = None
    for one in measures:
        if not one.rtt_us_min or one.relay_id not in relays:
            continue
        name, place = relays[one.relay_id]
        found = Contradiction(name, distance_km(claimed, place), one.rtt_us_min / 1000)
        excess_km = found.distance_km - KM_PER_MS * found.rtt_ms
        if excess_km > 0 and (worst is None or excess_km > worst.distance_km - KM_PER_MS * worst.rtt_ms):
            worst = found
    return worst
