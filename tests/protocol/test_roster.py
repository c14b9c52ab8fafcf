"""The signed member list: what a member applies, and what it refuses."""

import base64
from dataclasses import dataclass

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from corral.protocol.roster import (
    GENESIS,
    Member,
    Roster,
    RosterRefused,
    accept,
    payload_hash,
    payload_of,
    sign,
    verify_chain,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
CLUSTER = "cl_00000000000000000000000001"


@dataclass(frozen=True)
class Signed:
    """A roster with its signature."""

    roster: Roster
    payload: str
    signature: str


def a_member(number: int) -> Member:
    direct, relayed = (base64.b64encode((number + plane).to_bytes(32, "big")).decode() for plane in (0, 1000))
    return Member(
        node_id=f"nd_{number:026d}",
        name=f"n{number}",
        kind="node",
        address=f"10.128.0.{number}",
        direct_key=direct,
        relayed_key=relayed,
        engine_id="e",
        endpoints=(f"192.0.2.1:{number}",),
    )


def signed(roster: Roster) -> Signed:
    payload = payload_of(roster)
    return Signed(roster, payload, sign(payload, KEY))


def a_chain(memberships: list[set[int]]) -> list[Signed]:
    chain: list[Signed] = []
    for serial, numbers in enumerate(memberships, start=1):
        previous = payload_hash(chain[-1].payload) if chain else GENESIS
        members = tuple(a_member(number) for number in sorted(numbers))
        chain.append(signed(Roster(cluster_id=CLUSTER, serial=serial, previous=previous, members=members)))
    return chain


def applied(one: Signed, last: Signed | None, *, cluster_id: str = CLUSTER, key: str = PUBLIC) -> Roster:
    return accept(
        one.payload,
        one.signature,
        cluster_id=cluster_id,
        roster_key=key,
        last_serial=last.roster.serial if last else 0,
        last_hash=payload_hash(last.payload) if last else None,
    )


memberships = st.lists(st.sets(st.integers(1, 60), max_size=6), min_size=1, max_size=6)


@given(memberships)
def test_every_roster_of_a_chain_is_applied_in_order(sets: list[set[int]]) -> None:
    """What the control plane signs in order, members apply in order; the last one again changes nothing."""
    last: Signed | None = None
    for one in a_chain(sets):
        assert applied(one, last) == one.roster
        assert applied(one, one) == one.roster
        last = one


@given(memberships, st.data())
def test_an_older_roster_is_never_applied(sets: list[set[int]], data: st.DataObject) -> None:
    """A member that was removed cannot be brought back by an old roster."""
    chain = a_chain(sets)
    newer = data.draw(st.integers(0, len(chain) - 1))
    older = data.draw(st.integers(0, newer))
    if older < newer:
        with pytest.raises(RosterRefused):
            applied(chain[older], chain[newer])


@given(memberships, st.data())
def test_a_changed_payload_is_never_applied(sets: list[set[int]], data: st.DataObject) -> None:
    """One changed character breaks the signature."""
    one = a_chain(sets)[-1]
    place = data.draw(st.integers(0, len(one.payload) - 1))
    changed = chr((ord(one.payload[place]) + 1) % 128)
    forged = Signed(one.roster, one.payload[:place] + changed + one.payload[place + 1 :], one.signature)
    with pytest.raises(RosterRefused):
        applied(forged, None)


@given(memberships)
def test_a_roster_of_another_cluster_or_key_is_refused(sets: list[set[int]]) -> None:
    """Neither can be passed off as this cluster's."""
    one = a_chain(sets)[0]
    with pytest.raises(RosterRefused):
        applied(one, None, cluster_id="cl_00000000000000000000000002")
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    with pytest.raises(RosterRefused):
        applied(one, None, key=base64.b64encode(other).decode())


@given(st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)))
def test_a_fork_is_noticed(first: set[int], second: set[int], other: set[int]) -> None:
    """A member that was shown one history refuses a successor of another one, and a twin with the same serial."""
    here, there = a_chain([first, second]), a_chain([other, second])
    if first != other:
        with pytest.raises(RosterRefused):
            applied(there[1], here[0])
        with pytest.raises(RosterRefused):
            applied(there[0], here[0])


@given(st.integers(1, 60), st.integers(61, 99), st.sampled_from(["node_id", "address", "direct_key", "relayed_key"]))
def test_members_that_share_something_are_refused(one: int, other: int, shared: str) -> None:
    """Two members never share an id, an address or a key."""
    twin = msgspec.structs.replace(a_member(other), **{shared: getattr(a_member(one), shared)})
    roster = signed(Roster(cluster_id=CLUSTER, serial=1, previous=GENESIS, members=(a_member(one), twin)))
    with pytest.raises(RosterRefused):
        applied(roster, None)


