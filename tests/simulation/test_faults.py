"""
Random stories of a small network: the real control plane, a fake clock, simulated hosts, one seed.

Hosts fall silent, lose, repeat and delay messages, restart their agents, and break their nodes; providers pause;
renters book, extend and leave; the control plane restarts and its reconciler dies between two actions. After every
step the laws hold; at the end, once all is well again, nothing is left behind and every bill is exact. A failure names
its seed; a seed that has found a bug stays in the list.
"""

import random
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
import structlog

from clusters.conftest import Network
from corral import bookings, ledger
from corral.bookings.tables import booking
from corral.clusters import ClusterSource, Reconciler
from corral.clusters import loop as clusters_loop
from corral.clusters.apply import end_by_renter
from corral.clusters.loop import bump_cluster_of
from corral.clusters.store import cluster_row
from corral.clusters.tables import cluster
from corral.core.errors import CorralError
from corral.core.ids import BookingId, ClusterId, HostId
from corral.devices import AgentDesk
from corral.devices.hosts import set_intent
from corral.devices.state import Intent
from corral.testing.simulated_host import Trouble

SEEDS = (1, 2, 3, 4)
STEPS = 45


class Crash(BaseException):
    """The reconciler's process ends here."""


class Story:
    """One run: what happens next is drawn from the world's random source."""

    def __init__(self, network: Network, seed: int) -> None:
        self.network = network
        self.chance = network.world.randomness = random.Random(seed)
        self.extensions = 0

    async def build(self) -> None:
        """Two gateways, and six hosts of one or two slices."""
        await self.network.add_host("gate-2", role="gateway")
        for number in range(6):
            await self.network.add_host(f"host-{number}", slices=1 + number % 2)

    async def happen(self) -> None:
        """One event, which may be nothing at all."""
        hosts = self.network.world.hosts
        host = self.chance.choice([one for one in hosts if one.role == "host"])
        match self.chance.randrange(17):
            case 0 | 1 | 2:
                await self.book()
            case 3:
                await self.down()
            case 4:
                await self.extend()
            case 5:
                self.chance.choice(hosts).is_down = True
            case 6 | 7:
                for each in hosts:
                    each.is_down = False
            case 8:
                host.trouble = self.chance.choice([*Trouble])
            case 9 | 14 | 15:
                for each in hosts:
                    each.trouble = None
            case 10:
                host.loss, host.repeats = self.chance.choice([(0.0, 0.0), (0.3, 0.3), (0.6, 0.5)])
            case 11:
                host.restart_agent()
            case 12:
                self.restart_control_plane()
            case _:
                await self.intend(host.host_id)

    async def book(self) -> None:
        """Somebody books, if there is something to book."""
        with suppress(CorralError):  # Too few devices, no gateway: told, and nothing done.
            await self.network.book(nodes=self.chance.randint(1, 3), hours=self.chance.randint(1, 2))

    async def down(self) -> None:
        """A renter leaves."""
        for cluster_id in await self.living(1):
            async with self.network.platform.database.transaction() as tx:
                await end_by_renter(tx, cluster_id, self.network.clock.now())

    async def extend(self) -> None:
        """A renter stays longer."""
        for cluster_id in await self.living(1):
            self.extensions += 1
            async with self.network.platform.database.transaction() as tx:
                row = await cluster_row(tx, cluster_id, lock=True)
                if row.state not in ("booked", "starting", "ready"):
                    continue
                booking_id, now = BookingId(row.booking_id), self.network.clock.now()
                identifier = f"ex_{self.extensions}"
                try:
                    await bookings.extend(
                        tx, extension_id=identifier, booking_id=booking_id, hours=1, total_uc_max=None, now=now
                    )
                except bookings.BookingOver:
                    continue
                await bump_cluster_of(tx, booking_id)

    async def intend(self, host_id: str) -> None:
        """A provider pauses or resumes."""
        wanted = self.chance.choice([Intent.PAUSED, Intent.ACTIVE, Intent.ACTIVE])
        async with self.network.platform.database.transaction() as tx:
            await set_intent(tx, HostId(host_id), wanted)

    def restart_control_plane(self) -> None:
        """Another process: it remembers nothing but what is in the database."""
        network = self.network
        network.desk = AgentDesk(network.platform, ClusterSource(network.platform))
        network.reconciler = Reconciler(network.platform, network.prices)
        for host in network.world.hosts:
            host.desk = network.desk

    async def living(self, count: int) -> list[ClusterId]:
        """Some clusters that are not over."""
        async with self.network.platform.database.transaction() as tx:
            query = sa.select(cluster.c.id).where(cluster.c.ended_at.is_(None)).order_by(cluster.c.id)
            found = [ClusterId(row.id) for row in await tx.execute(query)]
        return self.chance.sample(found, min(count, len(found)))

    async def check_money(self) -> None:
        """Charge ≤ hold ≤ plan, a start that failed is free, and what is over holds nothing."""
        async with self.network.platform.database.transaction() as tx:
            now = self.network.clock.now()
            for row in (await tx.execute(sa.select(booking))).all():
                bill = await bookings.bill(tx, BookingId(row.id), now=now)
                assert bill.amount_uc <= bill.held_uc <= row.rate_uc_per_hour * row.hours
                assert bill.ledger_sum_uc == 0
                if row.began_at is None and bill.final:
                    assert bill.amount_uc == 0
                if bill.final:
                    assert (await bookings.money(tx, BookingId(row.id), now=now)).held_uc == 0
            assert await ledger.check(tx) == []


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_happens_the_laws_hold_and_nothing_is_left_behind(
    bare_network: Network, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """See the module's text."""
    network = bare_network
    story = Story(network, seed)
    await story.build()
    real_apply = clusters_loop.apply  # pyright: ignore[reportPrivateImportUsage]

    async def mortal_apply(*args: Any) -> None:
        if story.chance.random() < 0.02:
            raise Crash
        await real_apply(*args)

    monkeypatch.setattr(clusters_loop, "apply", mortal_apply)
    with structlog.testing.capture_logs() as logs:
        for _ in range(STEPS):
            await story.happen()
            try:
                await network.step(story.chance.choice([0.5, 1, 1, 1, 1, 2, 2, 5, 10, 80, 900]))
            except Crash:
                network.reconciler = Reconciler(network.platform, network.prices)
            await network.check_laws()
            await story.check_money()
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []

    monkeypatch.setattr(clusters_loop, "apply", real_apply)
    for host in network.world.hosts:
        host.is_down, host.trouble, host.loss, host.repeats = False, None, 0.0, 0.0
    for cluster_id in await story.living(1000):
        async with network.platform.database.transaction() as tx:
            await end_by_renter(tx, cluster_id, network.clock.now())
    for _ in range(8):
        await network.step(20)
    await story.check_money()
    assert await network.leftovers() == {}
