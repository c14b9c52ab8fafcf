"""The pure parts of the programs inside the images."""

import base64
import json
import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from corral_program import LINE_BYTES_MAX, ControlInput, Malformed
from corral_ray import command
from hypothesis import given
from hypothesis import strategies as st

from corral.member import calling, firewall, mesh, meter, roster, tunnel
from corral.protocol.addresses import MEMBERS_MAX, cluster_network, leaf_address, node_address, pin_address

KEYS = [base64.b64encode(n.to_bytes(32, "big")).decode() for n in range(1, 7)]


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=40), max_size=3), max_size=8), st.data())
def test_messages_survive_any_cut_of_their_bytes(messages: list[dict[str, str]], data: st.DataObject) -> None:
    """A read may end anywhere, also inside a character."""
    content = b"".join(json.dumps(message, ensure_ascii=False).encode() + b"\n" for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=10)))
    read_end, write_end = os.pipe()
    received: list[object] = []
    control = ControlInput(read_end)
    try:
        for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
            if end > start:
                os.write(write_end, content[start:end])
                received += control.read()
    finally:
        os.close(read_end)
        os.close(write_end)
    assert received == messages


def test_line_over_the_bound_is_dropped_and_the_next_one_is_read(tmp_path: Path) -> None:
    """Memory stays bounded whatever is sent, and the reader finds its way back at the end of the line."""
    file = tmp_path / "input"
    file.write_bytes(b'{"big":"' + b"x" * (LINE_BYTES_MAX + 10) + b'"}\n{"type":"hello"}\n[1]\nnonsense\n\n')
    descriptor = os.open(file, os.O_RDONLY)
    control = ControlInput(descriptor)
    received: list[object] = []
    while control.is_open:
        received += control.read()
    os.close(descriptor)
    assert [type(item) for item in received] == [Malformed, dict, Malformed, Malformed]
    assert received[1] == {"type": "hello"}


def peer(n: int = 0, **changes: object) -> dict[str, object]:
    """The `n`th of several well-formed peers, with `changes`."""
    keys = {"direct_key": KEYS[2 * n], "relayed_key": KEYS[2 * n + 1]}
    return {"address": f"10.128.0.{n + 2}", **keys, "endpoints": ["172.17.0.3:51820"], **changes}


def test_roster_is_read_with_all_its_fields() -> None:
    """What is left out is empty: no way to call the peer, no relayed plane, not passive."""
    relayed = peer(1, endpoints=[], relays=["198.51.100.7:4000", "198.51.100.8:4000"], passive=True)
    observer = {"public_key": KEYS[4], "endpoint": "198.51.100.7:4000"}
    message: dict[str, object] = {"serial": 4, "peers": [peer(), relayed], "observers": [observer]}
    found = roster.read_roster(message, own_address="10.128.0.1", serial_min=4)
    assert found.serial == 4
    assert found.peers[0] == roster.Peer("10.128.0.2", KEYS[0], KEYS[1], ("172.17.0.3:51820",), (), False)
    assert found.peers[1].relays == ("198.51.100.7:4000", "198.51.100.8:4000")
    assert found.peers[1].is_passive
    assert found.observers == (roster.Observer(KEYS[4], "198.51.100.7:4000"),)


@pytest.mark.parametrize(
    "message",
    [
        {"serial": 3, "peers": []},
        {"serial": True, "peers": []},
        {"serial": -1, "peers": []},
        {"serial": 5, "peers": {}},
        {"serial": 5, "peers": [7]},
        {"serial": 5, "peers": [peer(direct_key=KEYS[0][:-2])]},
        {"serial": 5, "peers": [peer(relayed_key="\n[Interface]")]},
        {"serial": 5, "peers": [peer(relayed_key=None)]},
        {"serial": 5, "peers": [peer(address="10.128.0.2/32")]},
        {"serial": 5, "peers": [peer(address="10.128.0.02")]},
        {"serial": 5, "peers": [peer(address="10.128.0.1")]},
        {"serial": 5, "peers": [peer(endpoints=["example.org:51820"])]},
        {"serial": 5, "peers": [peer(endpoints=["172.17.0.3:0"])]},
        {"serial": 5, "peers": [peer(endpoints=["172.17.0.3:51820\nPublicKey"])]},
        {"serial": 5, "peers": [peer(endpoints="172.17.0.3:51820")]},
        {"serial": 5, "peers": [peer(relays=["172.17.0.3"])]},
        {"serial": 5, "peers": [peer(relays=["172.17.0.3:4000"] * 9)]},
        {"serial": 5, "peers": [peer(passive=1)]},
        {"serial": 5, "peers": [peer(), peer(address="10.128.0.9")]},
        {"serial": 5, "peers": [peer(), peer(1, relayed_key=KEYS[0])]},
        {"serial": 5, "peers": [peer(), peer(1, address="10.128.0.2")]},
        {"serial": 5, "peers": [peer(relayed_key=KEYS[0])]},
        {"serial": 5, "peers": [peer()] * (roster.PEERS_MAX + 1)},
        {"serial": 5, "peers": [], "observers": [7]},
        {"serial": 5, "peers": [], "observers": [{"public_key": KEYS[0], "endpoint": "here"}]},
        {"serial": 5, "peers": [peer()], "observers": [{"public_key": KEYS[0], "endpoint": "198.51.100.7:4000"}]},
    ],
)
def test_roster_that_is_not_exactly_one_is_refused(message: dict[str, object]) -> None:
    """Every value ends up in a configuration, so nothing but the exact forms passes."""
    with pytest.raises(roster.RosterRefused):
        roster.read_roster(message, own_address="10.128.0.1", serial_min=4)


