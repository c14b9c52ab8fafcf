"""The mesh container by itself: restarts, silent peers, the way out, and what it says when it cannot work."""

import difflib
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from parts import DEADLINE_S, NETWORK, Keys, Lab, Part, bridge_address, roster

pytestmark = pytest.mark.docker

HERE, THERE = "10.128.0.1", "10.128.0.2"
CONNECT = """
import socket, sys
for _ in range(100):
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
    except ConnectionRefusedError:
        __import__("time").sleep(0.1)  # reached, but nobody listens yet
    except OSError as error:
        print("closed", error)
        break
    else:
        print("open")
        break
"""
POUR = """
import socket, threading
s = socket.create_server(("0.0.0.0", 8001))
def pour(c):
    try: c.sendall(bytes(50_000_000))
    except OSError: pass
    c.close()
while True: threading.Thread(target=pour, args=(s.accept()[0],), daemon=True).start()
"""
# Prints how much it got, of so many bytes, within so many seconds.
DRINK = """
import socket, sys, time
got, wanted, until = 0, int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
try:
    while True:
        try: s = socket.create_connection((sys.argv[1], 8001), timeout=5); break
        except ConnectionRefusedError: time.sleep(0.1)
    while got < wanted and time.monotonic() < until: got += len(s.recv(min(wanted - got, 65536)))
except TimeoutError: pass
print(got)
"""
# Prints bytes with the internet once they are more than that.
PASSED = """
import json, subprocess, sys, time
while True:
    done = subprocess.run(("nft", "-j", "list", "counter", "inet", "corral", "internet_received"), capture_output=True)
    count = next(one["counter"]["bytes"] for one in json.loads(done.stdout)["nftables"] if "counter" in one)
    if count > int(sys.argv[1]): break
    time.sleep(0.2)
print(count)
"""
LISTEN = "import socket,time; s=socket.create_server(('0.0.0.0', 8000)); time.sleep(3600)"


