"""No route forgets to ask who is there, and none acts for somebody else."""

import httpx
import pytest
from fastapi import FastAPI

from corral.platform.http import Platform
from corral.testing.clock import FakeClock
from corral.testing.ids import numbered_id
from keyholders import Keyholder, filled, keyholder, operations

OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/ca.pem"),
    ("GET", "/openapi.json"),
    ("POST", "/v1/signup"),
}
"""Need no key."""

AGENTS = {("POST", "/agent/v1/enrol"), ("POST", "/agent/v1/exchange"), ("POST", "/agent/v1/authorise")}
"""Need a host's token, or a join token in the body."""

OPERATORS = {("POST", "/v1/credits")}
"""Need an operator's key."""

PEOPLE = {
    ("GET", "/v1/whoami"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("DELETE", "/v1/keys/{key_id}"),
    ("GET", "/v1/transfers"),
    ("GET", "/v1/earnings"),
    ("POST", "/v1/hosts/tokens"),
    ("GET", "/v1/hosts"),
    ("GET", "/v1/hosts/{name_or_id}"),
    ("PUT", "/v1/hosts/{name_or_id}/intent"),
    ("PUT", "/v1/hosts/{name_or_id}/traffic-cap"),
    ("PUT", "/v1/hosts/{name_or_id}/location"),
    ("GET", "/v1/clusters/{name_or_id}/proposal"),
    ("POST", "/v1/clusters/{name_or_id}/rosters"),
    ("GET", "/v1/offers"),
    ("POST", "/v1/quotes"),
    ("GET", "/v1/quotes/{quote_id}"),
    ("POST", "/v1/clusters"),
    ("GET", "/v1/clusters"),
    ("GET", "/v1/clusters/{name_or_id}"),
    ("DELETE", "/v1/clusters/{name_or_id}"),
    ("POST", "/v1/clusters/{name_or_id}/extension"),
    ("POST", "/v1/clusters/{name_or_id}/tickets"),
    ("GET", "/v1/clusters/{name_or_id}/bill"),
    ("GET", "/v1/clusters/{name_or_id}/rosters"),
    ("GET", "/v1/clusters/{name_or_id}/guests"),
    ("GET", "/v1/clusters/{name_or_id}/ray"),
    ("PUT", "/v1/clusters/{name_or_id}/guests/{guest_id}"),
    ("DELETE", "/v1/clusters/{name_or_id}/guests/{guest_id}"),
}
"""Need somebody's key, and show or change only what is theirs."""

OF_NOBODY = {("GET", "/v1/offers"), ("POST", "/v1/quotes")}
"""The same for everybody, or made anew: there is nothing foreign to reach for."""

BODIES: dict[tuple[str, str], object] = {
    ("POST", "/v1/keys"): {"label": "mine"},
    ("PUT", "/v1/hosts/{name_or_id}/intent"): {"intent": "paused"},
    ("PUT", "/v1/hosts/{name_or_id}/traffic-cap"): {"traffic_cap_bytes": None},
    ("PUT", "/v1/hosts/{name_or_id}/location"): {"country": "DE", "latitude": 50.1, "longitude": 8.7},
    ("POST", "/v1/clusters/{name_or_id}/rosters"): {"payload": "{}", "signature": "x"},
    ("POST", "/v1/hosts/tokens"): {},
    ("POST", "/v1/quotes"): {"cpu": 1},
    ("POST", "/v1/clusters"): {"id": numbered_id("bk", 1), "quote_id": numbered_id("qt", 1)},
    ("POST", "/v1/clusters/{name_or_id}/extension"): {"id": numbered_id("ex", 1), "hours": 1},
    ("PUT", "/v1/clusters/{name_or_id}/guests/{guest_id}"): {
        "direct_key": f"{'A' * 43}=",
        "relayed_key": f"B{'A' * 42}=",
    },
    ("POST", "/v1/credits"): {"id": numbered_id("tr", 1), "person": "ada", "amount_uc": 1},
}
"""Well-formed bodies, so that a refusal is about the key and nothing else."""


def test_every_route_is_classified(app: FastAPI):
    """Who adds a route decides here who may call it; the tests below then hold it to that."""
    found = set(operations(app))
    known = OPEN | AGENTS | OPERATORS | PEOPLE
    assert found - known == set(), "classify these routes"
    assert known - found == set(), "these routes are gone"


async def request(
    http: httpx.AsyncClient, operation: tuple[str, str], headers: httpx.Headers | dict[str, str] | None = None
) -> httpx.Response:
    """Calls an operation with a well-formed body about things that do not exist."""
    method, path = operation
    return await http.request(method, filled(path), json=BODIES.get(operation), headers=headers)


async def test_without_a_right_key_no_route_is_entered(
    http: httpx.AsyncClient, ada: Keyholder, platform: Platform, clock: FakeClock
):
    """No key, a malformed, unknown, expired or revoked one: 401 with a code that tells which, and nothing is done."""
    made = await http.post("/v1/keys", json={"label": "short", "expires_in_s": 60}, headers=ada.headers)
    expired = made.json()["secret"]
    made = await http.post("/v1/keys", json={"label": "gone"}, headers=ada.headers)
    revoked = made.json()["secret"]
    assert (await http.delete(f"/v1/keys/{made.json()['key']['id']}", headers=ada.headers)).status_code == 204
    clock.advance(61)
    wrong_secret = ada.key[:-4] + ("AAAA" if not ada.key.endswith("AAAA") else "BBBB")
    credentials = {
        "key_missing": [None, "", "Basic YTpi", "Bearer", "Bearer "],
        "key_unknown": [
            f"Bearer {text}"
            for text in (
                "x",
                "." * 70,
                "key_\u00e9.x",
                f"{numbered_id('key', 999)}.{'A' * 43}",
                wrong_secret,
                f"{ada.key}x",
                ada.key.split(".")[0],
                ada.key.upper(),
                "A" * 20_000,
            )
        ],
        "key_expired": [f"Bearer {expired}"],
        "key_revoked": [f"Bearer {revoked}"],
    }
    for operation in sorted(PEOPLE | OPERATORS):
        for code, headers in credentials.items():
            # The forms of a wrong key are tried on one route; the others get one of each kind.
            for header in headers if operation == ("GET", "/v1/keys") else headers[-1:]:
                sent = httpx.Headers({} if header is None else {"Authorization": header}, encoding="latin-1")
                response = await request(http, operation, sent)
                assert (response.status_code, response.json()["code"]) == (401, code), (operation, header)
                assert response.headers["www-authenticate"] == "Bearer"


async def test_only_operators_enter_their_routes(http: httpx.AsyncClient, ada: Keyholder, operator: Keyholder):
    """A right key is not enough."""
    for operation in sorted(OPERATORS):
        response = await request(http, operation, ada.headers)
        assert (response.status_code, response.json()["code"]) == (403, "not_operator")
        assert (await request(http, operation, operator.headers)).status_code < 300


async def test_agents_routes_take_no_persons_key(http: httpx.AsyncClient, ada: Keyholder, operator: Keyholder):
    """A host proves itself with its own key; an operator's does not replace it."""
    for operation in sorted(AGENTS):
        for holder in (ada, operator):
            response = await request(http, operation, holder.headers)
            assert 400 <= response.status_code < 500, operation


async def test_nobody_revokes_a_foreign_key(http: httpx.AsyncClient, ada: Keyholder, bob: Keyholder):
    """It answers as if the key did not exist, and the key goes on working."""
    response = await http.delete(f"/v1/keys/{ada.key.split('.')[0]}", headers=bob.headers)
    assert (response.status_code, response.json()["code"]) == (404, "key_id_unknown")
    assert (await http.get("/v1/keys", headers=ada.headers)).status_code == 200


async def test_lists_show_only_ones_own(http: httpx.AsyncClient, platform: Platform):
    """Ada's keys, hosts, clusters, transfers and earnings look the same whether Bob exists or not."""
    first = await keyholder(platform, "first")
    lists = sorted(path for method, path in PEOPLE if method == "GET" and "{" not in path)
    before = {path: (await http.get(path, headers=first.headers)).json() for path in lists if path != "/v1/keys"}
    second = await keyholder(platform, "second")
    await http.post("/v1/keys", json={"label": "second's"}, headers=second.headers)
    after = {path: (await http.get(path, headers=first.headers)).json() for path in before}
    assert after == before
    assert [key["label"] for key in (await http.get("/v1/keys", headers=first.headers)).json()] == ["first key"]


@pytest.mark.parametrize("operation", sorted(operation for operation in PEOPLE - OF_NOBODY if "{" in operation[1]))
async def test_what_does_not_exist_is_told_as_such(http: httpx.AsyncClient, ada: Keyholder, operation: tuple[str, str]):
    """The same answer as for somebody else's: whether it exists is not told."""
    response = await request(http, operation, ada.headers)
    assert response.status_code == 404
    assert response.json()["code"].endswith("_unknown")
