"""Both clients against the control plane's routes: results, refusals, retries."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from corral.sdk import AsyncClient, Client, config
from corral.sdk.calls import segment
from corral.sdk.clusters import check_living
from corral.sdk.errors import (
    AddressRefused,
    ApiError,
    ApiKeyMalformed,
    ClusterOver,
    NotConfigured,
    RequestInvalid,
    StartFailed,
    Unreachable,
)
from sdk.fake_control_plane import KEY, FakeControlPlane


def test_client_from_quote_to_bill_returns_typed_results(client: Client) -> None:
    """The main way through the API, with the waiting client."""
    quote = client.quote(cpu=1, nodes=3, hours=2, name="mnist")
    cluster = client.wait_ready(client.book(quote.id).id)
    assert (cluster.state, cluster.hours, len(cluster.nodes)) == ("ready", 2, 3)
    assert client.extend("mnist", 1, total_uc_max=quote.rate_uc_per_hour).hours == 3
    bill = client.end("mnist")
    assert bill.final
    assert bill.ledger_sum_uc == 0


async def test_async_client_does_what_the_waiting_one_does(control_plane: FakeControlPlane) -> None:
    """One rule set, two ways of waiting."""

    async def at_once(_: float) -> None:
        return None

    async with AsyncClient(sleep=at_once) as client:
        assert (await client.whoami()).person.name == "ada"
        quote = await client.quote(cpu=1, name="mnist")
        control_plane.answers_lost = 1
        cluster = await client.wait_ready((await client.book(quote.id)).id)
        assert cluster.state == "ready"
        assert len(control_plane.bookings) == 1
        with pytest.raises(ApiError, match="no cluster other"):
            await client.cluster("other")
        assert (await client.end("mnist")).final


def test_both_clients_offer_the_same_methods() -> None:
    """What one can do, the other can, with the same arguments."""

    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in vars(kind).items()
            if inspect.isfunction(member) and not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


def test_booking_whose_answer_is_lost_is_booked_once(client: Client, control_plane: FakeControlPlane) -> None:
    """The booking's id is made by the client, so that repeating the request is harmless."""
    quote = client.quote(cpu=1)
    control_plane.answers_lost = 2
    cluster = client.book(quote.id)
    assert list(control_plane.bookings) == [cluster.booking_id]
    assert control_plane.requests.count(("POST", "/v1/clusters")) == 3


def test_credit_whose_answer_is_lost_is_added_once(client: Client, control_plane: FakeControlPlane) -> None:
    """Likewise for credit."""
    control_plane.answers_lost = 1
    client.add_credit("ada", 1_000_000)
    assert control_plane.balance_uc == 6_000_000


def test_signup_whose_answer_is_lost_is_not_repeated(client: Client, control_plane: FakeControlPlane) -> None:
    """A second account would have a second key that nobody asked for."""
    control_plane.answers_lost = 1
    with pytest.raises(ApiError) as caught:
        client.signup("bob")
    assert caught.value.is_unavailable
    assert control_plane.requests.count(("POST", "/v1/signup")) == 1


def test_refusal_carries_code_hint_and_facts(client: Client, control_plane: FakeControlPlane) -> None:
    """Programs compare the code; people read the rest."""
    control_plane.balance_uc = 1
    quote = client.quote(cpu=1)
    with pytest.raises(ApiError) as caught:
        client.book(quote.id)
    assert caught.value.code == "insufficient_credit"
    assert caught.value.facts == {"needed_uc": 120_000, "free_uc": 1}
    assert caught.value.hint is not None
    assert control_plane.bookings == {}


def test_start_that_fails_raises_with_the_reason(client: Client, control_plane: FakeControlPlane) -> None:
    """A failed start is no cluster."""
    control_plane.start_fails = "beta did not answer"
    with pytest.raises(StartFailed, match="beta did not answer; nothing was charged"):
        client.wait_ready(client.book(client.quote(cpu=1).id).id)


@pytest.mark.usefixtures("control_plane")
def test_nobody_there_is_unreachable(unused_tcp_port: int) -> None:
    """A refused connection is repeated a few times, and is then an error of its own."""
    waits: list[float] = []
    client = Client(f"http://127.0.0.1:{unused_tcp_port}", "k.s", sleep=waits.append)
    with client, pytest.raises(Unreachable, match="cannot be reached"):
        client.whoami()
    assert waits == [0.2, 0.6, 1.5]


