"""
The one exchange: a report goes out, its reply (held for up to 25 s) is the desired state; again and again.

When something worth saying happens meanwhile, a new report goes out at once on another connection; the control plane
then answers the held one, whose connection serves the next. Reports are level-triggered, so a lost one costs nothing.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from corral.agent.control_plane import ControlPlaneError, ControlPlaneRefused, ServerTime
from corral.agent.pacing import Allowance, until_set
from corral.core.clock import Clock
from corral.wire.agent import Desired, Report, Revision

COALESCE_S = 0.02
"""Between two reports at least: a burst of changes becomes one."""
REPORTS_AT_ONCE, REPORTS_PER_S = 40.0, 2.0
"""A start takes a few dozen reports. Beyond that neither a noisy workload nor a control plane that holds no reply can
make this host ask more often."""
QUICK_S, UNHURRIED_S = 1.0, 5.0
"""A reply that came this soon and said nothing new was not held: the control plane has no room, so we take our time."""
BACKOFF_S_MIN = 0.5
BACKOFF_S_MAX = 30.0
REFUSED_S_MIN = 5.0
"""First wait after a refusal that is not about time: nothing is won by asking again soon."""

_log = structlog.get_logger(__name__)


class Desk(Protocol):
    """The other side of the exchange (`ControlPlane`)."""

    async def exchange(self, report: Report) -> Desired | None:
        """Reports and returns the desired state; raises ControlPlaneError."""
        ...


class Exchanger:
    """
    Keeps the exchange going.

    Args:
        desk: the control plane.
        report: makes the report of this moment.
        take: is given each desired state that arrives.
        sent: is given each report that has arrived at the control plane.
        changed: set by anybody when something is worth saying at once; cleared before a report is made.
    """

    def __init__(
        self,
        desk: Desk,
        *,
        report: Callable[[], Report],
        take: Callable[[Desired], Awaitable[None]],
        sent: Callable[[Report], None],
        changed: asyncio.Event,
        time: ServerTime,
        clock: Clock,
        jitter: random.Random | None = None,
    ) -> None:
        self._desk = desk
        self._report = report
        self._take = take
        self._sent = sent
        self._changed = changed
        self._time = time
        self._clock = clock
        self._jitter = jitter or random.Random()
        self._failures = 0
        self._last_outcome = ""
        self._held: asyncio.Task[object] | None = None
        self._allowance = Allowance(clock, burst=REPORTS_AT_ONCE, per_s=REPORTS_PER_S)

    async def run(self) -> None:
        """Exchanges until it is cancelled. The control plane's absence is ordinary and ends nothing."""
        try:
            while True:
                await self._once()
        finally:
            if self._held is not None:
                self._held.cancel()

    async def _once(self) -> None:
        if self._held is not None and self._held.done() and not self._held.cancelled():
            self._held.result()  # a failure that is none of the control plane's must not go unnoticed
        await self._clock.sleep(self._allowance.spend())
        # Cleared before looking: what changes after this is in the report, or sets it again.
        self._changed.clear()
        report, began = self._report(), self._clock.monotonic()
        current = asyncio.create_task(self._exchange(report))
        waiting = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({current, waiting}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            current.cancel()
            raise
        finally:
            waiting.cancel()
        if not current.done():
            await self._clock.sleep(COALESCE_S)
        if current.done():
            has_news = await self._settle(current, seen=report.seen)
            if not has_news and self._clock.monotonic() - began < QUICK_S:
                await until_set(self._changed, self._clock, UNHURRIED_S * self._jitter.uniform(0.5, 1.0))
            return
        # The control plane will answer this one as soon as the next report arrives. Were even the one before it still
        # out, its way would be dead.
        if self._held is not None:
            self._held.cancel()
        self._held = asyncio.create_task(self._settle(current, seen=report.seen))

    async def _exchange(self, report: Report) -> Desired | None:
        desired = await self._desk.exchange(report)
        self._sent(report)
        return desired

    async def _settle(self, exchange: "asyncio.Task[Desired | None]", *, seen: Revision) -> bool:
        """
        Takes what an exchange brought; after a failure returns only when the next may be tried.

        Returns:
            Whether there is no reason to wait: something new came, or the wait is over.
        """
        try:
            desired = await exchange
        except asyncio.CancelledError:
            exchange.cancel()
            raise
        except ControlPlaneError as error:
            await self._back_off(error)
            return True
        self._tell("ok")
        self._failures = 0
        if desired is None:
            return False
        await self._take(desired)
        return desired.revision > seen or not desired.saw_hardware

    async def _back_off(self, error: ControlPlaneError) -> None:
        self._failures += 1
        seconds = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** min(self._failures - 1, 10))
        # A first refusal may be about time, which the refusal itself has just told: the next try comes soon.
        if isinstance(error, ControlPlaneRefused) and self._failures > 1:
            seconds = max(seconds, REFUSED_S_MIN)
        self._tell(error.code, reason=error.message, hint=error.hint, seconds=round(seconds, 1))
        await self._clock.sleep(seconds * self._jitter.uniform(0.5, 1.0))

    def _tell(self, outcome: str, **fields: object) -> None:
        # Only changes are worth a line: a control plane that is away for a day would fill the log.
        if outcome == self._last_outcome:
            return
        if outcome == "ok":
            if self._last_outcome:
                _log.info("exchange.restored", failures=self._failures)
        else:
            _log.warning("exchange.failed", outcome=outcome, **fields)
        self._last_outcome = outcome