def test_the_same_roster_has_one_payload() -> None:
    """The canonical form: what is hashed is what was signed."""
    one, again = a_chain([{1, 2}])[0], a_chain([{2, 1}])[0]
    assert one.payload == again.payload


def verified(chain: list[Signed], last: Signed | None = None) -> list[Roster]:
    return verify_chain(
        [(one.payload, one.signature) for one in chain],
        cluster_id=CLUSTER,
        roster_key=PUBLIC,
        last_serial=last.roster.serial if last else 0,
        last_hash=payload_hash(last.payload) if last else GENESIS,
    )


long_chains = st.lists(st.sets(st.integers(1, 60), max_size=4), min_size=2, max_size=6).map(a_chain)


@given(long_chains, st.lists(st.integers(1, 6), max_size=6))
def test_a_true_chain_passes_in_any_paging(chain: list[Signed], sizes: list[int]) -> None:
    """Pages are read one after the other, each from the end of the one before; an empty one changes nothing."""
    last: Signed | None = None
    read: list[Roster] = []
    rest = chain
    for size in [*sizes, len(chain)]:
        page, rest = rest[:size], rest[size:]
        read += verified(page, last)
        last = page[-1] if page else last
    assert read == [one.roster for one in chain]


@given(long_chains, st.data())
def test_a_chain_without_one_of_its_rosters_is_broken(chain: list[Signed], data: st.DataObject) -> None:
    """All but the last: that it is missing, only who saw it before can tell."""
    place = data.draw(st.integers(0, len(chain) - 2))
    with pytest.raises(RosterRefused):
        verified(chain[:place] + chain[place + 1 :])


@given(long_chains, st.data())
def test_a_chain_in_another_order_is_broken(chain: list[Signed], data: st.DataObject) -> None:
    """Two swapped, or one told twice."""
    one = data.draw(st.integers(0, len(chain) - 2))
    other = data.draw(st.integers(one + 1, len(chain) - 1))
    swapped = list(chain)
    swapped[one], swapped[other] = chain[other], chain[one]
    with pytest.raises(RosterRefused):
        verified(swapped)
    with pytest.raises(RosterRefused):
        verified([*chain[: other + 1], *chain[one:]])


@given(long_chains, st.sets(st.integers(61, 99), min_size=1, max_size=3), st.data())
def test_a_past_that_is_edited_breaks_the_chain(chain: list[Signed], added: set[int], data: st.DataObject) -> None:
    """Not signed anew, anywhere; signed anew with the true key, by whatever comes after."""
    place = data.draw(st.integers(0, len(chain) - 2))
    members = (*chain[place].roster.members, *(a_member(number) for number in sorted(added)))
    edited = signed(msgspec.structs.replace(chain[place].roster, members=members))
    for forged in (edited, Signed(edited.roster, edited.payload, chain[place].signature)):
        with pytest.raises(RosterRefused):
            verified([*chain[:place], forged, *chain[place + 1 :]])


@given(long_chains, st.data())
def test_a_roster_signed_by_another_key_breaks_the_chain(chain: list[Signed], data: st.DataObject) -> None:
    """Wherever it is, also at the end."""
    place = data.draw(st.integers(0, len(chain) - 1))
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    forged = Signed(chain[place].roster, chain[place].payload, sign(chain[place].payload, other))
    with pytest.raises(RosterRefused):
        verified([*chain[:place], forged, *chain[place + 1 :]])


@given(long_chains, st.data())
def test_a_stretch_that_does_not_follow_what_was_seen_is_broken(chain: list[Signed], data: st.DataObject) -> None:
    """Nothing may be left out between what is known and what comes, nor at the very beginning."""
    start = data.draw(st.integers(1, len(chain) - 1))
    assert verified(chain[start:], chain[start - 1]) == [one.roster for one in chain[start:]]
    for wrong in {None, *range(len(chain))} - {start - 1}:
        with pytest.raises(RosterRefused):
            verified(chain[start:], None if wrong is None else chain[wrong])


def test_a_first_roster_that_names_a_predecessor_begins_no_chain() -> None:
    """A chain begins with GENESIS."""
    roster = Roster(cluster_id=CLUSTER, serial=1, previous="1" * 64, members=(a_member(1),))
    with pytest.raises(RosterRefused):
        verified([signed(roster)])
