"""The member's program on a machine of the renter's: beside all else that it has, and gone without a trace."""

import json

import pytest
from parts import NETWORK, Keys, Lab, Part, bridge_address, roster

pytestmark = pytest.mark.docker

NODE, GUEST = "10.128.0.1", "10.128.48.9"
INTERFACES = ("corral0d", "corral0r")
MACHINE = f"""
import sys
sys.path.insert(0, "/corral")
from corral_program import ControlInput, emit
from corral.member import firewall
from corral.member.commands import must
from corral.member.mesh import Mesh, Settings
must("nft", "-f", "-", given=firewall.guest_rules({INTERFACES}, table="corral_guest_0"))
settings = Settings("{GUEST}", "{NETWORK}", "leaf", 1280, 41000, (), interfaces={INTERFACES}, outside="")
mesh = Mesh(settings, ControlInput(), emit)
try:
    mesh.run()
except KeyboardInterrupt:
    mesh.close()
    must("nft", "-f", "-", given=firewall.no_rules("corral_guest_0"))
    left = dict(interfaces=must("ip", "-brief", "link"), routes=must("ip", "route"))
    emit("left", tables=must("nft", "list", "tables"), **left)
    sys.stdin.close()
"""
SERVE = (
    "import socket; s = socket.create_server(('0.0.0.0', 9000)); [s.accept()[0].sendall(b'hi') for _ in iter(int, 1)]"
)

WAIT = """
import socket, time
while socket.socket().connect_ex(("127.0.0.1", 9000)):
    time.sleep(0.05)
"""


def reach(part: Part, address: str) -> bool:
    """Whether a connection to port 9000 of an address opens and is answered."""
    code = f"import socket; print(socket.create_connection(('{address}', 9000), 3).recv(2))"
    return part.run("python3", "-c", code, user="0")[0] == 0


def test_renters_machine_reaches_nodes_and_is_reached_by_nobody(lab: Lab) -> None:
    """Only its own interfaces are filtered; what it listens at stays as it was for everybody else."""
    pause = lab.pause("guest-node-pause")
    node = lab.mesh("guest-node", pause, NODE)
    host = {
        "CapAdd": ["NET_ADMIN"],
        "Devices": [{"PathOnHost": "/dev/net/tun", "PathInContainer": "/dev/net/tun", "CgroupPermissions": "rwm"}],
    }
    body = {"Image": lab.images["corral-net"], "Cmd": ["python3", "-u", "-c", MACHINE], "StopSignal": "SIGINT"}
    machine = lab.start("guest-machine", body, host)
    keys: dict[str, Keys] = {NODE: node.keys(), GUEST: machine.keys()}
    endpoints = {NODE: f"{bridge_address(pause)}:51820", GUEST: None}
    node.send(roster(1, keys, endpoints, own=NODE, passive=[GUEST]))
    machine.send(roster(1, keys, endpoints, own=GUEST))
    machine.wait_type("peers", handshaken=[NODE])
    for part in (node, machine):
        part.spawn("python3", "-c", SERVE)
    for part in (node, machine):
        assert part.run("python3", "-c", WAIT)[0] == 0
    assert reach(machine, NODE)
    assert not reach(node, GUEST)
    neighbour = lab.neighbour("guest-neighbour", "sleep", "600")
    assert reach(neighbour, bridge_address(machine))
    # The control: without its rules the machine would be open to every node.
    assert machine.run("nft", "flush", "ruleset")[0] == 0
    assert reach(node, GUEST)
    machine.engine.call("POST", f"/containers/{machine.name}/kill", signal="SIGINT")
    left = machine.wait_type("left")
    assert not [name for name in INTERFACES if name in json.dumps(left)]
    assert "corral" not in left["tables"]
    assert "10.128" not in left["routes"]
