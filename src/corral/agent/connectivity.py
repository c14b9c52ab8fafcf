"""
What this host's connection is like, measured against the network's own relays.

When it has joined, and then sparsely: round trips every 15 minutes to each relay that it was told of, bandwidth every 6
hours at the nearest one (and at a second, where the first finds less than is recommended). When to measure and how much
to send is decided by plain functions of values; `Connectivity` does it.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import msgspec
import structlog

from corral.agent.gauging import Effort, GaugeBusy, GaugeClient, GaugeFailed
from corral.agent.requirements import Link
from corral.agent.settings import write_atomically
from corral.core.clock import Clock
from corral.core.units import MIB
from corral.protocol.gauge import Statement, StatementRefused, read_statement
from corral.protocol.tiers import (
    DOWNLOAD_MBIT_S_MIN,
    DOWNLOAD_MBIT_S_RECOMMENDED,
    MBIT,
    UPLOAD_MBIT_S_MIN,
    UPLOAD_MBIT_S_RECOMMENDED,
)
from corral.wire.agent import GaugeSpec, SignedStatement

RTT_PERIOD_S = 900.0
BANDWIDTH_PERIOD_S = 6 * 3600.0
RETRY_S = 900.0
"""After a bandwidth that keeps the host out, or none at all: what was repaired should be seen soon."""
SHARE_WHILE_HIRED = 0.001
"""Of what the link could have carried since the last measurement, while a renter uses it."""
PAUSE_S = 60.0
"""Between two looks at least, whatever failed."""
UNKNOWN_US = 10_000_000
BUSY_TRIES = 10
RELAYS_FOR_BANDWIDTH = 2

FULL = Effort(streams=4, seconds=4.0, bytes_max=800 * MIB)
"""At 1600 Mbit/s, the highest tier's, 4 s are 800 MB."""
BRIEF = Effort(streams=2, seconds=0.3, bytes_max=2 * MIB)
"""In development, where several agents share one machine and its rules are relaxed."""

