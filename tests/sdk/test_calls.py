"""Both clients against the control plane's routes: results, refusals, retries."""

import inspect

import pytest

from corral.sdk import AsyncClient, Client
from corral.sdk.calls import segment
from corral.sdk.errors import AddressRefused, ApiError, NotConfigured, StartFailed, Unreachable
from sdk.fake_control_plane import FakeControlPlane


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
    ["http://corral.example:8470", "ftp://127.0.0.1", "corral.example", "https://me:secret@corral.example", "http://"],
)
def test_address_that_would_leak_a_key_is_refused(url: str) -> None:
    """Plain HTTP only to this machine."""
    with pytest.raises(AddressRefused):
        Client(url, "k.s")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a?b=c", "ä", "a%2Fb"])
def test_odd_names_stay_in_their_path_segment(name: str) -> None:
    """Whatever a person typed cannot reach another route."""
    quoted = segment(name)
    assert "/" not in quoted
    assert "?" not in quoted
    assert quoted.strip(".") != ""


def test_odd_name_is_an_unknown_cluster(client: Client) -> None:
    """It is looked for, and not found."""
    with pytest.raises(ApiError):
        client.cluster("../whoami")
