"""Starting clusters: the real reconciler, a real PostgreSQL, simulated hosts, a fake clock."""

import asyncio

import pytest

from clusters.conftest import CREDIT_UC, Network
from corral.clusters.apply import end_by_renter
from corral.clusters.errors import ClusterNameTaken, GatewayUnavailable
from corral.devices import DeviceTaken
from corral.testing.simulated_host import Trouble

PHASES = ["quoted", "booked", "containers", "mesh", "head", "workers", "ready"]


async def test_good_hosts_become_a_ready_cluster(network: Network) -> None:
    """Every phase is reached, in order, and charging begins with the last."""
    cluster_id = await network.book()
    shown = await network.run_until(cluster_id, "ready")
    assert [phase.name for phase in shown.phases] == PHASES
    instants = [phase.at for phase in shown.phases]
    assert None not in instants
    assert instants == sorted(instants)  # type: ignore[type-var]
    assert [node.state for node in shown.nodes] == ["running"] * 3
    assert shown.nodes[0].role == "head"
    assert shown.phases[5].detail == "2 of 2"
    assert shown.jobs_url == f"http://127.0.0.1:8471/c/{shown.name}"


async def test_a_cluster_of_one_node_becomes_ready(network: Network) -> None:
    """There may be no workers at all."""
    shown = await network.run_until(await network.book(nodes=1), "ready")
    assert shown.phases[5].detail == "0 of 0"


async def test_down_leaves_nothing_behind_and_charges_the_first_hour(network: Network) -> None:
    """A renter who leaves early pays the minimum; hosts clean up before their devices can be hired again."""
    cluster_id = await network.book()
    await network.run_until(cluster_id, "ready")
    async with network.platform.database.transaction() as tx:
        await end_by_renter(tx, cluster_id, network.clock.now())
    assert await network.open_lines()  # Being cleaned: nobody can hire them yet.
    await network.run_until(cluster_id, "ended")
    assert await network.leftovers() == {}
    bill = await network.bill(cluster_id)
    assert bill.final
    assert [line.minutes for line in bill.lines] == [60, 60, 60]
    assert bill.ledger_sum_uc == 0
    assert await network.free_uc() == CREDIT_UC - bill.amount_uc


async def test_time_up_ends_the_cluster(network: Network) -> None:
    """At the end of the booked hours the cluster ends by itself."""
    cluster_id = await network.book(hours=1)
    await network.run_until(cluster_id, "ready")
    for _ in range(62):
        await network.step(60)
    shown = await network.run_until(cluster_id, "ended")
    assert shown.reason == "its time is up"
    assert await network.leftovers() == {}
    assert [line.minutes for line in (await network.bill(cluster_id)).lines] == [60, 60, 60]


@pytest.mark.parametrize("trouble", [*Trouble])
async def test_trouble_on_a_host_is_repaired_with_a_spare(bare_network: Network, trouble: Trouble) -> None:
    """A node that fails at any phase gets one replacement; where others depend on it, the start may fail instead."""
    network = bare_network
    for name in ("host-a", "host-b", "host-c"):
        await network.add_host(name)
    cluster_id = await network.book()
    shown = await network.show(cluster_id)
    await network.add_host("spare")
    worker = next(node for node in shown.nodes if node.role == "worker")
    network.host(worker.host).trouble = trouble
    shown = await network.run_until(cluster_id, "ready", "failed")
    assert shown.state == "ready", shown.reason
    for _ in range(14):  # One that dies may have been alive at the instant of ready, and is mended a few times.
        await network.step()
    shown = await network.show(cluster_id)
    assert [node.state for node in shown.nodes if node.host == worker.host] == ["replaced"]
    assert "spare" in [node.host for node in shown.nodes if node.state == "running"]


@pytest.mark.parametrize("trouble", [*Trouble])
async def test_trouble_without_a_spare_fails_the_start_and_refunds_all(bare_network: Network, trouble: Trouble) -> None:
    """Without a replacement the start fails as a whole; nothing is charged and nothing is left."""
    network = bare_network
    for name in ("host-a", "host-b", "host-c"):
        await network.add_host(name)
    cluster_id = await network.book()
    head = (await network.show(cluster_id)).nodes[0]
    network.host(head.host).trouble = trouble
    shown = await network.run_until(cluster_id, "failed", "ready")
    if shown.state == "ready":  # It died only after the cluster was ready: another test's matter.
        assert trouble is Trouble.DIES
        return
    assert shown.reason
    assert await network.free_uc() == CREDIT_UC
    network.host(head.host).is_down = False
    network.host(head.host).trouble = None
    for _ in range(5):
        await network.step()
    assert await network.leftovers() == {}


async def test_a_replacement_that_fails_too_fails_the_start(bare_network: Network) -> None:
    """There is one replacement, not a chain of them."""
    network = bare_network
    for name in ("host-a", "host-b"):
        await network.add_host(name)
    cluster_id = await network.book(nodes=2)
    shown = await network.show(cluster_id)
    await network.add_host("spare-1", trouble=Trouble.FAULT)
    await network.add_host("spare-2", trouble=Trouble.FAULT)
    network.host(shown.nodes[1].host).trouble = Trouble.FAULT
    shown = await network.run_until(cluster_id, "failed")
    assert "failed too" in shown.reason
    assert await network.free_uc() == CREDIT_UC


async def test_a_gateway_that_fails_fails_the_start_or_is_replaced(network: Network) -> None:
    """Another gateway takes over."""
    network.host("gate").trouble = Trouble.FAULT
    cluster_id = await network.book()
    await network.add_host("gate-2", role="gateway")
    shown = await network.run_until(cluster_id, "ready")
    assert shown.state == "ready"


async def test_no_gateway_books_nothing(bare_network: Network) -> None:
    """Without a gateway a cluster could not be reached, so it is not sold."""
    network = bare_network
    await network.add_host("host-a")
    network.host("gate").is_down = True
    for _ in range(4):
        await network.step(25)
    with pytest.raises(GatewayUnavailable):
        await network.book(nodes=1)
    assert await network.leftovers() == {}
    assert await network.free_uc() == CREDIT_UC


async def test_a_living_cluster_keeps_its_name(network: Network) -> None:
    """Names are web origins: two living clusters never share one."""
    await network.book(nodes=1, name="mnist")
    with pytest.raises(ClusterNameTaken):
        await network.book(nodes=1, name="mnist")


async def test_lost_repeated_and_late_messages_cost_only_time(network: Network) -> None:
    """A lost message costs a period, a repeated one nothing, a late one is recognised."""
    for host in network.world.hosts:
        host.loss, host.repeats = 0.3, 0.3
    cluster_id = await network.book()
    await network.run_until(cluster_id, "ready")
    for host in network.world.hosts:
        host.loss = host.repeats = 0
    async with network.platform.database.transaction() as tx:
        await end_by_renter(tx, cluster_id, network.clock.now())
    await network.run_until(cluster_id, "ended")
    assert await network.leftovers() == {}


async def test_the_last_device_is_hired_once(bare_network: Network) -> None:
    """Two quotes name the same device; the second booking takes nothing."""
    network = bare_network
    await network.add_host("host-a")
    outcomes = await asyncio.gather(network.book(1, name="one"), network.book(1, name="two"), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["DeviceTaken", "str"]
    assert any(isinstance(outcome, DeviceTaken) for outcome in outcomes)