@pytest.mark.usefixtures("control_plane")
def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before any connection."""
    monkeypatch.delenv("CORRAL_API_KEY")
    with Client() as client, pytest.raises(NotConfigured):
        client.whoami()


@pytest.mark.parametrize(
    "url",
    [
        "http://corral.example:8470",
        "ftp://127.0.0.1",
        "corral.example",
        "https://me:secret@corral.example",
        "http://",
        "https://corral.example\n",
        "https://corral. example",
    ],
)
def test_address_that_would_leak_a_key_is_refused(url: str) -> None:
    """Plain HTTP only to this machine."""
    with pytest.raises(AddressRefused):
        Client(url, "k.s")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a?b=c", "ä", "a%2Fb", "\udcff"])
def test_odd_names_stay_in_their_path_segment(name: str) -> None:
    """Whatever a person typed cannot reach another route."""
    quoted = segment(name)
    assert "/" not in quoted
    assert "?" not in quoted
    assert quoted.strip(".") != ""


_INVALID: list[tuple[Callable[[Any], Any], str]] = [
    (lambda corral: corral.quote(cpu=-1), "cpu must be at least 0, not -1; nothing was sent"),
    (lambda corral: corral.quote(cpu=1, hours=0), "hours must be at least 1, not 0; nothing was sent"),
    (lambda corral: corral.quote(cpu=1, nodes=10**9), "nodes must be at most 4094, not 1000000000"),
    (lambda corral: corral.quote(cpu=1, name="Ü"), "name must be at most 40 lower-case letters"),
    (lambda corral: corral.quote(gpu_model="H100", gpu_count=999_999), "gpu_count must be at most 100000"),
    (lambda corral: corral.quote(cpu="two"), "cpu is not valid (input should be a valid integer"),
    (lambda corral: corral.quote(cpu=-1, hours=0), "cpu must be at least 0, not -1; hours must be at least 1"),
    (lambda corral: corral.book("qt_nope"), "quote_id must be an id as the control plane"),
    (lambda corral: corral.extend("mnist", 9999), "hours must be at most 8760, not 9999"),
    (lambda corral: corral.add_credit("ada", 0), "amount_uc must be above 0, not 0"),
    (lambda corral: corral.add_credit("Bad!Name", 5), "person must be at most 40 lower-case letters"),
    (lambda corral: corral.create_key("ci", expires_in_s=-5), "expires_in_s must be at least 60, not -5"),
    (lambda corral: corral.create_key(""), "label must not be empty"),
    (lambda corral: corral.create_key("x" * 300), "label must have at most 80 characters"),
    (lambda corral: corral.create_join_token(expires_in_s=99 * 86400), "expires_in_s must be at most 2592000"),
    (
        lambda corral: corral.create_join_token(role="king"),
        "role is not valid (input should be 'host', 'gateway' or 'relay')",
    ),
    (lambda corral: corral.set_intent("alpha", "gone"), "intent is not valid"),
    (lambda corral: corral.cluster("../whoami"), "'../whoami' is neither the name nor the id of a cluster"),
    (lambda corral: corral.end(""), "'' is neither the name nor the id of a cluster"),
    (lambda corral: corral.host("a/b"), "'a/b' is neither the name nor the id of a host"),
    (lambda corral: corral.revoke_key("nope"), "what was given is not the id of an API key; nothing was revoked"),
]


@pytest.mark.parametrize(("ask", "said"), _INVALID, ids=[said for _, said in _INVALID])
def test_request_that_cannot_be_meant_is_a_typed_error_and_sends_nothing(
    client: Client, control_plane: FakeControlPlane, ask: Callable[[Any], Any], said: str
) -> None:
    """Each value is named as the method names it, with its limit."""
    with pytest.raises(RequestInvalid) as caught:
        ask(client)
    assert said in caught.value.message
    assert caught.value.code == "request_invalid"
    assert control_plane.requests == []


@pytest.mark.parametrize(("ask", "said"), _INVALID, ids=[said for _, said in _INVALID])
async def test_async_client_refuses_the_same_requests(
    control_plane: FakeControlPlane, ask: Callable[[Any], Any], said: str
) -> None:
    """One rule set."""
    async with AsyncClient() as client:
        with pytest.raises(RequestInvalid) as caught:
            await ask(client)
    assert said in caught.value.message
    assert control_plane.requests == []


def test_whole_key_given_as_its_id_is_not_repeated(client: Client) -> None:
    """Errors end up in logs; the secret must not."""
    with pytest.raises(RequestInvalid) as caught:
        client.revoke_key(KEY)
    assert "secret" not in f"{caught.value} {caught.value.facts}"


@pytest.mark.parametrize("key", ["ü.ü", "z\nz", "z z", "z\x00", "z\x7f", "\udcff", "k" * 513])
def test_key_that_cannot_be_sent_is_refused_without_being_quoted(
    control_plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Whether it is given or comes from the settings file; nothing is sent."""
    with pytest.raises(ApiKeyMalformed, match="that was given is none") as given:
        Client(api_key=key)
    monkeypatch.delenv("CORRAL_API_KEY")
    with Client() as client:
        client.config = config.Config(url=control_plane.base_url, api_key=key)
        with pytest.raises(ApiKeyMalformed, match="that is kept for") as kept:
            client.whoami()
    assert key not in f"{given.value} {given.value.facts} {kept.value} {kept.value.facts}"
    assert control_plane.requests == []


def test_cluster_that_is_over_cannot_be_changed(client: Client) -> None:
    """One that starts or is ready can."""
    cluster = client.book(client.quote(cpu=1, name="mnist").id)
    check_living(cluster)
    check_living(client.wait_ready("mnist"))
    client.end("mnist")
    with pytest.raises(ClusterOver, match="cluster mnist is ended; nothing was changed"):
        check_living(client.cluster("mnist"))
