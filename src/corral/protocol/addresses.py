"""
The address plan of a cluster's mesh.

A cluster has a /18 of 10.128.0.0/9: `.0/20` are the data addresses that Ray is given, `.16/20` and `.32/20` belong to
the two planes (direct and relayed), `.48/20` to leaves: gateways and laptops. A member has the same number in each.
Clusters never share a network namespace, so two may have the same /18; the control plane keeps them apart per renter,
so that a laptop can join several.
"""

from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from corral.core.errors import CorralError

SPACE = IPv4Network("10.128.0.0/9")
CLUSTER_PREFIX = 18
MEMBERS_MAX = 4094
CLUSTER_NETWORKS = 2 ** (CLUSTER_PREFIX - SPACE.prefixlen)
"""How many distinct /18 there are: 512."""

MTU = 1280
"""Of both planes: the smallest that every network carries."""

_BLOCK = 2**12


class MeshFull(CorralError):
    """A cluster has no address left for another member."""

    code = "mesh_full"


def cluster_network(number: int) -> IPv4Network:
    """The /18 with this `number`, 0 <= number < CLUSTER_NETWORKS."""
    if not 0 <= number < CLUSTER_NETWORKS:
        raise MeshFull(f"there is no cluster network number {number}", number=number, networks=CLUSTER_NETWORKS)
    return IPv4Network((int(SPACE.network_address) + number * 2 ** (32 - CLUSTER_PREFIX), CLUSTER_PREFIX))


def node_address(network: IPv4Network, member: int) -> IPv4Address:
    """The data address of node `member`, 1 <= member <= MEMBERS_MAX."""
    return _address(network, block=0, member=member)


def leaf_address(network: IPv4Network, member: int) -> IPv4Address:
    """The address of leaf `member` (a gateway or a laptop), 1 <= member <= MEMBERS_MAX."""
    return _address(network, block=3, member=member)


def pin_address(network: IPv4Network, member: int, plane: Literal["direct", "relayed"]) -> IPv4Address:
    """The address of any member, node or leaf, that is reached over one plane only; for probes."""
    return _address(network, block=1 if plane == "direct" else 2, member=member)


def _address(network: IPv4Network, *, block: int, member: int) -> IPv4Address:
    if not 1 <= member <= MEMBERS_MAX:
        raise MeshFull(
            f"mesh {network} has no place for member {member}: it holds {MEMBERS_MAX}", member=member, held=MEMBERS_MAX
        )
    return network.network_address + block * _BLOCK + member
