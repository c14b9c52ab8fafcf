"""One WireGuard interface: the kernel's own kind where it has it, wireguard-go otherwise, chosen by trying."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from corral.member.commands import Fatal, must, run

TUN = "/dev/net/tun"
KEEPALIVE_S = 25
"""Shorter than the UDP timeout of the usual NAT, 30 s."""
USERSPACE_START_S = 5.0
USERSPACE_MEMORY = "96MiB"
"""What wireguard-go's heap is kept within. Left alone it grows for as long as bytes move fast, past 260 MiB within half
a minute, and the container, which may take 256 MiB for two of them, would be killed. 4094 peers take 60 MiB."""
SESSION_S = 180.0
"""WireGuard drops a session 180 s after its handshake (REJECT_AFTER_TIME); a living one is renewed after 120 s."""
_CHANGES_PER_COMMAND = 256
"""A command line has a bound."""


class TunnelPeer(NamedTuple):
    """What one plane needs to know of a peer."""

    public_key: str
    allowed: tuple[str, ...]
    """Addresses inside the mesh that it may send from, without a prefix length."""
    endpoint: "str | None"
    """IPv4 address and port; None where only the peer can open the path."""


class PeerState(NamedTuple):
    """One peer as WireGuard sees it."""

    public_key: str
    endpoint: str
    """IPv4 address and port where it was heard last, or is called; `(none)`."""
    handshake_at: int
    """Seconds since the epoch; 0 is never."""
    received_bytes: int
    sent_bytes: int

    def is_fresh(self, wall_s: float) -> bool:
        """Whether its session is in force at this wall clock."""
        return self.handshake_at > 0 and wall_s - self.handshake_at < SESSION_S


class Tunnel:
    """An interface with a key of its own, made here and told to nobody but `wg`."""

    def __init__(self, interface: str, *, port: int, mark: int, private_key: "str | None" = None) -> None:
        """Makes the interface anew, still without address and peers.

        Args:
            interface: its name.
            port: UDP port to listen on.
            mark: firewall mark of its own packets.
            private_key: base 64; made here if there is none.

        Raises:
            Fatal: neither kind of WireGuard works here.
        """
        self.interface, self._port, self._mark = interface, port, mark
        self._process = _make_interface(interface)
        self._private_key = private_key or must("wg", "genkey").strip()
        self.public_key = must("wg", "pubkey", given=self._private_key).strip()

    @property
    def implementation(self) -> str:
        """`kernel` or `wireguard-go`."""
        return "kernel" if self._process is None else "wireguard-go"

    def close(self) -> None:
        """Takes the interface away."""
        run("ip", "link", "delete", self.interface)
        if self._process is not None:
            self._process.terminate()
            self._process.wait(USERSPACE_START_S)

    def has_ended(self) -> bool:
        """Whether wireguard-go has ended, and its interface with it."""
        return self._process is not None and self._process.poll() is not None

    def restart(self) -> None:
        """Makes the interface anew after `has_ended`: with the same key, but without address, peers and sessions.

        Raises:
            Fatal: wireguard-go does not start.
        """
        self._process = _make_interface(self.interface)

    def sync(self, peers: Iterable[TunnelPeer], *, calling: "set[str]") -> None:
        """Make these the peers; sessions of those that stay go on.

        Args:
            peers: all of them.
            calling: keys of those that WireGuard calls at once and keeps the path open to; for the others it waits.
        """
        lines = ["[Interface]", f"PrivateKey = {self._private_key}", f"ListenPort = {self._port}"]
        lines.append(f"FwMark = {self._mark:#x}")
        for peer in peers:
            lines += ["[Peer]", f"PublicKey = {peer.public_key}"]
            lines += [f"AllowedIPs = {', '.join(f'{address}/32' for address in peer.allowed)}"] if peer.allowed else []
            lines += [f"PersistentKeepalive = {KEEPALIVE_S}"] if peer.public_key in calling else []
            lines += [f"Endpoint = {peer.endpoint}"] if peer.endpoint else []
        # It holds the private key: it goes through a pipe and nowhere else.
        must("wg", "syncconf", self.interface, "/dev/stdin", given="\n".join(lines) + "\n")

    def begin_again(self, peers: "list[TunnelPeer]") -> None:
        """Make WireGuard begin its handshake with these peers anew, at once.

        After an initiation it stays quiet for 5 s, whatever packets come. A peer that is taken out and put back starts
        from nothing.
        """
        self._set(
            [
                (
                    *("peer", peer.public_key, "remove"),
                    *("peer", peer.public_key, "allowed-ips", ",".join(f"{address}/32" for address in peer.allowed)),
                    *("endpoint", str(peer.endpoint), "persistent-keepalive", str(KEEPALIVE_S)),
                )
                for peer in peers
            ]
        )

    def keep_open(self, keys: Iterable[str]) -> None:
        """From now on send something every 25 s, so that no NAT on the way forgets the path."""
        self._set([("peer", key, "persistent-keepalive", str(KEEPALIVE_S)) for key in keys])

    def states(self) -> list[PeerState]:
        """What WireGuard knows of each peer."""
        return read_dump(must("wg", "show", self.interface, "dump"))

    def _set(self, changes: "list[tuple[str, ...]]") -> None:
        for start in range(0, len(changes), _CHANGES_PER_COMMAND):
            words = [word for change in changes[start : start + _CHANGES_PER_COMMAND] for word in change]
            must("wg", "set", self.interface, *words)


def read_dump(text: str) -> list[PeerState]:
    """Peers in the output of `wg show INTERFACE dump`, whose first line is the interface with its private key."""
    fields = (line.split("\t") for line in text.splitlines()[1:])
    # public key, preshared key, endpoint, allowed IPs, latest handshake, received, sent, keepalive
    return [PeerState(peer[0], peer[2], int(peer[4]), int(peer[5]), int(peer[6])) for peer in fields if len(peer) == 8]


def _make_interface(interface: str) -> "subprocess.Popen[bytes] | None":
    """The process of wireguard-go, or None where the kernel has WireGuard itself."""
    run("ip", "link", "delete", interface)  # left by the kernel's own kind when this container was restarted
    if run("ip", "link", "add", interface, "type", "wireguard").returncode == 0:
        return None
    if not os.path.exists(TUN):
        raise Fatal(
            f"the kernel has no WireGuard module and {TUN} does not exist here; create the container with "
            f"`--device {TUN}` (where the host lacks it too: `modprobe tun`)"
        )
    socket = f"/run/wireguard/{interface}.sock"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket)  # left by one that was killed; it would look as if the new one were there
    # Told so by its environment too, it does without the page of advice that it prints at each start.
    environment = {**os.environ, "WG_PROCESS_FOREGROUND": "1", "GOMEMLIMIT": USERSPACE_MEMORY}
    command = ("wireguard-go", "-f", interface)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
    deadline = time.monotonic() + USERSPACE_START_S
    while not os.path.exists(socket):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Fatal(
                f"wireguard-go did not start (status {process.returncode}); it needs NET_ADMIN, read and write access "
                f"to {TUN} and a writable /run; its own message is on stderr"
            )
        time.sleep(0.005)
    return process
