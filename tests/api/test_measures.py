"""What relays state of hosts: whom the control plane lets measure, and what it believes afterwards."""

import base64
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI

from api.estate import IMAGES, Estate
from corral.devices.measures import GAUGES_MAX, NEAREST, chosen_relays, gauge_key
from corral.platform.http import Platform
from corral.protocol.gauge import permit_key, read_permit
from corral.protocol.roster import Roster
from corral.protocol.tiers import MBIT
from corral.testing.clock import FakeClock
from corral.testing.simulated_host import SimulatedHost
from keyholders import Keyholder, keyholder

GOOD = {
    "download_bit_s": 900 * MBIT, "upload_bit_s": 650 * MBIT, "download_bytes": 10**8, "upload_bytes": 10**8,
    "round_trips": 20, "rtt_us": 12_000, "rtt_us_min": 11_000, "jitter_us": 300, "loss_ppm": 50_000,
}  # fmt: skip
FRANKFURT = {"country": "DE", "region": "Hesse", "city": "Frankfurt", "latitude": 50.11, "longitude": 8.68}
BERLIN = {"country": "DE", "region": "Berlin", "city": "Berlin", "latitude": 52.52, "longitude": 13.4}
SYDNEY = {"country": "AU", "region": "NSW", "city": "Sydney", "latitude": -33.87, "longitude": 151.21}


@pytest.fixture
def platform(platform: Platform) -> Platform:
    """With images, so that clusters can be booked."""
    return replace(platform, images=IMAGES)


@pytest.fixture
async def estate(app: FastAPI, http: Any, platform: Platform, clock: FakeClock, operator: Keyholder) -> Estate:
    """Ada's host and the operator's gateway."""
    ada, bob = await keyholder(platform, "ada"), await keyholder(platform, "bob")
    made = Estate(app, http, platform, clock, operator, ada, bob)
    await made.build()
    await made.run(2)
    return made


async def relay(estate: Estate, number: int) -> SimulatedHost:
    """The `number`th relay, with a gauge."""
    made = await estate.add_host(f"relay-{number}", estate.operator, role="relay", advertise=f"198.51.100.{number}")
    made.gauge_port = 40999
    await made.turn()
    return made


async def shown(estate: Estate) -> dict[str, Any]:
    """The host as its provider sees it."""
    return await estate.ok("GET", "/v1/hosts/barn", estate.provider)


async def test_hosts_get_permits_that_the_relay_can_check(estate: Estate) -> None:
    """Only for relays that are online and measure; the same through the hour, so that nothing changes for nothing."""
    host = estate.host("barn")
    assert host.desired is not None
    assert host.desired.gauges == ()
    one = await relay(estate, 1)
    await estate.run(2)
    (spec,) = host.desired.gauges
    assert (spec.relay_id, spec.address, spec.port) == (one.host_id, "198.51.100.1", 40999)
    assert one.desired is not None
    assert one.desired.gauges == ()
    key = base64.b64decode(one.desired.gauge_key)
    assert key == gauge_key(estate.platform.master_key, one.host_id)
    assert permit_key(key, base64.b64decode(spec.permit)) == base64.b64decode(spec.permit_key)
    permit = read_permit(base64.b64decode(spec.permit), now=estate.clock.now().timestamp())
    assert permit.host_id == host.host_id
    assert 3600 <= permit.expires_at - estate.clock.now().timestamp() <= 7200
    one.is_down = True
    await estate.run(90)
    assert host.desired.gauges == ()


async def test_what_a_relay_has_signed_is_shown_with_its_tier(estate: Estate) -> None:
    """To the provider with all figures, to renters as the tier of the offer."""
    one = await relay(estate, 1)
    host = estate.host("barn")
    assert (await shown(estate))["connection"] is None
    host.statements = (one.state(host.host_id, **GOOD),)
    await estate.run(1)
    found = (await shown(estate))["connection"]
    assert (found["download_mbit_s"], found["upload_mbit_s"], found["tier"]) == (900.0, 650.0, "high")
    assert (found["relay"], found["rtt_ms"], found["jitter_ms"], found["loss_percent"]) == ("relay-1", 12.0, 0.3, 5.0)
    assert found["is_recommended"]
    offers = (await estate.ok("GET", "/v1/offers", estate.renter))["offers"]
    assert {offer["tier"] for offer in offers} == {"high"}


