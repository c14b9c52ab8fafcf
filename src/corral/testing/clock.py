"""A clock that moves only when it is told to."""

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


class FakeClock:
    """Time as a test's own variable. Sleepers wake in the order of their deadlines."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        """The start, plus all that was advanced."""
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._elapsed_s

    def advance(self, seconds: float) -> None:
        """Moves time at once; whoever slept until then wakes when the event loop next runs."""
        self._move_to(self._elapsed_s + seconds)

    async def run_for(self, seconds: float) -> None:
        """Moves time deadline by deadline, so that loops that sleep again and again take all their turns."""
        end = self._elapsed_s + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._move_to(max(self._sleepers[0][0], self._elapsed_s))
            await settle()
        self._move_to(end)
        await settle()

    async def sleep(self, seconds: float) -> None:
        """Returns once time was advanced by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + seconds, next(self._order), future))
        await future

    def _move_to(self, elapsed_s: float) -> None:
        self._elapsed_s = elapsed_s
        while self._sleepers and self._sleepers[0][0] <= elapsed_s:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)


async def settle(turns: int = 20) -> None:
    """Lets everything run that can run without time passing or input arriving."""
    for _ in range(turns):
        await asyncio.sleep(0)
