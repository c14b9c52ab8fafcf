"""The roster chain as a renter follows it: what is kept, what is shown, and what contradicts it."""

import json
import stat
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.protocol.roster import payload_hash
from corral.sdk import AsyncClient, Client, config
from corral.sdk.errors import AnswerMalformed, ApiError, KeptRostersUnusable, RosterChainBroken
from corral.sdk.rosters import ChainReader, kept_path
from corral.testing.clock import START, FakeClock
from corral.wire import api
from sdk.fake_control_plane import A_RELAY, FakeControlPlane, a_member, an_id, public_key, resigned

CLUSTER = an_id("cl", 1)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture
def clock() -> FakeClock:
    """The renter's."""
    return FakeClock()


@pytest.fixture
def client(control_plane: FakeControlPlane, clock: FakeClock) -> Iterator[Client]:
    """A renter's, with a cluster `mnist` that has three rosters: n1; then n2 and the gateway; then n2 anew."""
    connected = Client(sleep=lambda _: None, clock=clock)
    connected.book(connected.quote(cpu=1, nodes=2, name="mnist").id)
    one, gate = a_member(1), a_member(3, leaf=True)
    control_plane.publish(CLUSTER, one)
    control_plane.publish(CLUSTER, one, a_member(2), gate)
    control_plane.publish(CLUSTER, one, a_member(2, start=2), gate)
    yield connected
    connected.close()


def test_members_are_told_with_what_was_verified(client: Client, control_plane: FakeControlPlane) -> None:
    """All that the newest roster names, since when, and who is no longer named so."""
    told = client.members("mnist")
    assert (told.cluster_id, told.serial, told.rosters_verified, told.rosters_new) == (CLUSTER, 3, 3, 3)
    assert (told.roster_key, told.is_first_look, told.known_since) == (
        public_key(control_plane.roster_key),
        True,
        START,
    )
    assert [(one.name, one.kind, one.since_serial) for one in told.members] == [
        ("n1", "node", 1),
        ("n2", "node", 3),
        ("gate", "leaf", 2),
    ]
    first = told.members[0]
    assert first.endpoints == ["172.17.0.2:51820", "198.51.100.1:32768"]
    assert [(box.relay_id, box.address, box.port) for box in first.mailboxes] == [
        (A_RELAY.relay_id, A_RELAY.address, 41001)
    ]
    assert [(one.name, one.direct_key, one.first_serial, one.last_serial) for one in told.former] == [
        ("n2", a_member(2).direct_key, 2, 2)
    ]


def test_a_second_look_fetches_and_counts_what_is_new(
    client: Client, control_plane: FakeControlPlane, clock: FakeClock
) -> None:
    """What is known is asked for no more but for its last roster, by which the rest is recognised."""
    client.members("mnist")
    clock.advance(3600)
    control_plane.publish(CLUSTER, a_member(1))
    asked = len(control_plane.requests)
    told = client.members(CLUSTER)
    assert len(control_plane.requests) - asked == 2
    assert (told.serial, told.rosters_verified, told.rosters_new, told.is_first_look) == (4, 4, 1, False)
    assert told.known_since == START
    assert [(one.name, one.since_serial) for one in told.members] == [("n1", 1)]
    assert [(one.name, one.first_serial, one.last_serial) for one in told.former] == [
        ("n2", 2, 2),
        ("n2", 3, 3),
        ("gate", 2, 3),
    ]
    again = client.members("mnist")
    assert again.rosters_new == 0
    assert (again.members, again.former) == (told.members, told.former)


def test_a_member_that_came_and_went_between_two_looks_is_told(client: Client, control_plane: FakeControlPlane) -> None:
    """A member can be added, but never unnoticed."""
    client.members("mnist")
    control_plane.publish(CLUSTER, a_member(1), a_member(9))
    control_plane.publish(CLUSTER, a_member(1))
    assert ("n9", 4, 4) in [(one.name, one.first_serial, one.last_serial) for one in client.members("mnist").former]


