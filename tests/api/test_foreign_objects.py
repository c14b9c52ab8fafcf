"""What exists and is somebody else's: no request shows it, changes it, or tells it from what does not exist."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from fastapi import FastAPI

from api.estate import IMAGES, Estate
from corral.devices.loop import flush
from corral.platform.http import Platform
from corral.testing.clock import FakeClock
from corral.testing.ids import numbered_id
from corral.testing.simulated_host import SimulatedHost
from corral.wire.agent import encode
from keyholders import Keyholder, keyholder


@pytest.fixture
def platform(platform: Platform) -> Platform:
    """With images, so that clusters can be booked."""
    return replace(platform, images=IMAGES)


@pytest.fixture
async def estate(
    app: FastAPI, http: httpx.AsyncClient, platform: Platform, clock: FakeClock, operator: Keyholder
) -> Estate:
    """A ready cluster `mnist` of Bob's on Ada's host, behind the operator's gateway."""
    ada, bob = await keyholder(platform, "ada"), await keyholder(platform, "bob")
    made = Estate(app, http, platform, clock, operator, ada, bob)
    await made.build()
    await made.book(bob, "mnist")
    await made.run()
    assert (await made.ok("GET", "/v1/clusters/mnist", bob))["state"] == "ready"
    return made


async def everything(estate: Estate) -> list[object]:
    """All that owners see of their own."""
    return [
        await estate.ok("GET", path, who)
        for who in (estate.provider, estate.renter, estate.operator)
        for path in ("/v1/hosts", "/v1/clusters?all=true", "/v1/transfers", "/v1/earnings")
    ]


HOSTS = [
    ("GET", "", None),
    ("PUT", "/intent", {"intent": "left"}),
    ("PUT", "/intent", {"intent": "paused"}),
    ("PUT", "/traffic-cap", {"traffic_cap_bytes": 5 * 10**9}),
]
CLUSTERS = [
    ("GET", "", None),
    ("GET", "?newer_than=0&wait_s=0", None),
    ("DELETE", "", None),
    ("POST", "/extension", {"id": numbered_id("ex", 7), "hours": 1}),
    ("POST", "/tickets", None),
    ("GET", "/bill", None),
    ("GET", "/guests", None),
    ("GET", "/ray", None),
    ("PUT", f"/guests/{numbered_id('gu', 7)}", {"direct_key": f"{'A' * 43}=", "relayed_key": f"B{'A' * 42}="}),
    ("DELETE", f"/guests/{numbered_id('gu', 7)}", None),
    ("GET", "/rosters", None),
    ("GET", "/rosters?after=1", None),
    ("GET", "/proposal", None),
    ("POST", "/rosters", {"payload": "{}", "signature": "x"}),
]


async def test_foreign_objects_answer_as_if_they_did_not_exist(estate: Estate) -> None:
    """Hosts, clusters, bills, quotes and keys, by name and by id, for other people and for the operator alike."""
    mallory = await keyholder(estate.platform, "mallory")
    cluster = await estate.ok("GET", "/v1/clusters/mnist", estate.renter)
    quote = await estate.quote(estate.renter)
    barn = estate.host("barn").host_id
    table: list[tuple[str, str, str, object]] = []
    for name, unknown in (("barn", "nothing"), (barn, numbered_id("hst", 999_999))):
        for method, rest, body in HOSTS:
            table.append((method, f"/v1/hosts/{name}{rest}", f"/v1/hosts/{unknown}{rest}", body))
    for name, unknown in (("mnist", "nothing"), (cluster["id"], numbered_id("cl", 999_999))):
        for method, rest, body in CLUSTERS:
            table.append((method, f"/v1/clusters/{name}{rest}", f"/v1/clusters/{unknown}{rest}", body))
    table.append(("GET", f"/v1/quotes/{quote['id']}", f"/v1/quotes/{numbered_id('qt', 999_999)}", None))
    bobs_key = estate.renter.key.split(".")[0]
    table.append(("DELETE", f"/v1/keys/{bobs_key}", f"/v1/keys/{numbered_id('key', 999_999)}", None))
    before = await everything(estate)
    for who in (mallory, estate.operator):
        for method, foreign, unknown, body in table:
            found = await estate.http.request(method, foreign, json=body, headers=who.headers)
            missing = await estate.http.request(method, unknown, json=body, headers=who.headers)
            assert found.status_code == missing.status_code == 404, (who.name, method, foreign)
            assert found.json()["code"] == missing.json()["code"]
    assert await everything(estate) == before


