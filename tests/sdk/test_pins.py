"""What is looked at before a renter's key signs who is a member."""

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corral.sdk import Client, pins
from corral.sdk.errors import ProposalRefused, RosterKeyMissing

from .fake_control_plane import FakeControlPlane, a_member, an_id


@pytest.fixture
def cluster_id(client: Client) -> str:
    """A pinned cluster of one node whose first members are proposed."""
    cluster = client.book(client.quote(cpu=1, name="mine").id, pin_members=True)
    for changed in client.watch(cluster.id, newer_than=cluster.version):
        if changed.awaits_signature:
            return cluster.id
    raise AssertionError("nothing was proposed")


def test_proposal_is_shown_signed_and_followed_by_the_next(
    client: Client, control_plane: FakeControlPlane, cluster_id: str
) -> None:
    """Each follows the one before; what joins and leaves is told."""
    first = client.proposal(cluster_id)
    assert ([one.name for one in first.joining], first.leaving, first.serial) == (["n1", "gate"], (), 1)
    client.sign(first)
    node = msgspec.structs.replace(a_member(1), node_id=client.cluster(cluster_id).nodes[0].id)
    control_plane.propose(next(iter(control_plane.bookings.values())), node)
    second = client.proposal(cluster_id)
    assert ([one.name for one in second.joining], second.leaving, second.serial) == ([], ("gate",), 2)
    client.sign(second)
    assert client.members(cluster_id).serial == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cluster_id": an_id("cl", 999)}, "does not follow"),
        ({"serial": 2}, "does not follow"),
        ({"previous": "0" * 63 + "1"}, "does not follow"),
        ({"members": (a_member(5),)}, "none of its nodes"),
        ({"members": (a_member(8, leaf=True), a_member(9, leaf=True))}, "more than one gateway"),
    ],
)
def test_proposal_that_is_none_of_the_cluster_is_refused(
    client: Client, control_plane: FakeControlPlane, cluster_id: str, change: dict[str, Any], why: str
) -> None:
    """Nothing is signed."""
    proposed = control_plane.proposals[cluster_id]
    control_plane.proposals[cluster_id] = msgspec.structs.replace(proposed, **change)
    with pytest.raises(ProposalRefused, match=why):
        client.proposal(cluster_id)


def test_chain_of_another_key_is_refused(client: Client, control_plane: FakeControlPlane, cluster_id: str) -> None:
    """A control plane that signs by itself is found out before anything is signed."""
    control_plane.pins.clear()
    with pytest.raises(ProposalRefused, match="another key"):
        client.proposal(cluster_id)


def test_key_is_private_and_made_once(client: Client, cluster_id: str) -> None:
    """A second booking of the same id, after a lost answer, has the same key; without its file nothing is signed."""
    booking_id = client.cluster(cluster_id).booking_id
    path = pins.key_path(booking_id)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert pins.make_key(booking_id) == pins.make_key(booking_id)
    path.unlink()
    with pytest.raises(RosterKeyMissing):
        client.proposal(cluster_id)
