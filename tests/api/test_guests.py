"""The renter's own machines in the mesh: who is named, for how long, and what is refused."""

import base64
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from api.estate import IMAGES, Estate
from corral.clusters import Reconciler
from corral.clusters.guest import apart
from corral.market import Prices
from corral.platform.http import Platform
from corral.protocol.roster import Member, Roster
from corral.testing.clock import FakeClock
from corral.testing.ids import numbered_id
from keyholders import Keyholder, keyholder

LAPSE_S = 120


@pytest.fixture
def platform(platform: Platform) -> Platform:
    """With images, so that clusters can be booked."""
    return replace(platform, images=IMAGES)


@pytest.fixture
async def estate(
    app: FastAPI, http: httpx.AsyncClient, platform: Platform, clock: FakeClock, operator: Keyholder
) -> Estate:
    """A ready cluster `mnist` of Bob's."""
    made = Estate(
        app, http, platform, clock, operator, await keyholder(platform, "ada"), await keyholder(platform, "bob")
    )
    await made.build()
    await made.book(made.renter, "mnist")
    await made.run()
    return made


def a_key(number: int) -> str:
    """The `number`th of several public keys."""
    return base64.b64encode(number.to_bytes(32, "big")).decode()


def keys(number: int) -> dict[str, str]:
    """The keys of the `number`th of several machines."""
    return {"direct_key": a_key(2 * number + 1), "relayed_key": a_key(2 * number + 2)}


def path(number: int, cluster: str = "mnist") -> str:
    """Where the `number`th machine is put."""
    return f"/v1/clusters/{cluster}/guests/{numbered_id('gu', number)}"


async def put(estate: Estate, number: int, body: dict[str, str] | None = None) -> Any:
    """What is answered when the `number`th machine says that it is there."""
    return await estate.ok("PUT", path(number), estate.renter, body or keys(number))


async def refused(estate: Estate, place: str, body: dict[str, str]) -> tuple[int, str]:
    """Status and code of a request that must fail."""
    answer = await estate.http.put(place, json=body, headers=estate.renter.headers)
    return answer.status_code, answer.json()["code"]


def roster(estate: Estate) -> Roster:
    """What the host has applied."""
    (node,) = estate.host("barn").nodes.values()
    assert node.roster is not None
    return node.roster


def guests(estate: Estate) -> dict[str, Member]:
    """By id: the renter's machines as the host knows them."""
    return {one.node_id: one for one in roster(estate).members if one.node_id.startswith("gu_")}


async def test_guest_is_named_as_a_leaf_by_the_next_roster(estate: Estate) -> None:
    """With the address that it was told, and without a way to call it until a relay has seen it."""
    before = roster(estate)
    made = await put(estate, 1)
    await estate.run(2)
    (member,) = guests(estate).values()
    head = next(one for one in before.members if one.kind == "node")
    gateway = next(one for one in before.members if one.kind == "leaf")
    assert (member.kind, member.address, member.endpoints) == ("leaf", made["address"], ())
    assert (member.direct_key, member.relayed_key) == tuple(keys(1).values())
    assert member.address not in {head.address, gateway.address}
    assert roster(estate).serial == before.serial + 1
    assert await estate.ok("GET", "/v1/clusters/mnist/guests", estate.renter) == [made]


async def test_guest_that_says_again_that_it_is_there_changes_nothing_and_stays(estate: Estate) -> None:
    """The same request any number of times; one that falls silent is out of the next roster, and may come back."""
    made = await put(estate, 1)
    await estate.run(2)
    serial = roster(estate).serial
    for _ in range(3):
        estate.clock.advance(LAPSE_S / 2)
        assert (await put(estate, 1))["address"] == made["address"]
        await estate.run(1)
    assert roster(estate).serial == serial
    await estate.run(LAPSE_S + 2)
    assert guests(estate) == {}
    assert await estate.ok("GET", "/v1/clusters/mnist/guests", estate.renter) == []
    assert (await put(estate, 1))["address"] == made["address"]
    await estate.run(2)
    assert list(guests(estate)) == [made["id"]]


async def test_guest_that_leaves_is_out_of_the_next_roster(estate: Estate) -> None:
    """Leaving twice is harmless."""
    await put(estate, 1)
    await estate.run(2)
    for _ in range(2):
        answer = await estate.http.delete(path(1), headers=estate.renter.headers)
        assert answer.status_code == 204
    await estate.run(2)
    assert guests(estate) == {}


