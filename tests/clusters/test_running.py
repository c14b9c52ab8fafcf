"""Running clusters: losses, crashes of the reconciler, extension, settlement."""

from typing import Any

import pytest

from clusters.conftest import CREDIT_UC, Network
from corral import bookings
from corral.clusters import Reconciler
from corral.clusters import loop as clusters_loop
from corral.clusters.loop import CLAIM_S, bump_cluster_of
from corral.core.ids import BookingId
from corral.testing.simulated_host import Trouble


async def test_a_lost_worker_is_replaced_and_its_silence_is_not_charged(network: Network) -> None:
    """The outage counts from the last proof of life; the spare is charged from when it has joined."""
    cluster_id = await network.book()
    shown = await network.run_until(cluster_id, "ready")
    await network.add_host("spare")
    lost = shown.nodes[2]
    network.host(lost.host).is_down = True
    for _ in range(20):
        await network.step(10)
    shown = await network.show(cluster_id)
    assert shown.state == "ready"
    assert {node.host: node.state for node in shown.nodes}[lost.host] == "replaced"
    assert {node.host: node.state for node in shown.nodes}["spare"] == "running"
    lines = (await network.bill(cluster_id)).lines
    assert {line.host: line.state for line in lines}[lost.host] == "replaced"
    assert next(line for line in lines if line.host == lost.host).minutes_not_delivered >= 1


async def test_a_lost_worker_without_a_spare_leaves_the_cluster_running(network: Network) -> None:
    """The cluster goes on, says why, and what was not delivered is not charged."""
    cluster_id = await network.book()
    shown = await network.run_until(cluster_id, "ready")
    network.host(shown.nodes[2].host).trouble = Trouble.DIES
    for _ in range(10):
        await network.step()
    shown = await network.show(cluster_id)
    assert shown.state == "ready"
    assert "goes on without" in shown.reason
    assert shown.nodes[2].state == "lost"


async def test_a_worker_that_its_host_mends_stays_and_its_absence_is_not_charged(network: Network) -> None:
    """The node keeps its place and its line; the minutes that the absence touched are not charged."""
    cluster_id = await network.book()
    shown = await network.run_until(cluster_id, "ready")
    host = network.host(shown.nodes[2].host)
    host.trouble = Trouble.DIES
    await network.step()
    host.trouble = None
    await network.step()  # What happened in one step is told in the next.
    shown = await network.show(cluster_id)
    assert (shown.state, shown.reason, shown.nodes[2].state) == ("ready", "", "mending")
    await network.run_until_node(cluster_id, 2, "running")
    shown = await network.show(cluster_id)
    assert "mended 1×: the work container ended" in shown.nodes[2].reason
    for _ in range(65):
        await network.step(60)
    lines = {line.host: line for line in (await network.bill(cluster_id)).lines}
    assert [line.state for line in lines.values()] == ["ended"] * 3
    assert [lines[node.host].minutes for node in shown.nodes] == [60, 60, 59]
    assert await network.leftovers() == {}


async def test_a_head_that_its_host_mends_takes_its_workers_back(network: Network) -> None:
    """Its workers have nothing to join meanwhile, and are not blamed for it; nobody is charged; the renter is told."""
    cluster_id = await network.book()
    shown = await network.run_until(cluster_id, "ready")
    head = network.host(shown.nodes[0].host)
    head.trouble = Trouble.NO_RAY
    node = next(one for one in head.nodes.values() if one.spec.node_id == shown.nodes[0].id)
    node.ray_runs = False
    for _ in range(5):
        await network.step(10)
    head.trouble = None
    shown = await network.show(cluster_id)
    assert shown.state == "ready"
    assert "the jobs on it are lost" in shown.reason
    await network.run_until_node(cluster_id, 2, "running")
    for _ in range(10):
        await network.step(10)
    shown = await network.show(cluster_id)
    assert [node.state for node in shown.nodes] == ["running"] * 3
    assert {node.reason for node in shown.nodes} == {""}
    for _ in range(65):
        await network.step(60)
    assert {line.minutes for line in (await network.bill(cluster_id)).lines} <= {58, 59}


