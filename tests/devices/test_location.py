"""A place that light could not have reached is refused; all others are not."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.ids import HostId
from corral.devices.connection import RelayMeasure
from corral.devices.location import Location, contradiction, distance_km

NOW = datetime(2026, 1, 1, tzinfo=UTC)
places = st.builds(
    Location,
    country=st.just("DE"),
    region=st.just(""),
    city=st.just(""),
    latitude=st.floats(-90, 90),
    longitude=st.floats(-180, 180),
)


def at(latitude: float, longitude: float) -> Location:
    return Location(country="DE", region="Hesse", city="Frankfurt", latitude=latitude, longitude=longitude)


def measured(relay: str, rtt_ms: float) -> RelayMeasure:
    rtt_us = round(rtt_ms * 1000)
    return RelayMeasure(
        relay_id=HostId(relay), rtt_us=rtt_us, rtt_us_min=rtt_us, jitter_us=0, loss_ppm=0, measured_at=NOW,
        download_bit_s=0, upload_bit_s=0, bandwidth_at=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "km"),
    [((50.11, 8.68), (52.52, 13.40), 424), ((51.5, -0.12), (40.7, -74.0), 5570), ((0, 179), (0, -179), 222)],
)
def test_distances_are_those_of_the_map(one: tuple[float, float], other: tuple[float, float], km: float) -> None:
    """Frankfurt to Berlin, London to New York, and over the date line."""
    assert distance_km(at(*one), at(*other)) == pytest.approx(km, rel=0.01)


@given(places, places, st.floats(0.01, 500))
def test_a_claim_is_refused_exactly_where_light_is_too_slow(claimed: Location, relay: Location, rtt_ms: float) -> None:
    """100 km for each millisecond there and back, whatever the direction."""
    found = contradiction(claimed, [measured("ho_r", rtt_ms)], {"ho_r": ("relay-1", relay)})
    reach_km = 100 * round(rtt_ms * 1000) / 1000
    assert (found is not None) == (distance_km(claimed, relay) > reach_km and reach_km > 0)
    assert distance_km(claimed, relay) == pytest.approx(distance_km(relay, claimed))


def test_the_strongest_contradiction_is_told_and_unknown_places_say_nothing() -> None:
    """A relay whose operator has not told where it is contradicts nobody."""
    relays = {"ho_a": ("berlin", at(52.5, 13.4)), "ho_b": ("sydney", at(-33.9, 151.2))}
    measures = [measured("ho_a", 1.0), measured("ho_b", 5.0), measured("ho_c", 0.1)]
    found = contradiction(at(50.1, 8.7), measures, relays)
    assert found is not None
    assert (found.relay, round(found.rtt_ms)) == ("sydney", 5)
    assert "within 500 km" in found.note(at(50.1, 8.7))
    assert contradiction(at(50.1, 8.7), measures[2:], relays) is None
