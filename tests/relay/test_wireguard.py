"""Real WireGuard through a relay that runs here: two containers whose peers have only the relay as endpoint."""

import json
import random
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from members import WireGuardNode, free_ports
from tests.images.parts import Lab

from corral.relay import Mailbox, Reason, Relay

pytestmark = pytest.mark.docker


class Relayed(NamedTuple):
    """Two nodes that see each other through the relay alone."""

    relay: Relay
    nodes: list[WireGuardNode]
    boxes: list[Mailbox]
    bridge_ip: str


@pytest.fixture(scope="module")
def relayed(lab: Lab) -> Iterator[Relayed]:
    """The relay listens on the bridge's address of this machine."""
    [network] = lab.engine.call("GET", "/networks", filters=json.dumps({"name": ["^bridge$"]}))
    bridge_ip = network["IPAM"]["Config"][0]["Gateway"]
    nodes = [WireGuardNode(lab, f"relayed-{n}", f"10.77.0.{n + 1}") for n in range(2)]
    boxes = [
        Mailbox(node_id=f"node_{n}", cluster_id="one", port=port, public_key=nodes[n].public_key)
        for n, port in enumerate(free_ports(2, bridge_ip))
    ]
    with Relay(bridge_ip) as relay:
        assert relay.set_mailboxes(boxes) == []
        for n in range(2):
            nodes[n].serve_echo()
        for n in range(2):
            nodes[n].meet(nodes[1 - n], f"{bridge_ip}:{boxes[n].port}")
        yield Relayed(relay, nodes, boxes, bridge_ip)


def test_two_nodes_reach_each_other_through_the_relay_alone(relayed: Relayed) -> None:
    """Both ways; each knows the other at its own mailbox; the relay has proved both."""
    first, second = relayed.nodes
    assert first.pings(second)
    assert second.pings(first)
    for node, box in zip(relayed.nodes, relayed.boxes, strict=True):
        assert f"{relayed.bridge_ip}:{box.port}" in node.shell("wg show wgr endpoints")
    relayed.relay.set_mailboxes(relayed.boxes)
    assert relayed.relay.state.proved_members == 2
    assert relayed.relay.counters.forwarded_packets >= 20


def test_node_that_roams_is_found_again_at_its_next_handshake(relayed: Relayed) -> None:
    """A new port, as from a restarted NAT. Taking the peer away and giving it back makes WireGuard call at once."""
    first, second = relayed.nodes
    assert first.pings(second)
    first.shell("wg set wgr listen-port 51999")
    first.shell("wg set wgr peer $(wg show wgr peers) remove")
    first.meet(second, f"{relayed.bridge_ip}:{relayed.boxes[0].port}")
    assert first.pings(second)
    assert second.pings(first)


def test_relay_that_restarts_is_used_again(relayed: Relayed) -> None:
    """It forgets everything; the members' next handshake teaches it anew."""
    first, second = relayed.nodes
    assert first.pings(second)
    relayed.relay.set_mailboxes([])
    assert relayed.relay.set_mailboxes(relayed.boxes) == []
    for n, node in enumerate(relayed.nodes):
        node.shell("wg set wgr peer $(wg show wgr peers) remove")
        node.meet(relayed.nodes[1 - n], f"{relayed.bridge_ip}:{relayed.boxes[n].port}")
    assert first.pings(second)


def test_direct_plane_is_observed_and_not_answered(relayed: Relayed) -> None:
    """Here the relayed plane's own socket calls the observer, at its own mailbox."""
    first, second = relayed.nodes
    assert first.pings(second)
    observer = relayed.relay.observer_key
    first.add_silent_peer(observer, f"{relayed.bridge_ip}:{relayed.boxes[0].port}")
    assert first.pings(second, 20)
    port = int(first.shell("wg show wgr listen-port"))
    assert relayed.relay.observed("node_0") == (first.ip, port)
    assert relayed.relay.counters.dropped_packets[Reason.OBSERVED] > 0


def test_relay_under_junk_keeps_serving(relayed: Relayed) -> None:
    """100,000 random datagrams at full rate from a third socket, with and without WireGuard's types and lengths."""
    first, second = relayed.nodes
    assert first.pings(second)
    rng = random.Random(1)
    kinds = [
        bytes([kind, 0, 0, 0]) + rng.randbytes(size - 4)
        for kind, size in ((1, 148), (2, 92), (3, 64), (4, 32), (4, 1312), (9, 700))
        for _ in range(50)
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for n in range(100_000):
            stranger.sendto(kinds[n % len(kinds)], (relayed.bridge_ip, relayed.boxes[n % 2].port))
            if n % 20_000 == 19_999:
                assert first.pings(second, 3)
    assert first.pings(second)
    assert second.pings(first)
    assert relayed.relay.is_running
    assert relayed.relay.state.proved_members == 2
