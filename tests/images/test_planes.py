"""Two planes between real mesh containers, with real relays: what fails is left, what is back is used again."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from parts import DEADLINE_S, Keys, Lab, Part, bridge_address, roster

from corral.relay import Mailbox, Relay

pytestmark = pytest.mark.docker

HERE, THERE, LEAF = "10.128.0.1", "10.128.0.2", "10.128.48.3"
MEMBERS = (HERE, THERE, LEAF)
PORTS = (41010, 41011, 41012)
RELAYS = 2
BLOCK = "insert rule inet corral {chain} udp {side} 51820 drop"


@dataclass
class Trio:
    """Two nodes and a leaf, and two relays on this machine."""

    pauses: list[Part]
    meshes: list[Part]
    relays: list[Relay]
    boxes: list[list[Mailbox]]
    bridge_ip: str

    def endpoint(self, relay: int, member: int) -> str:
        """The mailbox of a member."""
        return f"{self.bridge_ip}:{self.boxes[relay][member].port}"

    def tell(self, serial: int, *, has_direct: bool = True) -> None:
        """Hand everybody the roster."""
        keys: dict[str, Keys] = {address: mesh.keys() for address, mesh in zip(MEMBERS, self.meshes, strict=True)}
        endpoints = {
            address: f"{bridge_address(pause)}:51820" if has_direct else None
            for address, pause in zip(MEMBERS, self.pauses, strict=True)
        }
        for n, own in enumerate(MEMBERS):
            relays = [self.endpoint(relay, n) for relay in range(RELAYS)]
            self.meshes[n].send(roster(serial, keys, endpoints, own=own, relays=relays, passive=[LEAF]))

    def cut(self) -> None:
        """No direct path from or to the first node any more."""
        for chain, side in (("input", "dport"), ("output", "sport")):
            assert self.meshes[0].run("nft", BLOCK.format(chain=chain, side=side))[0] == 0

    def mend(self) -> None:
        """The direct path is back."""
        for chain in ("input", "output"):
            rules = json.loads(self.meshes[0].run("nft", "-j", "-a", "list", "chain", "inet", "corral", chain)[1])
            first = next(entry["rule"]["handle"] for entry in rules["nftables"] if "rule" in entry)
            assert self.meshes[0].run("nft", "delete", "rule", "inet", "corral", chain, "handle", str(first))[0] == 0

    def reaches(self, n: int, address: str) -> bool:
        """Whether a datagram of one member comes back from another's data address."""
        return echoes(self.meshes[n], MEMBERS[n], address)


PINS = {"direct": ("10.128.16.1", "10.128.16.2"), "relayed": ("10.128.32.1", "10.128.32.2")}
"""Addresses of the two nodes that are reached over one plane only."""
SERVE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 7000))
while True: s.sendto(*s.recvfrom(64))
"""
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0)); s.settimeout(0.5)
for _ in range(int(sys.argv[3])):
    s.sendto(b"echo", (sys.argv[2], 7000))
    try: print(s.recv(64).decode()); break
    except TimeoutError: pass
"""


TAKE = """
import socket, sys
server = socket.create_server((sys.argv[1], 7001))
while True:
    found, size = server.accept()[0], 0
    while chunk := found.recv(65536): size += len(chunk)
    found.sendall(str(size).encode()); found.close()
"""
GIVE = """
import socket, sys
for _ in range(100):
    try: s = socket.create_connection((sys.argv[2], 7001), 10, (sys.argv[1], 0)); break
    except ConnectionRefusedError: __import__("time").sleep(0.1)
s.settimeout(30); s.sendall(bytes(4_000_000)); s.shutdown(socket.SHUT_WR)
print(s.recv(64).decode())
"""


def echoes(mesh: Part, own: str, address: str, *, tries: int = 40) -> bool:
    """Whether a datagram from the address `own` of a member comes back from `address`; half a second for each try."""
    return mesh.run("python3", "-c", ECHO, own, address, str(tries))[1] == "echo"


@pytest.fixture
def trio(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Trio]:
    """Members that have not heard of each other yet."""
    [network] = lab.engine.call("GET", "/networks", filters=json.dumps({"name": ["^bridge$"]}))
    bridge_ip = network["IPAM"]["Config"][0]["Gateway"]
    name = request.node.name.replace("_", "-")[:40]
    roles = ("node", "node", "leaf")
    pauses = [lab.pause(f"{name}-{n}-pause") for n in range(3)]
    # The first has no internet: WireGuard's own packets are all that it needs, on both planes.
    internet = [(f"CORRAL_MESH_INTERNET={state}",) for state in ("closed", "open", "closed")]
    meshes = [
        lab.mesh(f"{name}-{n}-mesh", pauses[n], MEMBERS[n], role=roles[n], environment=internet[n]) for n in range(3)
    ]
    boxes = [
        [
            Mailbox.from_base64(
                node_id=f"no_{n}", cluster_id="one", port=PORTS[n] + 10 * relay, public_key=meshes[n].keys().relayed
            )
            for n in range(3)
        ]
        for relay in range(RELAYS)
    ]
    with ExitStack() as stack:
        relays = [stack.enter_context(Relay(bridge_ip)) for _ in range(RELAYS)]
        for relay, mine in zip(relays, boxes, strict=True):
            assert relay.set_mailboxes(mine) == []
        yield Trio(pauses, meshes, relays, boxes, bridge_ip)


