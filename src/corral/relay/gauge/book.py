"""
What a gauge knows of the hosts that measure at it: whose turn it is, what was counted, what is left to them.

Pure: no socket and no clock; `now` is monotonic seconds. Whoever calls has checked the permit.
"""

import math
import statistics
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from corral.protocol.gauge import (
    BUSY,
    DOWNLOAD,
    GRANTED,
    NO_NONCE,
    NONCE_BYTES,
    REFUSED,
    STATEMENT,
    UPLOAD,
    Answer,
    Ask,
    Statement,
)
from corral.relay.gauge.limits import GaugeLimits
from corral.relay.limits import TokenBucket

BUCKET_S = 0.05
"""Bytes are counted in steps of this."""
STEADY_BUCKETS_MIN = 12
"""Below this a transfer is too short to tell its beginning from the rest."""
WAIT_S_MAX = 255
HOUR_S = 3600.0


class Verdict(NamedTuple):
    """Whether a connection may begin."""

    status: int
    wait_s: int = 0


class Meter:
    """Bytes over time in one direction, all streams together."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self._began_at: float | None = None
        self._ended_at = 0.0
        self._buckets: list[int] = []

    def begin(self, now: float) -> None:
        """The first stream begins; further ones change nothing."""
        if self._began_at is None:
            self._began_at = self._ended_at = now

    def count(self, size: int, now: float) -> None:
        """So many bytes have arrived at the other end."""
        self.begin(now)
        began_at = self._began_at or 0.0
        number = max(0, int((now - began_at) / BUCKET_S))
        while len(self._buckets) <= number:
            self._buckets.append(0)
        self._buckets[number] += size
        self.total_bytes += size
        self._ended_at = max(self._ended_at, now)

    def rate_bit_s(self) -> int:
        """
        Bits per second; 0 if nothing was counted.

        Of a transfer that is long enough the first quarter is left out, in which TCP feels its way, and the last two
        steps, in which some streams have ended already.
        """
        if self._began_at is None or not self.total_bytes:
            return 0
        steady = self._buckets[len(self._buckets) // 4 : -2]
        if len(self._buckets) >= STEADY_BUCKETS_MIN and sum(steady):
            return int(sum(steady) * 8 / (len(steady) * BUCKET_S))
        return int(self.total_bytes * 8 / max(self._ended_at - self._began_at, 1e-3))


@dataclass(slots=True, eq=False)
class _Session:
    number: int
    meters: dict[int, Meter] = field(default_factory=lambda: {DOWNLOAD: Meter(), UPLOAD: Meter()})
    streams: int = 0
    nonce: bytes = NO_NONCE
    answered_at: float = 0.0
    first_sequence: int | None = None
    last_sequence: int = 0
    came_back: int = 0
    rtts_s: list[float] = field(default_factory=list[float])

    @property
    def total_bytes(self) -> int:
        return sum(meter.total_bytes for meter in self.meters.values())


class _Host:
    """What one host has had."""

    def __init__(self, limits: GaugeLimits, now: float) -> None:
        self.asks = TokenBucket(limits.host_asks_s, limits.host_asks_burst, now)
        self.bytes = TokenBucket(limits.host_bytes_hour / HOUR_S, limits.host_bytes_hour, now)
        self.turns = TokenBucket(limits.turns_hour / HOUR_S, limits.turns_hour, now)
        self.session = _Session(0)


class Book:
    """
    What a gauge knows.

    Args:
        relay_id: who states.
        limits: what is granted.
        now: monotonic seconds.
        nonce: makes numbers that nobody can guess, NONCE_BYTES long.
    """

    def __init__(self, relay_id: str, limits: GaugeLimits, now: float, nonce: Callable[[int], bytes]) -> None:
        self._relay_id, self._limits, self._nonce = relay_id, limits, nonce
        self._bytes = TokenBucket(limits.bytes_hour / HOUR_S, limits.bytes_hour, now)
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._turn_of = ""
        self._turn_ends_at = self._turn_used_at = -math.inf

    @property
    def hosts(self) -> int:
        """How many are remembered, at most `hosts_max`."""
        return len(self._hosts)

    # --- round trips --------------------------------------------------------------------------------------------------

    def answer(self, host_id: str, ask: Ask, now: float) -> Answer | None:
        """
        The answer to a request for a round trip; None where the host has used up its allowance.

        A request that carries the number of the last answer shows how long that one and itself were under way: the
        host could not have sent it earlier.
        """
        host = self._host(host_id, now)
        if not host.asks.take(1, now):
            return None
        session = self._session(host, ask.session)
        if session is None:
            return None
        if session.first_sequence is None:
            session.first_sequence = ask.sequence
        session.last_sequence = max(session.last_sequence, ask.sequence)
        if session.nonce != NO_NONCE and ask.nonce == session.nonce:
            session.came_back += 1
            if len(session.rtts_s) < self._limits.round_trips_max:
                session.rtts_s.append(now - session.answered_at)
        session.nonce, session.answered_at = self._nonce(NONCE_BYTES), now
        return Answer(ask.session, ask.sequence, session.nonce)

    # --- streams ------------------------------------------------------------------------------------------------------

    def open(self, host_id: str, session_number: int, purpose: int, now: float) -> Verdict:
        """Whether a connection may begin; one that was granted for a stream has to be closed by `close`."""
        host = self._host(host_id, now)
        if purpose == STATEMENT:
            return Verdict(GRANTED if host.session.number == session_number else REFUSED)
        if purpose not in (DOWNLOAD, UPLOAD):
            return Verdict(REFUSED)
        if not self._has_turn(host_id, now):
            if now < self._turn_ends_at:
                return Verdict(BUSY, min(WAIT_S_MAX, math.ceil(self._turn_ends_at - now)))
            if not host.turns.take(1, now):
                return Verdict(REFUSED)
            self._turn_of, self._turn_ends_at = host_id, now + self._limits.turn_s
        self._turn_used_at = now
        session = self._session(host, session_number)
        if session is None or session.streams >= self._limits.host_streams_max:
            return Verdict(REFUSED)
        if self.left_bytes(host_id, now) <= 0:
            return Verdict(REFUSED)
        session.streams += 1
        session.meters[purpose].begin(now)
        return Verdict(GRANTED)

    def count(self, host_id: str, purpose: int, size: int, now: float) -> None:
        """So many bytes of a stream have arrived."""
        host = self._host(host_id, now)
        host.session.meters[purpose].count(size, now)
        host.bytes.charge(size)
        self._bytes.charge(size)

    def left_bytes(self, host_id: str, now: float) -> int:
        """How many bytes the present session may still send and receive; not positive: it has to end."""
        host = self._host(host_id, now)
        if not self._has_turn(host_id, now) or not host.bytes.is_open(now) or not self._bytes.is_open(now):
            return 0
        return self._limits.session_bytes_max - host.session.total_bytes

    def close(self, host_id: str, now: float) -> None:
        """A stream has ended."""
        host = self._host(host_id, now)
        host.session.streams = max(0, host.session.streams - 1)
        if self._turn_of == host_id:
            self._turn_used_at = now

    # --- statements ---------------------------------------------------------------------------------------------------

    def statement(self, host_id: str, now: float, *, unix_s: float) -> Statement:
        """What was measured in the host's present session, whose turn is over with it."""
        session = self._host(host_id, now).session
        if self._turn_of == host_id:
            self._turn_of, self._turn_ends_at = "", -math.inf
        download, upload = session.meters[DOWNLOAD], session.meters[UPLOAD]
        rtts_us = [max(1, round(rtt_s * 1e6)) for rtt_s in session.rtts_s]
        steps = [abs(after - before) for before, after in pairwise(rtts_us)]
        sent = session.last_sequence - session.first_sequence if session.first_sequence is not None else 0
        return Statement(
            relay_id=self._relay_id,
            host_id=host_id,
            session=session.number,
            at=int(unix_s),
            download_bit_s=download.rate_bit_s(),
            upload_bit_s=upload.rate_bit_s(),
            download_bytes=download.total_bytes,
            upload_bytes=upload.total_bytes,
            round_trips=len(rtts_us),
            rtt_us=round(statistics.median(rtts_us)) if rtts_us else 0,
            rtt_us_min=min(rtts_us, default=0),
            jitter_us=round(statistics.fmean(steps)) if steps else 0,
            loss_ppm=round(1e6 * max(0, sent - session.came_back) / sent) if sent else 0,
        )

    def _has_turn(self, host_id: str, now: float) -> bool:
        """Whether it is the host's turn; one that is used no more, or for too long, is over for everybody."""
        if self._turn_of and now >= self._turn_ends_at:
            self._turn_of = ""
        elif self._turn_of and now >= self._turn_used_at + self._limits.turn_idle_s:
            holder = self._hosts.get(self._turn_of)
            if holder is None or not holder.session.streams:
                self._turn_of, self._turn_ends_at = "", -math.inf
        return self._turn_of == host_id

    def _session(self, host: _Host, number: int) -> _Session | None:
        """The session of that number; a new one, unless streams of another are still open."""
        if host.session.number != number:
            if host.session.streams:
                return None
            host.session = _Session(number)
        return host.session

    def _host(self, host_id: str, now: float) -> _Host:
        host = self._hosts.get(host_id)
        if host is None:
            host = self._hosts[host_id] = _Host(self._limits, now)
            while len(self._hosts) > self._limits.hosts_max:
                # A host with open streams is counted on: it is the turn's, so there is one of them at most.
                oldest = next(key for key, one in self._hosts.items() if not one.session.streams)
                del self._hosts[oldest]
        else:
            self._hosts.move_to_end(host_id)
        return host
