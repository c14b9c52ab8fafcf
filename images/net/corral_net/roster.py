"""The members of a cluster's mesh as the agent hands them over: checked, and rendered for `wg syncconf`."""

import base64
import binascii
import socket
from typing import NamedTuple

PEERS_MAX = 4094  # data addresses in a cluster's network
KEEPALIVE_S = 25  # shorter than the UDP timeout of the usual NAT, 30 s


class RosterRefused(Exception):
    """A roster is malformed or older than the one in force; nothing was changed."""


class Peer(NamedTuple):
    public_key: str
    address: str  # in the mesh, without a prefix length
    endpoint: str | None  # IPv4 address and port; None where only the peer can open the path


def read_roster(message: dict[str, object], *, own_address: str, serial_min: int) -> tuple[int, tuple[Peer, ...]]:
    """Serial and peers of a roster message.

    Raises:
        RosterRefused: a field is missing or malformed, two peers share a key or an address, or the serial is lower
            than `serial_min`.
    """
    serial, entries = message.get("serial"), message.get("peers")
    if not isinstance(serial, int) or isinstance(serial, bool) or serial < 0:
        raise RosterRefused("the serial is not a whole number")
    if serial < serial_min:
        raise RosterRefused(f"serial {serial} is older than {serial_min}, which is in force")
    if not isinstance(entries, list) or len(entries) > PEERS_MAX:
        raise RosterRefused(f"peers is not a list of at most {PEERS_MAX}")
    peers = tuple(_peer(entry) for entry in entries)
    if own_address in {peer.address for peer in peers}:
        raise RosterRefused(f"a peer has this node's own address {own_address}")
    if len({peer.address for peer in peers}) < len(peers) or len({peer.public_key for peer in peers}) < len(peers):
        raise RosterRefused("two peers share an address or a key")
    return serial, peers


def configuration(private_key: str, *, port: int, mark: int, peers: tuple[Peer, ...], calling: set[str]) -> str:
    """Text for `wg syncconf`. It holds the private key: it goes through a pipe and nowhere else.

    Args:
        private_key: of this node, in base64.
        port: UDP port to listen on.
        mark: firewall mark of WireGuard's own packets.
        peers: the other members.
        calling: keys of those that WireGuard calls at once, and keeps the path open to; the others it waits for.
    """
    lines = ["[Interface]", f"PrivateKey = {private_key}", f"ListenPort = {port}", f"FwMark = {mark:#x}"]
    for peer in peers:
        lines += ["[Peer]", f"PublicKey = {peer.public_key}", f"AllowedIPs = {peer.address}/32"]
        if peer.public_key in calling:
            lines.append(f"PersistentKeepalive = {KEEPALIVE_S}")
        if peer.endpoint:
            lines.append(f"Endpoint = {peer.endpoint}")
    return "\n".join(lines) + "\n"


def is_ipv4(text: object) -> bool:
    """Whether `text` is a dotted IPv4 address in its one canonical spelling."""
    try:
        return isinstance(text, str) and socket.inet_ntoa(socket.inet_pton(socket.AF_INET, text)) == text
    except (OSError, ValueError):  # ValueError: a null character, or no ASCII
        return False


def _peer(entry: object) -> Peer:
    if not isinstance(entry, dict):
        raise RosterRefused("a peer is not an object")
    key, address, endpoint = entry.get("public_key"), entry.get("address"), entry.get("endpoint")
    # Everything below ends up as a line of a configuration: only the exact forms pass.
    if not isinstance(key, str) or not _is_key(key):
        raise RosterRefused("a peer's public key is not 32 bytes in base64")
    if not isinstance(address, str) or not is_ipv4(address):
        raise RosterRefused("a peer's address is not an IPv4 address")
    if endpoint is not None and (not isinstance(endpoint, str) or not _is_endpoint(endpoint)):
        raise RosterRefused(f"the endpoint of {address} is not an IPv4 address and a port")
    return Peer(key, address, endpoint)


def _is_key(text: str) -> bool:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(raw) == 32 and base64.b64encode(raw).decode() == text


def _is_endpoint(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return is_ipv4(host) and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
