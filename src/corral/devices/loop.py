"""Each second: signs of life are stored, and drained hosts leave."""

import asyncio
from datetime import timedelta

import structlog
from sqlalchemy.exc import DBAPIError

from corral.devices.desk import AgentDesk
from corral.devices.hosts import flush_presence, let_leave

_log = structlog.get_logger("corral.devices")


async def run(desk: AgentDesk, stop: asyncio.Event) -> None:
    """Runs until `stop` is set; then flushes once more. An absent database costs a delay, not the process."""
    failing = False
    while not stop.is_set():
        await desk.platform.clock.sleep(desk.platform.settings.liveness_flush_s)
        try:
            await flush(desk)
            failing = False
        except (DBAPIError, OSError) as error:
            if not failing:  # Logged when the outcome changes, not each second.
                _log.warning("devices.flush_failed", reason=type(error).__name__)
            failing = True


async def flush(desk: AgentDesk) -> None:
    """One pass: stores who was heard of, and lets drained hosts leave."""
    heard = desk.presence.take()
    try:
        async with desk.platform.database.transaction() as tx:
            await flush_presence(tx, heard)
    except BaseException:
        desk.presence.restore(heard)
        raise
    now = desk.platform.clock.now()
    offline_after = timedelta(seconds=desk.platform.settings.host_offline_after_s)
    # Silence counts only for as long as there was somebody to hear.
    if now - desk.serving_since < offline_after:
        silent_since = desk.serving_since - timedelta(days=36500)
    else:
        silent_since = now - offline_after
    async with desk.platform.database.transaction() as tx:
        left = await let_leave(tx, now, silent_since=silent_since)
    for host_id in left:
        _log.info("host.left", host_id=host_id)
