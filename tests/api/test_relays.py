"""Relays in the control plane: mailboxes for every member, in the roster and at the relay, for as long as both live."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from api.estate import IMAGES, Estate
from corral.core.ids import HostId
from corral.mesh import RelayView, wanted_relays
from corral.platform.http import Platform
from corral.protocol.roster import Roster
from corral.testing.clock import FakeClock
from corral.testing.simulated_host import SimulatedHost
from keyholders import Keyholder, keyholder


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
    """The `number`th relay, at an address of its own."""
    return await estate.add_host(f"relay-{number}", estate.operator, role="relay", advertise=f"198.51.100.{number}")


def roster_of(host: SimulatedHost) -> Roster:
    """The one roster that a host was told last."""
    assert host.desired is not None
    [signed] = host.desired.rosters.values()
    return msgspec.json.decode(signed.payload, type=Roster)


async def test_every_member_gets_a_mailbox_at_each_relay_and_the_relays_know_it(estate: Estate) -> None:
    """What the roster says and what the relay serves are the same; after the cluster both are gone."""
    relays = [await relay(estate, number) for number in (1, 2)]
    await estate.book(estate.renter, "mnist")
    await estate.run()
    roster = roster_of(estate.host("barn"))
    assert [one.address for one in roster.relays] == ["198.51.100.1", "198.51.100.2"]
    assert {member.kind for member in roster.members} == {"node", "leaf"}
    told = {
        (one.host_id, box.port, box.node_id, box.relayed_key)
        for one in relays
        if one.desired is not None
        for box in one.desired.mailboxes
    }
    named = {
        (box.relay_id, box.port, member.node_id, member.relayed_key)
        for member in roster.members
        for box in member.mailboxes
    }
    assert told == named
    assert len(named) == 4
    assert {box[1] for box in named} <= set(range(41000, 41008))
    await estate.ok("DELETE", "/v1/clusters/mnist", estate.renter)
    await estate.run()
    assert [one.desired.mailboxes for one in relays if one.desired is not None] == [(), ()]


async def test_where_a_relay_sees_a_member_is_one_more_way_to_it(estate: Estate) -> None:
    """Behind NAT that is the only one at which others can call; the bridge stays the first."""
    seer = await relay(estate, 1)
    await estate.book(estate.renter, "mnist")
    await estate.run()
    before = roster_of(estate.host("barn"))
    node = next(member for member in before.members if member.kind == "node")
    seer.observed[node.node_id] = "203.0.113.9:51820"
    seer.observed["no_" + "0" * 26] = "203.0.113.66:4444"
    await estate.run()
    after = roster_of(estate.host("barn"))
    found = next(member for member in after.members if member.kind == "node")
    assert found.endpoints == (*node.endpoints, "203.0.113.9:51820")
    assert after.serial == before.serial + 1
    await estate.run()
    assert roster_of(estate.host("barn")).serial == after.serial


async def test_a_relay_that_went_away_is_replaced_once_there_is_another(estate: Estate) -> None:
    """Until then its members go on as they are: each change of the roster is one for everybody."""
    lost = await relay(estate, 1)
    await estate.book(estate.renter, "mnist")
    await estate.run()
    before = roster_of(estate.host("barn"))
    lost.is_down = True
    await estate.run(90)
    assert roster_of(estate.host("barn")) == before
    await relay(estate, 2)
    await estate.run(10)
    after = roster_of(estate.host("barn"))
    assert "198.51.100.2" in [one.address for one in after.relays]


async def test_a_relay_without_a_free_port_gives_none(estate: Estate) -> None:
    """A cluster starts without the relayed plane rather than not at all."""
    await relay(estate, 1)
    await estate.add_host("extra", estate.provider, slices=3)
    names = ("one", "two", "three", "four", "five")
    for name in names:
        await estate.book(estate.renter, name)
    await estate.run(12)
    for name in names:
        assert (await estate.ok("GET", f"/v1/clusters/{name}", estate.renter))["state"] == "ready"


async def test_only_an_operator_makes_relays(estate: Estate) -> None:
    """Who runs one sees which hosts talk to each other, and can cut them off."""
    for owner, status in ((estate.provider, 403), (estate.operator, 201)):
        answer = await estate.http.post("/v1/hosts/tokens", json={"role": "relay"}, headers=owner.headers)
        assert answer.status_code == status


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 30)), max_size=8),
    st.sets(st.integers(0, 7)),
)
def test_relays_of_a_cluster_change_only_for_a_reason(drawn: list[tuple[int, bool, int]], present: set[int]) -> None:
    """Those in use stay while they are online; the choice repeats itself; sites differ while they can."""
    views = [
        RelayView(
            relay_id=HostId(f"ho_{number}"),
            address=f"198.51.100.{site}",
            observer_key="",
            is_online=online,
            mailboxes=used,
            port_count=32,
        )
        for number, (site, online, used) in enumerate(drawn)
    ]
    used = {f"ho_{number}" for number in present if number < len(views)}
    chosen = wanted_relays(used, views)
    ids = {one.relay_id for one in chosen}
    assert len(chosen) == len(ids) <= 3
    staying = [one for one in views if one.relay_id in used and one.is_online]
    assert len(ids & {one.relay_id for one in staying}) == min(3, len(staying))
    assert {one.relay_id for one in wanted_relays(ids, reversed(views))} == ids
    fresh = wanted_relays((), views)
    assert all(one.is_online and one.has_room for one in fresh)
    sites = {one.site for one in views if one.is_online and one.has_room}
    assert len({one.site for one in fresh}) == min(3, len(sites))
