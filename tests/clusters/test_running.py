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
    for _ in range(4):
        await network.step()
    shown = await network.show(cluster_id)
    assert shown.state == "ready"
    assert "goes on without" in shown.reason
    assert shown.nodes[2].state == "lost"


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
