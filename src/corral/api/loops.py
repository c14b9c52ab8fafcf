"""The control plane's background loops: each in one task, all in one group; a loop that dies takes the process down."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from corral.platform.errors import ServerStopping

_log = structlog.get_logger("corral.loops")


@dataclass(frozen=True)
class Loop:
    """A coroutine that runs until the process stops."""

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]


class LoopEnded(RuntimeError):
    """A loop returned, which only a bug can cause."""


async def run_loop(loop: Loop, stopping: asyncio.Event) -> None:
    """
    Runs a loop until the process stops: it then ends by `ServerStopping`, which its waits raise, or returns.

    Raises:
        LoopEnded: it returned before that.
        Exception: whatever killed it; the process must not go on without it.
    """
    try:
        await loop.run()
    except ServerStopping:
        return
    except Exception as error:
        _log.critical("loop.died", loop=loop.name, exc_info=error)
        raise
    if stopping.is_set():
        return
    _log.critical("loop.died", loop=loop.name, reason="it returned")
    raise LoopEnded(loop.name)


async def finish(tasks: list[asyncio.Task[None]], *, within_s: float) -> None:
    """Lets loops that are stopping finish their pass, then cancels those that have not."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=within_s)
    for task in late:
        _log.warning("loop.cancelled", loop=task.get_name())
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