def test_a_member_whose_endpoints_changed_is_the_same(client: Client, control_plane: FakeControlPlane) -> None:
    """What makes it this member are its address and keys."""
    moved = msgspec.structs.replace(a_member(1), endpoints=("192.0.2.1:4000",))
    control_plane.publish(CLUSTER, moved)
    (told,) = client.members("mnist").members
    assert (told.endpoints, told.since_serial) == (["192.0.2.1:4000"], 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_pages_of_any_size_show_the_same(client: Client, control_plane: FakeControlPlane, size: int) -> None:
    """The client goes on until there is no more."""
    control_plane.rosters_per_page = size
    assert client.members("mnist").rosters_verified == 3
    control_plane.publish(CLUSTER, a_member(1))
    control_plane.publish(CLUSTER, a_member(2))
    assert client.members("mnist").rosters_new == 2


async def test_the_async_client_shows_the_same(client: Client, control_plane: FakeControlPlane) -> None:
    """And goes on from what the other kept."""
    told = client.members("mnist")
    async with AsyncClient() as other:
        again = await other.members("mnist")
        assert (again.members, again.former, again.rosters_new) == (told.members, told.former, 0)
        control_plane.rosters[CLUSTER].pop()
        with pytest.raises(RosterChainBroken):
            await other.members("mnist")


def test_a_chain_without_rosters_pins_the_key(
    client: Client, control_plane: FakeControlPlane, clock: FakeClock
) -> None:
    """A cluster that starts has none yet; its key is the same for good."""
    chain = control_plane.rosters.pop(CLUSTER)
    told = client.members("mnist")
    assert (told.serial, told.members, told.rosters_verified, told.is_first_look) == (0, [], 0, True)
    clock.advance(60)
    control_plane.rosters[CLUSTER] = chain
    told = client.members("mnist")
    assert (told.rosters_new, told.is_first_look, told.known_since) == (3, False, START)


def test_what_is_kept_is_private_and_where_it_should_be(client: Client, tmp_path: Path) -> None:
    """0600 in a folder of 0700; whole; nothing else is left there."""
    client.members("mnist")
    path = tmp_path / "data" / "corral" / "rosters" / f"{CLUSTER}.json"
    assert kept_path(CLUSTER) == path
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)] == [0o600, 0o700]
    assert list(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text())["serial"] == 3


def test_a_relative_data_home_is_ignored() -> None:
    """As the standard wants it."""
    assert config.data_dir({"HOME": "/h"}) == Path("/h/.local/share/corral")
    assert config.data_dir({"HOME": "/h", "XDG_DATA_HOME": "here"}) == Path("/h/.local/share/corral")
    assert config.data_dir({"HOME": "/h", "XDG_DATA_HOME": "/d"}) == Path("/d/corral")


def rekey(plane: FakeControlPlane) -> None:
    """The whole chain anew, with another key."""
    chain = plane.rosters[CLUSTER]
    plane.roster_key = OTHER_KEY
    plane.rosters[CLUSTER] = [resigned(one, OTHER_KEY) for one in chain]


def rewrite(plane: FakeControlPlane) -> None:
    """A sound chain of the same length, signed with the true key, with somebody else in its second roster."""
    plane.rosters[CLUSTER] = []
    for numbers in ((1,), (1, 8), (1, 2)):
        plane.publish(CLUSTER, *(a_member(number) for number in numbers))


def rewrite_and_go_on(plane: FakeControlPlane) -> None:
    """The same, and longer than what was seen."""
    rewrite(plane)
    plane.publish(CLUSTER, a_member(1))


def shorten(plane: FakeControlPlane) -> None:
    """The last one was never there."""
    plane.rosters[CLUSTER].pop()


def forget(plane: FakeControlPlane) -> None:
    """None was ever there."""
    plane.rosters[CLUSTER].clear()


def fork(plane: FakeControlPlane) -> None:
    """The known one stays; the next does not follow from it."""
    plane.publish(CLUSTER, a_member(1))
    plane.rosters[CLUSTER][-1] = resigned(plane.rosters[CLUSTER][-1], plane.roster_key, previous="1" * 64)


def skip(plane: FakeControlPlane) -> None:
    """The next one is left out."""
    plane.publish(CLUSTER, a_member(1), a_member(9))
    plane.publish(CLUSTER, a_member(1))
    del plane.rosters[CLUSTER][-2]


def resign_the_known(plane: FakeControlPlane) -> None:
    """The one known, with a signature by nobody."""
    known = plane.rosters[CLUSTER][-1]
    plane.rosters[CLUSTER][-1] = known.model_copy(update={"signature": plane.rosters[CLUSTER][0].signature})


def behead(plane: FakeControlPlane) -> None:
    """The first one is left out."""
    del plane.rosters[CLUSTER][0]


