"""Real WireGuard in containers, and peers that frame packets as WireGuard does."""

import base64
import hashlib
import json
import secrets
import socket
import struct

from tests.images.parts import Lab, Part, bridge_address


def mac1_by_definition(public_key: bytes, covered: bytes) -> bytes:
    """White paper, section 5.4.4: Mac(Hash("mac1----" || receiver's key), message up to mac1)."""
    key = hashlib.blake2s(b"mac1----" + public_key, digest_size=32).digest()
    return hashlib.blake2s(covered, digest_size=16, key=key).digest()


def initiation(receiver_key: bytes, sender_index: int) -> bytes:
    """A call that only its framing makes one."""
    covered = struct.pack("<II", 1, sender_index) + secrets.token_bytes(108)
    return covered + mac1_by_definition(receiver_key, covered) + bytes(16)


def response(receiver_key: bytes, sender_index: int, receiver_index: int) -> bytes:
    """An answer to a call whose sender index was `receiver_index`."""
    covered = struct.pack("<III", 2, sender_index, receiver_index) + secrets.token_bytes(48)
    return covered + mac1_by_definition(receiver_key, covered) + bytes(16)


def cookie(receiver_index: int) -> bytes:
    """A cookie reply."""
    return struct.pack("<II", 3, receiver_index) + secrets.token_bytes(56)


def data(receiver_index: int, counter: int = 0, size_bytes: int = 32) -> bytes:
    """A data packet."""
    return struct.pack("<IIQ", 4, receiver_index, counter).ljust(size_bytes, b"\xa5")


def free_ports(count: int, ip: str = "127.0.0.1") -> list[int]:
    """UDP ports that nobody has at the moment."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    try:
        for each in sockets:
            each.bind((ip, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class WireGuardNode:
    """A container with wireguard-go, or the kernel's WireGuard where that exists."""

    def __init__(self, lab: Lab, name: str, address: str) -> None:
        host = {
            "CapDrop": ["ALL"],
            "CapAdd": ["NET_ADMIN"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/run": "size=16m,mode=0755"},
            "Devices": [{"PathOnHost": "/dev/net/tun", "PathInContainer": "/dev/net/tun", "CgroupPermissions": "rwm"}],
            "Memory": 512 * 2**20,
            "PidsLimit": 256,
            "NetworkMode": "bridge",
        }
        body = {"Image": lab.images["corral-net"], "Cmd": ["sleep", "3600"], "StopSignal": "SIGKILL"}
        self.part: Part = lab.start(name, body, host, is_attached=False)
        self.address = address
        self.shell("umask 077; wg genkey > /run/key")
        self.shell("ip link add wgr type wireguard 2>/dev/null || wireguard-go wgr >/run/log 2>&1")
        self.shell(
            "wg set wgr private-key /run/key listen-port 51821; "
            f"ip address add {address}/24 dev wgr; ip link set wgr mtu 1280 up"
        )
        self.public_key = base64.b64decode(self.shell("wg pubkey < /run/key"))

    @property
    def ip(self) -> str:
        """Its address on the bridge."""
        return bridge_address(self.part)

    def shell(self, command: str) -> str:
        """Runs a command in it, which must succeed. Returns its output."""
        status, output = self.part.run("sh", "-c", command)
        assert status == 0, f"{self.part.name}: {command}: {output}"
        return output

    def meet(self, peer: "WireGuardNode", endpoint: str) -> None:
        """Makes `peer` a peer that is reached at `endpoint`."""
        key = base64.b64encode(peer.public_key).decode()
        self.shell(f"wg set wgr peer {key} endpoint {endpoint} allowed-ips {peer.address}/32 persistent-keepalive 25")

    def add_silent_peer(self, public_key: bytes, endpoint: str) -> None:
        """Makes somebody who never answers a peer, and calls him from now on."""
        key = base64.b64encode(public_key).decode()
        self.shell(f"wg set wgr peer {key} endpoint {endpoint} persistent-keepalive 1")

    def pings(self, peer: "WireGuardNode", count: int = 5, *, deadline_s: int = 20) -> bool:
        """Whether `count` echoes over the mesh come back within the deadline."""
        status, output = self.part.run("python3", "-c", _ECHO, peer.address, str(count), str(deadline_s))
        return status == 0 and json.loads(output)["answered"] == count

    def serve_echo(self) -> None:
        """Answers the echoes of `pings` from now on."""
        self.part.spawn("python3", "-c", _ANSWER)


# The image has no ping; the program repeats a packet until it is answered, as a lost one says nothing about the path.
_ECHO = """
import json, socket, sys, time
peer, count, deadline = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.2)
answered = 0
while answered < count and time.monotonic() < deadline:
    s.sendto(b"%d" % answered, (peer, 7000))
    try:
        if s.recv(100) == b"%d" % answered:
            answered += 1
    except OSError:
        pass
print(json.dumps({"answered": answered}))
"""
_ANSWER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 7000))
while True:
    packet, source = s.recvfrom(100)
    s.sendto(packet, source)
"""