async def test_guest_is_not_cut_off_because_the_control_plane_was_away(estate: Estate) -> None:
    """It could not be heard: it has the time of a lapse to say that it is there; one that was out stays out."""
    await put(estate, 1)
    await put(estate, 2)
    await estate.run(2)
    await estate.run(LAPSE_S // 2)
    await put(estate, 1)
    await estate.run(LAPSE_S // 2 + 2)
    assert list(guests(estate)) == [numbered_id("gu", 1)]
    serial = roster(estate).serial
    estate.clock.advance(3 * LAPSE_S)
    estate.reconciler = Reconciler(estate.platform, Prices.load())
    await estate.run(3)
    assert roster(estate).serial == serial
    await estate.run(LAPSE_S)
    assert guests(estate) == {}


async def test_restarted_machine_takes_its_place_with_other_keys(estate: Estate) -> None:
    """Keys are made anew at each start; the address stays."""
    made = await put(estate, 1)
    await estate.run(2)
    await put(estate, 1, keys(5))
    await estate.run(2)
    (member,) = guests(estate).values()
    assert (member.address, member.direct_key) == (made["address"], keys(5)["direct_key"])


async def test_keys_and_ids_of_other_members_are_refused(estate: Estate) -> None:
    """A roster with two members of one key would be refused by every member."""
    await put(estate, 1)
    node = next(one for one in roster(estate).members if one.kind == "node")
    for body in (
        {"direct_key": node.direct_key, "relayed_key": a_key(90)},
        {"direct_key": a_key(90), "relayed_key": node.relayed_key},
        {"direct_key": keys(1)["relayed_key"], "relayed_key": a_key(90)},
        {"direct_key": a_key(90), "relayed_key": a_key(90)},
    ):
        assert await refused(estate, path(2), body) == (409, "guest_refused")
    for malformed in ("", "x" * 44, a_key(3)[:-1], f"{'A' * 42}B=", f"{a_key(3)}\n"):
        assert await refused(estate, path(2), {"direct_key": malformed, "relayed_key": a_key(90)}) == (
            422,
            "request_invalid",
        )
    for identifier in (node.node_id, "gu_1", numbered_id("cl", 1)):
        place = f"/v1/clusters/mnist/guests/{identifier}"
        assert await refused(estate, place, keys(2)) == (422, "request_invalid")
    await estate.book(estate.renter, "other")
    await estate.run()
    assert await refused(estate, path(1, "other"), keys(2)) == (409, "guest_refused")


async def test_guests_of_a_cluster_are_bounded(estate: Estate) -> None:
    """Each is a member for everybody; a place is free again once one has left."""
    held = estate.platform.settings.guests_per_cluster_max
    for number in range(held):
        await put(estate, number)
    assert await refused(estate, path(held), keys(held)) == (409, "too_many_guests")
    await put(estate, 0)
    await estate.http.delete(path(0), headers=estate.renter.headers)
    await put(estate, held)


async def test_guests_have_mailboxes_and_are_met_where_relays_see_them(estate: Estate) -> None:
    """As any member; gone, they give them back. Behind NAT, where a relay sees it is the only way to call one."""
    relay = await estate.add_host("relay", estate.operator, role="relay", advertise="198.51.100.1")
    await put(estate, 1)
    await estate.run(4)
    guest_id = numbered_id("gu", 1)
    assert [box.relay_id for box in guests(estate)[guest_id].mailboxes] == [relay.host_id]
    assert relay.desired is not None
    assert guest_id in {box.node_id for box in relay.desired.mailboxes}
    relay.observed[guest_id] = "203.0.113.9:51820"
    await estate.run(4)
    assert guests(estate)[guest_id].endpoints[1:] == ("203.0.113.9:51820",)
    await estate.http.delete(path(1), headers=estate.renter.headers)
    await estate.run(4)
    assert guest_id not in {box.node_id for box in relay.desired.mailboxes}


async def test_guests_end_with_their_cluster(estate: Estate) -> None:
    """A cluster that is over takes none."""
    await put(estate, 1)
    await estate.ok("DELETE", "/v1/clusters/mnist", estate.renter)
    await estate.run(4)
    assert await estate.ok("GET", "/v1/clusters/mnist/guests", estate.renter) == []
    assert await refused(estate, path(1), keys(1)) == (409, "cluster_not_ready")


def a_member(number: int, direct: int, relayed: int) -> Member:
    """A member with keys of these numbers."""
    return Member(
        node_id=f"m{number}",
        name="m",
        kind="leaf",
        address=f"10.128.48.{number + 1}",
        direct_key=a_key(direct),
        relayed_key=a_key(relayed),
        engine_id=f"m{number}",
        endpoints=(),
    )


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)).filter(lambda two: two[0] != two[1]), max_size=8))
def test_no_two_members_of_a_roster_share_a_key(drawn: list[tuple[int, int]]) -> None:
    """Whatever nodes say after a guest was added: the guest is left out, the cluster goes on."""
    members = [a_member(number, *pair) for number, pair in enumerate(drawn)]
    node, others = members[:1], members[1:]
    found = [*node, *apart(others, node)]
    used = [key for one in found for key in (one.direct_key, one.relayed_key)]
    assert len(used) == len(set(used))
    for left_out in (one for one in others if one not in found):
        assert {left_out.direct_key, left_out.relayed_key} & set(used)


async def test_renter_is_told_where_ray_is_and_what_it_asks_for(estate: Estate) -> None:
    """The token that every node has; not of a cluster that is over."""
    desired = estate.host("barn").desired
    assert desired is not None
    head = next(one for one in roster(estate).members if one.kind == "node")
    told = await estate.ok("GET", "/v1/clusters/mnist/ray", estate.renter)
    assert told["head_address"] == head.address
    assert [told["token"]] == [secrets.ray_token for secrets in desired.secrets.values()]
    await estate.ok("DELETE", "/v1/clusters/mnist", estate.renter)
    answer = await estate.http.get("/v1/clusters/mnist/ray", headers=estate.renter.headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "cluster_not_ready")
