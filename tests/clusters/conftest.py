"""A small network: three providers' hosts and spares, a gateway, a renter with credit, and the real reconciler."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

import pytest
import sqlalchemy as sa

from corral import bookings, identity, ledger, market
from corral.bookings.tables import booking
from corral.clusters import ClusterSource, Reconciler, book
from corral.clusters.store import cluster_row
from corral.clusters.tables import cluster, node
from corral.clusters.views import cluster_view
from corral.core.ids import BookingId, ClusterId, LineId, PersonId, TransferId
from corral.core.randomness import SeededRandomness
from corral.devices import AgentDesk
from corral.devices.enrol import make_join_token
from corral.devices.loop import flush
from corral.devices.tables import hire, host_revision
from corral.mesh.tables import mesh_network
from corral.platform.http import Platform
from corral.testing.clock import FakeClock
from corral.testing.ids import numbered_id
from corral.testing.simulated_host import SimulatedHost, Trouble, World
from corral.wire import api

IMAGE = f"sha256:{'a' * 64}"
CREDIT_UC = 100_000_000
LAWS_EVERY = 4
"""Steps between two looks at the laws: what breaks one stays broken, and each test looks once more at its end."""


@dataclass
class Network:
    """The whole: real control-plane code on a real PostgreSQL, simulated hosts, a fake clock."""

    platform: Platform
    clock: FakeClock
    prices: market.Prices
    desk: AgentDesk
    reconciler: Reconciler
    world: World
    renter_id: PersonId
    provider_id: PersonId
    bookings_made: int = 0
    steps: int = 0

    async def add_host(
        self,
        name: str,
        *,
        role: Literal["host", "gateway", "relay"] = "host",
        trouble: Trouble | None = None,
        slices: int = 1,
    ) -> SimulatedHost:
        """A host that has enrolled and reported once."""
        host = SimulatedHost(self.world, self.desk, name, role=role, trouble=trouble, slices=slices)
        async with self.platform.database.transaction() as tx:
            token, _ = await make_join_token(
                tx,
                self.platform.ids,
                self.platform.randomness,
                person_id=self.provider_id,
                role=role,
                uses_max=1,
                expires_in_s=900,
                now=self.clock.now(),
            )
        await host.enrol(token)
        await host.turn()
        await flush(self.desk)
        return host

    async def book(self, nodes: int = 3, *, hours: int = 1, name: str | None = None) -> ClusterId:
        """A cluster of `nodes` hosts with one slice each."""
        async with self.platform.database.transaction() as tx:
            quote = await market.quote(
                tx,
                api.ClusterRequest(name=name, nodes=nodes, cpu=1, hours=hours),
                renter_id=self.renter_id,
                prices=self.prices,
                settings=self.platform.settings,
                ids=self.platform.ids,
                randomness=self.platform.randomness,
                now=self.clock.now(),
            )
            self.bookings_made += 1
            booking_id = BookingId(numbered_id("bk", self.bookings_made))
            return await book(
                tx,
                self.platform,
                booking_id=booking_id,
                quote_id=quote.id,
                renter_id=self.renter_id,
                now=self.clock.now(),
            )

    async def step(self, seconds: float = 1.0) -> None:
        """Time passes; every host has a turn, then the loops; every few steps the laws must hold."""
        self.clock.advance(seconds)
        newest = await self._revisions()
        for host in list(self.world.hosts):
            await host.turn(is_nudged=newest.get(host.host_id, 0) > host.seen.number)
        await flush(self.desk)
        await self.reconciler.turn()
        self.steps += 1
        if self.steps % LAWS_EVERY == 0:
            await self.check_laws()

    async def _revisions(self) -> dict[str, int]:
        """What would wake the held replies of hosts: the numbers of their newest desired states."""
        async with self.platform.database.transaction() as tx:
            return {row.host_id: row.number for row in await tx.execute(sa.select(host_revision))}

    async def run_until(self, cluster_id: ClusterId, *states: str, steps: int = 60) -> api.Cluster:
        """Steps until the cluster is in one of `states`: of a second while much happens, then longer ones."""
        for index in range(steps):
            shown = await self.show(cluster_id)
            if shown.state in states:
                return shown
            await self.step(1 if index < 12 else 6)
        shown = await self.show(cluster_id)
        raise AssertionError(f"{shown.state} after {steps} steps: {shown.reason} {shown.phases} {shown.nodes}")

    async def run_until_node(self, cluster_id: ClusterId, index: int, state: str, *, steps: int = 30) -> None:
        """Steps of a second until the node of that index is in `state`."""
        for _ in range(steps):
            if (await self.show(cluster_id)).nodes[index].state == state:
                return
            await self.step()
        raise AssertionError((await self.show(cluster_id)).nodes[index])

    async def show(self, cluster_id: ClusterId) -> api.Cluster:
        """The cluster as its renter sees it."""
        async with self.platform.database.transaction() as tx:
            return await cluster_view(tx, await cluster_row(tx, cluster_id), self.clock.now())

    async def bill(self, cluster_id: ClusterId) -> api.Bill:
        """The cluster's bill."""
        shown = await self.show(cluster_id)
        async with self.platform.database.transaction() as tx:
            return await bookings.bill(tx, BookingId(shown.booking_id), now=self.clock.now())

    async def free_uc(self) -> int:
        """The renter's free credit."""
        async with self.platform.database.transaction() as tx:
            return (await ledger.balances(tx, ledger.balance_of(self.renter_id))).free_uc

    async def leftovers(self) -> dict[str, int]:
        """What a cluster that is over must not leave behind."""
        queries = {
            "hires": sa.select(sa.func.count()).select_from(hire).where(hire.c.released_at.is_(None)),
            "nodes": sa.select(sa.func.count()).select_from(node).where(node.c.removed_at.is_(None)),
            "not gone": sa.select(sa.func.count()).select_from(node).where(node.c.gone_at.is_(None)),
            "networks": sa.select(sa.func.count()).select_from(mesh_network).where(mesh_network.c.closed_at.is_(None)),
            "bookings": sa.select(sa.func.count())
            .select_from(booking)
            .where(booking.c.state.not_in(["ended", "failed"])),
        }
        async with self.platform.database.transaction() as tx:
            found = {what: (await tx.execute(query)).scalar_one() for what, query in queries.items()}
            found["held"] = (await ledger.balances(tx, ledger.balance_of(self.renter_id))).held_uc
        return {what: count for what, count in found.items() if count}

    async def check_laws(self) -> None:
        """No device hired twice, money sums to zero and covers its holds, every wanted node has a living cluster."""
        twice = (
            sa.select(hire.c.device_id)
            .where(hire.c.released_at.is_(None))
            .group_by(hire.c.device_id)
            .having(sa.func.count() > 1)
        )
        stray = (
            sa.select(node.c.id)
            .join(cluster, cluster.c.id == node.c.cluster_id)
            .where(node.c.removed_at.is_(None), cluster.c.state.not_in(["booked", "starting", "ready"]))
        )
        async with self.platform.database.transaction() as tx:
            assert (await tx.execute(twice)).all() == []
            assert (await tx.execute(stray)).all() == []
            assert await ledger.check(tx) == []

    async def open_lines(self) -> set[LineId]:
        """Lines whose devices are hired or being cleaned."""
        async with self.platform.database.transaction() as tx:
            rows = await tx.execute(sa.select(hire.c.line_id).where(hire.c.released_at.is_(None)))
            return {LineId(row.line_id) for row in rows}

    def host(self, name: str) -> SimulatedHost:
        """The host of that name."""
        return next(host for host in self.world.hosts if host.name == name)


