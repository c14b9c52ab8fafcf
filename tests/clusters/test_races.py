"""What happens at the same moment, and what one object's trouble must not do to others."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
import structlog

from clusters.conftest import CREDIT_UC, Network
from corral import bookings, devices, ledger, market
from corral.clusters import loop as clusters_loop
from corral.clusters.apply import apply, end_by_renter
from corral.clusters.errors import ImageUnavailable
from corral.clusters.plan import MoveLeaf, Replace
from corral.clusters.store import cluster_row, snapshot
from corral.core.ids import BookingId, ClusterId, HostId, LineId
from corral.devices.hosts import let_leave, set_intent
from corral.devices.state import Intent
from corral.devices.tables import hire, host
from corral.platform.database import Database, Tx


async def booking_of(network: Network, cluster_id: ClusterId) -> BookingId:
    async with network.platform.database.transaction() as tx:
        return BookingId((await cluster_row(tx, cluster_id)).booking_id)


async def test_an_end_that_was_asked_for_before_a_replacement_joined_still_ends_the_cluster(network: Network) -> None:
    """Who ends a cluster reads the clock and may then wait: meanwhile a replacement may have begun."""
    cluster_id = await network.book(nodes=2)
    await network.run_until(cluster_id, "ready")
    booking_id = await booking_of(network, cluster_id)
    asked_at = network.clock.now()
    async with network.platform.database.transaction() as tx:
        worker = next(line for line in await bookings.lines_of(tx, booking_id) if not line.is_head)
        network.clock.advance(30)
        await bookings.record_outage(tx, worker.id, from_at=asked_at, to_at=network.clock.now())
        spare = next(one for one in await devices.rentable(tx, network.clock.now(), offline_after_s=75))
        quoted = replace(_quoted(worker), device_id=spare.device_id, host_id=spare.host_id, host_name=spare.host_name)
        new = await bookings.replace_line(
            tx, worker.id, quoted, settings=network.platform.settings, now=network.clock.now(), ids=network.platform.ids
        )
        await bookings.begin_line(tx, new.id, at=network.clock.now())
        bill = await bookings.end(tx, booking_id, now=asked_at)
        assert bill.final
        assert await ledger.check(tx) == []
        await devices.release(tx, [new.id], network.clock.now())
        await end_by_renter(tx, cluster_id, network.clock.now())
    assert bill.amount_uc + bill.returned_uc == bill.held_uc


def _quoted(line: bookings.Line) -> market.QuotedLine:
    fields = [name for name in market.QuotedLine.__dataclass_fields__ if name not in ("development", "tier")]
    return market.QuotedLine(**{name: getattr(line, name) for name in fields}, development=False)


async def test_down_by_many_and_extensions_at_once_end_in_one_exact_bill(network: Network) -> None:
    """Ends, extensions and settlements of one cluster wait for each other; money is neither made nor lost."""
    cluster_id = await network.book(nodes=2)
    await network.run_until(cluster_id, "ready")
    booking_id = await booking_of(network, cluster_id)
    network.clock.advance(90)
    database, now = network.platform.database, network.clock.now()

    async def down() -> None:
        async with database.transaction() as tx:
            await end_by_renter(tx, cluster_id, now)

    async def extend(number: int) -> None:
        async with database.transaction() as tx:
            await cluster_row(tx, cluster_id, lock=True)
            await bookings.extend(
                tx, extension_id=f"ex_{number}", booking_id=booking_id, hours=1, total_uc_max=None, now=now
            )

    async def settle() -> None:
        async with database.transaction() as tx:
            await bookings.settle(tx, booking_id, now=now)

    work = [extend(1), settle(), down(), extend(1), extend(2), down(), settle(), network.reconciler.turn()]
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    assert {type(one).__name__ for one in outcomes if isinstance(one, BaseException)} <= {"BookingOver"}
    await network.run_until(cluster_id, "ended")
    bill = await network.bill(cluster_id)
    assert (bill.amount_uc + bill.returned_uc, bill.ledger_sum_uc) == (bill.held_uc, 0)
    assert await network.free_uc() == CREDIT_UC - bill.amount_uc
    assert await network.leftovers() == {}


async def test_a_booking_that_does_not_add_up_keeps_nobody_else_from_being_settled(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once, tried again later, and neither ends the process nor stops the others."""
    bad, good = await network.book(nodes=1), await network.book(nodes=1)
    await network.run_until(bad, "ready")
    await network.run_until(good, "ready")
    broken, real = await booking_of(network, bad), clusters_loop.settle_one
    settled: list[BookingId] = []

    async def settle_one(tx: Tx, booking_id: BookingId, now: object) -> None:
        if booking_id == broken:
            raise AssertionError("it does not add up")
        settled.append(booking_id)
        await real(tx, booking_id, now)  # type: ignore[arg-type]

    monkeypatch.setattr(clusters_loop, "settle_one", settle_one)
    async with network.platform.database.transaction() as tx:
        long_ago = network.clock.now() - timedelta(hours=2)
        await tx.execute(sa.text("UPDATE booking SET settled_at = :at"), {"at": long_ago})
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            network.clock.advance(1)
            await network.reconciler.turn()
    assert settled == [await booking_of(network, good)]
    assert [one["booking_id"] for one in logs if one["event"] == "booking.settle_failed"] == [broken]