class Pair:
    """Two nodes without a workload."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.pauses = [lab.pause(f"{name}-{n}-pause") for n in range(2)]
        self.meshes = [lab.mesh(f"{name}-{n}-mesh", pause, (HERE, THERE)[n]) for n, pause in enumerate(self.pauses)]
        self.keys: dict[str, Keys] = {}
        self.endpoints: dict[str, str | None] = {}
        self.learn()

    def learn(self) -> None:
        """Read keys and endpoints as they are now."""
        for n, address in enumerate((HERE, THERE)):
            self.keys[address] = self.meshes[n].keys()
            self.endpoints[address] = f"{bridge_address(self.pauses[n])}:51820"

    def tell(self, n: int, serial: int) -> None:
        """Hand one member the roster."""
        self.meshes[n].send(roster(serial, self.keys, self.endpoints, own=(HERE, THERE)[n]))


@pytest.fixture(scope="module")
def internet(lab: Lab) -> str:
    """A network with public addresses (TEST-NET-3) that stands for the internet."""
    return lab.network("internet", "203.0.113.0/24")


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Pair:
    """Two members that have met."""
    pair = Pair(lab, "pair")
    for n in range(2):
        pair.tell(n, 1)
    for n in range(2):
        pair.meshes[n].wait_type("peers", handshaken=[(THERE, HERE)[n]])
    return pair


def test_member_without_a_roster_has_no_address(lab: Lab) -> None:
    """The firewall is loaded and the key is made; whoever waits for the address waits for the roster."""
    pause = lab.pause("fresh-pause")
    mesh = lab.mesh("fresh-mesh", pause, HERE)
    mesh.keys()
    assert HERE not in mesh.run("ip", "address")[1]
    assert "policy drop" in mesh.run("nft", "list", "ruleset")[1]


def test_peer_that_comes_late_is_reached(lab: Lab) -> None:
    """The first calls are lost; one end calls again and again."""
    pair = Pair(lab, "late")
    first = 0 if pair.keys[HERE] < pair.keys[THERE] else 1  # the one that calls, into the void
    pair.tell(first, 1)
    pair.meshes[first].wait_type("configured")
    since = pair.meshes[first].mark()
    pair.tell(1 - first, 1)
    pair.meshes[first].wait_type("peers", since=since, handshaken=[(THERE, HERE)[first]])


def test_peer_without_an_endpoint_is_met_when_it_calls(lab: Lab) -> None:
    """One open end is enough, whichever of the two calls first."""
    for closed in range(2):
        pair = Pair(lab, f"closed{closed}")
        pair.endpoints[(HERE, THERE)[closed]] = None
        for n in range(2):
            pair.tell(n, 1)
        for n in range(2):
            pair.meshes[n].wait_type("peers", handshaken=[(THERE, HERE)[n]])


def test_peer_without_an_endpoint_is_not_called_in_vain(lab: Lab) -> None:
    """WireGuard would make a handshake message every 5 s for each of them, and could send none."""
    pair = Pair(lab, "vain")
    caller = 0 if pair.keys[HERE] < pair.keys[THERE] else 1
    pair.endpoints[(THERE, HERE)[caller]] = None
    pair.tell(caller, 1)
    pair.meshes[caller].wait_type("configured", serial=1)
    assert pair.meshes[caller].run("wg", "show", "wgd", "persistent-keepalive")[1].endswith("\toff")


def test_peer_that_loses_its_endpoint_while_it_is_called_ends_nothing(lab: Lab) -> None:
    """Two members that claim one endpoint lose it: the others go on, and wait for the peer to call."""
    pair = Pair(lab, "loser")
    caller = 0 if pair.keys[HERE] < pair.keys[THERE] else 1
    other = (THERE, HERE)[caller]
    pair.endpoints[other] = "203.0.113.66:5000"
    pair.tell(caller, 1)
    pair.meshes[caller].wait_type("configured", serial=1)
    pair.endpoints[other] = None
    pair.tell(caller, 2)
    pair.meshes[caller].wait_type("configured", serial=2)
    pair.tell(1 - caller, 2)  # it is not the one that calls first, so a call of ours would have been due long before
    pair.meshes[caller].wait_type("peers", handshaken=[other])
    assert pair.meshes[caller].inspect()["State"]["Running"]


def test_restarted_mesh_container_joins_again_with_a_new_key(lab: Lab, pair: Pair) -> None:
    """The namespace survives; key, interface and peers are new, and the next serial brings them together."""
    old_key = pair.keys[HERE]
    pair.meshes[0].send({"type": "hello"})
    counted = pair.meshes[0].wait(lambda message: message["type"] == "peers" and message["bytes"]["rx"] > 0)["bytes"]
    pair.meshes[0] = lab.restart(pair.meshes[0])
    pair.learn()
    assert pair.keys[HERE] != old_key
    since = pair.meshes[1].mark()
    for n in range(2):
        pair.tell(n, 2)
    found = pair.meshes[0].wait_type("peers", handshaken=[THERE])["bytes"]
    assert all(found[which] >= counted[which] for which in ("rx", "tx")), "what was counted outlives the container"
    pair.meshes[1].wait_type("peers", since=since, handshaken=[HERE])
    assert pair.meshes[0].run("ip", "route")[1].count(NETWORK) == 1
    assert pair.meshes[1].run("wg", "show", "wgd", "peers")[1] == pair.keys[HERE].direct


def test_removed_member_loses_its_connection(pair: Pair) -> None:
    """A roster without a peer removes it at once; the same serial twice is no error."""
    mesh = pair.meshes[0]
    for _ in range(2):
        since = mesh.mark()
        mesh.send({"type": "roster", "serial": 90, "peers": []})
        assert mesh.wait_type("configured", since=since)["serial"] == 90
    assert mesh.wait_type("peers", handshaken=[])
    assert mesh.run("wg", "show", "wgd", "peers")[1] == ""


def test_node_reaches_the_internet_but_not_its_machine_and_one_without_internet_neither(
    lab: Lab, internet: str
) -> None:
    """Nor does a leaf. The rules alone decide it; the gateway of that network is this machine."""
    server = lab.neighbour("server", "python3", "-c", LISTEN, network=internet)
    with socket.create_server(("203.0.113.1", 0)) as own:
        port = str(own.getsockname()[1])
        open_to = {"internet": (bridge_address(server), "8000"), "machine": ("203.0.113.1", port)}
        outcomes: dict[str, dict[str, str]] = {}
        for who, role, state in (("node", "node", "open"), ("shut", "node", "closed"), ("leaf", "leaf", "closed")):
            pause = lab.pause(f"{who}-internet-pause", network=internet)
            closed, environment = ("203.0.113.1", "10.0.0.7"), (f"CORRAL_MESH_INTERNET={state}",)
            mesh = lab.mesh(f"{who}-internet-mesh", pause, HERE, role=role, closed=closed, environment=environment)
            mesh.keys()
            outcomes[who] = {what: _connects(mesh, *place) for what, place in open_to.items()}
            if who != "node":
                # Nothing but the rules stands in the way.
                mesh.run("nft", "flush", "ruleset")
                assert [_connects(mesh, *place) for place in open_to.values()] == ["open", "open"]
        assert outcomes["node"] == {"internet": "open", "machine": "closed"}
        assert outcomes["shut"] == outcomes["leaf"] == {"internet": "closed", "machine": "closed"}


def test_bytes_of_the_internet_and_of_the_mesh_are_counted_apart(lab: Lab, internet: str) -> None:
    """On the host's network, both ways; asked anew, the container says them."""
    server = lab.neighbour("pouring", "python3", "-c", POUR, network=internet)
    mesh = lab.mesh("metered-mesh", lab.pause("metered-pause", network=internet), HERE)
    mesh.keys()
    assert mesh.run("python3", "-c", DRINK, bridge_address(server), "5000000", "60")[1] == "5000000"
    mesh.send({"type": "roster", "serial": 1, "peers": []})
    mesh.wait_type("configured")
    since = mesh.mark()
    mesh.send({"type": "hello"})
    counted = mesh.wait_type("peers", since=since)["bytes"]
    assert counted["internet_rx"] > 5_000_000 > counted["internet_tx"] > 0
    assert counted["rx"] == counted["tx"] == 0