STATEMENTS_MAX = 32
"""That wait to be told: two of each of 16 relays."""
RECORD = "connectivity.json"
_log = structlog.get_logger(__name__)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was found so far; kept on disk, so that an agent that starts anew does not measure again at once."""

    link: Link = Link()
    rtt_at: float = 0.0
    """Unix seconds; 0: never."""
    bandwidth_at: float = 0.0


def rtt_due_at(measured: Measured) -> float:
    """When round trips are to be measured next, Unix seconds."""
    return measured.rtt_at + RTT_PERIOD_S if measured.rtt_at else 0.0


def bandwidth_due_at(measured: Measured, *, is_hired: bool) -> float:
    """
    When bandwidth is to be measured next, Unix seconds.

    A link that keeps the host out is tried again soon, unless a renter uses it: then the next look is the regular one.
    """
    if not measured.bandwidth_at:
        return 0.0
    link = measured.link
    is_short = link.download_mbit_s < DOWNLOAD_MBIT_S_MIN or link.upload_mbit_s < UPLOAD_MBIT_S_MIN
    return measured.bandwidth_at + (RETRY_S if is_short and not is_hired else BANDWIDTH_PERIOD_S)


def effort_for(
    measured: Measured, *, now: float, is_hired: bool, is_development: bool, relays: int = RELAYS_FOR_BANDWIDTH
) -> Effort | None:
    """
    How much one measurement of bandwidth at one relay may send and receive; None: nothing now.

    While a renter uses the link, all of them together send and receive no more, each way, than SHARE_WHILE_HIRED of
    what the link can carry in the time since the last measurement. A link that was never measured is left alone then.

    Args:
        measured: what was found so far.
        now: Unix seconds.
        is_hired: whether a node runs here.
        is_development: whether several agents share this machine.
        relays: at how many relays it may come to be measured.
    """
    full = BRIEF if is_development else FULL
    if not is_hired:
        return full
    if not measured.bandwidth_at:
        return None
    since_s = max(0.0, now - measured.bandwidth_at)
    slower_mbit_s = min(measured.link.download_mbit_s, measured.link.upload_mbit_s)
    allowed = int(SHARE_WHILE_HIRED * since_s * slower_mbit_s * MBIT / 8 / relays)
    if allowed < min(full.bytes_max, BRIEF.bytes_max):
        return None
    return Effort(streams=full.streams, seconds=full.seconds, bytes_max=min(full.bytes_max, allowed))


def link_after(before: Link, found: Sequence[Statement], *, is_hired: bool) -> Link:
    """
    The link as it counts after a measurement.

    Of several relays the fastest counts, because a slow one may be slow itself, and the nearest. What is measured while
    a renter uses the link can only be too low, so that it never makes it worse.

    Args:
        before: what counted until now.
        found: what relays have stated now.
        is_hired: whether a node ran here meanwhile.
    """
    download = max((one.download_bit_s / MBIT for one in found if one.download_bytes), default=before.download_mbit_s)
    upload = max((one.upload_bit_s / MBIT for one in found if one.upload_bytes), default=before.upload_mbit_s)
    if is_hired:
        download, upload = max(download, before.download_mbit_s), max(upload, before.upload_mbit_s)
    return Link(
        download_mbit_s=download,
        upload_mbit_s=upload,
        rtt_ms=min((one.rtt_us / 1000 for one in found if one.rtt_us), default=before.rtt_ms),
    )


def is_short_of_recommended(statement: Statement) -> bool:
    """Whether another relay should be asked, too."""
    return (
        statement.download_bit_s < DOWNLOAD_MBIT_S_RECOMMENDED * MBIT
        or statement.upload_bit_s < UPLOAD_MBIT_S_RECOMMENDED * MBIT
    )


def may_be_called(spec: GaugeSpec) -> bool:
    """Whether a host sends anything there: not to itself, and not to what only its own network knows."""
    try:
        address = IPv4Address(spec.address)
    except ValueError:
        return False
    return not (
        address.is_loopback or address.is_multicast or address.is_link_local or address.is_unspecified
        or address.is_reserved
    )  # fmt: skip


class Connectivity:
    """
    Measures this host's connection when it is time.

    Args:
        folder: where the record is kept.
        clock: tells the time.
        is_hired: whether a node runs here.
        is_development: whether several agents share this machine.
        told: called when there is something to say.
        client: makes a session at a gauge.
        jitter: spreads hosts that join at the same time.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        is_hired: Callable[[], bool],
        is_development: bool,
        told: Callable[[], None],
        client: Callable[[GaugeSpec], GaugeClient] = GaugeClient,
        jitter: random.Random | None = None,
    ) -> None:
        self._file, self._clock = folder / RECORD, clock
        self._is_hired, self._is_development, self._told = is_hired, is_development, told
        self._client, self._jitter = client, jitter or random.Random()
        self._gauges: tuple[GaugeSpec, ...] = ()
        self._came = asyncio.Event()
        self._measured = self._recorded()
        self._statements: dict[str, SignedStatement] = {}
        self._failures: dict[str, str] = {}

    @property
    def link(self) -> Link | None:
        """What counts; None before anything was measured."""
        return self._measured.link if self._measured.rtt_at or self._measured.bandwidth_at else None

    def statements(self) -> tuple[SignedStatement, ...]:
        """What relays have stated and the control plane has not been told."""
        return tuple(self._statements.values())

    def sent(self, statements: Sequence[SignedStatement]) -> None:
        """These have arrived."""
        self._statements = {key: one for key, one in self._statements.items() if one not in statements}

    def take(self, gauges: Sequence[GaugeSpec]) -> None:
        """Where to measure from now on."""
        self._gauges = tuple(spec for spec in gauges if may_be_called(spec))
        if self._gauges:
            self._came.set()
        else:
            self._came.clear()

    async def run(self) -> None:
        """Measures until it is cancelled. A relay that does not answer ends nothing."""
        while True:
            await self._came.wait()
            await self.measure()
            due_at = min(rtt_due_at(self._measured), self._bandwidth_due_at())
            pause_s = max(PAUSE_S, due_at - self._now())
            await self._clock.sleep(pause_s * self._jitter.uniform(1.0, 1.1))

    async def measure(self) -> None:
        """Everything that is due now."""
        now = self._now()
        effort = None
        if self._bandwidth_due_at() <= now:
            effort = effort_for(self._measured, now=now, is_hired=self._is_hired(), is_development=self._is_development)
        if effort is None and rtt_due_at(self._measured) > now:
            return
        found = [one for spec in self._gauges if (one := await self._try(spec, None)) is not None]
        if not found:
            return
        self._keep(found, rtt_at=now)
        if effort is not None:
            nearest = sorted(found, key=lambda one: one.rtt_us or UNKNOWN_US)
            await self._measure_bandwidth([one.relay_id for one in nearest[:RELAYS_FOR_BANDWIDTH]], effort)

    async def _measure_bandwidth(self, nearest: Sequence[str], effort: Effort) -> None:
        found: list[Statement] = []
        for relay_id in nearest:
            spec = next((one for one in self._gauges if one.relay_id == relay_id), None)
            statement = await self._try(spec, effort) if spec is not None else None
            if statement is not None:
                found.append(statement)
                if not is_short_of_recommended(statement) or self._is_development:
                    break
        if found:
            self._keep(found, bandwidth_at=self._now())

    async def _try(self, spec: GaugeSpec, effort: Effort | None) -> Statement | None:
        """One session; None where nothing came of it, which is logged when it changes."""
        try:
            signed, statement = await self._session(spec, effort)
        except GaugeFailed as error:
            if self._failures.get(spec.relay_id) != error.message:
                _log.warning("gauge.failed", reason=error.message)
            self._failures[spec.relay_id] = error.message
            return None
        self._failures.pop(spec.relay_id, None)
        if effort is not None and self._is_hired() and self._would_lower(statement):
            return statement  # Not told: what a renter's traffic leaves over is not the link.
        key = f"{spec.relay_id} {'bandwidth' if effort else 'rtt'}"
        self._statements.pop(key, None)
        self._statements[key] = signed
        while len(self._statements) > STATEMENTS_MAX:  # The control plane is away, and relays come and go.
            del self._statements[next(iter(self._statements))]
        return statement

    async def _session(self, spec: GaugeSpec, effort: Effort | None) -> tuple[SignedStatement, Statement]:
        client = self._client(spec)
        if effort is not None:
            await self._downloaded(client, effort)
            await client.upload(effort)
        await client.round_trips()
        signed = await client.statement()
        try:
            return signed, read_statement(signed.payload)
        except StatementRefused as error:
            raise GaugeFailed(error.message) from error

    async def _downloaded(self, client: GaugeClient, effort: Effort) -> None:
        """Downloads as soon as it is our turn."""
        for _ in range(BUSY_TRIES):
            try:
                await client.download(effort)
                return
            except GaugeBusy as busy:
                await self._clock.sleep(busy.wait_s * self._jitter.uniform(0.2, 1.0) + 0.2)
        await client.download(effort)

    def _would_lower(self, statement: Statement) -> bool:
        link = self._measured.link
        return (
            statement.download_bit_s < link.download_mbit_s * MBIT or statement.upload_bit_s < link.upload_mbit_s * MBIT
        )

    def _keep(self, found: Sequence[Statement], *, rtt_at: float = 0.0, bandwidth_at: float = 0.0) -> None:
        before = self._measured
        self._measured = Measured(
            link=link_after(before.link, found, is_hired=self._is_hired()),
            rtt_at=rtt_at or before.rtt_at,
            bandwidth_at=bandwidth_at or before.bandwidth_at,
        )
        with contextlib.suppress(OSError):  # A full disk costs one measurement more after a restart.
            write_atomically(self._file, msgspec.json.encode(self._measured))
        link = self._measured.link
        _log.info(
            "connection.measured",
            download_mbit_s=round(link.download_mbit_s, 1),
            upload_mbit_s=round(link.upload_mbit_s, 1),
            rtt_ms=round(link.rtt_ms, 2),
        )
        self._told()

    def _bandwidth_due_at(self) -> float:
        return bandwidth_due_at(self._measured, is_hired=self._is_hired())

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _recorded(self) -> Measured:
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=Measured)
        except (OSError, msgspec.DecodeError):
            return Measured()
        # A clock that was set back must not put the next measurement off for ever.
        return found if max(found.rtt_at, found.bandwidth_at) <= self._now() else Measured(link=found.link)