def test_a_cut_path_is_left_for_the_relay_and_taken_again(trio: Trio) -> None:
    """Nobody outside decides it; the leaf, which is never asked, is reached over the relay too."""
    trio.tell(1)
    for n, address in enumerate(MEMBERS):
        trio.meshes[n].wait_type("peers", handshaken=[one for one in MEMBERS if one != address], relayed=[])
    trio.meshes[1].spawn("python3", "-c", SERVE, THERE)
    assert trio.reaches(0, THERE)
    since = [mesh.mark() for mesh in trio.meshes]
    trio.cut()
    for n, others in ((0, [THERE, LEAF]), (1, [HERE]), (2, [HERE])):
        trio.meshes[n].wait_type("peers", relayed=others, since=since[n])
    assert trio.reaches(0, THERE)
    assert "wgr" in trio.meshes[0].run("ip", "route", "get", THERE)[1]
    since = [mesh.mark() for mesh in trio.meshes]
    trio.mend()
    for n in range(3):
        trio.meshes[n].wait_type("peers", relayed=[], since=since[n])
    assert "wgd" in trio.meshes[0].run("ip", "route", "get", THERE)[1]
    assert trio.reaches(0, THERE)


def test_members_without_a_direct_path_meet_at_a_relay_and_outlive_it(trio: Trio) -> None:
    """As behind symmetric NATs. When the relay of a pair dies, both ends go to the other one by themselves."""
    trio.tell(1, has_direct=False)
    for n, address in enumerate(MEMBERS):
        others = [one for one in MEMBERS if one != address]
        trio.meshes[n].wait_type("peers", handshaken=others, relayed=others)
    trio.meshes[1].spawn("python3", "-c", SERVE, THERE)
    assert trio.reaches(0, THERE)
    assert trio.endpoint(0, 0) in trio.meshes[0].run("wg", "show", "wgr", "endpoints")[1]
    trio.relays[0].close()
    assert trio.reaches(0, THERE)
    assert trio.endpoint(1, 0) in trio.meshes[0].run("wg", "show", "wgr", "endpoints")[1]


def mtu(trio: Trio, n: int, address: str) -> str:
    """How large packets of one member to another may be."""
    return trio.meshes[n].run("ip", "route", "get", address)[1].partition(" mtu ")[2].split()[0]


