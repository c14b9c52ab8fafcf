"""Members of a mesh for measurements: the containers of nodes, traffic between them, and what both cost."""

import contextlib
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from bench import bare_cluster

ROOT = Path(__file__).parents[1]
# The containers of the images' tests serve here too; they know this folder's modules by their short names.
sys.path.insert(0, str(ROOT / "bench"))

from tests.images.parts import Keys, Lab, Part, bridge_address, roster  # noqa: E402

TCP_PORT, UDP_PORT = 7000, 7001

# Takes whatever is sent over TCP, and then says how many bytes came within how many seconds.
SINK = """
import socket, sys, threading, time
def take(taken):
    room, total, first = memoryview(bytearray(1 << 18)), 0, None
    while count := taken.recv_into(room):
        first = first or time.monotonic()
        total += count
    taken.sendall(b"%d %.6f" % (total, time.monotonic() - (first or 0)))
    taken.close()
listening = socket.create_server(("", int(sys.argv[1])))
while True:
    threading.Thread(target=take, args=(listening.accept()[0],), daemon=True).start()
"""
# Sends over one TCP connection for some seconds, and prints what the sink says.
SOURCE = """
import socket, sys, time
own, peer, port, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
block = bytes(1 << 18)
with socket.create_connection((peer, port), source_address=(own, 0)) as sending:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sending.sendall(block)
    sending.shutdown(socket.SHUT_WR)
    print(sending.recv(100).decode())
"""
# Sends a packet each 10 ms and takes what the other end sends; prints each gap in that, and when it began.
STREAM = """
import json, socket, sys, time
own, peer, port, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.bind((own, port))
now = began = time.monotonic()
heard, sent, gaps = None, 0, []
while now < began + seconds:
    if now >= began + sent * 0.01:
        sent += 1
        try:
            end.sendto(bytes(200), (peer, port))
        except OSError:
            pass
        continue
    end.settimeout(max(began + sent * 0.01 - now, 0.0005))
    try:
        end.recv(500)
    except OSError:
        now = time.monotonic()
        continue
    now = time.monotonic()
    if heard is not None and now - heard > 0.03:
        gaps.append((heard, now - heard))
    heard = now
gaps.append((heard or began, now - (heard or began)))
print(json.dumps(gaps))
"""
CUT = """
table inet cut {
  chain input { type filter hook input priority -10; udp dport 51820 drop; }
  chain output { type filter hook output priority -10; udp sport 51820 drop; }
}
"""


@dataclass(frozen=True)
class Flow:
    """One transfer, and the CPU seconds of each who had a part in it."""

    gbit_s: float
    cpu_s: dict[str, float]
    gb: float
    """10^9 bytes."""


@dataclass
class Node:
    """One member: the container that makes its tunnels, and one for what uses them."""

    address: str
    mesh_name: str
    work: Part


@dataclass
class Mesh:
    """Members with our own mesh program, told their rosters here as their agents would."""

    addresses: list[str]
    pauses: list[Part]
    meshes: list[Part]
    endpoints: dict[str, str | None]
    bridge_ip: str
    ports: list[int] = field(default_factory=list)
    """Each member's mailbox; empty where there is no relay."""
    serial: int = 0

    def keys(self) -> dict[str, Keys]:
        """What all members say of their keys."""
        return {address: mesh.keys() for address, mesh in zip(self.addresses, self.meshes, strict=True)}

    def tell(self, *, alone: bool = False) -> None:
        """Hands every member the next roster: with everybody, or with nobody but itself."""
        self.serial += 1
        keys = self.keys()
        for n, own in enumerate(self.addresses):
            relays = [f"{self.bridge_ip}:{self.ports[n]}"] if self.ports else []
            known = {own: keys[own]} if alone else keys
            self.meshes[n].send(roster(self.serial, known, self.endpoints, own=own, relays=relays))

    def started_at(self) -> float:
        """When the last mesh container was started: wall clock, seconds."""
        instants = [str(part.inspect()["State"]["StartedAt"]) for part in self.meshes]
        return max(datetime.fromisoformat(instant[:26] + "+00:00").timestamp() for instant in instants)

    def cut(self, n: int) -> None:
        """From now on nothing of the direct plane passes into or out of member `n`."""
        self._nft(n, CUT)

    def mend(self, n: int) -> None:
        """The direct plane's packets pass again."""
        self._nft(n, "delete table inet cut")

    def _nft(self, n: int, rules: str) -> None:
        status, said = self.meshes[n].run("nft", rules)
        if status != 0:
            raise bare_cluster.BareClusterFailed(f"the path was neither cut nor mended: {said}")

    def marks(self) -> list[int]:
        """Positions to wait from."""
        return [mesh.mark() for mesh in self.meshes]

    def wait_met(self, since: Sequence[int] | None = None, **fields: Any) -> None:
        """Returns as soon as every member says that it has shaken hands with every other one, and these fields."""
        for n, mesh in enumerate(self.meshes):
            others = sorted(address for m, address in enumerate(self.addresses) if m != n)

            def is_met(message: dict[str, Any], others: list[str] = others) -> bool:
                is_complete = message.get("type") == "peers" and sorted(message["handshaken"]) == others
                return is_complete and all(message.get(key) == value for key, value in fields.items())

            mesh.wait(is_met, since=since[n] if since else 0)