@given(st.integers(0, 511), st.integers(1, MEMBERS_MAX), st.sampled_from([node_address, leaf_address]))
def test_the_container_and_the_rest_have_one_address_plan(number: int, member: int, address_of: Any) -> None:
    """Pinned addresses are told to nobody: both sides compute them."""
    network = cluster_network(number)
    address = address_of(network, member)
    for plane in ("direct", "relayed"):
        assert roster.pin_address(str(network), str(address), plane) == str(pin_address(network, member, plane))
        assert IPv4Address(roster.pin_address(str(network), str(address), plane)) in IPv4Network(
            roster.pin_network(str(network), plane)
        )


def test_of_a_pair_one_end_calls_and_the_other_waits_for_a_while() -> None:
    """Two initiations that cross cancel each other; but nobody waits for ever."""
    caller, other = calling.Calls("direct"), calling.Calls("direct")
    caller.begin("b", 0.0, is_caller=True)
    other.begin("a", 0.0, is_caller=False)
    assert caller.due(calling.CALL_FIRST_S) == [("b", 0)]
    assert other.due(calling.CALL_FIRST_S) == []
    assert not other.may_probe("a"), "a probe would make WireGuard call"
    assert other.due(calling.ANSWER_FIRST_S["direct"]) == [("a", 0)]
    assert caller.shook_hands("b")
    assert caller.next_at() == float("inf")


def test_a_session_is_given_up_late_on_the_direct_plane_and_at_once_on_the_relayed() -> None:
    """A cut that heals finds its session; a relay that is gone is left for the other one."""
    direct, relayed = calling.Calls("direct"), calling.Calls("relayed")
    for calls in (direct, relayed):
        calls.begin("b", 0.0, is_caller=True, offset=1, had_session=True)
        assert calls.may_probe("b")
        assert not calls.shook_hands("b"), "that handshake is from before the silence"
    assert relayed.due(0.2) == [("b", 1)]
    assert direct.due(0.2) == []
    assert direct.due(calling.SESSION_PATIENCE_S["direct"] + 0.2) == [("b", 1)]
    assert direct.shook_hands("b")


@given(st.integers(2, 4), st.floats(0, 20), st.integers(0, 3))
def test_both_ends_try_every_endpoint_and_meet_at_each(endpoints: int, later_s: float, offset: int) -> None:
    """Whenever each began, within some minutes both have been at the same endpoint at the same time."""
    ends = [calling.Calls("relayed"), calling.Calls("relayed")]
    ends[0].begin("x", 0.0, is_caller=True)
    ends[1].begin("x", later_s, is_caller=False, offset=offset)
    at: list[int | None] = [None, None]
    met: set[int] = set()
    now = 0.0
    while now < 600 and len(met) < endpoints:
        now = min(end.next_at() for end in ends)
        for n, end in enumerate(ends):
            for _, number in end.due(now):
                at[n] = number % endpoints
        if at[0] is not None and at[0] == at[1]:
            met.add(at[0])
    assert len(met) == endpoints


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_no_text_is_taken_for_an_address_unless_it_is_one(text: object) -> None:
    """No input raises."""
    assert roster.is_ipv4(text) is False or (isinstance(text, str) and text.count(".") == 3)


@pytest.mark.parametrize("role", ["node", "leaf"])
def test_firewall_drops_whatever_no_rule_accepts(role: str) -> None:
    """Three chains, each with the policy drop; what follows are exceptions."""
    text = firewall.rules(role, port=51820, relayed_port=51821)
    assert text.count("policy drop;") == text.count("hook") == 3


@pytest.mark.parametrize("has_internet", [True, False])
def test_node_without_internet_lets_out_what_is_marked_and_nothing_else(has_internet: bool) -> None:
    """On the host's interface WireGuard's own packets alone have a rule; by default the internet is open."""
    text = firewall.rules("node", port=51820, relayed_port=51821, has_internet=has_internet)
    out = [line for line in text.splitlines() if 'oifname "eth0"' in line]
    assert all("meta mark 0x4352" in line for line in out) is not has_internet
    assert (text == firewall.rules("node", port=51820, relayed_port=51821)) is has_internet


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "172.17.0.1", "10.0.0.2"]
)
def test_metadata_services_and_private_addresses_are_closed_to_workloads(address: str) -> None:
    """Of Amazon, Google, Microsoft, Alibaba and Oracle: they tell whoever is on a machine its secrets."""
    text = firewall.rules("node", port=51820, relayed_port=51821, closed=("203.0.113.7", address))
    [line] = [line for line in text.splitlines() if "ip daddr" in line]
    networks = [IPv4Network(one) for one in line[line.index("{") + 1 : line.index("}")].replace(" ", "").split(",")]
    assert sum(IPv4Address(address) in network for network in networks) == 1, "closed, and named once"
    assert IPv4Address("203.0.113.7") in networks[-1]
    out = text[text.index("hook output") :]
    assert out.index("ip daddr") < out.index("internet_sent accept"), "before the internet is opened"


