"""The members of a cluster's mesh as the agent hands them over: checked, field by field."""

import base64
import binascii
import socket
from typing import NamedTuple

PEERS_MAX = 8190
"""Data addresses and leaves in a cluster's network."""
CANDIDATES_MAX = 8
PIN_BLOCKS = {"direct": 1, "relayed": 2}
"""Which /20 of the cluster's /18 holds the addresses that are pinned to a plane; see `protocol.addresses`."""


class RosterRefused(Exception):
    """A roster is malformed or older than the one in force; nothing was changed."""


class Peer(NamedTuple):
    """Another member."""

    address: str
    """In the mesh, without a prefix length."""
    direct_key: str
    relayed_key: str
    endpoints: tuple[str, ...]
    """Where it may answer, best first: IPv4 address and port. Empty where only the peer can open the path."""
    relays: tuple[str, ...]
    """Our own mailboxes at the relays that this pair uses: primary, then backup. Empty: no relayed plane."""
    is_passive: bool
    """It accepts nothing that it did not ask for, so it probes us and we do not probe it."""


class Observer(NamedTuple):
    """A relay that sees at which address our direct plane arrives."""

    public_key: str
    endpoint: str


class Roster(NamedTuple):
    """One message of the agent."""

    serial: int
    peers: tuple[Peer, ...]
    observers: tuple[Observer, ...]


def read_roster(message: dict[str, object], *, own_address: str, serial_min: int) -> Roster:
    """A roster message, checked.

    Raises:
        RosterRefused: a field is missing or malformed, two peers share a key or an address, or the serial is lower
            than `serial_min`.
    """
    serial = message.get("serial")
    if not isinstance(serial, int) or isinstance(serial, bool) or serial < 0:
        raise RosterRefused("the serial is not a whole number")
    if serial < serial_min:
        raise RosterRefused(f"serial {serial} is older than {serial_min}, which is in force")
    peers = tuple(_peer(entry) for entry in _list(message, "peers", PEERS_MAX))
    observers = tuple(_observer(entry) for entry in _list(message, "observers", CANDIDATES_MAX))
    if own_address in {peer.address for peer in peers}:
        raise RosterRefused(f"a peer has this node's own address {own_address}")
    keys = [key for peer in peers for key in (peer.direct_key, peer.relayed_key)]
    keys += [observer.public_key for observer in observers]
    if len({peer.address for peer in peers}) < len(peers) or len(set(keys)) < len(keys):
        raise RosterRefused("two peers share an address or a key")
    return Roster(serial, peers, observers)


def pin_address(network: str, address: str, plane: str) -> str:
    """The address of a member that is reached over one plane only.

    Args:
        network: of the cluster, with its prefix length.
        address: the member's data or leaf address.
        plane: "direct" or "relayed".
    """
    base, member = _number(network.partition("/")[0]), _number(address) & 0xFFF
    return socket.inet_ntoa((base + PIN_BLOCKS[plane] * 0x1000 + member).to_bytes(4, "big"))


def pin_network(network: str, plane: str) -> str:
    """The block of all members' addresses on one plane, with its prefix length."""
    base = _number(network.partition("/")[0])
    return f"{socket.inet_ntoa((base + PIN_BLOCKS[plane] * 0x1000).to_bytes(4, 'big'))}/20"


def is_ipv4(text: object) -> bool:
    """Whether `text` is a dotted IPv4 address in its one canonical spelling."""
    try:
        return isinstance(text, str) and socket.inet_ntoa(socket.inet_pton(socket.AF_INET, text)) == text
    except (OSError, ValueError):  # ValueError: a null character, or no ASCII
        return False


def _number(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


# Everything below ends up as a line of a configuration or a word of a command: only the exact forms pass.


def _list(message: dict[str, object], field: str, length_max: int) -> list[object]:
    entries = message.get(field, [])
    if not isinstance(entries, list) or len(entries) > length_max:
        raise RosterRefused(f"{field} is not a list of at most {length_max}")
    return entries


def _peer(entry: object) -> Peer:
    if not isinstance(entry, dict):
        raise RosterRefused("a peer is not an object")
    address, is_passive = entry.get("address"), entry.get("passive", False)
    if not isinstance(address, str) or not is_ipv4(address):
        raise RosterRefused("a peer's address is not an IPv4 address")
    if not isinstance(is_passive, bool):
        raise RosterRefused(f"whether {address} is passive is neither true nor false")
    return Peer(
        address=address,
        direct_key=_key(entry, "direct_key"),
        relayed_key=_key(entry, "relayed_key"),
        endpoints=_endpoints(entry, "endpoints", address),
        relays=_endpoints(entry, "relays", address),
        is_passive=is_passive,
    )


def _observer(entry: object) -> Observer:
    if not isinstance(entry, dict):
        raise RosterRefused("an observer is not an object")
    endpoint = entry.get("endpoint")
    if not isinstance(endpoint, str) or not _is_endpoint(endpoint):
        raise RosterRefused("the endpoint of an observer is not an IPv4 address and a port")
    return Observer(_key(entry, "public_key"), endpoint)


def _key(entry: dict[object, object], field: str) -> str:
    text = entry.get(field)
    if not isinstance(text, str) or not _is_key(text):
        raise RosterRefused(f"a peer's {field} is not 32 bytes in base64")
    return text


def _endpoints(entry: dict[object, object], field: str, address: str) -> tuple[str, ...]:
    found = entry.get(field, [])
    if not isinstance(found, list) or len(found) > CANDIDATES_MAX:
        raise RosterRefused(f"{field} of {address} is not a list of at most {CANDIDATES_MAX}")
    if not all(isinstance(one, str) and _is_endpoint(one) for one in found):
        raise RosterRefused(f"{field} of {address} has something that is not an IPv4 address and a port")
    return tuple(found)


def _is_key(text: str) -> bool:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(raw) == 32 and base64.b64encode(raw).decode() == text


def _is_endpoint(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return is_ipv4(host) and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
