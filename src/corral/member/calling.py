"""When to call a peer that does not answer, and at which of its endpoints; on an injected clock."""

from typing import NamedTuple

CALL_FIRST_S, CALL_MAX_S = 0.1, 5.0
ANSWER_FIRST_S = {"direct": 1.0, "relayed": 0.3}
"""The end that should be called begins by itself when nothing has come for so long."""
SESSION_PATIENCE_S = {"direct": 10.0, "relayed": 0.0}
"""How long a plane that fell silent keeps its session: a path that comes back is then usable at once. But a relay knows
nobody before a handshake, so that there the way over the backup is tried without delay."""


class Call(NamedTuple):
    """The next attempt to reach a peer."""

    at: float
    wait_s: float
    """Since the attempt before."""
    attempt: int
    """How often it was called in this silence."""
    offset: int
    """Which endpoint comes first."""
    is_caller: bool
    had_session: bool


class Calls:
    """Peers of one plane that have to be called, each with its next attempt.

    An initiation to a peer that is not up yet is lost, two that cross on the wire cancel each other, and WireGuard
    repeats one after 5 s only. So of a pair one end calls at first, and often; the other begins only when that has
    failed for a while. The two dwell differently long at each endpoint, so that they meet at every one in time.
    """

    def __init__(self, plane: str) -> None:
        self._plane = plane
        self._calls: dict[str, Call] = {}

    def __contains__(self, address: str) -> bool:
        return address in self._calls

    def may_probe(self, address: str) -> bool:
        """Whether a probe to this peer would not make WireGuard call it beside us."""
        call = self._calls.get(address)
        return call is None or (call.had_session and not call.attempt)

    def addresses(self) -> list[str]:
        """Peers that are being called."""
        return list(self._calls)

    def begin(self, address: str, now: float, *, is_caller: bool, offset: int = 0, had_session: bool = False) -> None:
        """Call a peer from now on, until it answers. One that is being called already stays as it is.

        Args:
            address: of the peer.
            now: monotonic seconds.
            is_caller: whether this end of the pair calls first.
            offset: which of its endpoints comes first.
            had_session: it answered before; the session may still be good.
        """
        wait_s = CALL_FIRST_S if is_caller else ANSWER_FIRST_S[self._plane]
        patience_s = SESSION_PATIENCE_S[self._plane] if had_session else 0.0
        self._calls.setdefault(address, Call(now + patience_s + wait_s, wait_s, 0, offset, is_caller, had_session))

    def shook_hands(self, address: str) -> bool:
        """WireGuard shows a handshake with this peer; True if that ends the calling of it.

        One from before the silence says nothing.
        """
        if address not in self._calls or self.may_probe(address):
            return False
        del self._calls[address]
        return True

    def end(self, address: str) -> None:
        """The peer answers, or is gone."""
        self._calls.pop(address, None)

    def due(self, now: float) -> list[tuple[str, int]]:
        """Peers to call now, each with the number of the endpoint to use, to be taken modulo their count."""
        found: list[tuple[str, int]] = []
        for address, call in self._calls.items():
            if now >= call.at:
                found.append((address, call.offset + call.attempt // (2 if call.is_caller else 3)))
                wait_s = min(2 * call.wait_s, CALL_MAX_S)
                self._calls[address] = call._replace(at=now + wait_s, wait_s=wait_s, attempt=call.attempt + 1)
        return found

    def next_at(self) -> float:
        """When the next peer is due; infinity if none is."""
        return min((call.at for call in self._calls.values()), default=float("inf"))
