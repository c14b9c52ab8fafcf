"""Probes inside the tunnels: one small datagram there and back over one plane."""

import contextlib
import socket
import struct
from typing import NamedTuple

PORT = 820
"""On the addresses that are pinned to a plane; nobody else uses these."""
_FORMAT = struct.Struct("!4sBxHIiI")
_MAGIC = b"CPRB"
_REQUEST, _REPLY = 1, 2
_DATAGRAMS_AT_ONCE = 1024


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


class Prober:
    """The socket of one plane: sends requests, answers those of peers, collects what came in."""

    def __init__(self, pin: str) -> None:
        """Binds to our own pinned address, which must exist."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind((pin, PORT))

    def fileno(self) -> int:
        """File descriptor to poll for input."""
        return self._socket.fileno()

    def ask(self, pin: str, sequence: int, *, rtt_s: "float | None", interval_s: float) -> None:
        """Sends a request; one that cannot be sent counts as lost."""
        self._send(pin, _REQUEST, sequence, rtt_s, interval_s)

    def read(self) -> list[Probe]:
        """What has arrived; requests are answered at once."""
        found: list[Probe] = []
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data, (host, port) = self._socket.recvfrom(64)
            except BlockingIOError:
                break
            except OSError:  # what a peer's ICMP said of an earlier datagram
                continue
            if port != PORT or len(data) != _FORMAT.size or data[:4] != _MAGIC:
                continue
            _, kind, _, sequence, rtt_us, interval_ms = _FORMAT.unpack(data)
            if kind == _REQUEST:
                self._send(host, _REPLY, sequence, None, 0.0)
            rtt_s = rtt_us / 1e6 if rtt_us >= 0 else None
            found.append(Probe(host, kind == _REPLY, sequence, rtt_s, interval_ms / 1e3))
        return found

    def _send(self, pin: str, kind: int, sequence: int, rtt_s: "float | None", interval_s: float) -> None:
        rtt_us = -1 if rtt_s is None else min(int(rtt_s * 1e6), 2**31 - 1)
        with contextlib.suppress(OSError):
            datagram = _FORMAT.pack(_MAGIC, kind, 0, sequence & 0xFFFFFFFF, rtt_us, int(interval_s * 1000))
            self._socket.sendto(datagram, (pin, PORT))
