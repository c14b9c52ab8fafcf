"""A running relay on loopback, with peers that frame packets as WireGuard does."""

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from members import data, free_ports, initiation, response
from prometheus_client import CollectorRegistry, generate_latest

from corral.relay import Mailbox, MailboxesRefused, Reason, Relay, RelayClosed, RelayError, RelayStopped
from corral.relay.metrics import RelayCollector
from corral.relay.sockets import SOL_UDP, UDP_SEGMENT

IP = "127.0.0.1"
WAIT_S = 20.0


class Peer:
    """A member's WireGuard as far as the relay can tell."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        self.socket.bind((IP, 0))
        self.socket.settimeout(WAIT_S)

    def send(self, packet: bytes) -> None:
        """To its own mailbox."""
        self.socket.sendto(packet, (IP, self.mailbox.port))

    def send_batch(self, joined: bytes, segment: int) -> None:
        """Many packets in one call, as WireGuard does."""
        self.socket.sendmsg([joined], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment))], 0, (IP, self.mailbox.port))

    def receive(self) -> bytes:
        """The next packet, which comes from its own mailbox."""
        packet, source = self.socket.recvfrom(65536)
        assert source == (IP, self.mailbox.port)
        return packet


def meet(relay: Relay, boxes: list[Mailbox], caller: Peer, callee: Peer, index: int) -> None:
    """A handshake. The caller then names `index` to reach the callee, which names `index + 1`."""
    callee.send(initiation(caller.mailbox.public_key, index + 500))
    relay.set_mailboxes(boxes)  # when this returns, the relay has read the call and knows where the callee is
    call = initiation(callee.mailbox.public_key, index + 1)
    caller.send(call)
    assert callee.receive() == call
    answer = response(caller.mailbox.public_key, index, index + 1)
    callee.send(answer)
    while (packet := caller.receive()) != answer:
        assert packet[0] == 1
    caller.send(data(index))
    assert callee.receive() == data(index)


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def relay(request: pytest.FixtureRequest) -> Iterator[Relay]:
    """With and without the kernel's batches."""
    with Relay(IP, uses_offload=request.param) as relay:
        yield relay


@pytest.fixture
def peers(relay: Relay) -> Iterator[list[Peer]]:
    """Three members of one cluster; the first has met both others."""
    boxes = [
        Mailbox(node_id=f"node_{n}", cluster_id="one", port=port, public_key=bytes([n]) * 32)
        for n, port in enumerate(free_ports(3))
    ]
    assert relay.set_mailboxes(boxes) == []
    peers = [Peer(box) for box in boxes]
    for n in (1, 2):
        meet(relay, boxes, peers[0], peers[n], n * 1000)
    yield peers
    for peer in peers:
        peer.socket.close()


def boxes_of(peers: list[Peer]) -> list[Mailbox]:
    return [peer.mailbox for peer in peers]


def test_data_flows_both_ways(relay: Relay, peers: list[Peer]) -> None:
    """Each gets it from its own mailbox, and it is counted."""
    relay.set_mailboxes(boxes_of(peers))  # the relay's thread has finished counting when this returns
    before = relay.counters.forwarded_packets
    peers[1].send(data(1001, 7, 1312))
    assert peers[0].receive() == data(1001, 7, 1312)
    peers[0].send(data(1000, 8, 1312))
    assert peers[1].receive() == data(1000, 8, 1312)
    assert relay.set_mailboxes(boxes_of(peers)) == []
    assert relay.counters.forwarded_packets == before + 2
    assert relay.state.mailboxes == 3
    assert relay.state.proved_members == 3