class Stream:
    """One end of a steady stream in both directions, for `seconds` from now on."""

    def __init__(self, node: Node, peer: str, seconds: float) -> None:
        command = ("python3", "-c", STREAM, node.address, peer, str(UDP_PORT), str(seconds))
        pool = ThreadPoolExecutor(1)
        self._said: Future[tuple[int, str]] = pool.submit(node.work.run, *command)
        pool.shutdown(wait=False)

    def gap_s(self, *, since: float) -> float:
        """The longest silence that ended after `since`, on the monotonic clock; waits for the end of the stream."""
        status, said = self._said.result()
        if status != 0:
            raise bare_cluster.BareClusterFailed(f"the stream broke off: {said}")
        return max(length for began, length in json.loads(said) if began + length > since)


class Bench:
    """Makes what is measured, and takes all of it away at the end."""

    def __init__(self, images: dict[str, str]) -> None:
        self.run = secrets.token_hex(4)
        self.lab = Lab(images, self.run)
        self.engine = self.lab.engine
        self._bare_name = f"corral-bench-{self.run}"
        self._streams: list[bare_cluster.Stream] = []
        self._relay: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
        for stream in self._streams:
            stream.close()
        self.lab.remove()
        bare_cluster.remove_all(self.engine, self._bare_name)

    @property
    def relay(self) -> psutil.Process:
        """The relay's process."""
        assert self._relay is not None
        return psutil.Process(self._relay.pid)

    def mesh(self, name: str, addresses: list[str]) -> Mesh:
        """Members that have not heard of each other yet, created all at once."""
        [network] = self.engine.call("GET", "/networks", filters=json.dumps({"name": ["^bridge$"]}))
        bridge_ip = network["IPAM"]["Config"][0]["Gateway"]
        numbers = range(len(addresses))
        with ThreadPoolExecutor(8) as pool:
            pauses = list(pool.map(lambda n: self.lab.pause(f"{name}-{n}-pause"), numbers))
            ips = list(pool.map(bridge_address, pauses))
            meshes = list(pool.map(lambda n: self.lab.mesh(f"{name}-{n}-mesh", pauses[n], addresses[n]), numbers))
        endpoints: dict[str, str | None] = {address: f"{ip}:51820" for address, ip in zip(addresses, ips, strict=True)}
        return Mesh(addresses, pauses, meshes, endpoints, bridge_ip)

    def remove(self, mesh: Mesh) -> None:
        """Takes the members of a mesh away."""
        for parts in (mesh.meshes, mesh.pauses):
            for part in parts:
                self.engine.call("DELETE", f"/containers/{part.name}", force="true", v="true")

    def start_relay(self, mesh: Mesh) -> None:
        """A relay on this machine with a mailbox for each member; the next roster names it."""
        mesh.ports = _free_ports(len(mesh.addresses), mesh.bridge_ip)
        boxes = [
            {"node_id": f"no_{n}", "cluster_id": "one", "port": port, "public_key": mesh.meshes[n].keys().relayed}
            for n, port in enumerate(mesh.ports)
        ]
        command = (sys.executable, "-m", "bench._mesh_relay", mesh.bridge_ip)
        self._relay = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.write(json.dumps(boxes) + "\n")
        self._relay.stdin.flush()
        if self._relay.stdout.readline() != "ready\n":
            raise bare_cluster.BareClusterFailed("the relay did not start; its message is above")

    def bare_pair(self) -> list[Node]:
        """Two nodes with one bare WireGuard tunnel of the same image between them, and no program of ours."""
        images, names = self.lab.images, [f"{self._bare_name}-{n}" for n in range(2)]
        ips = [bare_cluster.start_pause(self.engine, images, name) for name in names]
        self._streams = [bare_cluster.start_mesh(self.engine, images, name, n) for n, name in enumerate(names)]
        keys = [stream.line() for stream in self._streams]
        for n, stream in enumerate(self._streams):
            stream.send(bare_cluster.peers(n, keys, ips) + "end\n")
        for stream in self._streams:
            stream.line()
        return [
            Node(bare_cluster.address(n), f"{name}-mesh", self._work(f"bare-{n}-work", f"{name}-pause"))
            for n, name in enumerate(names)
        ]

    def nodes(self, mesh: Mesh) -> list[Node]:
        """The members of a mesh with a container each for traffic."""
        return [
            Node(address, part.name, self._work(f"{part.name.rpartition(self.run + '-')[2]}-work", pause.name))
            for address, pause, part in zip(mesh.addresses, mesh.pauses, mesh.meshes, strict=True)
        ]

    def flow(self, ends: Sequence[Node], *, own: str, peer: str, seconds: float) -> Flow:
        """Sends over TCP from the first node to the second, between two of their addresses."""
        before = self._cpu_s(ends)
        status, said = ends[0].work.run("python3", "-c", SOURCE, own, peer, str(TCP_PORT), str(seconds))
        after = self._cpu_s(ends)
        if status != 0:
            raise bare_cluster.BareClusterFailed(f"nothing came from {own} to {peer}: {said}")
        count, took_s = said.split()
        cpu_s = {who: after[who] - before[who] for who in after}
        return Flow(int(count) * 8e-9 / float(took_s), cpu_s, int(count) / 1e9)

    def container_cpu_s(self, name: str) -> float:
        """CPU seconds that a container's processes have used so far."""
        answer = self.engine.call("GET", f"/containers/{name}/stats", stream="false", **{"one-shot": "true"})
        return answer["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9

    def container_rss_bytes(self, name: str) -> int:
        """Memory of a container's processes, without what the kernel merely caches."""
        top = self.engine.call("GET", f"/containers/{name}/top", ps_args="-eo pid,rss")
        return sum(int(rss) * 1024 for _, rss in top["Processes"])

    def _cpu_s(self, ends: Sequence[Node]) -> dict[str, float]:
        times = {
            "sending tunnel": self.container_cpu_s(ends[0].mesh_name),
            "receiving tunnel": self.container_cpu_s(ends[1].mesh_name),
            "sender": self.container_cpu_s(ends[0].work.name),
            "receiver": self.container_cpu_s(ends[1].work.name),
        }
        if self._relay is not None:
            spent = self.relay.cpu_times()
            times["relay"] = spent.user + spent.system
        return times

    def _work(self, name: str, pause_name: str) -> Part:
        """A container without powers in the namespace of another one; it takes what TCP brings."""
        host = {"NetworkMode": f"container:{pause_name}", "CapDrop": ["ALL"], "ReadonlyRootfs": True}
        body = {"Image": self.lab.images["corral-net"], "Cmd": ["python3", "-c", SINK, str(TCP_PORT)]}
        return self.lab.start(name, body, host, is_attached=False)


def _free_ports(count: int, ip: str) -> list[int]:
    """UDP ports that nobody has at the moment."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for each in held:
            each.bind((ip, 0))
        return [each.getsockname()[1] for each in held]
