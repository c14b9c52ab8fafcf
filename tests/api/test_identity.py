"""Signing up, and one's own keys, as a person meets them."""

from datetime import timedelta

import httpx
from sqlalchemy import func, select

from corral.identity.tables import api_key, person
from corral.platform.http import Platform
from corral.testing.clock import FakeClock
from keyholders import Keyholder


async def test_a_new_person_can_use_the_first_key_at_once(http: httpx.AsyncClient):
    """The one answer that holds the secret is enough to go on with."""
    signed_up = await http.post("/v1/signup", json={"name": "grace"})
    assert signed_up.status_code == 201
    answer = signed_up.json()
    assert answer["person"]["name"] == "grace"
    assert answer["person"]["is_operator"] is False
    listed = await http.get("/v1/keys", headers={"Authorization": f"Bearer {answer['key']['secret']}"})
    assert [key["id"] for key in listed.json()] == [answer["key"]["key"]["id"]]
    assert "secret" not in listed.json()[0]


async def test_a_taken_name_signs_nobody_up(http: httpx.AsyncClient, ada: Keyholder, platform: Platform):
    """Names are unique: they are how people pay each other."""
    response = await http.post("/v1/signup", json={"name": "ada"})
    assert (response.status_code, response.json()["code"]) == (409, "person_name_taken")
    async with platform.database.transaction() as tx:
        assert (await tx.execute(select(func.count()).select_from(person))).scalar_one() == 1


async def test_odd_names_are_refused(http: httpx.AsyncClient):
    """A name is a DNS label: it appears in addresses and on screens."""
    for name in ("", "A", "1a", "-a", "a-", "a b", "a\u0000", "é", "a" * 41, "a\n", "../a", "<b>", None, 7, {}):
        response = await http.post("/v1/signup", json={"name": name})
        assert (response.status_code, response.json()["code"]) == (422, "request_invalid"), name


async def test_signing_up_is_limited_per_address_with_a_time_to_try_again(
    http: httpx.AsyncClient, platform: Platform, clock: FakeClock
):
    """A script does not fill the table; after an hour the address may go on."""
    limit = platform.settings.signups_per_hour_per_address
    for number in range(limit):
        assert (await http.post("/v1/signup", json={"name": f"p{number}"})).status_code == 201
    refused = await http.post("/v1/signup", json={"name": "late"})
    assert (refused.status_code, refused.json()["code"]) == (429, "signup_too_often")
    assert 0 < int(refused.headers["retry-after"]) <= 3601
    clock.advance(int(refused.headers["retry-after"]))
    assert (await http.post("/v1/signup", json={"name": "late"})).status_code == 201


async def test_the_secret_is_stored_only_as_a_hash(platform: Platform, ada: Keyholder):
    """A copy of the database opens no account."""
    async with platform.database.transaction() as tx:
        rows = (await tx.execute(select(api_key))).all()
    assert ada.key.split(".")[1] not in repr(rows)


async def test_use_of_a_key_is_noted_at_most_once_a_minute(http: httpx.AsyncClient, ada: Keyholder, clock: FakeClock):
    """A busy key does not write a row per request."""

    async def last_used() -> str:
        return (await http.get("/v1/keys", headers=ada.headers)).json()[0]["last_used_at"]

    first = await last_used()
    clock.advance(30)
    assert await last_used() == first
    clock.advance(31)
    assert await last_used() != first


async def test_an_expiring_key_ends_on_time_and_revoking_twice_is_no_error(
    http: httpx.AsyncClient, ada: Keyholder, clock: FakeClock
):
    """The first revocation counts; a key that one is using can be revoked, too."""
    made = (await http.post("/v1/keys", json={"label": "ci", "expires_in_s": 3600}, headers=ada.headers)).json()
    expires_at = made["key"]["expires_at"]
    assert expires_at.startswith((clock.now() + timedelta(hours=1)).isoformat()[:19])
    with_it = {"Authorization": f"Bearer {made['secret']}"}
    assert (await http.get("/v1/keys", headers=with_it)).status_code == 200
    for _ in range(2):
        assert (await http.delete(f"/v1/keys/{made['key']['id']}", headers=ada.headers)).status_code == 204
    assert (await http.get("/v1/keys", headers=with_it)).json()["code"] == "key_revoked"
    assert (await http.delete(f"/v1/keys/{ada.key.split('.')[0]}", headers=ada.headers)).status_code == 204
    assert (await http.get("/v1/keys", headers=ada.headers)).json()["code"] == "key_revoked"


async def test_keys_per_person_are_bounded(http: httpx.AsyncClient, ada: Keyholder, platform: Platform):
    """A revoked key makes room again."""
    last = ""
    for number in range(platform.settings.keys_per_person_max - 1):
        made = await http.post("/v1/keys", json={"label": f"k{number}"}, headers=ada.headers)
        assert made.status_code == 201
        last = made.json()["key"]["id"]
    refused = await http.post("/v1/keys", json={"label": "more"}, headers=ada.headers)
    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_keys")
    await http.delete(f"/v1/keys/{last}", headers=ada.headers)
    assert (await http.post("/v1/keys", json={"label": "more"}, headers=ada.headers)).status_code == 201


async def test_a_label_with_nul_is_refused_and_absurd_expiries_too(http: httpx.AsyncClient, ada: Keyholder):
    """What PostgreSQL cannot keep is the caller's error, not ours."""
    nul = await http.post("/v1/keys", json={"label": "a\u0000b"}, headers=ada.headers)
    assert nul.status_code == 422
    for seconds in (-1, 0, 59, 10**30, 1.5, "soon", float(10**12)):
        response = await http.post("/v1/keys", json={"label": "x", "expires_in_s": seconds}, headers=ada.headers)
        assert response.status_code == 422, seconds
