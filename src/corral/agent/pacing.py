"""How long to wait: a bound on what others can set off, and a sleep that an event ends."""

import asyncio

from corral.core.clock import Clock


class Allowance:
    """
    So much at once, and so much a second for ever.

    Args:
        clock: tells how much time has passed.
        burst: what may be spent at once after a rest.
        per_s: what is earned every second.
    """

    def __init__(self, clock: Clock, *, burst: float, per_s: float) -> None:
        self._clock, self._burst, self._per_s = clock, burst, per_s
        self._left, self._at = burst, clock.monotonic()

    def spend(self, cost: float = 1.0) -> float:
        """Spends `cost`, if need be in advance; returns the seconds to wait until it is earned."""
        now = self._clock.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s) - cost
        self._at = now
        return max(0.0, -self._left / self._per_s)


async def until_set(event: asyncio.Event, clock: Clock, seconds: float) -> None:
    """Returns once the event is set, or after `seconds`."""
    sleeping = asyncio.ensure_future(clock.sleep(seconds))
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({sleeping, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sleeping.cancel()
        waiting.cancel()