async def test_a_worker_that_ray_has_lost_for_too_long_is_replaced(network: Network) -> None:
    """Its host is there and its containers run, but Ray does not hold it for alive."""
    cluster_id = await network.book()
    shown = await network.run_until(cluster_id, "ready")
    await network.add_host("spare")
    host = network.host(shown.nodes[2].host)
    host.trouble = Trouble.NO_RAY
    node = next(one for one in host.nodes.values() if one.spec.node_id == shown.nodes[2].id)
    node.ray_runs = False
    for _ in range(20):
        await network.step(10)
    shown = await network.show(cluster_id)
    assert shown.state == "ready"
    assert {node.host: node.state for node in shown.nodes}[host.name] == "replaced"
    assert {node.host: node.state for node in shown.nodes}["spare"] == "running"


async def test_a_head_that_does_not_come_back_ends_the_cluster_with_a_refund(network: Network) -> None:
    """Its host is there and cannot mend it; what was not delivered since is not charged."""
    cluster_id = await network.book()
    shown = await network.run_until(cluster_id, "ready")
    for _ in range(10):
        await network.step(60)
    network.host(shown.nodes[0].host).trouble = Trouble.DIES
    shown = await network.run_until(cluster_id, "ended")
    assert "the head on" in shown.reason
    assert {line.minutes for line in (await network.bill(cluster_id)).lines} <= {9, 10, 11}
    network.host(shown.nodes[0].host).trouble = None
    for _ in range(3):
        await network.step()
    assert await network.leftovers() == {}


async def test_a_lost_head_ends_the_cluster_with_a_refund(network: Network) -> None:
    """Nothing is charged for what was not delivered after the last proof of life."""
    cluster_id = await network.book(hours=2)
    shown = await network.run_until(cluster_id, "ready")
    for _ in range(10):
        await network.step(60)
    network.host(shown.nodes[0].host).is_down = True
    for _ in range(12):
        await network.step(10)
    shown = await network.run_until(cluster_id, "ended")
    assert "head" in shown.reason
    assert await network.free_uc() > CREDIT_UC - (await network.bill(cluster_id)).held_uc
    for line in (await network.bill(cluster_id)).lines:
        assert line.minutes < 60
    network.host(shown.nodes[0].host).is_down = False
    for _ in range(3):
        await network.step()
    assert await network.leftovers() == {}


async def test_an_extension_moves_the_end_of_every_node(network: Network) -> None:
    """Hosts learn by their desired state that they may run longer."""
    cluster_id = await network.book(hours=1)
    shown = await network.run_until(cluster_id, "ready")
    await network.step()
    before = next(iter(network.host(shown.nodes[0].host).nodes.values())).spec.stop_after
    booking_id = BookingId(shown.booking_id)
    async with network.platform.database.transaction() as tx:
        now = network.clock.now()
        await bookings.extend(tx, extension_id="ex_1", booking_id=booking_id, hours=2, total_uc_max=None, now=now)
        await bump_cluster_of(tx, booking_id)
    await network.step()
    after = next(iter(network.host(shown.nodes[0].host).nodes.values())).spec.stop_after
    assert (after - before).total_seconds() == 2 * 3600


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("survived", [0, 3, 6, 9])
async def test_a_reconciler_that_dies_between_two_actions_is_taken_over(
    network: Network, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """Another one takes the cluster over when the claim has expired, and finds what was done."""
    cluster_id = await network.book()
    real_apply, done = clusters_loop.apply, 0  # pyright: ignore[reportPrivateImportUsage]

    async def mortal_apply(*args: Any) -> None:
        nonlocal done
        if done == survived:
            raise Crash
        done += 1
        await real_apply(*args)

    monkeypatch.setattr(clusters_loop, "apply", mortal_apply)
    with pytest.raises((Crash, AssertionError)) as ended:
        await network.run_until(cluster_id, "never", steps=8)
    monkeypatch.setattr(clusters_loop, "apply", real_apply)
    if ended.type is Crash:
        network.reconciler = Reconciler(network.platform, network.prices)
        await network.step(CLAIM_S + 1)
    assert (await network.run_until(cluster_id, "ready")).state == "ready"
