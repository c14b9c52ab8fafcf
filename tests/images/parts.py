"""Containers of a node, driven as the agent drives them: JSON lines on stdin, JSON lines from stdout."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bare_cluster import BareClusterFailed, Engine, Stream

LABEL = "corral.test"
NETWORK = "10.128.0.0/18"
TOKEN = "5c" * 32
DEADLINE_S = 60.0

Message = dict[str, Any]


class Keys(NamedTuple):
    """Public keys of a member, one for each plane."""

    direct: str
    relayed: str


class Part:
    """One running container with its messages so far."""

    def __init__(self, engine: Engine, name: str, stream: Stream | None) -> None:
        self.engine, self.name = engine, name
        self._stream = stream
        self._changed = threading.Condition()
        self._messages: list[Message] = []
        self._has_ended = False
        if stream is not None:
            threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def send(self, message: Message | str) -> None:
        """One object, or a raw line, to its stdin."""
        assert self._stream is not None
        self._stream.send((message if isinstance(message, str) else json.dumps(message)) + "\n")

    def keys(self) -> Keys:
        """What a mesh container says of its keys."""
        said = self.wait_type("keys")
        return Keys(said["direct"], said["relayed"])

    def mark(self) -> int:
        """A position to wait from, so that older messages do not count."""
        with self._changed:
            return len(self._messages)

    def messages(self) -> list[Message]:
        """All messages so far."""
        with self._changed:
            return list(self._messages)

    def wait(self, is_wanted: Callable[[Message], bool], *, since: int = 0) -> Message:
        """The first message after `since` that is wanted."""
        deadline = time.monotonic() + DEADLINE_S
        with self._changed:
            while True:
                for message in self._messages[since:]:
                    if is_wanted(message):
                        return message
                left_s = deadline - time.monotonic()
                if self._has_ended or left_s <= 0:
                    errors = self._stream.errors.decode(errors="replace")[-3000:] if self._stream else ""
                    raise AssertionError(f"{self.name}: not among {self._messages[since:]}; stderr: {errors}")
                self._changed.wait(left_s)

    def wait_type(self, kind: str, *, since: int = 0, **fields: Any) -> Message:
        """The first message of this type with these fields."""
        return self.wait(
            lambda message: message.get("type") == kind and all(message.get(k) == v for k, v in fields.items()),
            since=since,
        )

    def said(self) -> str:
        """All that the Engine has kept of its output."""
        answer = self.engine.call("GET", f"/containers/{self.name}/logs", stdout="1", stderr="1")
        return json.dumps(answer) if not isinstance(answer, bytes) else answer.decode(errors="replace")

    def inspect(self) -> dict[str, Any]:
        """What the Engine knows of it."""
        return self.engine.call("GET", f"/containers/{self.name}/json")

    def run(self, *command: str, user: str = "") -> tuple[int, str]:
        """Run a command in it. Returns its status and its output."""
        body = {"AttachStdout": True, "AttachStderr": True, "Cmd": list(command), "User": user}
        identifier = self.engine.call("POST", f"/containers/{self.name}/exec", body)["Id"]
        stream = self.engine.stream(f"/exec/{identifier}/start", {"Detach": False, "Tty": False})
        lines: list[str] = []
        with contextlib.suppress(BareClusterFailed):
            while True:
                lines.append(stream.line())
        lines.append(stream.rest())
        stream.close()
        return self.engine.call("GET", f"/exec/{identifier}/json")["ExitCode"], "\n".join(lines).strip()

    def spawn(self, *command: str) -> None:
        """Run a command in it and leave it running."""
        identifier = self.engine.call("POST", f"/containers/{self.name}/exec", {"Cmd": list(command)})["Id"]
        self.engine.call("POST", f"/exec/{identifier}/start", {"Detach": True})

    def wait_exit(self) -> int:
        """Its exit status, once it has ended."""
        return self.engine.call("POST", f"/containers/{self.name}/wait")["StatusCode"]

    def stop(self, *, within_s: int = 10) -> float:
        """Ask it to end. Returns the seconds that took."""
        began_at = time.monotonic()
        self.engine.call("POST", f"/containers/{self.name}/stop", t=str(within_s))
        return time.monotonic() - began_at

    def _read(self, stream: Stream) -> None:
        with contextlib.suppress(BareClusterFailed, OSError, ValueError):
            while True:
                line = stream.line()
                with self._changed:
                    self._messages.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


class Lab:
    """Makes containers with this run's label, and removes them all."""

    def __init__(self, images: dict[str, str], run: str) -> None:
        self.images, self.run = images, run
        self.engine = Engine()

    def start(self, name: str, body: dict[str, Any], host: dict[str, Any], *, is_attached: bool = True) -> Part:
        """Create, attach and start one container."""
        full = f"corral-test-{self.run}-{name}"
        body = {"Labels": {LABEL: self.run}, "OpenStdin": is_attached, **body, "HostConfig": host}
        self.engine.call("POST", "/containers/create", body, name=full)
        stream = self._attach(full) if is_attached else None
        self.engine.call("POST", f"/containers/{full}/start")
        return Part(self.engine, full, stream)

    def restart(self, part: Part) -> Part:
        """Kill a container and start it again, attached anew."""
        self.engine.call("POST", f"/containers/{part.name}/kill")
        self.engine.call("POST", f"/containers/{part.name}/wait")
        stream = self._attach(part.name)
        self.engine.call("POST", f"/containers/{part.name}/start")
        return Part(self.engine, part.name, stream)

    def reattach(self, part: Part) -> Part:
        """A second pair of ears and a mouth on a running container, as after a restart of the agent."""
        return Part(self.engine, part.name, self._attach(part.name))

    def _attach(self, full: str) -> Stream:
        return self.engine.stream(f"/containers/{full}/attach", stream="1", stdin="1", stdout="1", stderr="1")

    def pause(self, name: str, *, network: str = "bridge") -> Part:
        """The owner of a network namespace."""
        host = {
            "NetworkMode": network,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Sysctls": {
                "net.ipv4.conf.all.rp_filter": "0",
                "net.ipv4.fib_multipath_hash_policy": "1",
                "net.ipv6.conf.all.disable_ipv6": "1",
            },
            "PortBindings": {"51820/udp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
            "Memory": 16 * 2**20,
            "PidsLimit": 16,
        }
        body = {"ExposedPorts": {"51820/udp": {}}, "Cmd": ["/corral/pause"], "User": "65534:65534"}
        return self.start(name, {"Image": self.images["corral-net"], **body}, host, is_attached=False)

    def mesh(
        self,
        name: str,
        pause: Part,
        address: str,
        *,
        role: str = "node",
        closed: Sequence[str] = (),
        environment: Sequence[str] = (),
        **host: Any,
    ) -> Part:
        """The mesh container of a node."""
        host = {
            "NetworkMode": f"container:{pause.name}",
            "CapDrop": ["ALL"],
            "CapAdd": ["NET_ADMIN"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/run": "size=16m,mode=0755"},
            "Devices": [{"PathOnHost": "/dev/net/tun", "PathInContainer": "/dev/net/tun", "CgroupPermissions": "rwm"}],
            "Memory": 256 * 2**20,
            "PidsLimit": 256,
            **host,
        }
        environment = [
            *environment,
            *(f"CORRAL_MESH_ADDRESS={address}", f"CORRAL_MESH_NETWORK={NETWORK}", f"CORRAL_MESH_ROLE={role}"),
            *("CORRAL_MESH_MTU=1280", "CORRAL_MESH_PORT=51820", f"CORRAL_MESH_CLOSED={','.join(closed)}"),
        ]
        body = {"Image": self.images["corral-net"], "Cmd": ["/corral/mesh"], "Env": environment}
        return self.start(name, body, host)

    def work(self, name: str, pause: Part, address: str, head: str, **host: Any) -> Part:
        """The workload container of a node."""
        host = {
            "NetworkMode": f"container:{pause.name}",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": "exec,size=2g,mode=1777", "/run/corral": "size=1m,mode=0700,uid=1000,gid=1000"},
            "ShmSize": 512 * 2**20,
            "Memory": 4 * 2**30,
            "PidsLimit": 4096,
            **host,
        }
        environment = {
            "CORRAL_RAY_ROLE": "head" if address == head else "worker",
            "CORRAL_NODE_ADDRESS": address,
            "CORRAL_HEAD_ADDRESS": head,
            "CORRAL_NODE_NAME": f"host-{address.rpartition('.')[2]}",
            "CORRAL_NUM_CPUS": "1",
            "CORRAL_NUM_GPUS": "0",
            "CORRAL_MEMORY_BYTES": str(2 * 2**30),
            "CORRAL_OBJECT_STORE_BYTES": str(256 * 2**20),
            "CORRAL_CLOUD_INSTANCE_ID": name,
        }
        body = {"Cmd": ["/corral/ray"], "User": "1000:1000", "Env": [f"{k}={v}" for k, v in environment.items()]}
        return self.start(name, {"Image": self.images["corral-ray"], **body}, host)

    def web(self, name: str, network: str) -> Part:
        """The web server of a gateway, in the namespace `network`."""
        host = {
            "NetworkMode": network,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": "size=16m,mode=1777", "/run/corral": "size=1m,mode=0700,uid=65534,gid=65534"},
            "Memory": 128 * 2**20,
            "PidsLimit": 64,
        }
        body = {"Image": self.images["corral-net"], "Cmd": ["/corral/web"], "User": "65534:65534"}
        return self.start(name, body, host)

    def neighbour(self, name: str, *command: str, network: str = "bridge") -> Part:
        """An ordinary container on the same bridge, such as a provider may have."""
        body = {"Image": self.images["corral-net"], "Cmd": list(command), "User": "65534:65534"}
        host = {"ReadonlyRootfs": True, "PidsLimit": 512, "NetworkMode": network}
        return self.start(name, body, host, is_attached=False)

    def network(self, name: str, subnet: str, *, mtu: int = 1500) -> str:
        """A Docker network with the addresses of `subnet` and packets of at most `mtu` bytes. Returns its name."""
        full = f"corral-test-{self.run}-{name}"
        body = {"Name": full, "Labels": {LABEL: self.run}, "IPAM": {"Config": [{"Subnet": subnet}]}}
        body["Options"] = {"com.docker.network.driver.mtu": str(mtu)}
        self.engine.call("POST", "/networks/create", body)
        return full

    def remove(self) -> None:
        """Remove what this run made."""
        filters = json.dumps({"label": [f"{LABEL}={self.run}"]})
        containers = self.engine.call("GET", "/containers/json", all="1", filters=filters)
        containers.sort(key=lambda container: container["Names"][0].endswith("pause"))
        for container in containers:
            with contextlib.suppress(BareClusterFailed):
                self.engine.call("DELETE", f"/containers/{container['Id']}", force="true", v="true")
        for network in self.engine.call("GET", "/networks", filters=filters):
            with contextlib.suppress(BareClusterFailed):
                self.engine.call("DELETE", f"/networks/{network['Id']}")


@dataclass
class Member:
    """The containers of one member of the mesh."""

    address: str
    pause: Part
    mesh: Part
    work: Part | None
    keys: Keys


@dataclass
class Cluster:
    """Three nodes, the head first, and a leaf."""

    nodes: list[Member]
    leaf: Member

    @property
    def members(self) -> list[Member]:
        return [*self.nodes, self.leaf]

    @property
    def head(self) -> Part:
        assert self.nodes[0].work is not None
        return self.nodes[0].work


def bridge_address(part: Part) -> str:
    """Its address on the Docker network that it is on."""
    networks = part.inspect()["NetworkSettings"]["Networks"]
    return next(network["IPAddress"] for network in networks.values())


def roster(
    serial: int,
    keys: dict[str, Keys],
    endpoints: dict[str, str | None],
    *,
    own: str,
    relays: Sequence[str] = (),
    passive: Sequence[str] = (),
) -> Message:
    """The roster for the member `own`, whose mailboxes are `relays`."""
    peers = [
        {
            "address": address,
            "direct_key": key.direct,
            "relayed_key": key.relayed,
            "endpoints": [endpoint] if (endpoint := endpoints[address]) else [],
            "relays": list(relays),
            "passive": address in passive,
        }
        for address, key in keys.items()
        if address != own
    ]
    return {"type": "roster", "serial": serial, "peers": peers, "observers": []}