def until_mtu(trio: Trio, wanted: str) -> None:
    """Returns once both nodes send packets of this size to each other."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := [mtu(trio, 0, THERE), mtu(trio, 1, HERE)]) != [wanted] * 2:
        assert time.monotonic() < deadline, found


def test_packets_are_as_large_as_both_planes_carry_and_small_again_when_one_does_not(trio: Trio) -> None:
    """Small probes go on as before, so that only padded ones show it. A transfer that has begun then goes on."""
    trio.tell(1)
    for n, address in enumerate(MEMBERS):
        trio.meshes[n].wait_type("peers", handshaken=[one for one in MEMBERS if one != address], relayed=[])
    until_mtu(trio, "1420")
    assert mtu(trio, 0, LEAF) == "1280"  # it accepts no probe, so that nothing is known of the way there
    # As of a tunnel or a line on the way that drops what is too large and says nothing. Between containers many packets
    # travel as a single one, which the rule would take for one that is too large.
    for mesh in trio.meshes[:2]:
        assert mesh.run("ip", "link", "set", "eth0", "gso_max_segs", "1")[0] == 0
        assert mesh.run("nft", "insert rule inet corral input udp length > 1420 drop")[0] == 0
    trio.meshes[1].spawn("python3", "-c", TAKE, THERE)
    assert trio.meshes[0].run("python3", "-c", GIVE, HERE, THERE)[1] == "4000000"
    until_mtu(trio, "1280")
    assert "wgd" in trio.meshes[0].run("ip", "route", "get", THERE)[1]


def test_packets_stay_small_in_a_narrow_network(lab: Lab) -> None:
    """The interface of the container says so already; bulk data passes."""
    network = lab.network("narrow", "198.18.7.0/24", mtu=1400)
    pauses = [lab.pause(f"narrow-{n}-pause", network=network) for n in range(2)]
    meshes = [lab.mesh(f"narrow-{n}-mesh", pauses[n], MEMBERS[n]) for n in range(2)]
    keys = {address: mesh.keys() for address, mesh in zip(MEMBERS, meshes, strict=False)}
    endpoints: dict[str, str | None] = {
        address: f"{bridge_address(pause)}:51820" for address, pause in zip(MEMBERS, pauses, strict=False)
    }
    for n in range(2):
        meshes[n].send(roster(1, keys, endpoints, own=MEMBERS[n]))
    for n in range(2):
        meshes[n].wait_type("peers", handshaken=[MEMBERS[1 - n]])
    assert "mtu 1280" in meshes[0].run("ip", "link", "show", "wgd")[1]
    assert " mtu 1280" in meshes[0].run("ip", "route", "get", THERE)[1]
    meshes[1].spawn("python3", "-c", TAKE, THERE)
    assert meshes[0].run("python3", "-c", GIVE, HERE, THERE)[1] == "4000000"


def test_a_roster_without_relays_takes_the_relayed_plane_away(trio: Trio) -> None:
    """Peers, routes and mailboxes of before leave nothing; twice the same roster is no error."""
    trio.tell(1)
    trio.meshes[0].wait_type("peers", handshaken=[THERE, LEAF])
    keys = {address: mesh.keys() for address, mesh in zip(MEMBERS, trio.meshes, strict=True)}
    endpoints: dict[str, str | None] = {
        address: f"{bridge_address(pause)}:51820" for address, pause in zip(MEMBERS, trio.pauses, strict=True)
    }
    for serial in (2, 2, 3):
        since = trio.meshes[0].mark()
        trio.meshes[0].send(roster(serial, keys, endpoints, own=HERE, passive=[LEAF]))
        trio.meshes[0].wait_type("configured", serial=serial, since=since)
    assert trio.meshes[0].run("wg", "show", "wgr", "peers")[1] == ""
    assert len(trio.meshes[0].run("wg", "show", "wgd", "peers")[1].splitlines()) == 2
    assert trio.meshes[0].run("ip", "route", "show", "dev", "wgr")[1].count("\n") == 0


def test_removed_member_is_cut_off_on_both_planes(trio: Trio) -> None:
    """It was not asked and keeps its keys, its peers and its mailbox; those who applied the roster hear it no more."""
    trio.tell(1)
    for n, address in enumerate(MEMBERS):
        trio.meshes[n].wait_type("peers", handshaken=[one for one in MEMBERS if one != address])
    for plane in PINS.values():
        trio.meshes[0].spawn("python3", "-c", SERVE, plane[0])
        assert echoes(trio.meshes[1], plane[1], plane[0])
    left = {address: mesh.keys() for address, mesh in zip(MEMBERS, trio.meshes, strict=True) if address != THERE}
    endpoints: dict[str, str | None] = {
        HERE: f"{bridge_address(trio.pauses[0])}:51820",
        LEAF: f"{bridge_address(trio.pauses[2])}:51820",
    }
    for n in (0, 2):
        relays = [trio.endpoint(relay, n) for relay in range(RELAYS)]
        trio.meshes[n].send(roster(2, left, endpoints, own=MEMBERS[n], relays=relays, passive=[LEAF]))
        trio.meshes[n].wait_type("configured", serial=2)
    for plane in PINS.values():
        assert not echoes(trio.meshes[1], plane[1], plane[0], tries=4)
        assert echoes(trio.meshes[0], plane[0], plane[0], tries=4), "it still serves"
    assert not echoes(trio.meshes[1], THERE, HERE, tries=4)


def test_stranger_at_the_same_relay_reaches_nobody(lab: Lab, trio: Trio) -> None:
    """Who knows a member's key and the relay's ports, but is of another cluster, is heard by neither end."""
    trio.tell(1)
    for n, address in enumerate(MEMBERS):
        trio.meshes[n].wait_type("peers", handshaken=[one for one in MEMBERS if one != address])
    trio.meshes[0].spawn("python3", "-c", SERVE, PINS["relayed"][0])
    assert echoes(trio.meshes[1], PINS["relayed"][1], PINS["relayed"][0])
    stranger, own = lab.mesh("foreign-mesh", lab.pause("foreign-pause"), "10.128.0.9"), "10.128.0.9"
    keys = {HERE: trio.meshes[0].keys(), own: stranger.keys()}
    box = Mailbox.from_base64(node_id="no_9", cluster_id="two", port=41040, public_key=keys[own].relayed)
    assert trio.relays[0].set_mailboxes([*trio.boxes[0], box]) == []
    mine = f"{trio.bridge_ip}:41040"
    nowhere: dict[str, str | None] = {HERE: None, own: None}
    for serial, mailbox in enumerate((mine, trio.endpoint(0, 0)), start=1):
        stranger.send(roster(serial, keys, nowhere, own=own, relays=[mailbox]))
        stranger.wait_type("configured", serial=serial)
        assert not echoes(stranger, "10.128.32.9", PINS["relayed"][0], tries=6)
    # Only that the relay and the member do not take it for one of theirs stood in the way.
    box = Mailbox.from_base64(node_id="no_9", cluster_id="one", port=41040, public_key=keys[own].relayed)
    assert trio.relays[0].set_mailboxes([*trio.boxes[0], box]) == []
    trio.meshes[0].send(roster(2, keys, nowhere, own=HERE, relays=[trio.endpoint(0, 0)]))
    stranger.send(roster(3, keys, nowhere, own=own, relays=[mine]))
    assert echoes(stranger, "10.128.32.9", PINS["relayed"][0])
