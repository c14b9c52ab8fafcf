"""A cluster whose renter alone signs who is a member: nobody joins, and nobody is replaced, without him."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI

from api.estate import IMAGES, Estate
from corral.platform.http import Platform
from corral.protocol.roster import sign, verify_chain
from corral.testing.clock import FakeClock
from corral.testing.ids import numbered_id
from corral.testing.simulated_host import Trouble
from keyholders import Keyholder, keyholder
from sdk.fake_control_plane import public_key

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))


@pytest.fixture
def platform(platform: Platform) -> Platform:
    """With images, so that clusters can be booked."""
    return replace(platform, images=IMAGES)


@pytest.fixture
async def estate(
    app: FastAPI, http: httpx.AsyncClient, platform: Platform, clock: FakeClock, operator: Keyholder
) -> Estate:
    """A pinned cluster `mnist` of Bob's on two hosts of Ada's, with a spare; its containers run."""
    ada, bob = await keyholder(platform, "ada"), await keyholder(platform, "bob")
    made = Estate(app, http, platform, clock, operator, ada, bob)
    await made.build()
    await made.add_host("shed", ada)
    quote = await made.ok("POST", "/v1/quotes", bob, {"cpu": 1, "nodes": 2, "name": "mnist"})
    await made.add_host("spare", ada)
    body = {"id": numbered_id("bk", 1), "quote_id": quote["id"], "roster_key": public_key(KEY)}
    await made.ok("POST", "/v1/clusters", bob, body)
    await made.run()
    return made


async def show(estate: Estate) -> dict[str, Any]:
    """Bob's cluster."""
    return await estate.ok("GET", "/v1/clusters/mnist", estate.renter)


async def post(estate: Estate, key: Ed25519PrivateKey, payload: str) -> httpx.Response:
    """The answer to a signature by `key`."""
    body = {"payload": payload, "signature": sign(payload, key)}
    return await estate.http.post("/v1/clusters/mnist/rosters", json=body, headers=estate.renter.headers)


async def approve(estate: Estate) -> None:
    """Bob signs what is proposed."""
    proposed = await estate.ok("GET", "/v1/clusters/mnist/proposal", estate.renter)
    answer = await post(estate, KEY, proposed["payload"])
    assert answer.status_code == 201, answer.text


async def make_ready(estate: Estate) -> None:
    """Bob signs the first members, and the cluster becomes ready."""
    await approve(estate)
    await estate.run()
    assert (await show(estate))["state"] == "ready"


async def test_pinned_cluster_waits_for_its_renter_and_goes_on_by_his_signature(estate: Estate) -> None:
    """The chain is signed by his key from the first roster on; the wait is shown, and nobody's fault."""
    estate.clock.advance(300)
    await estate.run()
    waiting = await show(estate)
    assert (waiting["state"], waiting["awaits_signature"], waiting["is_pinned"]) == ("starting", True, True)
    assert next(phase for phase in waiting["phases"] if phase["name"] == "mesh")["detail"] == "waits for your signature"
    await make_ready(estate)
    assert not (await show(estate))["awaits_signature"]
    chain = await estate.ok("GET", "/v1/clusters/mnist/rosters", estate.renter)
    assert chain["roster_key"] == public_key(KEY)
    pairs = [(one["payload"], one["signature"]) for one in chain["rosters"]]
    [roster] = verify_chain(pairs, cluster_id=chain["cluster_id"], roster_key=public_key(KEY))
    assert len(roster.members) == 3


async def test_only_the_renters_key_and_only_what_is_proposed_counts(estate: Estate) -> None:
    """Neither another key nor another content; and nothing is taken twice."""
    proposed = await estate.ok("GET", "/v1/clusters/mnist/proposal", estate.renter)
    wrong = await post(estate, OTHER, proposed["payload"])
    assert (wrong.status_code, wrong.json()["code"]) == (409, "roster_refused")
    other = await post(estate, KEY, proposed["payload"].replace('"serial":1', '"serial":2'))
    assert (other.status_code, other.json()["code"]) == (409, "proposal_outdated")
    await approve(estate)
    again = await post(estate, KEY, proposed["payload"])
    assert (again.status_code, again.json()["code"]) == (404, "nothing_proposed")


async def test_a_start_that_is_never_signed_fails_for_free(estate: Estate) -> None:
    """Ten minutes are bound enough for the hosts that wait."""
    estate.clock.advance(601)
    await estate.run(2)
    failed = await show(estate)
    assert (failed["state"], failed["charged_uc"]) == ("failed", 0)
    assert "did not sign" in failed["reason"]


async def test_lost_worker_is_not_replaced_and_leaves_by_signature(estate: Estate) -> None:
    """The cluster goes on without it; that it is a member no more waits for the renter."""
    await make_ready(estate)
    worker = next(node for node in (await show(estate))["nodes"] if node["role"] == "worker")
    estate.host(worker["host"]).trouble = Trouble.DIES
    await estate.run()
    after = await show(estate)
    assert (after["state"], after["awaits_signature"]) == ("ready", True)
    assert [node["state"] for node in after["nodes"] if node["id"] == worker["id"]] == ["lost"]
    assert "spare" not in {node["host"] for node in after["nodes"]}
    await approve(estate)
    await estate.run()
    assert not (await show(estate))["awaits_signature"]