def misname(plane: FakeControlPlane) -> None:
    """A new one, sent under another serial."""
    plane.publish(CLUSTER, a_member(1))
    plane.rosters[CLUSTER][-1] = plane.rosters[CLUSTER][-1].model_copy(update={"serial": 7})


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (rekey, "it is now said to be signed by "),
        (rewrite, "its past was rewritten"),
        (rewrite_and_go_on, "its past was rewritten"),
        (shorten, "it now ends before roster 3"),
        (forget, "it now ends before roster 3"),
        (fork, "roster 4 of cluster .* does not follow"),
        (skip, "roster 5 of cluster .* stands where roster 4 should"),
        (resign_the_known, "wrong signature"),
        (misname, "roster 4 was sent as roster 7"),
    ],
)
def test_what_contradicts_the_kept_chain_is_told_and_changes_nothing(
    client: Client, control_plane: FakeControlPlane, break_it: Callable[[FakeControlPlane], None], said: str
) -> None:
    """What was kept stays, byte by byte, and contradicts it again; the true chain passes once more."""
    client.members("mnist")
    path, true_chain, true_key = kept_path(CLUSTER), list(control_plane.rosters[CLUSTER]), control_plane.roster_key
    before = path.read_bytes()
    break_it(control_plane)
    for _ in range(2):
        with pytest.raises(RosterChainBroken, match=said) as broken:
            client.members("mnist")
        assert str(path) in broken.value.message
        assert f"corral down {CLUSTER}" in (broken.value.hint or "")
        assert broken.value.facts["known_serial"] == 3
        assert path.read_bytes() == before
    control_plane.rosters[CLUSTER], control_plane.roster_key = true_chain, true_key
    assert client.members("mnist").rosters_new == 0


@pytest.mark.parametrize("break_it", [fork, skip, misname, behead])
def test_a_chain_that_is_broken_at_the_first_look_is_not_kept(
    client: Client, control_plane: FakeControlPlane, break_it: Callable[[FakeControlPlane], object]
) -> None:
    """Nothing is believed of it, not even its key."""
    break_it(control_plane)
    with pytest.raises(RosterChainBroken, match="nothing was kept"):
        client.members("mnist")
    assert not kept_path(CLUSTER).exists()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b"[]", b'{"cluster_id": "x"}'], ids=["empty", "bare", "binary", "list", "partial"]
)
def test_a_kept_chain_that_cannot_be_read_is_not_replaced(client: Client, content: bytes) -> None:
    """It may be all that shows that something was changed."""
    client.members("mnist")
    path = kept_path(CLUSTER)
    path.write_bytes(content)
    with pytest.raises(KeptRostersUnusable, match=str(path)):
        client.members("mnist")
    assert path.read_bytes() == content


def test_a_kept_chain_of_another_cluster_is_not_believed(client: Client) -> None:
    """A file that was copied or renamed."""
    client.members("mnist")
    other = kept_path(an_id("cl", 2))
    other.write_bytes(kept_path(CLUSTER).read_bytes())
    with pytest.raises(KeptRostersUnusable, match="is about cluster"):
        ChainReader.of(an_id("cl", 2))


def test_a_chain_that_cannot_be_kept_is_an_error(client: Client, tmp_path: Path) -> None:
    """An unnoticed one would be worth nothing the next time."""
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(KeptRostersUnusable, match="cannot be"):
        client.members("mnist")


def test_the_data_folder_named_by_the_server_is_never_left(client: Client, control_plane: FakeControlPlane) -> None:
    """A control plane cannot choose a file of ours."""
    next(iter(control_plane.bookings.values())).id = "../../config/x"
    with pytest.raises(AnswerMalformed, match="no id"):
        client.members("mnist")


def test_a_chain_of_another_cluster_is_not_taken(client: Client) -> None:
    """The answer says what it is about."""
    reader = ChainReader.of(CLUSTER)
    with pytest.raises(RosterChainBroken, match="rosters of cluster"):
        reader.take(api.RosterChain(cluster_id=an_id("cl", 2), roster_key="k", rosters=[]))


def test_two_processes_that_look_at_once_keep_the_longer_chain(client: Client, control_plane: FakeControlPlane) -> None:
    """The slower one does not take back what the faster one saw, and notices if it was shown something else."""

    def page(after: int, upto: int) -> api.RosterChain:
        rosters = control_plane.rosters[CLUSTER][after:upto]
        return api.RosterChain(cluster_id=CLUSTER, roster_key=public_key(control_plane.roster_key), rosters=rosters)

    slow, fast, deceived = (ChainReader.of(CLUSTER) for _ in range(3))
    slow.take(page(0, 2))
    fast.take(page(0, 3))
    fast.keep(START)
    slow.keep(START + timedelta(seconds=1))
    kept = json.loads(kept_path(CLUSTER).read_text())
    assert (kept["serial"], kept["hash"]) == (3, payload_hash(control_plane.rosters[CLUSTER][2].payload))
    rewrite(control_plane)
    deceived.take(page(0, 3))
    with pytest.raises(RosterChainBroken, match="another process"):
        deceived.keep(START)


def test_members_of_somebody_elses_cluster_are_not_shown(client: Client) -> None:
    """As with every other call; nothing is kept."""
    with pytest.raises(ApiError) as refused:
        client.members(an_id("cl", 77))
    assert refused.value.code == "cluster_unknown"
    assert not kept_path(an_id("cl", 77)).exists()
