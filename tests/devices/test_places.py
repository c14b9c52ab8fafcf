"""The places of hosts and relays in PostgreSQL: fitted when something was measured, by one replica at a time."""

import asyncio
import random
from datetime import timedelta

import pytest
import sqlalchemy as sa

from corral.core.ids import HostId
from corral.devices import AgentDesk
from corral.devices.places import CLAIM, Place, places_of, run, turn
from corral.devices.tables import place_fit, relay_measure
from corral.platform.http import Platform
from corral.testing.clock import FakeClock
from corral.testing.simulated_host import SimulatedHost, World

from .test_enrol import NothingDesired, a_token


@pytest.fixture
async def hosts(platform: Platform, clock: FakeClock) -> list[HostId]:
    """Eight that have joined; which of them are relays makes no difference here."""
    desk, world = AgentDesk(platform, NothingDesired()), World(clock, random.Random(3))
    token, made = await a_token(desk, uses_max=8), list[HostId]()
    for number in range(8):
        host = SimulatedHost(world, desk, f"host-{number}")
        await host.enrol(token)
        made.append(HostId(host.host_id))
    return made


async def measure(platform: Platform, hosts: list[HostId], *, rtt_us: int = 10_000) -> None:
    """The last four are measured by the first four."""
    rows = [
        {"host_id": one, "relay_id": relay, "rtt_us": rtt_us, "measured_at": platform.clock.now()}
        for one in hosts[4:]
        for relay in hosts[:4]
    ]
    async with platform.database.transaction() as tx:
        await tx.execute(sa.delete(relay_measure))
        await tx.execute(sa.insert(relay_measure).values(rows))


async def test_places_are_fitted_once_something_was_measured(
    platform: Platform, clock: FakeClock, hosts: list[HostId]
) -> None:
    """And not again before there is something new; old round trips count no more."""
    assert await turn(platform) == 0
    await measure(platform, hosts)
    assert await turn(platform) == 8
    async with platform.database.transaction() as tx:
        found = await places_of(tx, hosts)
    assert {one.pairs for one in found.values()} == {4}
    assert found[hosts[0]].rtt_ms(found[hosts[7]]) == pytest.approx(10, rel=0.3)
    clock.advance(600)
    assert await turn(platform) == 0
    await measure(platform, hosts[:7])
    assert await turn(platform) == 7
    async with platform.database.transaction() as tx:
        assert hosts[7] not in await places_of(tx, hosts)
    clock.advance(timedelta(days=3).total_seconds())
    await measure(platform, hosts)
    assert await turn(platform) == 8


async def test_while_one_replica_fits_no_other_does_and_a_dead_one_is_followed(
    platform: Platform, clock: FakeClock, hosts: list[HostId]
) -> None:
    """The claim has an end."""
    await measure(platform, hosts)
    async with platform.database.transaction() as tx:
        values = {"only": True, "claim_token": "pf_other", "claimed_until": clock.now() + CLAIM}
        await tx.execute(sa.insert(place_fit).values(**values))
    assert await turn(platform) == 0
    clock.advance(CLAIM.total_seconds() + 1)
    assert await turn(platform) == 8


async def test_the_loop_fits_each_period_and_ends_at_once_when_the_process_stops(
    platform: Platform, clock: FakeClock, hosts: list[HostId]
) -> None:
    """A minute's wait must not hold a stop up."""
    await measure(platform, hosts)
    stop = asyncio.Event()
    running = asyncio.create_task(run(platform, stop))
    await clock.run_for(platform.settings.places_period_s - 1)
    async with platform.database.transaction() as tx:
        assert await places_of(tx, hosts) == {}
    clock.advance(1)
    async with asyncio.timeout(30):
        found: dict[HostId, Place] = {}
        while not found:
            async with platform.database.transaction() as tx:
                found = await places_of(tx, hosts)
        stop.set()
        await running
    assert len(found) == 8