@given(st.integers(mesh.CAP_BYTES_MIN, 2**53))
def test_no_hour_has_more_than_its_cap_and_something_always_flows(cap: int) -> None:
    """Whatever was saved up, and whenever the hour begins; up to what the packet filter can count, it is no less."""
    rate, burst = firewall.allowance(cap)
    assert rate >= 1
    assert burst <= firewall.BURST_BYTES_MAX
    in_an_hour = burst + rate + rate * 3600
    assert in_an_hour <= cap
    assert in_an_hour >= min(cap * 99 // 100, firewall.RATE_MAX * 3600)


def test_firewall_of_an_unknown_role_does_not_exist() -> None:
    """A spelling mistake must not open anything."""
    with pytest.raises(ValueError, match="role"):
        firewall.rules("Node", port=51820, relayed_port=51821)


def test_counters_are_read_by_name() -> None:
    """As `nft -j` prints them."""
    counters = [
        {"counter": {"family": "inet", "name": name, "table": "corral", "handle": n, "packets": 1, "bytes": 100 + n}}
        for n, name in enumerate(firewall.COUNTERS)
    ]
    text = json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *counters]})
    assert meter.read_counters(text) == {name: 100 + n for n, name in enumerate(firewall.COUNTERS)}


def test_dump_of_wireguard_gives_its_peers() -> None:
    """The first line is the interface itself, with its private key: it is skipped."""
    text = (
        f"PRIVATE\t{KEYS[0]}\t51820\t0x4352\n"
        f"{KEYS[0]}\t(none)\t172.17.0.3:51820\t10.128.0.2/32\t1763800000\t100\t200\t25\n"
        f"{KEYS[1]}\t(none)\t(none)\t10.128.0.3/32\t0\t0\t0\toff\n"
    )
    assert tunnel.read_dump(text) == [
        tunnel.PeerState(KEYS[0], "172.17.0.3:51820", 1763800000, 100, 200),
        tunnel.PeerState(KEYS[1], "(none)", 0, 0, 0),
    ]


ENVIRONMENT = {
    "CORRAL_RAY_ROLE": "worker",
    "CORRAL_NODE_ADDRESS": "10.128.0.2",
    "CORRAL_HEAD_ADDRESS": "10.128.0.1",
    "CORRAL_NODE_NAME": "host-b",
    "CORRAL_NUM_CPUS": "2",
    "CORRAL_NUM_GPUS": "0",
    "CORRAL_MEMORY_BYTES": "1000000000",
    "CORRAL_OBJECT_STORE_BYTES": "200000000",
}


def test_worker_joins_its_head_and_only_the_head_has_a_dashboard() -> None:
    """What differs between the two is where they find each other and who serves people."""
    worker = command.start_arguments(command.read_settings(ENVIRONMENT))
    head = command.start_arguments(command.read_settings({**ENVIRONMENT, "CORRAL_RAY_ROLE": "head"}))
    assert "--address=10.128.0.1:6379" in worker
    assert "--head" not in worker
    assert {"--head", "--port=6379", "--dashboard-host=10.128.0.2", "--dashboard-port=8265"} <= set(head)
    assert set(worker) & set(head) >= {"--block", "--node-ip-address=10.128.0.2", "--num-cpus=2"}


@pytest.mark.parametrize("name", sorted(ENVIRONMENT))
def test_missing_setting_is_named(name: str) -> None:
    """The launcher says which variable is missing instead of starting a node that nobody asked for."""
    with pytest.raises(command.BadSettings, match=name):
        command.read_settings({key: value for key, value in ENVIRONMENT.items() if key != name})


def test_programs_start_without_more_of_python_than_they_need() -> None:
    """Start-up time is part of every cluster's start: no asyncio, ssl or socket servers in a mesh container."""
    images = Path(__file__).resolve().parents[2] / "images"
    code = "import sys; import corral_net.container, corral_net.web; print(*sys.modules)"
    path = f"{images / 'net'}:{images / 'common'}:{images.parent / 'src'}"
    environment = {"PYTHONPATH": path, "PATH": os.environ["PATH"]}
    done = subprocess.run(
        (sys.executable, "-S", "-c", code), env=environment, capture_output=True, text=True, check=True
    )
    assert not {"asyncio", "ssl", "http", "logging", "typing_extensions", "ipaddress"} & set(done.stdout.split())
