"""The packet sizes of this member: padded probes for `path_mtu`, and what is known here without asking."""

from collections.abc import Callable, Mapping

from corral.member.probes import Prober, known_mtu
from corral.protocol.path_mtu import SIZES, PathMtus, wire_bytes
from corral.protocol.paths import Plane

_WIREGUARD_BYTES = 32
"""What WireGuard adds to a packet in its own counters."""


class Sizes:
    """Which size of packet goes to each peer.

    Args:
        base: that goes without asking.
        outside: what the interface outside of the tunnels carries; nothing is tried that does not fit in it.
    """

    def __init__(self, base: int, *, outside: int) -> None:
        sizes = [size for size in SIZES if size > base and wire_bytes(size) <= outside]
        self.largest = max(base, *sizes, 0)
        """Of the interfaces inside; the routes hold it down to what is proved."""
        self._mtus = PathMtus(base, sizes)
        self._hosts: dict[tuple[str, Plane], str] = {}
        self._bytes: dict[tuple[str, Plane], int] = {}

    def set_peers(self, peers: Mapping[str, Mapping[Plane, str]], now: float) -> None:
        """See `PathMtus.set_peers`."""
        self._mtus.set_peers(peers, now)
        for key in [key for key in self._hosts if key[0] not in peers]:
            del self._hosts[key]
        for key in [key for key in self._bytes if key[0] not in peers]:
            del self._bytes[key]

    def mtu(self, address: str) -> int:
        """The largest packet that is sent to a peer."""
        return self._mtus.mtu(address)

    def changed(self) -> list[str]:
        """Peers whose size changed."""
        return self._mtus.changed()

    def next_at(self) -> float:
        """When `send_due` has something to do."""
        return self._mtus.next_at()

    def send_due(
        self,
        now: float,
        probers: Mapping[Plane, Prober],
        pin_of: Callable[[str, Plane], str],
        may_probe: Callable[[str, Plane], bool],
    ) -> None:
        """Sends the padded probes whose time has come.

        One of which this machine knows that it is too large is not sent: it would leave in pieces, and what a single
        one shows would not hold for many.
        """
        for probe in self._mtus.due(now):
            key = (probe.peer, probe.plane)
            host = self._hosts.get(key)
            if host is None or not may_probe(*key):
                continue  # Not met yet, or not any more: it counts as missed.
            if known_mtu(host) < wire_bytes(probe.size):
                self._mtus.refused(*key, probe.sequence, now)
                continue
            probers[probe.plane].ask_sized(pin_of(*key), probe.sequence, probe.size)
            self._count(key, probe.size)

    def heard(self, address: str, plane: Plane, *, size: int, sequence: int, is_reply: bool, now: float) -> None:
        """A padded probe of a peer has come, which has been answered, or the answer to one of ours."""
        self._count((address, plane), size if is_reply else 2 * size)
        if is_reply:
            self._mtus.answered(address, plane, sequence, now)

    def lives(self, address: str, plane: Plane, now: float) -> None:
        """See `PathMtus.lives`."""
        self._mtus.lives(address, plane, now)

    def dies(self, address: str, plane: Plane, now: float) -> None:
        """See `PathMtus.dies`."""
        self._mtus.dies(address, plane, now)

    def note(self, address: str, plane: Plane, *, endpoint: str, is_hot: bool, now: float) -> int:
        """Takes down where a peer is.

        Returns:
            Bytes that padded probes and their answers have added to WireGuard's counters: no traffic of anybody's.
        """
        self._hosts[address, plane] = endpoint.rpartition(":")[0]
        self._mtus.set_hot(address, is_hot=is_hot, now=now)
        return self._bytes.get((address, plane), 0)

    def _count(self, key: tuple[str, Plane], size: int) -> None:
        self._bytes[key] = self._bytes.get(key, 0) + size + _WIREGUARD_BYTES