async def test_a_device_that_is_hired_at_this_moment_keeps_its_host(network: Network) -> None:
    """A host drains and would leave; a booking that has its device but is not committed yet keeps it."""
    barn = HostId(network.host("host-a").host_id)
    database, now = network.platform.database, network.clock.now()
    async with database.transaction() as tx:
        device = next(one for one in await devices.rentable(tx, now, offline_after_s=75) if one.host_id == barn)
    async with database.transaction() as tx:
        await devices.take(tx, [(device.device_id, LineId("ln_1"))], now, offline_after_s=75)
        async with database.transaction() as other:
            await set_intent(other, barn, Intent.DRAINING)

        async def leave() -> list[HostId]:
            async with database.transaction() as last:
                return await let_leave(last, now, silent_since=now - timedelta(days=1))

        leaving = asyncio.create_task(leave())
        async with asyncio.timeout(20):
            while not await somebody_waits_for_a_lock(database):
                assert not leaving.done(), "it did not wait for the booking"
    assert await asyncio.wait_for(leaving, 20) == []
    async with database.transaction() as tx:
        await tx.execute(sa.delete(hire))
        assert (await tx.execute(sa.select(host.c.intent).where(host.c.id == barn))).scalar_one() == "draining"


async def somebody_waits_for_a_lock(database: Database) -> bool:
    """Whether a transaction of this test's database stands still because another one has not ended."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with database.transaction() as tx:
        return (await tx.execute(sa.text(waiting))).scalar_one() > 0


async def test_two_clusters_that_move_to_each_others_gateway_never_wait_in_a_circle(network: Network) -> None:
    """Hosts' revisions are locked in one order, whichever host is left and whichever is entered."""
    await network.add_host("gate-2", role="gateway")
    one, two = await network.book(nodes=1), await network.book(nodes=1)
    platform = network.platform
    now = network.clock.now()
    for _ in range(5):

        async def move(cluster_id: ClusterId) -> None:
            async with platform.database.transaction() as tx:
                await cluster_row(tx, cluster_id, lock=True)
                seen = await snapshot(tx, cluster_id, platform.settings, now=now, serving_since=now)
                assert seen.leaf is not None
                await apply(tx, platform, network.prices, seen, MoveLeaf(seen.leaf.node_id, "moved"), now)

        await asyncio.gather(move(one), move(two))


async def test_a_node_is_replaced_once_whoever_says_so_again(network: Network) -> None:
    """A plan that is carried out twice, after a crash or by two reconcilers, hires one replacement."""
    cluster_id = await network.book(nodes=2)
    await network.run_until(cluster_id, "ready")
    await network.add_host("spare")
    platform, now = network.platform, network.clock.now()
    async with platform.database.transaction() as tx:
        seen = await snapshot(tx, cluster_id, platform.settings, now=now, serving_since=now)
    action = Replace(seen.workers[0].node_id, "it is gone", now)
    for _ in range(2):
        async with platform.database.transaction() as tx:
            await cluster_row(tx, cluster_id, lock=True)
            await apply(tx, platform, network.prices, seen, action, now)
    shown = await network.show(cluster_id)
    assert sorted(node.state for node in shown.nodes if node.role == "worker") == ["replaced", "waiting"]


async def test_without_an_image_nothing_is_booked(network: Network) -> None:
    """A control plane that was started without its images says so, instead of failing every host's exchange."""
    network.platform = replace(network.platform, images={})
    with pytest.raises(ImageUnavailable):
        await network.book(nodes=1)
    assert await network.free_uc() == CREDIT_UC
