"""Last of the end-to-end tests: the shared cluster ends, and the bill is exact."""

import pytest

from corral.sdk import Client
from corral.testing.local_network import LocalNetwork
from corral.wire import api

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def test_bill_of_an_ended_cluster_adds_up_and_nothing_is_left(
    network: LocalNetwork, renter: Client, cluster: api.Cluster
) -> None:
    """What the renter paid is what providers and network got; no container of the cluster remains."""
    bill = renter.end(cluster.name)
    assert bill.final
    assert bill.ledger_sum_uc == 0
    assert bill.amount_uc == sum(line.amount_uc for line in bill.lines)
    assert all(line.amount_uc == line.provider_uc + line.fee_uc for line in bill.lines)
    assert all(line.minutes == 60 for line in bill.lines if line.minutes_not_delivered == 0)
    earned = 0
    for provider in ("ada", "ben", "cleo"):
        with network.client(network.people[provider]) as client:
            earned += client.earnings().total_net_uc
    assert earned + bill.fee_uc == bill.amount_uc
    assert network.wait_until_idle(timeout_s=60)
    assert not [name for name in network.containers() if name.endswith(("-work", "-web", "-mesh", "-pause"))]
