"""Nudges wake whoever listens, in order of nothing, and are never the message."""

import asyncio
from contextlib import suppress

import pytest
from sqlalchemy import text

from corral.platform.database import Database
from corral.platform.errors import ServerStopping
from corral.platform.nudges import Nudges
from corral.testing.clock import FakeClock, settle

WITHIN_S = 20


async def test_a_committed_nudge_wakes_the_listener_with_its_keys(database: Database, live_nudges: Nudges):
    """All keys of one transaction arrive at a listener of the topic."""
    with live_nudges.listen("hosts") as nudge:
        await nudge.wait(0)
        async with database.transaction() as tx:
            await live_nudges.notify(tx, "hosts", "b", "a")
        assert await asyncio.wait_for(nudge.wait(1e9), WITHIN_S) == {"a", "b"}


async def test_a_rolled_back_nudge_wakes_nobody(database: Database, live_nudges: Nudges):
    """A nudge belongs to its transaction: the next committed one is the first to arrive."""
    with live_nudges.listen("hosts") as nudge:
        await nudge.wait(0)
        with suppress(RuntimeError):
            async with database.transaction() as tx:
                await live_nudges.notify(tx, "hosts", "lost")
                raise RuntimeError
        async with database.transaction() as tx:
            await live_nudges.notify(tx, "hosts", "kept")
        assert await asyncio.wait_for(nudge.wait(1e9), WITHIN_S) == {"kept"}


async def test_a_listener_of_one_key_is_woken_only_for_it(database: Database, live_nudges: Nudges):
    """125,000 held exchanges must not all wake for one host; a nudge without keys concerns everybody."""
    with (
        live_nudges.listen("hosts", "a") as of_a,
        live_nudges.listen("hosts", "b") as of_b,
        live_nudges.listen("hosts") as of_all,
    ):
        for nudge in (of_a, of_b, of_all):
            await nudge.wait(0)
        async with database.transaction() as tx:
            await live_nudges.notify(tx, "hosts", "a")
        assert await asyncio.wait_for(of_all.wait(1e9), WITHIN_S) == {"a"}
        assert await of_a.wait(0) == {"a"}
        waiting = asyncio.create_task(of_b.wait(1e9))
        await settle()
        assert not waiting.done()
        async with database.transaction() as tx:
            await live_nudges.notify(tx, "hosts")
        assert await asyncio.wait_for(waiting, WITHIN_S) == set()


async def test_more_keys_than_one_payload_holds_all_arrive(database: Database, live_nudges: Nudges):
    """PostgreSQL's 8,000 bytes per notification are no limit for a batch."""
    keys = {f"ho_{number:026d}" for number in range(3000)}
    received: set[str] = set()
    with live_nudges.listen("hosts") as nudge:
        async with database.transaction() as tx:
            await live_nudges.notify(tx, "hosts", *keys)
        async with asyncio.timeout(WITHIN_S):
            while received != keys:
                received |= await nudge.wait(1e9)


async def test_waiting_ends_after_the_timeout(nudges: Nudges, clock: FakeClock):
    """A lost nudge costs a poll period: the wait ends by itself."""
    with nudges.listen("hosts") as nudge:
        waiting = asyncio.create_task(nudge.wait(5))
        await settle()
        clock.advance(4.9)
        await settle()
        assert not waiting.done()
        clock.advance(0.2)
        assert await asyncio.wait_for(waiting, WITHIN_S) == set()


async def test_a_lost_connection_is_made_again_and_wakes_everybody(database: Database, live_nudges: Nudges):
    """While nobody listened anything may have happened, so everybody looks again."""
    with live_nudges.listen("hosts", "a") as nudge:
        await nudge.wait(0)
        async with database.transaction() as tx:
            await tx.execute(
                text("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'corral nudges'")
            )
        assert await asyncio.wait_for(nudge.wait(1e9), WITHIN_S) == set()
        async with database.transaction() as tx:
            await live_nudges.notify(tx, "hosts", "a")
        assert await asyncio.wait_for(nudge.wait(1e9), WITHIN_S) == {"a"}


async def test_stopping_ends_every_wait(nudges: Nudges):
    """Held replies and idle loops end at once when the process stops, and no later wait hangs."""
    with nudges.listen("hosts", "a") as of_a, nudges.listen("hosts") as of_all:
        waiting = [asyncio.create_task(nudge.wait(1e9)) for nudge in (of_a, of_all)]
        await settle()
        nudges.stop()
        for each in waiting:
            with pytest.raises(ServerStopping):
                await asyncio.wait_for(each, WITHIN_S)
    with nudges.listen("clusters") as later, pytest.raises(ServerStopping):
        await later.wait(1e9)
