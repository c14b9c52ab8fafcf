"""
The signed member list of a cluster's mesh.

A roster names every member with its mesh address and WireGuard key. It is signed with a per-cluster Ed25519 key, has a
serial, and contains the hash of the one before, so that a member can be added but never unnoticed. A node applies a
roster only after `accept` has passed it.
"""

import base64
import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from corral.core.errors import CorralError

GENESIS = "0" * 64
"""What the first roster of a cluster names as the hash of the one before."""

_DOMAIN = b"corral mesh roster v1\n"
"""Separates these signatures from every other use of the key."""


class RosterRefused(CorralError):
    """A roster was not applied: it is forged, stale, or contradicts itself."""

    code = "roster_refused"


class Relay(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A blind forwarder that members of this cluster may use."""

    relay_id: str
    site: str
    """Relays of one site fail together: primary and backup are of different ones, where there are several."""
    address: str
    """IPv4 address at which its mailboxes are."""
    observer_key: str
    """X25519 key, base 64, of the observer: a call to it is never answered, but shows the relay where it came from."""


class Mailbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A member's own port at a relay: what arrives there comes from it, and what it gets comes from there."""

    relay_id: str
    port: int
    rtt_us: int = 0
    """Between the member's host and the relay; 0 is not measured."""


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One member of a mesh."""

    node_id: str
    name: str
    kind: Literal["node", "leaf"]
    address: str
    direct_key: str
    """X25519 public key of its direct plane's WireGuard, base 64."""
    relayed_key: str
    """The same of its relayed plane."""
    engine_id: str
    """Members with the same engine reach each other on its bridge: their first endpoint."""
    endpoints: tuple[str, ...]
    """`ip:port`: first on the engine's bridge, then published ones. Empty: the member only dials out."""
    router: str = ""
    """Members with the same one have hosts that the control plane sees at one address. Empty: there is no other."""
    lan: tuple[str, ...] = ()
    """`ip:port` at private addresses of its host, for members behind the same router and nobody else."""
    mailboxes: tuple[Mailbox, ...] = ()
    """At most one at each relay of the roster."""


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The members of one cluster at one serial."""

    cluster_id: str
    serial: int
    previous: str
    """SHA-256 of the payload before this one, hex; GENESIS for the first."""
    members: tuple[Member, ...]
    relays: tuple[Relay, ...] = ()


def payload_of(roster: Roster) -> str:
    """The canonical JSON of a roster: what is signed and hashed."""
    return msgspec.json.encode(roster, order="deterministic").decode()


def payload_hash(payload: str) -> str:
    """SHA-256 of a payload, hex: what the next roster names as `previous`."""
    return hashlib.sha256(payload.encode()).hexdigest()


def sign(payload: str, key: Ed25519PrivateKey) -> str:
    """Signs a payload; base 64."""
    return base64.b64encode(key.sign(_DOMAIN + payload.encode())).decode()


def accept(
    payload: str, signature: str, *, cluster_id: str, roster_key: str, last_serial: int, last_hash: str | None
) -> Roster:
    """
    The roster in `payload`, if a member may apply it.

    Args:
        payload: canonical JSON of the roster.
        signature: base 64, by the cluster's roster key.
        cluster_id: the cluster that the member belongs to.
        roster_key: the cluster's Ed25519 public key, base 64, known to the member since it was made.
        last_serial: serial of the roster last applied; 0 if none was.
        last_hash: hash of the payload last applied; None if none was.

    Returns:
        The roster; it may be the very one last applied.

    Raises:
        RosterRefused: wrong signature, another cluster's, an older serial, a second roster with the same serial, a
            successor that does not name its predecessor, or members that share an address, a key or an id.
    """
    _check_signature(payload, signature, roster_key)
    try:
        roster = msgspec.json.decode(payload, type=Roster)
    except msgspec.DecodeError as error:
        raise RosterRefused(
            f"the roster of cluster {cluster_id} cannot be read: {error}; nothing was applied"
        ) from error
    if roster.cluster_id != cluster_id:
        raise RosterRefused(
            f"a roster of cluster {roster.cluster_id} was sent to a member of {cluster_id}; nothing was applied"
        )
    _check_order(roster, payload_hash(payload), last_serial=last_serial, last_hash=last_hash)
    _check_distinct("id", roster, [member.node_id for member in roster.members])
    _check_distinct("address", roster, [member.address for member in roster.members])
    _check_distinct("key", roster, [key for one in roster.members for key in (one.direct_key, one.relayed_key)])
    _check_mailboxes(roster)
    return roster


def verify_chain(
    rosters: Iterable[tuple[str, str]],
    *,
    cluster_id: str,
    roster_key: str,
    last_serial: int = 0,
    last_hash: str = GENESIS,
) -> list[Roster]:
    """
    The rosters of a stretch of a chain, each of which follows the one before it without a gap.

    A stretch shows nothing about what comes after it: whether the end was cut off or replaced is seen only by who
    remembers serial and hash of an end seen before.

    Args:
        rosters: payload and signature of each, in order.
        cluster_id: the cluster whose chain it is.
        roster_key: the cluster's Ed25519 public key, base 64.
        last_serial: serial of the roster before the first of these; 0 if they begin the chain.
        last_hash: hash of that roster's payload; GENESIS if they begin the chain.

    Raises:
        RosterRefused: one of them is no successor of the one before, or `accept` refuses it.
    """
    verified: list[Roster] = []
    for payload, signature in rosters:
        roster = accept(
            payload,
            signature,
            cluster_id=cluster_id,
            roster_key=roster_key,
            last_serial=last_serial,
            last_hash=last_hash,
        )
        if roster.serial != last_serial + 1:
            raise RosterRefused(
                f"roster {roster.serial} of cluster {cluster_id} stands where roster {last_serial + 1} should",
                serial=roster.serial,
                last_serial=last_serial,
            )
        last_serial, last_hash = roster.serial, payload_hash(payload)
        verified.append(roster)
    return verified


def _check_signature(payload: str, signature: str, roster_key: str) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(roster_key, validate=True))
        key.verify(base64.b64decode(signature, validate=True), _DOMAIN + payload.encode())
    except (InvalidSignature, ValueError) as error:
        raise RosterRefused("a roster carries a wrong signature; nothing was applied") from error


def _check_order(roster: Roster, own_hash: str, *, last_serial: int, last_hash: str | None) -> None:
    if roster.serial < max(last_serial, 1):
        raise RosterRefused(
            f"roster {roster.serial} of cluster {roster.cluster_id} is older than {last_serial}; nothing was applied",
            serial=roster.serial,
            last_serial=last_serial,
        )
    if roster.serial == last_serial and last_hash is not None and own_hash != last_hash:
        raise RosterRefused(f"two different rosters of cluster {roster.cluster_id} have the serial {roster.serial}")
    follows = roster.serial == last_serial + 1 and last_hash is not None
    if follows and roster.previous != last_hash:
        raise RosterRefused(f"roster {roster.serial} of cluster {roster.cluster_id} does not follow the one before it")
    if roster.serial == 1 and roster.previous != GENESIS:
        raise RosterRefused(f"the first roster of cluster {roster.cluster_id} names a predecessor")


def _check_distinct(what: str, roster: Roster, values: list[str]) -> None:
    if len(set(values)) != len(values):
        raise RosterRefused(
            f"roster {roster.serial} of cluster {roster.cluster_id} has two members with the same {what}; not applied"
        )


def _check_mailboxes(roster: Roster) -> None:
    relays = {relay.relay_id for relay in roster.relays}
    boxes = [(box.relay_id, box.port) for member in roster.members for box in member.mailboxes]
    per_member = [(member.node_id, box.relay_id) for member in roster.members for box in member.mailboxes]
    is_sound = len(relays) == len(roster.relays) and {relay_id for relay_id, _ in boxes} <= relays
    if not is_sound or len(set(boxes)) != len(boxes) or len(set(per_member)) != len(per_member):
        raise RosterRefused(
            f"roster {roster.serial} of cluster {roster.cluster_id} has a mailbox that two members share, a member "
            "with two at one relay, or one at a relay that it does not name; not applied"
        )