@pytest.mark.parametrize("size", [1312, 1452, 1461, 32])
def test_batch_for_several_arrives_complete_and_in_order(relay: Relay, peers: list[Peer], size: int) -> None:
    """One buffer of packets for two members in turns, with junk among them and a short last one."""
    wanted: dict[int, list[bytes]] = {1000: [], 2000: []}
    for batch in range(20):
        sent = []
        for n in range(40):
            index = 2000 if (n // (1 + batch % 5)) % 3 == 0 else 1000
            packet = data(9999 if n == 17 else index, batch * 100 + n, size - 16 * (n == 39 and size > 64))
            sent.append(packet)
            if n != 17:
                wanted[index].append(packet)
        peers[0].send_batch(b"".join(sent), size)
    for peer, index in ((peers[1], 1000), (peers[2], 2000)):
        assert [peer.receive() for _ in wanted[index]] == wanted[index]
    assert relay.set_mailboxes(boxes_of(peers)) == []
    assert relay.counters.dropped_packets[Reason.UNKNOWN_INDEX] == 20


def test_batch_that_ends_in_a_packet_too_short_for_data_loses_only_that(relay: Relay, peers: list[Peer]) -> None:
    """Its header in the buffer would be stale."""
    peers[0].send_batch(b"".join(data(1000, n, 1312) for n in range(5)) + b"\x04\0\0\0", 1312)
    assert [peers[1].receive() for _ in range(5)] == [data(1000, n, 1312) for n in range(5)]
    relay.set_mailboxes(boxes_of(peers))
    assert relay.counters.dropped_packets[Reason.MALFORMED] == 1


def test_batch_of_packets_too_short_for_data_is_dropped(relay: Relay, peers: list[Peer]) -> None:
    """Even where all of them begin as data does, with an index that the relay knows."""
    peers[0].send_batch(data(1000, 1)[:24] * 10, 24)
    peers[0].send(data(1000, 2))
    assert peers[1].receive() == data(1000, 2)
    relay.set_mailboxes(boxes_of(peers))
    assert relay.counters.dropped_packets[Reason.MALFORMED] == 10


def test_batch_of_calls_and_data_is_forwarded_packet_by_packet(relay: Relay, peers: list[Peer]) -> None:
    """A handshake message between data of its own length."""
    call = initiation(peers[1].mailbox.public_key, 77)
    batch = [data(1000, 1, 148), call, data(1000, 2, 148), data(1000, 3, 148)]
    peers[0].send_batch(b"".join(batch), 148)
    assert [peers[1].receive() for _ in batch] == batch


def test_list_changes_while_traffic_flows(relay: Relay, peers: list[Peer]) -> None:
    """Whoever stays on the list loses nothing, while the third comes and goes and the order changes."""
    packets = [data(1000, n, 600) for n in range(3000)]
    extra = Mailbox(node_id="extra", cluster_id="one", port=free_ports(1)[0], public_key=b"\x99" * 32)
    failures: list[object] = []

    def change() -> None:
        for n in range(100):
            failures.extend(relay.set_mailboxes([*boxes_of(peers[:2])[:: 1 if n % 2 else -1], *[extra] * (n % 2)]))

    changing = threading.Thread(target=change)
    changing.start()
    for start in range(0, len(packets), 30):
        for packet in packets[start : start + 30]:
            peers[0].send(packet)
        assert [peers[1].receive() for _ in range(30)] == packets[start : start + 30]
    changing.join()
    assert failures == []
    assert relay.state.mailboxes == 3
    relay.set_mailboxes(boxes_of(peers[:2]))
    peers[0].send(data(2000, 1))
    peers[0].send(data(1000, 1))
    assert peers[1].receive() == data(1000, 1)


def test_port_that_is_taken_is_named_and_the_others_work(relay: Relay, peers: list[Peer]) -> None:
    """The next list tries it again."""
    squatter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    squatter.bind((IP, 0))
    extra = Mailbox(node_id="late", cluster_id="one", port=squatter.getsockname()[1], public_key=b"\x99" * 32)
    [failure] = relay.set_mailboxes([*boxes_of(peers), extra])
    assert (failure.node_id, failure.port) == ("late", extra.port)
    assert f"{IP} UDP port {extra.port}: Address already in use" in failure.reason
    assert relay.state.unbound_ports == 1
    peers[0].send(data(1000, 1))
    assert peers[1].receive() == data(1000, 1)
    squatter.close()
    assert relay.set_mailboxes([*boxes_of(peers), extra]) == []
    assert relay.state.unbound_ports == 0


def test_removed_mailbox_frees_its_port(relay: Relay, peers: list[Peer]) -> None:
    """Somebody else may bind it at once."""
    relay.set_mailboxes(boxes_of(peers[:2]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((IP, peers[2].mailbox.port))


def test_observed_endpoint_is_shown_and_told(peers: list[Peer], relay: Relay) -> None:
    """The source of a call to the observer, from another port of the same IP."""
    direct = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    direct.bind((IP, 0))
    direct.sendto(initiation(relay.observer_key, 1), (IP, peers[0].mailbox.port))
    relay.set_mailboxes(boxes_of(peers))
    peers[0].send(data(1000, 1))
    assert peers[1].receive() == data(1000, 1)  # the same socket, so the call has been read
    assert relay.observed("node_0") == direct.getsockname()
    assert relay.observed("node_1") is None
    relay.set_mailboxes([])
    assert relay.observed("node_0") is None
    direct.close()


def test_observed_endpoint_is_reported_from_the_thread() -> None:
    """Once for each change, and when the mailbox goes."""
    told: list[tuple[str, object]] = []
    with Relay(IP, on_observed=lambda node, address: told.append((node, address))) as relay:
        boxes = [
            Mailbox(node_id=f"node_{n}", cluster_id="one", port=port, public_key=bytes([n]) * 32)
            for n, port in enumerate(free_ports(2))
        ]
        relay.set_mailboxes(boxes)
        a, b = (Peer(box) for box in boxes)
        meet(relay, boxes, a, b, 1000)
        a.send(initiation(relay.observer_key, 1))
        a.send(data(1000, 1))
        assert b.receive() == data(1000, 1)
        relay.set_mailboxes([])
        assert told == [("node_0", a.socket.getsockname()), ("node_0", None)]
        a.socket.close()
        b.socket.close()


def test_junk_at_full_rate_is_survived(relay: Relay, peers: list[Peer]) -> None:
    """Every kind of it, from a third socket; afterwards data passes, and the junk was counted or lost."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        kinds = [b"", b"\x01", initiation(b"\x77" * 32, 1), response(b"\x77" * 32, 1, 2), data(4), bytes(1400)]
        for n in range(6000):
            stranger.sendto(kinds[n % len(kinds)], (IP, peers[0].mailbox.port))
    for n in range(50):
        peers[0].send(data(1000, n))
        assert peers[1].receive() == data(1000, n)
    assert relay.is_running
    relay.set_mailboxes(boxes_of(peers))
    dropped = relay.counters.dropped_packets
    assert dropped[Reason.MALFORMED] > 0
    assert dropped[Reason.RATE] > 0
    assert sum(dropped.values()) <= 6000 + 2  # a first call has nobody to go to


def test_counters_are_exposed_with_reasons_and_without_members(relay: Relay, peers: list[Peer]) -> None:
    """Labels stay bounded however many members there are."""
    peers[0].send(b"junk")
    peers[0].send(data(1000, 1))
    assert peers[1].receive() == data(1000, 1)
    relay.set_mailboxes(boxes_of(peers))
    registry = CollectorRegistry()
    registry.register(RelayCollector(relay))
    text = generate_latest(registry).decode()
    assert 'corral_relay_dropped_packets_total{reason="malformed"} 1.0' in text
    assert "corral_relay_mailboxes 3.0" in text
    assert "corral_relay_proved_members 3.0" in text
    assert f"corral_relay_gro_in_use {float(relay.state.has_gro)}" in text
    assert "node_0" not in text


def test_closed_relay_says_so() -> None:
    """Twice is fine; its ports are free."""
    relay = Relay(IP)
    box = Mailbox(node_id="n", cluster_id="c", port=free_ports(1)[0], public_key=bytes(32))
    relay.set_mailboxes([box])
    relay.close()
    relay.close()
    assert not relay.is_running
    with pytest.raises(RelayClosed, match="was closed"):
        relay.set_mailboxes([])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((IP, box.port))


def test_wrong_orders_are_refused_in_plain_words() -> None:
    """An address that is none, and a list that contradicts itself."""
    with pytest.raises(RelayError, match="'nowhere' is not an IP address"):
        Relay("nowhere")
    box = Mailbox(node_id="n", cluster_id="c", port=1, public_key=bytes(32))
    with Relay(IP) as relay, pytest.raises(MailboxesRefused):
        relay.set_mailboxes([box, box])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_relay_whose_thread_died_says_so_and_frees_its_ports() -> None:
    """A bug, here a callback that raises, must not look like a relay that works."""

    def broken(node_id: str, address: object) -> None:
        raise ZeroDivisionError("a bug")

    relay = Relay(IP, on_observed=broken)
    boxes = [
        Mailbox(node_id=f"node_{n}", cluster_id="one", port=port, public_key=bytes([n]) * 32)
        for n, port in enumerate(free_ports(2))
    ]
    relay.set_mailboxes(boxes)
    a, b = (Peer(box) for box in boxes)
    meet(relay, boxes, a, b, 1000)
    a.send(initiation(relay.observer_key, 1))
    relay._loop._thread.join(WAIT_S)
    assert not relay.is_running
    with pytest.raises(RelayStopped, match="a bug"):
        relay.set_mailboxes(boxes)
    relay.close()
    a.socket.close()
    b.socket.close()


def test_relay_listens_on_ipv6_too() -> None:
    """Addresses are compared without flow and scope."""
    try:
        probe = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    port = probe.getsockname()[1]
    probe.close()
    with Relay("::1") as relay:
        boxes = [
            Mailbox(node_id=f"node_{n}", cluster_id="one", port=free, public_key=bytes([n]) * 32)
            for n, free in enumerate([port, *free_ports(1)])
        ]
        assert relay.set_mailboxes(boxes) == []
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as a,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as b,
        ):
            for each in (a, b):
                each.settimeout(WAIT_S)
            a.sendto(initiation(boxes[1].public_key, 1), ("::1", boxes[0].port))
            relay.set_mailboxes(boxes)
            call = initiation(boxes[0].public_key, 2)
            b.sendto(call, ("::1", boxes[1].port))
            assert a.recv(2000) == call
            answer = response(boxes[1].public_key, 3, 2)
            a.sendto(answer, ("::1", boxes[0].port))
            assert b.recv(2000) == answer
