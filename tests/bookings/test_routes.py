"""Money and market over HTTP: each sees and spends only what is their own."""

import httpx
import pytest

from corral.api.app import create_app
from corral.api.assembly import desired_source
from corral.core.ids import PersonId, TransferId
from corral.market import Prices
from corral.platform.http import Platform
from corral.testing.fleet import add_host
from corral.testing.ids import numbered_id
from keyholders import Keyholder, keyholder


@pytest.fixture
async def http(platform: Platform) -> httpx.AsyncClient:
    """A client of the application; a bug surfaces here."""
    app = create_app(platform, prices=Prices.load(), desired=desired_source(platform))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://control")


@pytest.fixture
async def ada(platform: Platform) -> Keyholder:
    """A renter."""
    return await keyholder(platform, "ada")


@pytest.fixture
async def bob(platform: Platform) -> Keyholder:
    """A provider with one host of two slices."""
    bob = await keyholder(platform, "bob")
    async with platform.database.transaction() as tx:
        await add_host(tx, 1, PersonId(bob.person_id), platform.clock.now(), cpus=2)
    return bob


@pytest.fixture
async def operator(platform: Platform) -> Keyholder:
    """The first operator."""
    return await keyholder(platform, "operator", is_operator=True)


async def test_credit_comes_from_an_operator_and_once(
    http: httpx.AsyncClient, ada: Keyholder, operator: Keyholder
) -> None:
    """Nobody issues credit to themselves; the same id issues once, and other content under it is refused."""
    wish = {"id": TransferId(numbered_id("tr", 1)), "person": "ada", "amount_uc": 5_000_000}
    assert (await http.post("/v1/credits", json=wish, headers=ada.headers)).status_code == 403
    first = await http.post("/v1/credits", json=wish, headers=operator.headers)
    assert first.status_code == 201
    assert (await http.post("/v1/credits", json=wish, headers=operator.headers)).json() == first.json()
    other = await http.post("/v1/credits", json=wish | {"amount_uc": 6_000_000}, headers=operator.headers)
    assert (other.status_code, other.json()["code"]) == (409, "transfer_conflict")
    for amount in (0, -1, 10**16):
        refused = await http.post("/v1/credits", json=wish | {"amount_uc": amount}, headers=operator.headers)
        assert refused.status_code == 422
    me = (await http.get("/v1/whoami", headers=ada.headers)).json()
    assert (me["person"]["name"], me["balance_uc"], me["held_uc"], me["earned_uc"]) == ("ada", 5_000_000, 0, 0)
    assert [one["amount_uc"] for one in (await http.get("/v1/transfers", headers=ada.headers)).json()] == [5_000_000]
    assert (await http.get("/v1/transfers", headers=operator.headers)).json() == []


async def test_quote_is_its_renters_alone(http: httpx.AsyncClient, ada: Keyholder, bob: Keyholder) -> None:
    """Offers are everybody's; a quote is unknown to others, and absurd wishes name what is wrong."""
    offers = (await http.get("/v1/offers", headers=ada.headers)).json()
    assert [(one["devices"], one["provider"]) for one in offers["offers"]] == [(2, "bob")]
    made = await http.post("/v1/quotes", json={"cpu": 2, "hours": 3}, headers=ada.headers)
    assert made.status_code == 201
    quote = made.json()
    assert (quote["rate_uc_per_hour"], quote["total_uc"], len(quote["lines"])) == (48_000, 144_000, 2)
    assert (await http.get(f"/v1/quotes/{quote['id']}", headers=ada.headers)).json() == quote
    foreign = await http.get(f"/v1/quotes/{quote['id']}", headers=bob.headers)
    assert (foreign.status_code, foreign.json()["code"]) == (404, "quote_unknown")
    for wish, code in [
        ({}, "wish_unclear"),
        ({"cpu": 3}, "nothing_fits"),
        ({"cpu": 1, "nodes": 4000}, "nothing_fits"),
        ({"gpu_model": "H100", "gpu_count": 100_000}, "nothing_fits"),
        ({"gpu_model": "H999", "gpu_count": 1}, "model_unknown"),
        ({"gpu_model": "H100", "gpu_count": 1, "nodes": 2}, "wish_unclear"),
    ]:
        refused = await http.post("/v1/quotes", json=wish, headers=ada.headers)
        assert refused.status_code in (409, 422)
        assert refused.json()["code"] == code
    assert (await http.get("/v1/earnings", headers=bob.headers)).json() == {"total_net_uc": 0, "lines": []}
