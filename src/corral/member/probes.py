"""Probes inside the tunnels: one small datagram there and back over one plane."""

import contextlib
import socket
import struct
from typing import NamedTuple

PORT = 820
"""On the addresses that are pinned to a plane; nobody else uses these."""
_FORMAT = struct.Struct("!4sBxHIiI")
_MAGIC = b"CPRB"
_REQUEST, _REPLY, _SIZED_REQUEST, _SIZED_REPLY = 1, 2, 3, 4
_DATAGRAMS_AT_ONCE = 1024
_HEADERS_BYTES = 28
"""IPv4 and UDP."""
_DATAGRAM_BYTES_MAX = 9216
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO, _IP_MTU = 10, 2, 14


class Probe(NamedTuple):
    """One datagram of a peer."""

    pin: str
    """Its address on this plane; WireGuard vouches for it."""
    is_reply: bool
    sequence: int
    rtt_s: "float | None"
    """What the sender has measured on this plane lately; None if it hears nothing."""
    interval_s: float
    """When its next one is due."""
    size: int
    """Bytes of the IPv4 packet that was padded; 0 for a probe that was not."""


class Prober:
    """The socket of one plane: sends requests, answers those of peers, collects what came in."""

    def __init__(self, pin: str) -> None:
        """Binds to our own pinned address, which must exist."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # Inside the tunnel nothing is cut into pieces: a probe that is too large for our interface is not sent.
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        self._socket.bind((pin, PORT))

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """File descriptor to poll for input."""
        return self._socket.fileno()

    def ask(self, pin: str, sequence: int, *, rtt_s: "float | None", interval_s: float) -> None:
        """Sends a request; one that cannot be sent counts as lost."""
        self._send(pin, _REQUEST, sequence, rtt_s, interval_s)

    def ask_sized(self, pin: str, sequence: int, size: int) -> None:
        """Sends a request as an IPv4 packet of `size` bytes; its answer will be as large."""
        self._send(pin, _SIZED_REQUEST, sequence, None, 0.0, size=size)

    def read(self) -> list[Probe]:
        """What has arrived; requests are answered at once, and at their size."""
        found: list[Probe] = []
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data, (host, port) = self._socket.recvfrom(_DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:  # what a peer's ICMP said of an earlier datagram
                continue
            if port != PORT or len(data) < _FORMAT.size or data[:4] != _MAGIC:
                continue
            _, kind, _, sequence, rtt_us, interval_ms = _FORMAT.unpack(data[: _FORMAT.size])
            size = len(data) + _HEADERS_BYTES if kind in (_SIZED_REQUEST, _SIZED_REPLY) else 0
            if not size and len(data) != _FORMAT.size:
                continue
            if kind == _REQUEST:
                self._send(host, _REPLY, sequence, None, 0.0)
            elif kind == _SIZED_REQUEST:
                self._send(host, _SIZED_REPLY, sequence, None, 0.0, size=size)
            rtt_s = rtt_us / 1e6 if rtt_us >= 0 else None
            found.append(Probe(host, kind in (_REPLY, _SIZED_REPLY), sequence, rtt_s, interval_ms / 1e3, size))
        return found

    def _send(
        self, pin: str, kind: int, sequence: int, rtt_s: "float | None", interval_s: float, *, size: int = 0
    ) -> None:
        rtt_us = -1 if rtt_s is None else min(int(rtt_s * 1e6), 2**31 - 1)
        with contextlib.suppress(OSError):
            datagram = _FORMAT.pack(_MAGIC, kind, 0, sequence & 0xFFFFFFFF, rtt_us, int(interval_s * 1000))
            self._socket.sendto(datagram.ljust(size - _HEADERS_BYTES, b"\0"), (pin, PORT))


def known_mtu(host: str) -> int:
    """The largest packet that this machine would send to an address in one piece, by what it has been told so far.

    Its own interface counts, and what routers on the way have said by ICMP. Nothing is sent.

    Returns:
        Bytes; 0 where there is no way there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
            asking.connect((host, PORT))
            return asking.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        except OSError:
            return 0
