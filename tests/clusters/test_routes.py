"""Nobody reaches another person's cluster, by any route or at the gateway."""

import httpx
import pytest

from clusters.conftest import Network
from corral import identity
from corral.api.app import create_app
from corral.clusters import ClusterSource
from corral.clusters.access import authorise, make_ticket
from corral.core.ids import HostId, KeyId
from corral.core.randomness import SeededRandomness
from corral.testing.ids import numbered_id
from corral.wire.agent import AuthoriseReply, AuthoriseRequest


async def a_key(network: Network, name: str) -> tuple[identity.Caller, str]:
    platform = network.platform
    async with platform.database.transaction() as tx:
        now = network.clock.now()
        _, _, secret = await identity.sign_up(tx, name, now, ids=platform.ids, randomness=SeededRandomness(99))
        return await identity.authenticate(tx, secret, now), secret


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/extension", {"id": numbered_id("ex", 1), "hours": 1}),
        ("POST", "/tickets", None),
        ("GET", "/bill", None),
        ("GET", "/rosters", None),
    ],
)
async def test_a_foreign_cluster_is_unknown(network: Network, method: str, path: str, body: object) -> None:
    """By name and by id: 404, and nothing changes."""
    cluster_id = await network.book(nodes=1, name="mnist")
    _, secret = await a_key(network, "mallory")
    before = await network.show(cluster_id)
    app = create_app(network.platform, prices=network.prices, desired=ClusterSource(network.platform))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://127.0.0.1:8470") as client:
        for name in ("mnist", cluster_id):
            answer = await client.request(
                method, f"/v1/clusters/{name}{path}", json=body, headers={"authorization": f"Bearer {secret}"}
            )
            assert (answer.status_code, answer.json()["code"]) == (404, "cluster_unknown")
    assert await network.show(cluster_id) == before


async def test_tickets_work_once_and_sessions_end_with_their_cluster(network: Network) -> None:
    """A ticket is redeemed once, for its own cluster, at the gateway that serves it."""
    cluster_id = await network.book(nodes=1, name="mnist")
    await network.run_until(cluster_id, "ready")
    caller, secret = await a_key(network, "mallory")
    platform = network.platform
    gateway_id = HostId(network.host("gate").host_id)

    async def ask(request: AuthoriseRequest, gateway: HostId = gateway_id) -> AuthoriseReply:
        async with platform.database.transaction() as tx:
            return await authorise(tx, platform.randomness, platform.settings, gateway, request, network.clock.now())

    assert not (await ask(AuthoriseRequest(cluster_name="mnist", api_key=secret))).allowed
    async with platform.database.transaction() as tx:
        ticket, _ = await make_ticket(
            tx,
            platform.randomness,
            cluster_id,
            person_id=caller.person_id,
            key_id=KeyId(caller.key_id),
            expiry_s=60,
            now=network.clock.now(),
        )
    redeem = AuthoriseRequest(cluster_name="mnist", ticket=ticket)
    assert not (await ask(redeem, HostId(network.host("host-a").host_id))).allowed
    entered = await ask(redeem)
    assert entered.allowed
    assert entered.session is not None
    assert not (await ask(redeem)).allowed
    visit = AuthoriseRequest(cluster_name="mnist", session=entered.session)
    assert (await ask(visit)).allowed
    network.clock.advance(13 * 3600)
    assert not (await ask(visit)).allowed
