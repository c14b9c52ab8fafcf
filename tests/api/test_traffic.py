"""What of a cluster's traffic is allowed, counted and shown: the internet, its cap, and the planes."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.estate import IMAGES, Estate
from corral.platform.http import Platform
from corral.testing.clock import FakeClock
from corral.testing.ids import numbered_id
from keyholders import Keyholder, keyholder


@pytest.fixture
def platform(platform: Platform) -> Platform:
    """With images, so that clusters can be booked."""
    return replace(platform, images=IMAGES)


@pytest.fixture
async def estate(
    app: FastAPI, http: httpx.AsyncClient, platform: Platform, clock: FakeClock, operator: Keyholder
) -> Estate:
    """Ada's host with two slices; Bob has credit."""
    ada, bob = await keyholder(platform, "ada"), await keyholder(platform, "bob")
    made = Estate(app, http, platform, clock, operator, ada, bob)
    await made.build()
    return made


async def book(estate: Estate, **wish: Any) -> dict[str, Any]:
    """A ready cluster of Bob's, by what he wishes beside a slice."""
    quote = await estate.ok("POST", "/v1/quotes", estate.renter, {"cpu": 1, "name": "mnist", **wish})
    estate.booked += 1
    body = {"id": numbered_id("bk", estate.booked), "quote_id": quote["id"]}
    await estate.ok("POST", "/v1/clusters", estate.renter, body)
    await estate.run()
    return await show(estate)


async def show(estate: Estate) -> dict[str, Any]:
    """Bob's cluster."""
    return await estate.ok("GET", "/v1/clusters/mnist", estate.renter)


@pytest.mark.parametrize("wish", [{}, {"internet": True}, {"internet": False}])
async def test_internet_is_open_unless_the_renter_closes_it(estate: Estate, wish: dict[str, bool]) -> None:
    """What was wished for is in the quote, with the cluster, and in what its hosts are told."""
    wished = wish.get("internet", True)
    quote = await estate.ok("POST", "/v1/quotes", estate.renter, {"cpu": 1, **wish})
    assert quote["internet"] is wished
    assert (await book(estate, **wish))["internet"] is wished
    desired = estate.host("barn").desired
    assert desired is not None
    assert [node.has_internet for node in desired.nodes] == [wished]


COUNTED = ("received_bytes", "sent_bytes", "internet_received_bytes", "internet_sent_bytes")


async def test_traffic_in_all_outlives_the_counters(estate: Estate) -> None:
    """A namespace that is made anew counts from nothing; what was counted before stays counted."""
    await book(estate)
    barn = estate.host("barn")
    [node] = barn.nodes.values()
    before = (await show(estate))["nodes"][0]
    assert all(before[column] > 0 for column in COUNTED)
    node.steps = 1
    await estate.run(1)
    after = (await show(estate))["nodes"][0]
    assert [after[column] - before[column] for column in COUNTED] == [1000, 500, 2000, 100]


async def test_members_reached_by_relay_alone_are_named(estate: Estate) -> None:
    """The renter sees which of his nodes have no direct path, and to whom."""
    ready = await book(estate)
    assert ready["nodes"][0]["relayed"] == []
    barn = estate.host("barn")
    barn.reaches_by_relay = True
    await estate.run(1)
    assert (await show(estate))["nodes"][0]["relayed"] == ["gateway"]


async def test_cap_is_offered_quoted_booked_and_told_to_the_host(estate: Estate) -> None:
    """It counts per device, and what is booked keeps what was quoted; without one there is none."""
    [offer] = (await estate.ok("GET", "/v1/offers", estate.renter))["offers"]
    assert offer["traffic_cap_bytes"] is None
    cap = {"traffic_cap_bytes": 5 * 10**9}
    assert (await estate.ok("PUT", "/v1/hosts/barn/traffic-cap", estate.provider, cap))[
        "traffic_cap_bytes"
    ] == 5 * 10**9
    [offer] = (await estate.ok("GET", "/v1/offers", estate.renter))["offers"]
    assert offer["traffic_cap_bytes"] == 5 * 10**9
    quote = await estate.ok("POST", "/v1/quotes", estate.renter, {"cpu": 2})
    assert [line["traffic_cap_bytes"] for line in quote["lines"]] == [5 * 10**9] * 2
    ready = await book(estate, cpu=2)
    assert ready["nodes"][0]["traffic_cap_bytes"] == 10**10
    await estate.ok("PUT", "/v1/hosts/barn/traffic-cap", estate.provider, {"traffic_cap_bytes": None})
    await estate.run(1)
    desired = estate.host("barn").desired
    assert desired is not None
    assert [node.internet_cap_bytes for node in desired.nodes] == [10**10]


@pytest.mark.parametrize("cap", [0, 10**8 - 1, 10**12 + 1, "5GB", -1])
async def test_cap_that_makes_no_sense_is_refused(estate: Estate, cap: object) -> None:
    """From 100 MB to 1 TB an hour."""
    path, body = "/v1/hosts/barn/traffic-cap", {"traffic_cap_bytes": cap}
    answer = await estate.http.put(path, json=body, headers=estate.provider.headers)
    assert answer.status_code == 422


async def test_slowed_node_is_shown_as_such(estate: Estate) -> None:
    """The renter sees why his downloads are slow."""
    assert not (await book(estate))["nodes"][0]["is_slowed"]
    estate.host("barn").has_used_its_cap = True
    await estate.run(1)
    assert (await show(estate))["nodes"][0]["is_slowed"]
