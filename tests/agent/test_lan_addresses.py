"""Which addresses of a machine a neighbour behind the same router may try."""

from ipaddress import IPv4Network

import pytest

from corral.agent.host_engine import HostEngine, lan_addresses
from corral.protocol.peers import LAN_ADDRESSES_MAX

BRIDGES = [IPv4Network("172.17.0.0/16"), IPv4Network("172.18.0.0/16")]


def test_addresses_of_the_lan_are_told_and_those_of_bridges_are_not() -> None:
    """In the order of the interfaces: public and shared addresses, and the engine's own networks, are no LAN."""
    found = ["192.168.1.7", "203.0.113.9", "172.17.0.1", "172.18.0.1", "10.0.0.3", "100.64.1.2", "169.254.3.4"]
    assert lan_addresses(found, BRIDGES) == ("192.168.1.7", "10.0.0.3")
    assert lan_addresses([], BRIDGES) == ()


def test_a_machine_with_many_networks_tells_the_first_few() -> None:
    """Each is one handshake more for whoever calls."""
    found = [f"10.0.{n}.1" for n in range(20)]
    assert lan_addresses(found, BRIDGES) == tuple(found[:LAN_ADDRESSES_MAX])


@pytest.mark.docker
async def test_the_engines_own_bridge_is_known() -> None:
    """Whatever this machine's networks are: none of its bridges' addresses is told."""
    async with HostEngine() as engine:
        networks = await engine.bridge_networks()
    assert networks
    assert lan_addresses([str(network[1]) for network in networks], networks) == ()
