"""The renter reads the signed rosters of a cluster: all of them, in order, also after its end; nobody else does."""

from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from api.estate import IMAGES, Estate
from corral.core.ids import ClusterId
from corral.mesh import publish_roster, rosters
from corral.platform.http import Platform
from corral.protocol.roster import Roster, payload_hash, verify_chain
from corral.testing.clock import FakeClock
from keyholders import Keyholder, keyholder


@pytest.fixture
def platform(platform: Platform) -> Platform:
    """With images, so that clusters can be booked."""
    return replace(platform, images=IMAGES)


@pytest.fixture
async def estate(
    app: FastAPI, http: httpx.AsyncClient, platform: Platform, clock: FakeClock, operator: Keyholder
) -> Estate:
    """A ready cluster `mnist` of Bob's on Ada's host."""
    ada, bob = await keyholder(platform, "ada"), await keyholder(platform, "bob")
    made = Estate(app, http, platform, clock, operator, ada, bob)
    await made.build()
    await made.book(bob, "mnist")
    await made.run()
    return made


async def page(estate: Estate, after: int | None = None) -> dict[str, Any]:
    """What Bob is shown."""
    query = "" if after is None else f"?after={after}"
    return await estate.ok("GET", f"/v1/clusters/mnist/rosters{query}", estate.renter)


async def pages(estate: Estate) -> list[dict[str, Any]]:
    """All of them, as a client goes through them; the last one is empty."""
    found = [await page(estate)]
    while found[-1]["rosters"]:
        found.append(await page(estate, found[-1]["rosters"][-1]["serial"]))
        assert len(found) < 10, "the pages do not come to an end"
    return found


def chain_of(found: list[dict[str, Any]]) -> list[Roster]:
    """The rosters of some pages, verified."""
    return verify_chain(
        [(one["payload"], one["signature"]) for each in found for one in each["rosters"]],
        cluster_id=found[0]["cluster_id"],
        roster_key=found[0]["roster_key"],
    )


async def add_rosters(estate: Estate, cluster_id: ClusterId, count: int) -> None:
    """So many more rosters than the cluster had."""
    platform = estate.platform
    first = chain_of([await page(estate)])[0].members[0]
    async with platform.database.transaction() as tx:
        for number in range(count):
            moved = msgspec.structs.replace(first, endpoints=(f"192.0.2.1:{20_000 + number}",), mailboxes=())
            await publish_roster(tx, platform.master_key, cluster_id, [moved], [], estate.clock.now(), hosts={})


async def test_the_renter_reads_a_chain_that_verifies(estate: Estate) -> None:
    """From GENESIS to the roster that the host has applied, with the members that the cluster has."""
    found = await page(estate)
    cluster = await estate.ok("GET", "/v1/clusters/mnist", estate.renter)
    chain = chain_of([found])
    assert found["cluster_id"] == cluster["id"]
    assert [one["serial"] for one in found["rosters"]] == [roster.serial for roster in chain]
    assert {one.node_id for one in chain[-1].members if one.kind == "node"} == {node["id"] for node in cluster["nodes"]}
    (node,) = estate.host("barn").nodes.values()
    assert payload_hash(found["rosters"][-1]["payload"]) == node.roster_hash
    by_id = await estate.ok("GET", f"/v1/clusters/{cluster['id']}/rosters", estate.renter)
    assert by_id == found


async def test_pages_are_bounded_and_leave_nothing_out(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 rosters, or 8 MiB of them but always one; what follows is read with the last serial."""
    first = await page(estate)
    already = len(first["rosters"])
    await add_rosters(estate, ClusterId(first["cluster_id"]), 2 * rosters.ROSTERS_PER_PAGE + 1 - already)
    found = await pages(estate)
    assert [len(each["rosters"]) for each in found] == [200, 200, 1, 0]
    assert [roster.serial for roster in chain_of(found)] == list(range(1, 402))
    assert (await page(estate, 399))["rosters"] == found[1]["rosters"][-1:] + found[2]["rosters"]
    assert {each["roster_key"] for each in found} == {first["roster_key"]}
    three = sum(len(one["payload"]) for one in found[0]["rosters"][100:103])
    monkeypatch.setattr(rosters, "PAGE_BYTES_MAX", three)
    assert (await page(estate, 100))["rosters"] == found[0]["rosters"][100:103]
    monkeypatch.setattr(rosters, "PAGE_BYTES_MAX", 1)
    assert (await page(estate, 100))["rosters"] == found[0]["rosters"][100:101]


async def test_the_chain_outlives_its_cluster(estate: Estate) -> None:
    """It is stored for good: by its id also when another cluster has its name."""
    before = await page(estate)
    await estate.ok("DELETE", "/v1/clusters/mnist", estate.renter)
    await estate.run(4)
    assert (await estate.ok("GET", "/v1/clusters/mnist", estate.renter))["state"] == "ended"
    after = await page(estate)
    assert after["rosters"][: len(before["rosters"])] == before["rosters"]
    assert after["roster_key"] == before["roster_key"]
    await estate.book(estate.renter, "mnist")
    await estate.run()
    assert await estate.ok("GET", f"/v1/clusters/{before['cluster_id']}/rosters", estate.renter) == after
    other = await page(estate)
    assert other["cluster_id"] != before["cluster_id"]
    assert other["roster_key"] != before["roster_key"]
    assert chain_of([other])


async def test_a_cluster_that_was_just_booked_has_no_roster_yet(estate: Estate) -> None:
    """Its key is known already."""
    made = await estate.book(estate.renter, "other")
    found = await estate.ok("GET", f"/v1/clusters/{made['id']}/rosters", estate.renter)
    assert found["rosters"] == []
    assert found["roster_key"]


async def test_only_the_renter_reads_them(estate: Estate) -> None:
    """Neither the host's provider nor the operator, by name or by id: unknown, as what does not exist."""
    cluster_id = (await page(estate))["cluster_id"]
    for who in (estate.provider, estate.operator, await keyholder(estate.platform, "mallory")):
        for name in ("mnist", cluster_id, "nothing"):
            answer = await estate.http.get(f"/v1/clusters/{name}/rosters", headers=who.headers)
            assert (answer.status_code, answer.json()["code"]) == (404, "cluster_unknown")
    assert (await estate.http.get(f"/v1/clusters/{cluster_id}/rosters")).status_code == 401


@pytest.mark.parametrize("after", ["-1", "x", str(2**31), str(2**70), "1.5"])
async def test_a_serial_that_cannot_be_is_refused(estate: Estate, after: str) -> None:
    """Told as malformed, never as an error of the server; the highest one possible is just the end."""
    answer = await estate.http.get(f"/v1/clusters/mnist/rosters?after={after}", headers=estate.renter.headers)
    assert answer.status_code == 422
    assert (await page(estate, 2**31 - 1))["rosters"] == []