def test_who_uses_up_the_cap_goes_on_slowly_and_it_is_said(lab: Lab, internet: str) -> None:
    """Half of an hour's cap passes at once; then what flows in, and no connection is ended."""
    server = lab.neighbour("pouring-much", "python3", "-c", POUR, network=internet)
    cap = ("CORRAL_MESH_INTERNET_CAP=36000000",)
    mesh = lab.mesh("capped-mesh", lab.pause("capped-pause", network=internet), HERE, environment=cap)
    mesh.keys()
    mesh.send({"type": "roster", "serial": 1, "peers": []})
    assert not mesh.wait_type("peers")["slowed"]
    mesh.spawn("python3", "-c", DRINK, bridge_address(server), "50000000", "600")
    counted = mesh.wait_type("peers", slowed=True)["bytes"]
    at_once = counted["internet_rx"] + counted["internet_tx"]
    assert 17_000_000 < at_once < 20_000_000
    assert mesh.run("python3", "-c", PASSED, str(counted["internet_rx"] + 5_000))[0] == 0
    # A restart brings no new allowance.
    mesh = lab.restart(mesh)
    mesh.keys()
    assert int(mesh.run("python3", "-c", DRINK, bridge_address(server), "10000000", "3")[1]) < 5_000_000


def _connects(mesh: Part, address: str, port: str) -> str:
    return mesh.run("python3", "-c", CONNECT, address, port)[1].split()[0]


@pytest.mark.parametrize(
    ("host", "words"),
    [({"Devices": []}, ("/dev/net/tun", "--device")), ({"CapAdd": []}, ("NET_ADMIN", "--cap-add"))],
    ids=["without-tun", "without-net-admin"],
)
def test_container_without_what_it_needs_says_so_and_ends(
    lab: Lab, host: dict[str, Any], words: tuple[str, ...]
) -> None:
    """One fatal line in plain words, with the remedy, and status 1."""
    kind = "tun" if "Devices" in host else "cap"
    pause = lab.pause(f"lacking-{kind}-pause")
    mesh = lab.mesh(f"lacking-{kind}-mesh", pause, HERE, **host)
    if kind == "tun" and mesh.said().find('"implementation":"kernel"') >= 0:
        pytest.skip("this kernel has WireGuard itself and needs no /dev/net/tun")
    reason = mesh.wait_type("fatal")["reason"]
    assert all(word in reason for word in words)
    assert mesh.wait_exit() == 1


def test_heaps_of_both_tunnels_fit_into_the_container(pair: Pair) -> None:
    """The Engine ends a container that takes more than it may, and the cluster's path with it."""
    mesh = pair.meshes[0]
    if mesh.wait_type("keys")["implementation"] == "kernel":
        pytest.skip("the kernel's own WireGuard has no heap")
    script = "for each in $(pidof wireguard-go); do tr '\\0' '\\n' < /proc/$each/environ | grep GOMEMLIMIT=; done"
    found = mesh.run("sh", "-c", script)[1].split()
    limits_mib = [int(line.removeprefix("GOMEMLIMIT=").removesuffix("MiB")) for line in found]
    assert len(limits_mib) == 2
    assert sum(limits_mib) * 2**20 < 0.8 * mesh.inspect()["HostConfig"]["Memory"]


