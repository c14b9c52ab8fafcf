"""Letting hosts in and recognising them."""

import asyncio
import random
from datetime import timedelta

import msgspec
import pytest

from corral.core.ids import HostId, LineId, PersonId
from corral.devices import AgentDesk, DesiredParts, Host
from corral.devices.enrol import make_join_token
from corral.devices.errors import (
    EnrolmentMalformed,
    HostIdentityTaken,
    HostRefused,
    JoinTokenExpired,
    JoinTokenForeign,
    JoinTokenUnknown,
    JoinTokenUsed,
)
from corral.devices.hosts import set_intent
from corral.devices.loop import flush
from corral.devices.state import Intent
from corral.platform.database import Tx
from corral.platform.http import Platform
from corral.testing.clock import FakeClock
from corral.testing.simulated_host import SimulatedHost, World
from corral.wire.agent import Report


class NothingDesired:
    """No cluster wants anything of any host."""

    async def desired_for(self, tx: Tx, host_id: HostId) -> DesiredParts:
        return DesiredParts()

    async def observe(self, tx: Tx, host: Host, report: Report, now: object) -> frozenset[LineId]:
        return frozenset()


@pytest.fixture
def desk(platform: Platform) -> AgentDesk:
    return AgentDesk(platform, NothingDesired())


@pytest.fixture
def world(clock: FakeClock) -> World:
    return World(clock, random.Random(3))


async def a_token(desk: AgentDesk, *, role: str = "host", uses_max: int = 1, person: str = "pn_a") -> str:
    platform = desk.platform
    async with platform.database.transaction() as tx:
        token, _ = await make_join_token(
            tx,
            platform.ids,
            platform.randomness,
            person_id=PersonId(person),
            role=role,
            uses_max=uses_max,
            expires_in_s=900,
            now=platform.clock.now(),
        )
    return token


async def test_a_lost_reply_can_be_asked_for_again(desk: AgentDesk, world: World) -> None:
    """The same machine with the same key is the same host, also when the token is used up and expired."""
    host, token = SimulatedHost(world, desk, "a"), await a_token(desk)
    await host.enrol(token)
    first = host.host_id
    world.clock.advance(10_000)  # type: ignore[attr-defined]
    await host.enrol(token)
    assert host.host_id == first


async def test_the_same_machine_with_another_key_is_refused_until_it_has_left(desk: AgentDesk, world: World) -> None:
    """Nobody takes a host over by copying its identity."""
    host = SimulatedHost(world, desk, "a")
    await host.enrol(await a_token(desk))
    copy = SimulatedHost(world, desk, "a")
    with pytest.raises(HostIdentityTaken):
        await copy.enrol(await a_token(desk))
    async with desk.platform.database.transaction() as tx:
        await set_intent(tx, HostId(host.host_id), Intent.DRAINING)
    await flush(desk)
    with pytest.raises(HostRefused):
        await desk.exchange(f"Bearer {host.token()}", host.report(), observed_address="", gone=_never)
    await copy.enrol(await a_token(desk))
    assert copy.host_id != host.host_id


async def test_tokens_that_open_nothing(desk: AgentDesk, world: World, clock: FakeClock) -> None:
    """Unknown, wrong, foreign, used and expired tokens are told apart where that helps, and let nobody in."""
    token = await a_token(desk)
    with pytest.raises(JoinTokenUnknown):
        await SimulatedHost(world, desk, "a").enrol(token + "x")
    with pytest.raises(JoinTokenUnknown):
        await SimulatedHost(world, desk, "a").enrol("nonsense")
    with pytest.raises(JoinTokenForeign):
        await SimulatedHost(world, desk, "a", role="gateway").enrol(token)
    await SimulatedHost(world, desk, "b").enrol(token)
    with pytest.raises(JoinTokenUsed):
        await SimulatedHost(world, desk, "c").enrol(token)
    late = await a_token(desk)
    clock.advance(timedelta(minutes=15).total_seconds())
    with pytest.raises(JoinTokenExpired):
        await SimulatedHost(world, desk, "d").enrol(late)


async def test_a_signature_must_prove_the_key(desk: AgentDesk, world: World) -> None:
    """A public key is worth nothing without its private one."""
    one, other = SimulatedHost(world, desk, "a"), SimulatedHost(world, desk, "b")
    token = await a_token(desk)
    forged = msgspec.structs.replace(one.enrol_request(token), public_key=other.public_key)
    with pytest.raises(EnrolmentMalformed):
        await desk.enrol(forged)


async def test_host_tokens_of_others_are_refused(desk: AgentDesk, world: World, clock: FakeClock) -> None:
    """Wrong key, wrong audience, too long a life, expired."""
    one, other = SimulatedHost(world, desk, "a"), SimulatedHost(world, desk, "b")
    await one.enrol(await a_token(desk))
    await other.enrol(await a_token(desk))
    good = one.token()
    stolen_id, stolen_audience = one.host_id, one.audience

    async def refused(token: str) -> None:
        with pytest.raises(HostRefused):
            await desk.exchange(f"Bearer {token}", one.report(), observed_address="", gone=_never)

    other.host_id = stolen_id
    await refused(other.token())
    one.audience = "another control plane"
    await refused(one.token())
    one.audience = stolen_audience
    await refused(one.token(life_s=3600))
    await refused("")
    await desk.exchange(f"Bearer {good}", one.report(), observed_address="", gone=_never)
    clock.advance(700)
    await refused(good)


async def _never() -> None:
    await asyncio.Event().wait()