async def test_a_foreign_quote_or_booking_id_books_nothing(estate: Estate) -> None:
    """Neither somebody else's quote nor somebody else's booking id is worth anything."""
    mallory = await keyholder(estate.platform, "mallory")
    bobs, own = await estate.quote(estate.renter), await estate.quote(mallory)
    before = await everything(estate)
    for body, status, code in (
        ({"id": numbered_id("bk", 800), "quote_id": bobs["id"]}, 404, "quote_unknown"),
        ({"id": numbered_id("bk", 1), "quote_id": own["id"]}, 409, "booking_conflict"),
        ({"id": numbered_id("bk", 1), "quote_id": bobs["id"]}, 409, "booking_conflict"),
        ({"id": numbered_id("bk", 801), "quote_id": own["id"]}, 402, "insufficient_credit"),
    ):
        answer = await estate.http.post("/v1/clusters", json=body, headers=mallory.headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert "mnist" not in answer.text
        assert "bob" not in answer.text
    assert await everything(estate) == before


async def test_only_the_gateway_that_serves_a_cluster_learns_who_may_enter(estate: Estate) -> None:
    """A host is told nothing, another gateway no more than that there is nothing; other people's keys open nothing."""
    mallory = await keyholder(estate.platform, "mallory")
    other = await estate.add_host("gate-2", estate.operator, role="gateway")
    key = {"cluster_name": "mnist", "api_key": estate.renter.key}
    assert (await estate.authorise(estate.host("gate"), **key)).json()["allowed"] is True
    told = await estate.authorise(estate.host("barn"), **key)
    assert (told.status_code, told.json()["code"]) == (403, "not_a_gateway")
    nothing = (await estate.authorise(estate.host("gate"), cluster_name="nothing", api_key=mallory.key)).json()
    for gateway, proof in (
        (other, key),
        (estate.host("gate"), {"cluster_name": "mnist", "api_key": mallory.key}),
        (estate.host("gate"), {"cluster_name": "mnist", "api_key": estate.operator.key}),
    ):
        assert (await estate.authorise(gateway, **proof)).json() == nothing
    for proof in ({}, {"api_key": estate.renter.key, "session": "x"}):
        assert (await estate.authorise(estate.host("gate"), cluster_name="mnist", **proof)).json()["allowed"] is False


async def test_only_operators_make_tokens_for_gateways_and_no_other_token_makes_one(estate: Estate) -> None:
    """The role is the token's, never the wish of who redeems it."""
    wish = {"role": "gateway"}
    refused = await estate.http.post("/v1/hosts/tokens", json=wish, headers=estate.provider.headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_operator")
    made = await estate.ok("POST", "/v1/hosts/tokens", estate.provider, {"role": "host"})
    host = SimulatedHost(estate.world, estate.desk, "climber", role="gateway")
    answer = await estate.http.post("/agent/v1/enrol", content=encode(host.enrol_request(made["token"])))
    assert (answer.status_code, answer.json()["code"]) == (403, "join_token_foreign")


async def enter(estate: Estate, who: Keyholder | None = None, cluster: str = "mnist") -> str:
    """A session of the renter's browser."""
    made = await estate.ok("POST", f"/v1/clusters/{cluster}/tickets", who or estate.renter)
    ticket = parse_qs(urlsplit(made["url"]).query)["ticket"][0]
    entered = (await estate.authorise(estate.host("gate"), cluster_name=cluster, ticket=ticket)).json()
    assert entered["allowed"] is True
    again = (await estate.authorise(estate.host("gate"), cluster_name=cluster, ticket=ticket)).json()
    assert again["allowed"] is False
    return entered["session"]


async def test_tickets_and_sessions_open_one_cluster_alone(estate: Estate) -> None:
    """What opens Bob's one cluster does not open his other one."""
    await estate.book(estate.renter, "other")
    await estate.run()
    session = await enter(estate)
    made = await estate.ok("POST", "/v1/clusters/mnist/tickets", estate.renter)
    ticket = parse_qs(urlsplit(made["url"]).query)["ticket"][0]
    for proof in ({"session": session}, {"ticket": ticket}, {"session": ticket}, {"ticket": session}):
        answer = (await estate.authorise(estate.host("gate"), cluster_name="other", **proof)).json()
        assert answer["allowed"] is False, proof
    visit = (await estate.authorise(estate.host("gate"), cluster_name="mnist", session=session)).json()
    assert visit["allowed"] is True


async def test_sessions_die_with_the_key_that_opened_them(estate: Estate) -> None:
    """Who revokes a stolen key ends the sessions that it opened, and no others."""
    made = await estate.ok("POST", "/v1/keys", estate.renter, {"label": "laptop"})
    laptop = Keyholder("bob", estate.renter.person_id, made["secret"])
    stolen = await enter(estate, laptop)
    own = await enter(estate)
    assert (await estate.http.delete(f"/v1/keys/{made['key']['id']}", headers=estate.renter.headers)).status_code == 204
    gate = estate.host("gate")
    assert (await estate.authorise(gate, cluster_name="mnist", session=stolen)).json()["allowed"] is False
    assert (await estate.authorise(gate, cluster_name="mnist", session=own)).json()["allowed"] is True


async def test_sessions_die_with_their_cluster_and_not_come_back_with_its_name(estate: Estate) -> None:
    """A new cluster of the same name is another one."""
    session = await enter(estate)
    await estate.ok("DELETE", "/v1/clusters/mnist", estate.renter)
    gate = estate.host("gate")
    assert (await estate.authorise(gate, cluster_name="mnist", session=session)).json()["allowed"] is False
    await estate.run(4)
    await estate.book(estate.renter, "mnist")
    await estate.run()
    assert (await estate.ok("GET", "/v1/clusters/mnist", estate.renter))["state"] == "ready"
    assert (await estate.authorise(gate, cluster_name="mnist", session=session)).json()["allowed"] is False


async def test_no_token_speaks_for_another_host(estate: Estate, clock: FakeClock) -> None:
    """Foreign key, foreign audience, too long a life, expired, unsigned, or no id: 401, and no trace."""
    barn = estate.host("barn")
    thief = await estate.add_host("thief", estate.provider)
    now = clock.now()
    right = {"sub": barn.host_id, "aud": barn.audience, "iat": now, "exp": now + timedelta(minutes=5)}
    past = {"iat": now - timedelta(hours=2), "exp": now - timedelta(hours=1)}
    forged = [
        jwt.encode(right, thief.private_key, algorithm="EdDSA"),
        jwt.encode(right, "", algorithm="none"),
        jwt.encode(right, barn.public_key, algorithm="HS256"),
        jwt.encode(right | {"aud": "corral-elsewhere"}, barn.private_key, algorithm="EdDSA"),
        jwt.encode(right | {"exp": now + timedelta(hours=1)}, barn.private_key, algorithm="EdDSA"),
        jwt.encode(right | {"iat": now + timedelta(minutes=4)}, barn.private_key, algorithm="EdDSA"),
        jwt.encode(right | past, barn.private_key, algorithm="EdDSA"),
        *(
            jwt.encode(right | {"sub": subject}, thief.private_key, algorithm="EdDSA")
            for subject in ("", "x\x00y", "\ud800", numbered_id("hst", 999_999), f"{barn.host_id}\n")
        ),
        jwt.encode({key: right[key] for key in ("sub", "aud", "iat")}, barn.private_key, algorithm="EdDSA"),
        "x.y.z",
        "." * 4000,
    ]
    body = encode(barn.report())
    for token in forged:
        headers = {"Authorization": f"Bearer {token}"}
        answer = await estate.http.post("/agent/v1/exchange", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "host_refused"), token
    good = {"Authorization": f"Bearer {barn.token(life_s=60)}"}
    assert (await estate.http.post("/agent/v1/exchange", content=body, headers=good)).status_code == 200
    clock.advance(200)  # A remembered token expires like any other.
    assert (await estate.http.post("/agent/v1/exchange", content=body, headers=good)).status_code == 401


async def test_a_host_that_makes_ever_new_tokens_fills_no_memory(estate: Estate) -> None:
    """One token of each host is remembered."""
    barn = estate.host("barn")
    for life_s in range(100, 120):
        headers = {"Authorization": f"Bearer {barn.token(life_s=life_s)}"}
        assert (await estate.http.post("/agent/v1/exchange", content=encode(barn.report()), headers=headers)).is_success
    assert len(estate.desk.authenticator._verified) <= len(estate.world.hosts)  # pyright: ignore[reportPrivateUsage]


async def test_a_host_reports_nothing_of_other_hosts_nodes(estate: Estate) -> None:
    """A hostile host that names a node of another's changes nothing of it."""
    thief = await estate.add_host("thief", estate.provider)
    cluster = await estate.ok("GET", "/v1/clusters/mnist", estate.renter)
    foreign = next(iter(estate.host("barn").nodes))
    report = replace_nodes(thief, foreign)
    headers = {"Authorization": f"Bearer {thief.token()}"}
    assert (await estate.http.post("/agent/v1/exchange", content=report, headers=headers)).is_success
    await estate.reconciler.turn()
    after = await estate.ok("GET", "/v1/clusters/mnist", estate.renter)
    assert (after["state"], after["nodes"]) == ("ready", cluster["nodes"])


def replace_nodes(host: SimulatedHost, node_id: str) -> bytes:
    """A report of `host` that says that a node has died."""
    text = encode(host.report()).decode()
    lie = f'"nodes":[{{"node_id":"{node_id}","work":"exited","fault":{{"code":"died","message":"dead"}}}}]'
    return text.replace('"nodes":[]', lie).encode()


async def test_two_hosts_redeem_one_token_at_the_same_time_and_one_enters(estate: Estate) -> None:
    """A token of one use lets one host in."""
    made = await estate.ok("POST", "/v1/hosts/tokens", estate.provider, {})
    hosts = [SimulatedHost(estate.world, estate.desk, f"racer-{index}") for index in range(4)]
    bodies = [encode(host.enrol_request(made["token"])) for host in hosts]
    answers = await asyncio.gather(*(estate.http.post("/agent/v1/enrol", content=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]
    assert {answer.json()["code"] for answer in answers if answer.status_code == 401} == {"join_token_used"}


async def test_a_host_is_paused_resumed_and_leaves_by_its_provider(estate: Estate) -> None:
    """A paused host lends nothing new; one that leaves drains first, and is then refused."""
    barn, gate = estate.host("barn"), "/v1/hosts/barn/intent"
    offered = "/v1/offers"
    assert (await estate.ok("GET", offered, estate.renter))["offers"]
    assert (await estate.ok("PUT", gate, estate.provider, {"intent": "paused"}))["intent"] == "paused"
    assert (await estate.ok("GET", offered, estate.renter))["offers"] == []
    assert (await estate.ok("PUT", gate, estate.provider, {"intent": "active"}))["status"] == "hired"
    assert (await estate.ok("GET", offered, estate.renter))["offers"]
    shown = await estate.ok("PUT", gate, estate.provider, {"intent": "left"})
    assert (shown["intent"], shown["status"]) == ("draining", "draining")
    await estate.run(3)
    assert (await estate.ok("GET", "/v1/clusters/mnist", estate.renter))["state"] == "ready"
    await estate.ok("DELETE", "/v1/clusters/mnist", estate.renter)
    await estate.run(5)
    assert (await estate.ok("GET", "/v1/hosts/barn", estate.provider))["status"] == "left"
    headers = {"Authorization": f"Bearer {barn.token()}"}
    answer = await estate.http.post("/agent/v1/exchange", content=encode(barn.report()), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "host_refused")
    back = await estate.http.put(gate, json={"intent": "active"}, headers=estate.provider.headers)
    assert (back.status_code, back.json()["code"]) == (409, "host_has_left")
    await flush(estate.desk)
