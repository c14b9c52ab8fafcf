"""The pure parts of the programs inside the images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from corral_net import firewall, mesh, roster
from corral_program import LINE_BYTES_MAX, ControlInput, Malformed
from corral_ray import command
from hypothesis import given
from hypothesis import strategies as st

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
OTHER_KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="


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


def peer(**changes: object) -> dict[str, object]:
    """A well-formed peer with `changes`."""
    return {"public_key": KEY, "address": "10.128.0.2", "endpoint": "172.17.0.3:51820", **changes}


def test_roster_is_rendered_without_touching_its_values() -> None:
    """Keepalive only towards those that are called; the endpoint only where there is one."""
    message = {"serial": 4, "peers": [peer(), peer(public_key=OTHER_KEY, address="10.128.0.3", endpoint=None)]}
    serial, peers = roster.read_roster(message, own_address="10.128.0.1", serial_min=4)
    assert serial == 4
    text = roster.configuration("PRIVATE", port=51820, mark=0x4352, peers=peers, calling={KEY})
    assert text == (
        "[Interface]\nPrivateKey = PRIVATE\nListenPort = 51820\nFwMark = 0x4352\n"
        f"[Peer]\nPublicKey = {KEY}\nAllowedIPs = 10.128.0.2/32\nPersistentKeepalive = 25\n"
        f"Endpoint = 172.17.0.3:51820\n[Peer]\nPublicKey = {OTHER_KEY}\nAllowedIPs = 10.128.0.3/32\n"
    )


@pytest.mark.parametrize(
    "message",
    [
        {"serial": 3, "peers": []},
        {"serial": True, "peers": []},
        {"serial": -1, "peers": []},
        {"serial": 5, "peers": {}},
        {"serial": 5, "peers": [7]},
        {"serial": 5, "peers": [peer(public_key=KEY[:-2])]},
        {"serial": 5, "peers": [peer(public_key="\n[Interface]")]},
        {"serial": 5, "peers": [peer(address="10.128.0.2/32")]},
        {"serial": 5, "peers": [peer(address="10.128.0.02")]},
        {"serial": 5, "peers": [peer(address="10.128.0.1")]},
        {"serial": 5, "peers": [peer(endpoint="example.org:51820")]},
        {"serial": 5, "peers": [peer(endpoint="172.17.0.3:0")]},
        {"serial": 5, "peers": [peer(endpoint="172.17.0.3:51820\nPublicKey")]},
        {"serial": 5, "peers": [peer(), peer(address="10.128.0.9")]},
        {"serial": 5, "peers": [peer(), peer(public_key=OTHER_KEY)]},
        {"serial": 5, "peers": [peer()] * (roster.PEERS_MAX + 1)},
    ],
)
def test_roster_that_is_not_exactly_one_is_refused(message: dict[str, object]) -> None:
    """Every value ends up in a configuration, so nothing but the exact forms passes."""
    with pytest.raises(roster.RosterRefused):
        roster.read_roster(message, own_address="10.128.0.1", serial_min=4)


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_no_text_is_taken_for_an_address_unless_it_is_one(text: object) -> None:
    """No input raises."""
    assert roster.is_ipv4(text) is False or (isinstance(text, str) and text.count(".") == 3)


@pytest.mark.parametrize("role", ["node", "leaf"])
def test_firewall_drops_whatever_no_rule_accepts(role: str) -> None:
    """Three chains, each with the policy drop; what follows are exceptions."""
    text = firewall.rules(role, port=51820)
    assert text.count("policy drop;") == text.count("hook") == 3


def test_firewall_of_an_unknown_role_does_not_exist() -> None:
    """A spelling mistake must not open anything."""
    with pytest.raises(ValueError, match="role"):
        firewall.rules("Node", port=51820)


def test_dump_of_wireguard_gives_its_peers() -> None:
    """The first line is the interface itself, with its private key: it is skipped."""
    text = (
        f"PRIVATE\t{KEY}\t51820\t0x4352\n"
        f"{KEY}\t(none)\t172.17.0.3:51820\t10.128.0.2/32\t1763800000\t100\t200\t25\n"
        f"{OTHER_KEY}\t(none)\t(none)\t10.128.0.3/32\t0\t0\t0\toff\n"
    )
    assert mesh.read_dump(text) == [mesh.PeerState(KEY, 1763800000, 100, 200), mesh.PeerState(OTHER_KEY, 0, 0, 0)]


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
    code = "import sys; import corral_net.mesh, corral_net.web; print(*sys.modules)"
    environment = {"PYTHONPATH": f"{images / 'net'}:{images / 'common'}", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        (sys.executable, "-S", "-c", code), env=environment, capture_output=True, text=True, check=True
    )
    assert not {"asyncio", "ssl", "http", "logging", "typing_extensions", "ipaddress"} & set(done.stdout.split())
