"""How often people may sign up: a window of one hour per address and for all, in memory."""

import ipaddress
from collections import deque

from corral.core.clock import Clock
from corral.core.units import HOUR_S
from corral.identity.errors import SignupTooOften

ADDRESSES_MAX = 10_000
"""Addresses remembered at once; more than that can sign up in an hour only if the limit for all allows it."""


class SignupLimit:
    """
    Counts sign-ups of the last hour.

    One process counts for itself: with several replicas the limits multiply, which is harmless for what they guard.
    """

    def __init__(self, clock: Clock, *, per_address: int, overall: int) -> None:
        self._clock = clock
        self._per_address = per_address
        self._overall = min(overall, ADDRESSES_MAX)
        self._all: deque[float] = deque()
        self._of_address: dict[str, deque[float]] = {}

    def count(self, address: str) -> None:
        """
        Counts one attempt from `address`, if both limits allow it.

        Raises:
            SignupTooOften: they do not; the attempt is not counted.
        """
        now_s = self._clock.monotonic()
        self._forget(now_s)
        network = _network_of(address)
        own = self._of_address.get(network, deque())
        if len(own) >= self._per_address:
            raise SignupTooOften(_seconds_until_free(own[0], now_s), scope="from your address")
        if len(self._all) >= self._overall:
            raise SignupTooOften(_seconds_until_free(self._all[0], now_s), scope="anywhere")
        self._all.append(now_s)
        self._of_address.setdefault(network, deque()).append(now_s)

    def _forget(self, now_s: float) -> None:
        while self._all and self._all[0] + HOUR_S <= now_s:
            self._all.popleft()
        for network in list(self._of_address):
            times = self._of_address[network]
            while times and times[0] + HOUR_S <= now_s:
                times.popleft()
            if not times:
                del self._of_address[network]


def _network_of(address: str) -> str:
    """An IPv4 address itself; the /64 of an IPv6 one, since one customer usually has a whole /64."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped is not None else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _seconds_until_free(oldest_s: float, now_s: float) -> int:
    return max(1, int(oldest_s + HOUR_S - now_s) + 1)
