"""Bounds on what strangers and members can make a relay do. Pure: `now` is passed in, in monotonic seconds."""

import math
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """
    What one relay grants.

    A trial is one computation of mac1, about 0.6 µs. Whoever sends from an address that has been proved has an
    allowance of its own, so a flood from elsewhere does not silence it. A single source IP gets less than its
    mailbox's strangers together, and they less than all mailboxes' strangers together.
    """

    pair_rate_bytes_s: float = math.inf
    pair_burst_bytes: int = 4 * 2**20
    """At least 64 KiB, because a run of packets passes or is dropped as a whole."""
    pair_quota_bytes: int | None = None
    """Data bytes, both ways together, for as long as both mailboxes exist; None is no quota."""

    member_handshakes_s: float = 500.0
    member_handshakes_burst: int = 4096
    member_trials_s: float = 100_000.0
    member_trials_burst: int = 2_000_000
    """One handshake with each of 2000 peers takes 2,000,000 trials, half of them on average."""

    stranger_handshakes_s: float = 200.0
    stranger_handshakes_burst: int = 4096
    source_handshakes_s: float = 50.0
    source_handshakes_burst: int = 1024
    source_trials_s: float = 10_000.0
    source_trials_burst: int = 200_000
    mailbox_trials_s: float = 20_000.0
    mailbox_trials_burst: int = 800_000
    relay_trials_s: float = 100_000.0
    relay_trials_burst: int = 4_000_000
    sources_max: int = 4096
    """Source IPs that are remembered; a forgotten one starts anew and is held by the mailbox's bound alone."""


class TokenBucket:
    """An allowance that refills at a steady rate up to a burst."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = float(burst), now

    def take(self, amount: float, now: float) -> bool:
        """Takes `amount`, or nothing and returns False."""
        if self._rate == math.inf:
            return True
        self._refill(now)
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def is_open(self, now: float) -> bool:
        """Whether something may be charged; what it costs is known only afterwards, so a debt may follow."""
        self._refill(now)
        return self._tokens > 0

    def charge(self, amount: float) -> None:
        """Takes `amount`, into debt if need be."""
        self._tokens -= amount

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now


class Gate:
    """The allowances of one mailbox for handshake messages."""

    __slots__ = ("member_packets", "member_trials", "stranger_packets", "stranger_trials")

    def __init__(self, limits: Limits, now: float) -> None:
        self.member_packets = TokenBucket(limits.member_handshakes_s, limits.member_handshakes_burst, now)
        self.member_trials = TokenBucket(limits.member_trials_s, limits.member_trials_burst, now)
        self.stranger_packets = TokenBucket(limits.stranger_handshakes_s, limits.stranger_handshakes_burst, now)
        self.stranger_trials = TokenBucket(limits.mailbox_trials_s, limits.mailbox_trials_burst, now)


class HandshakeLimiter:
    """Decides which handshake messages are worth a look, and keeps account of what looking cost."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._relay_trials = TokenBucket(limits.relay_trials_s, limits.relay_trials_burst, now)
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    @property
    def sources(self) -> int:
        """Source IPs remembered, at most `sources_max`."""
        return len(self._sources)

    def admit(self, gate: Gate, source_ip: str, *, is_proved: bool, now: float) -> list[TokenBucket] | None:
        """
        The allowances that pay for looking at one handshake message, or None where one of them is used up.

        Args:
            gate: of the mailbox that it came to.
            source_ip: where it came from.
            is_proved: whether it came from an address that has been proved to be the mailbox's member.
            now: monotonic seconds.
        """
        if is_proved:
            if gate.member_trials.is_open(now) and gate.member_packets.take(1, now):
                return [gate.member_trials]
            return None
        source = self._source(source_ip, now)
        payers = [source.trials, gate.stranger_trials, self._relay_trials]
        # The source's own bound comes first, so that one source alone cannot use up what all of them share.
        if (
            all(payer.is_open(now) for payer in payers)
            and source.packets.take(1, now)
            and gate.stranger_packets.take(1, now)
        ):
            return payers
        return None

    def _source(self, source_ip: str, now: float) -> "_Source":
        source = self._sources.get(source_ip)
        if source is None:
            source = self._sources[source_ip] = _Source(self._limits, now)
            if len(self._sources) > self._limits.sources_max:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(source_ip)
        return source


class _Source:
    """The allowances of one source IP."""

    __slots__ = ("packets", "trials")

    def __init__(self, limits: Limits, now: float) -> None:
        self.packets = TokenBucket(limits.source_handshakes_s, limits.source_handshakes_burst, now)
        self.trials = TokenBucket(limits.source_trials_s, limits.source_trials_burst, now)
