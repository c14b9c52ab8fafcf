"""The sockets that the server listens on."""

import ipaddress
import re
import socket
from dataclasses import dataclass

from corral.platform.errors import ListenRefused

_BIND = re.compile(r"^(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>\d{1,5})$")

BACKLOG = 4096
"""Held exchanges are connections: after a restart all hosts come at once."""


@dataclass(frozen=True)
class Bind:
    """An address and port to listen on."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """`host:port`, as it was written."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_bind(text: str) -> Bind:
    """
    Reads `host:port`, or `[address]:port` for IPv6.

    Raises:
        ListenRefused: it is neither.
    """
    match = _BIND.match(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ListenRefused(
            f"{text!r} is no address to listen on; nothing was started",
            hint="write it as HOST:PORT, for example 127.0.0.1:8470 or [::1]:8470",
        )
    return Bind(match["six"] or match["host"], int(match["port"]))


def open_sockets(binds: list[Bind]) -> list[socket.socket]:
    """
    Listening sockets for all of `binds`, or for none.

    Raises:
        ListenRefused: one is in use, is not this machine's, or needs more rights.
    """
    opened: list[socket.socket] = []
    try:
        for bind in binds:
            opened.append(_open(bind))  # noqa: PERF401  (those opened before a failure must be closed)
    except ListenRefused:
        for listening in opened:
            listening.close()
        raise
    return opened


def _open(bind: Bind) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            # Without it a restart would have to wait a minute for the old connections; a port in use is still refused.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ListenRefused(
            f"cannot listen on {bind}: {error.strerror}; nothing was started",
            hint=f"another program may use it (`ss -ltnp 'sport = :{bind.port}'`); choose another with --bind",
        ) from None
    return listening
