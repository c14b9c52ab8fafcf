"""The address plan: no two clusters, planes or members ever overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.protocol.addresses import (
    CLUSTER_NETWORKS,
    MEMBERS_MAX,
    SPACE,
    MeshFull,
    cluster_network,
    leaf_address,
    node_address,
)

numbers = st.integers(0, CLUSTER_NETWORKS - 1)
members = st.integers(1, MEMBERS_MAX)


@given(numbers, numbers)
def test_networks_lie_in_the_space_and_never_overlap(one: int, other: int) -> None:
    """Two numbers are two disjoint networks."""
    assert cluster_network(one).subnet_of(SPACE)
    assert cluster_network(one).overlaps(cluster_network(other)) == (one == other)


@given(numbers, members, members)
def test_addresses_are_distinct_and_inside_their_network(number: int, one: int, other: int) -> None:
    """A node and a leaf never share an address, nor do two nodes."""
    network = cluster_network(number)
    assert node_address(network, one) in network
    assert leaf_address(network, one) in network
    assert (node_address(network, one) == node_address(network, other)) == (one == other)
    assert node_address(network, one) != leaf_address(network, other)
    assert network.network_address < node_address(network, one)
    assert leaf_address(network, one) < network.broadcast_address


@given(numbers, st.integers().filter(lambda member: not 1 <= member <= MEMBERS_MAX))
def test_a_member_without_a_place_is_refused(number: int, member: int) -> None:
    """The plan holds 4094 members and says so."""
    with pytest.raises(MeshFull):
        node_address(cluster_network(number), member)


@given(st.integers().filter(lambda number: not 0 <= number < CLUSTER_NETWORKS))
def test_a_network_without_a_place_is_refused(number: int) -> None:
    """There are 512 networks."""
    with pytest.raises(MeshFull):
        cluster_network(number)