def state_of(mesh: Part) -> dict[str, list[str]]:
    """All that a mesh container has set in its namespace, without keys and counters."""
    looks = {
        "addresses": "ip -o address show | awk '{print $2, $4}'",
        "routes": "ip route show table all | grep -v ' table local'",
        "rules": "ip rule",
        "links": "ip -o link | awk '{print $2, $5}'",
        "firewall": "nft --stateless list ruleset",
        "peers": "for i in wgd wgr; do echo $i $(wg show $i peers | wc -l); done",
        "processes": "cat /proc/[0-9]*/comm | grep wireguard | sort",
    }
    return {what: mesh.run("sh", "-c", look)[1].splitlines() for what, look in looks.items()}


def settled(mesh: Part) -> dict[str, list[str]]:
    """The same once packets are as large as the path carries: some seconds after a start."""
    deadline = time.monotonic() + DEADLINE_S
    while "mtu 1420" not in "".join((found := state_of(mesh))["routes"]):
        assert time.monotonic() < deadline, found["routes"]
    return found


def test_twenty_restarts_leave_nothing_twice(lab: Lab) -> None:
    """Namespace, peer and agent stay; each start finds what the one before has left, and ends up with the same."""
    pair = Pair(lab, "often")
    for n in range(2):
        pair.tell(n, 1)
    for n in range(2):
        pair.meshes[n].wait_type("peers", handshaken=[(THERE, HERE)[n]])
    before = [settled(mesh) for mesh in pair.meshes]
    for serial in range(2, 22):
        pair.meshes[0] = lab.restart(pair.meshes[0])
        since = pair.meshes[1].mark()
        pair.learn()
        for n in range(2):
            pair.tell(n, serial)
        pair.meshes[0].wait_type("peers", handshaken=[THERE])
        pair.meshes[1].wait_type("configured", serial=serial, since=since)
        pair.meshes[1].wait_type("peers", since=since, handshaken=[HERE])
    until_equal(lambda: [state_of(mesh) for mesh in pair.meshes], before)
    assert pair.meshes[1].run("wg", "show", "wgd", "peers")[1] == pair.keys[HERE].direct


def until_equal(look: Callable[[], Any], wanted: Any) -> None:
    """Returns once a look shows what is wanted: packet sizes settle some seconds after a start."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, _differences(found, wanted)


KILL = "kill -9 $(grep -l wireguard-go /proc/[0-9]*/comm | cut -d/ -f3)"


def test_wireguard_that_dies_is_there_again_with_its_peers(lab: Lab) -> None:
    """Same keys, same addresses and routes, no new roster: nobody but the two members notices."""
    pair = Pair(lab, "dying")
    if pair.meshes[0].wait_type("keys")["implementation"] == "kernel":
        pytest.skip("there is no process of WireGuard to kill")
    for n in range(2):
        pair.tell(n, 1)
    for n in range(2):
        pair.meshes[n].wait_type("peers", handshaken=[(THERE, HERE)[n]])
    before = settled(pair.meshes[0])
    for _ in range(3):
        since = pair.meshes[0].mark()
        assert pair.meshes[0].run("sh", "-c", KILL)[0] == 0
        pair.meshes[0].wait_type("configured", serial=1, since=since)
        pair.meshes[0].wait_type("peers", handshaken=[THERE], since=since)
    until_equal(lambda: state_of(pair.meshes[0]), before)
    assert pair.meshes[0].run("wg", "show", "wgd", "public-key")[1] == pair.keys[HERE].direct


def test_wireguard_that_dies_again_and_again_takes_its_container_down(lab: Lab) -> None:
    """The agent sees a stopped container and tells why; a mesh that is silently dead would stay so."""
    mesh = lab.mesh("dead-mesh", lab.pause("dead-pause"), HERE)
    if mesh.wait_type("keys")["implementation"] == "kernel":
        pytest.skip("there is no process of WireGuard to kill")
    mesh.spawn("sh", "-c", f"while true; do {KILL}; done")
    assert "wireguard-go" in mesh.wait_type("fatal")["reason"]
    assert mesh.wait_exit() == 1


def test_mesh_and_pause_end_at_once_when_told_to(lab: Lab) -> None:
    """SIGTERM ends them; nobody waits for the Engine to lose its patience."""
    pause = lab.pause("ending-pause")
    mesh = lab.mesh("ending-mesh", pause, HERE)
    mesh.keys()
    for part in (mesh, pause):
        assert _stop_status(part) == 0


def _stop_status(part: Part) -> int:
    assert part.stop(within_s=60) < 30
    return part.inspect()["State"]["ExitCode"]


def _differences(found: Any, wanted: Any) -> list[str]:
    """Lines that only one of two states has."""
    before, after = (json.dumps(one, indent=1).splitlines() for one in (wanted, found))
    return list(difflib.unified_diff(before, after, n=0))