@pytest.fixture
async def bare_network(platform: Platform, clock: FakeClock) -> AsyncIterator[Network]:
    """A gateway and a renter with credit; no hosts yet."""
    platform = replace(platform, images={"corral-ray": IMAGE, "corral-net": IMAGE, "corral-agent": IMAGE})
    prices = market.Prices.load()
    randomness = SeededRandomness(7)
    async with platform.database.transaction() as tx:
        now = clock.now()
        renter, _, _ = await identity.sign_up(tx, "renter", now, ids=platform.ids, randomness=randomness)
        provider, _, _ = await identity.sign_up(tx, "provider", now, ids=platform.ids, randomness=randomness)
        await ledger.issue(tx, TransferId(numbered_id("tr", 999_999)), renter.id, CREDIT_UC, now, "test")
    desk = AgentDesk(platform, ClusterSource(platform))
    reconciler = Reconciler(platform, prices)
    world = World(clock, random.Random(1))
    # Long enough after the start that silence means something.
    clock.advance(timedelta(minutes=5).total_seconds())
    network = Network(platform, clock, prices, desk, reconciler, world, renter.id, provider.id)
    await network.add_host("gate", role="gateway")
    yield network
    await network.check_laws()


@pytest.fixture
async def network(bare_network: Network) -> Network:
    """With three good hosts."""
    for name in ("host-a", "host-b", "host-c"):
        await bare_network.add_host(name)
    return bare_network
