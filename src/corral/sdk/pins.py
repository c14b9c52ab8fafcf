"""
Signing the members of a cluster oneself: the key, and what is looked at before anything is signed.

The key is made before the booking, and lies under the data folder as `rosters/BOOKING_ID.key` (0600). Whoever loses it
cannot change the members any more; the cluster goes on as it is.
"""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.core.ids import is_id
from corral.protocol.roster import GENESIS, Member, Roster, sign
from corral.sdk import config
from corral.sdk.errors import AnswerMalformed, ProposalRefused, RosterKeyMissing
from corral.sdk.rosters import Members, kept_path, load_kept, make_folder
from corral.wire import api


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The next roster of a cluster, looked at and ready to be signed."""

    cluster_id: str
    booking_id: str
    serial: int
    payload: str
    joining: tuple[Member, ...]
    """Members that the newest roster does not name, or names with other keys or another address."""
    leaving: tuple[str, ...]
    """Names of members that the newest roster names and this one does not, or not so."""


def key_path(booking_id: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the key of a booking's cluster lies."""
    return config.data_dir(environ) / "rosters" / f"{booking_id}.key"


def make_key(booking_id: str, environ: Mapping[str, str] = os.environ) -> str:
    """
    The public half, base 64, of the key of a booking: made and stored, or the one that is there already.

    Raises:
        RosterKeyMissing: it can be neither read nor stored.
    """
    path = key_path(booking_id, environ)
    try:
        if not path.exists():
            private = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
            make_folder(path.parent)
            config.write_private(path, private + "\n")
    except OSError as error:
        raise RosterKeyMissing(
            f"the key that signs rosters cannot be kept in {path}: {error}; nothing was sent"
        ) from error
    return _public(_load_key(booking_id, environ))


def look_at(
    proposed: api.RosterProposal, cluster: api.Cluster, members: Members, environ: Mapping[str, str] = os.environ
) -> Proposal:
    """
    What a proposed roster would change.

    Args:
        proposed: as the control plane tells it.
        cluster: whose it is, with the nodes that were booked.
        members: its members by the verified chain, whose end was just kept.
        environ: tells where the key and the kept chain lie.

    Raises:
        ProposalRefused: it does not follow the newest roster, the chain is signed by another key than ours, it names a
            node that is not the cluster's, or two gateways.
        RosterKeyMissing: this machine does not hold the key.
    """
    try:
        roster = msgspec.json.decode(proposed.payload, type=Roster)
    except msgspec.DecodeError as error:
        raise _refused(cluster, f"it cannot be read: {error}") from error
    if members.roster_key != _public(_load_key(cluster.booking_id, environ)):
        raise _refused(cluster, "its rosters are said to be signed by another key than the one on this machine")
    kept = load_kept(kept_path(cluster.id, environ), cluster.id)
    last = (kept.serial, kept.hash) if kept is not None else (0, GENESIS)
    if roster.cluster_id != cluster.id or (roster.serial - 1, roster.previous) != last:
        raise _refused(cluster, f"it does not follow roster {last[0]}, the last one that was signed")
    known = {node.id for node in cluster.nodes}
    if strangers := [member.name for member in roster.members if member.kind == "node" and member.node_id not in known]:
        raise _refused(cluster, f"it names {strangers[0]!r}, which is none of its nodes")
    if sum(member.kind == "leaf" for member in roster.members) > 1:
        raise _refused(cluster, "it names more than one gateway")
    before = {(one.node_id, one.address, one.direct_key, one.relayed_key): one.name for one in members.members}
    after = {(one.node_id, one.address, one.direct_key, one.relayed_key) for one in roster.members}
    return Proposal(
        cluster_id=cluster.id,
        booking_id=cluster.booking_id,
        serial=roster.serial,
        payload=proposed.payload,
        joining=tuple(
            one for one in roster.members if (one.node_id, one.address, one.direct_key, one.relayed_key) not in before
        ),
        leaving=tuple(name for identity, name in before.items() if identity not in after),
    )


def signature_of(proposal: Proposal, environ: Mapping[str, str] = os.environ) -> str:
    """
    The renter's signature under a proposal, base 64.

    Raises:
        RosterKeyMissing: this machine does not hold the key.
    """
    return sign(proposal.payload, _load_key(proposal.booking_id, environ))


def _load_key(booking_id: str, environ: Mapping[str, str]) -> Ed25519PrivateKey:
    if not is_id(booking_id):
        raise AnswerMalformed("the control plane named a booking by something that is no id; nothing was signed")
    path = key_path(booking_id, environ)
    try:
        raw = base64.b64decode(path.read_text().strip(), validate=True)
        return Ed25519PrivateKey.from_private_bytes(raw)
    except (OSError, ValueError) as error:
        raise RosterKeyMissing(
            f"the key that signs this cluster's rosters is not in {path}; nothing was signed",
            hint="sign on the machine that booked it",
            path=str(path),
        ) from error


def _public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _refused(cluster: api.Cluster, what: str) -> ProposalRefused:
    return ProposalRefused(
        f"the proposed members of cluster {cluster.name} are not signed: {what}",
        hint=f"`corral show {cluster.name} --members` shows who is in it; ask the operator why",
        cluster=cluster.name,
    )