async def test_round_trips_alone_leave_the_bandwidth_as_it_was(estate: Estate) -> None:
    """They are measured far more often."""
    one = await relay(estate, 1)
    host = estate.host("barn")
    host.statements = (one.state(host.host_id, **GOOD),)
    await estate.run(1)
    estate.clock.advance(60)
    host.statements = (one.state(host.host_id, round_trips=20, rtt_us=40_000, rtt_us_min=39_000),)
    await estate.run(1)
    found = (await shown(estate))["connection"]
    assert (found["download_mbit_s"], found["rtt_ms"], found["is_recommended"]) == (900.0, 40.0, False)


@pytest.mark.parametrize("kind", ["foreign", "forged", "no relay", "late", "early", "garbage"])
async def test_what_no_relay_has_said_of_this_host_now_is_left_out(estate: Estate, kind: str) -> None:
    """And the rest of the report is taken all the same."""
    one = await relay(estate, 1)
    host, gate = estate.host("barn"), estate.host("gate")
    signed = one.state(gate.host_id if kind == "foreign" else host.host_id, **GOOD)
    if kind == "forged":
        signed = msgspec.structs.replace(signed, payload=signed.payload.replace("900000000", "990000000"))
    elif kind == "no relay":
        signed = gate.state(host.host_id, **GOOD)
    elif kind == "late":
        estate.clock.advance(3700)
        await one.turn()
    elif kind == "garbage":
        signed = msgspec.structs.replace(signed, payload="[" * 2000)
    elif kind == "early":
        statement = signed.payload.replace('"at":', '"at":9')
        signed = msgspec.structs.replace(signed, payload=statement)
    host.statements, host.advertise = (signed,), "203.0.113.5"
    await estate.run(1)
    found = await shown(estate)
    assert found["connection"] is None
    assert found["status"] == "idle"


async def test_the_roster_tells_how_far_each_member_is_from_its_relays(estate: Estate) -> None:
    """So that a pair meets at the near one."""
    one, two = await relay(estate, 1), await relay(estate, 2)
    host = estate.host("barn")
    host.statements = (one.state(host.host_id, **GOOD), two.state(host.host_id, **GOOD | {"rtt_us": 80_000}))
    await estate.run(1)
    await estate.book(estate.renter, "mnist")
    await estate.run()
    assert host.desired is not None
    [signed] = host.desired.rosters.values()
    roster = msgspec.json.decode(signed.payload, type=Roster)
    node = next(member for member in roster.members if member.kind == "node")
    leaf = next(member for member in roster.members if member.kind == "leaf")
    assert {box.relay_id: box.rtt_us for box in node.mailboxes} == {one.host_id: 12_000, two.host_id: 80_000}
    assert {box.rtt_us for box in leaf.mailboxes} == {0}


async def test_a_place_that_a_round_trip_contradicts_is_refused(estate: Estate) -> None:
    """At the claim, and later if the measurement comes afterwards."""
    one = await relay(estate, 1)
    host = estate.host("barn")
    await estate.ok("PUT", "/v1/hosts/relay-1/location", estate.operator, FRANKFURT)
    await estate.ok("PUT", "/v1/hosts/barn/location", estate.provider, SYDNEY)
    assert (await shown(estate))["location"]["city"] == "Sydney"
    host.statements = (one.state(host.host_id, **GOOD),)
    await estate.run(1)
    found = await shown(estate)
    assert found["location"] is None
    assert "AU/NSW/Sydney was refused: relay relay-1" in found["location_note"]
    refused = await estate.http.put("/v1/hosts/barn/location", json=SYDNEY, headers=estate.provider.headers)
    assert (refused.status_code, refused.json()["code"]) == (409, "location_contradicted")
    assert refused.json()["facts"] == {"relay": "relay-1", "distance_km": 16_483, "rtt_ms": 11.0}
    await estate.ok("PUT", "/v1/hosts/barn/location", estate.provider, BERLIN)
    found = await shown(estate)
    assert (found["location"]["city"], found["location_note"]) == ("Berlin", "")


def test_a_host_measures_at_the_near_relays_and_at_some_others() -> None:
    """Others differ from host to host, so that together they reach all; the same host gets the same."""
    rtts_us = {f"ho_{number}": number if number < 10 else 0 for number in range(1, 101)}
    drawn = [chosen_relays(f"ho_h{number}", rtts_us) for number in range(40)]
    assert all(len(set(one)) == GAUGES_MAX for one in drawn)
    assert all(one[:NEAREST] == ["ho_1", "ho_2", "ho_3", "ho_4"] for one in drawn)
    assert len({relay_id for one in drawn for relay_id in one}) > 90
    assert chosen_relays("ho_h1", rtts_us) == drawn[1]
    assert chosen_relays("ho_h1", {"ho_a": 0}) == ["ho_a"]
