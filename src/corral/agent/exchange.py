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
from corral.core.clock import Clock
from corral.wire.agent import Desired, Report

COALESCE_S = 0.02
"""Between two reports at least: a burst of changes becomes one."""
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
        self._held: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Exchanges until it is cancelled. The control plane's absence is ordinary and ends nothing."""
        try:
            while True:
                await self._once()
        finally:
            if self._held is not None:
                self._held.cancel()

    async def _once(self) -> None:
        # Cleared before looking: what changes after this is in the report, or sets it again.
        self._changed.clear()
        current = asyncio.create_task(self._exchange(self._report()))
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
            await self._settle(current)
            return
        # The control plane will answer this one as soon as the next report arrives. Were even the one before it still
        # out, its way would be dead.
        if self._held is not None:
            self._held.cancel()
        self._held = asyncio.create_task(self._settle(current))

    async def _exchange(self, report: Report) -> Desired | None:
        desired = await self._desk.exchange(report)
        self._sent(report)
        return desired

    async def _settle(self, exchange: "asyncio.Task[Desired | None]") -> None:
        """Takes what an exchange brought; after a failure returns only when the next may be tried."""
        try:
            desired = await exchange
        except asyncio.CancelledError:
            exchange.cancel()
            raise
        except ControlPlaneError as error:
            await self._back_off(error)
            return
        self._tell("ok")
        self._failures = 0
        if desired is not None:
            await self._take(desired)

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
