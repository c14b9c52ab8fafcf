"""The yardstick of `bench cluster_start`: a three-node Ray cluster without any Corral process.

One script asks the Docker Engine for the same nine containers that a booking gets, all at once, and hands the peers
their configuration directly; Ray is started by its stock `ray start`. Nothing waits for anything that it does not
need. `run_once` returns the seconds per phase and the CPU seconds that the containers used.

    python bench/bare_cluster.py [--times N]
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import secrets
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

ENGINE_SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
LABEL = "corral.bench"
NETWORK = "10.128.0.0/18"
NODE_COUNT = 3
DEADLINE_S = 180.0
MEMORY_BYTES = 4 * 2**30
OBJECT_STORE_BYTES = 256 * 2**20

# What a mesh container does when nobody stands between it and its peers. `syncconf` reads the peers from stdin.
MESH_SCRIPT = r"""
set -eu
nft -f /dev/stdin <<RULES
table inet corral {
  chain input {
    type filter hook input priority 0; policy drop
    iif lo accept
    iifname "wgd" accept
    iifname "eth0" udp dport 51820 accept
    ct state established,related accept
  }
  chain forward {
    type filter hook forward priority 0; policy drop
  }
}
RULES
private=$(wg genkey)
if ! ip link add wgd type wireguard 2>/dev/null; then
  wireguard-go -f wgd >&2 &
  while [ ! -S /run/wireguard/wgd.sock ]; do sleep 0.005; done
fi
printf '%s' "$private" | wg pubkey
peers=''
while read -r line && [ "$line" != end ]; do peers="$peers
$line"; done
printf '[Interface]\nPrivateKey = %s\nListenPort = 51820\n%s\n' "$private" "$peers" | wg syncconf wgd /dev/stdin
ip address add "$ADDRESS/32" dev wgd
ip link set wgd mtu 1280 up
ip route add "$NETWORK" dev wgd src "$ADDRESS"
echo up
while :; do sleep 3600 & wait; done
"""

# Stock Ray: the token, the mesh address, `ray start`.
RAY_SCRIPT = r"""
umask 077
read -r token; printf '%s' "$token" > /run/corral/token
while ! grep -qF -- "-- $ADDRESS" /proc/net/fib_trie; do sleep 0.02; done
exec ray start "$@"
"""

COMMON_ARGUMENTS = (
    *("--block", "--disable-usage-stats", "--node-manager-port=6380", "--object-manager-port=6381"),
    *("--runtime-env-agent-port=6382", "--dashboard-agent-grpc-port=6383", "--dashboard-agent-listen-port=52365"),
    *("--metrics-export-port=6384", "--min-worker-port=11000", "--max-worker-port=11999", "--num-cpus=1"),
    *("--num-gpus=0", f"--memory={2 * 2**30}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
)
HEAD_ARGUMENTS = (
    "--head",
    "--port=6379",
    "--ray-client-server-port=10001",
    "--include-dashboard=true",
    "--dashboard-port=8265",
)
RAY_ENVIRONMENT = (
    *("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/run/corral/token", "RAY_USAGE_STATS_ENABLED=0"),
    *("RAY_health_check_initial_delay_ms=1000", "RAY_health_check_period_ms=1000", "RAY_health_check_timeout_ms=2000"),
    *("RAY_health_check_failure_threshold=5", "RAY_grpc_client_keepalive_time_ms=10000"),
    "RAY_grpc_client_keepalive_timeout_ms=5000",
)

# Runs inside the head's container: tries until a job is accepted and three nodes live, and prints each instant.
PROBE_SCRIPT = r"""
import json, os, sys, time, urllib.request
base, wanted = f"http://{sys.argv[1]}:8265", int(sys.argv[2])
headers = {"Content-Type": "application/json"}
def ask(path, body=None):
    headers["Authorization"] = "Bearer " + open("/run/corral/token").read()
    request = urllib.request.Request(base + path, None if body is None else json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request, timeout=5))
accepted = alive = False
while not (accepted and alive):
    try:
        if not accepted:
            ask("/api/jobs/", {"entrypoint": "true"})
            accepted = True
            print("job_accepted", time.time(), flush=True)
        if not alive:
            rows = ask("/api/v0/nodes?limit=100")["data"]["result"]["result"]
            alive = sum(row["state"] == "ALIVE" for row in rows) == wanted
            if alive:
                print("all_alive", time.time(), flush=True)
    except (OSError, KeyError, ValueError, TypeError):
        pass
    time.sleep(0.05)
"""


class BareClusterFailed(Exception):
    """The Engine refused something, or the cluster was not ready in time; what was created has been removed."""


class Engine:
    """The few calls of the Docker Engine API that are needed here, on its Unix socket."""

    def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """The decoded answer; raises BareClusterFailed on a status of 400 or more."""
        connection = _UnixConnection(DEADLINE_S)
        try:
            target = f"/v1.41{path}" + (f"?{urlencode(query)}" if query else "")
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise BareClusterFailed(f"{method} {path}: {answer.status} {content.decode(errors='replace').strip()}")
        return json.loads(content) if content.startswith((b"{", b"[")) else content

    def stream(self, path: str, body: Any = None, **query: str) -> "Stream":
        """A hijacked connection: raw bytes to stdin, frames of stdout back."""
        connection = _UnixConnection(DEADLINE_S)
        headers = {"Connection": "Upgrade", "Upgrade": "tcp", "Content-Type": "application/json"}
        # A request without a body must have none at all: the Engine would pass it on to stdin.
        connection.request("POST", f"/v1.41{path}?{urlencode(query)}", body and json.dumps(body), headers)
        answer = connection.response_class(connection.sock, method="POST")
        answer.begin()
        if answer.status not in (101, 200):
            raise BareClusterFailed(f"POST {path}: {answer.status} {answer.read().decode(errors='replace')}")
        return Stream(connection, answer)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(ENGINE_SOCKET)


class Stream:
    """Stdin and stdout of one container."""

    def __init__(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        self._connection, self._answer = connection, answer
        self._file = answer.fp
        self._partial = b""
        self.errors = b""

    def send(self, text: str) -> None:
        """Write to the container's stdin."""
        self._connection.sock.sendall(text.encode())

    def line(self) -> str:
        """The next line of its stdout; raises BareClusterFailed at its end."""
        while b"\n" not in self._partial:
            header = self._file.read(8)
            if len(header) < 8:
                raise BareClusterFailed(f"a container ended: {self.errors.decode(errors='replace')[-2000:]}")
            content = self._file.read(int.from_bytes(header[4:], "big"))
            if header[0] == 1:
                self._partial += content
            else:
                self.errors += content
        line, _, self._partial = self._partial.partition(b"\n")
        return line.decode()

    def rest(self) -> str:
        """What came after the last complete line."""
        return self._partial.decode(errors="replace")

    def close(self) -> None:
        """Detach."""
        self._answer.close()
        self._connection.close()


def run_once(images: dict[str, str], *, node_count: int = NODE_COUNT, cpus: float | None = None) -> dict[str, Any]:
    """Start one bare cluster, wait until it is ready, and remove it.

    Args:
        images: image id of `corral-net` and of `corral-ray`, as in `.cache/images.json`.
        node_count: nodes, the head included.
        cpus: limit of each workload container in cores, or None.

    Returns:
        `phases`: seconds since the first call of the Engine until `containers`, `mesh`, `job_accepted`, `all_alive`
        and `ready` (the later of the two); `busy_cpu_s`: CPU seconds that the whole machine worked meanwhile.

    Raises:
        BareClusterFailed: as its docstring says.
    """
    engine, name = Engine(), f"corral-bench-{secrets.token_hex(4)}"
    began_at, busy_s = time.time(), busy_cpu_s()
    phases: dict[str, float] = {}
    streams: list[Stream] = []
    try:
        with ThreadPoolExecutor(3 * node_count) as pool:
            pauses = list(pool.map(lambda n: start_pause(engine, images, f"{name}-{n}"), range(node_count)))
            nodes = range(node_count)
            works = [pool.submit(_start_work, engine, images, f"{name}-{n}", n, node_count, cpus) for n in nodes]
            meshes = [pool.submit(start_mesh, engine, images, f"{name}-{n}", n) for n in nodes]
            streams += [mesh.result() for mesh in meshes]
            keys = list(pool.map(Stream.line, streams[:node_count]))
            for n in nodes:
                streams[n].send(peers(n, keys, pauses) + "end\n")
            streams += [work.result() for work in works]
            phases["containers"] = time.time() - began_at
            token = secrets.token_hex(32)
            for work in streams[node_count:]:
                work.send(token + "\n")
            for mesh in streams[:node_count]:
                mesh.line()
            phases["mesh"] = time.time() - began_at
        probe = _probe(engine, name, node_count)
        streams.append(probe)
        for _ in range(2):
            event, at = probe.line().split()
            phases[event] = float(at) - began_at
        phases["ready"] = max(phases["job_accepted"], phases["all_alive"])
        rounded = {key: round(value, 3) for key, value in phases.items()}
        return {"phases": rounded, "busy_cpu_s": round(busy_cpu_s() - busy_s, 2)}
    finally:
        for stream in streams:
            stream.close()
        remove_all(engine, name)


def busy_cpu_s() -> float:
    """CPU seconds that this machine has worked since it booted, all cores together (user, nice, system, irqs)."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]]
    user, nice, system, _idle, _iowait, irq, softirq = ticks
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def address(n: int) -> str:
    return f"10.128.0.{n + 1}"


def start_pause(engine: Engine, images: dict[str, str], name: str) -> str:
    """Start the owner of the network namespace. Returns its address on the bridge."""
    host = {
        "CapDrop": ["ALL"],
        "ReadonlyRootfs": True,
        "Init": False,
        "Sysctls": {
            "net.ipv4.conf.all.rp_filter": "0",
            "net.ipv4.fib_multipath_hash_policy": "1",
            "net.ipv6.conf.all.disable_ipv6": "1",
        },
        "PortBindings": {"51820/udp": [{"HostIp": "", "HostPort": ""}]},
    }
    body = {
        "Image": images["corral-net"],
        "User": "65534:65534",
        "Cmd": ["/corral/pause"],
        "ExposedPorts": {"51820/udp": {}},
    }
    _create(engine, f"{name}-pause", body, host)
    engine.call("POST", f"/containers/{name}-pause/start")
    return engine.call("GET", f"/containers/{name}-pause/json")["NetworkSettings"]["IPAddress"]


def start_mesh(engine: Engine, images: dict[str, str], name: str, n: int) -> Stream:
    host = {
        "NetworkMode": f"container:{name}-pause",
        "CapDrop": ["ALL"],
        "CapAdd": ["NET_ADMIN"],
        "ReadonlyRootfs": True,
        "Tmpfs": {"/run": "size=16m"},
        "Devices": [{"PathOnHost": "/dev/net/tun", "PathInContainer": "/dev/net/tun", "CgroupPermissions": "rwm"}],
        "Memory": 256 * 2**20,
        "PidsLimit": 256,
    }
    environment = [f"ADDRESS={address(n)}", f"NETWORK={NETWORK}"]
    body = {"Image": images["corral-net"], "Cmd": ["/bin/sh", "-c", MESH_SCRIPT], "Env": environment, "OpenStdin": True}
    return _start_attached(engine, f"{name}-mesh", body, host)


def _start_work(
    engine: Engine, images: dict[str, str], name: str, n: int, node_count: int, cpus: float | None
) -> Stream:
    host = {
        "NetworkMode": f"container:{name}-pause",
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": "exec,size=2g,mode=1777", "/run/corral": "size=1m,mode=0700,uid=1000,gid=1000"},
        "ShmSize": 2 * OBJECT_STORE_BYTES,
        "Memory": MEMORY_BYTES,
        "PidsLimit": 4096,
    }
    if cpus is not None:
        host["NanoCpus"] = int(cpus * 1e9)
    arguments = (f"--node-ip-address={address(n)}", f"--node-name=bare-{n}", *COMMON_ARGUMENTS)
    arguments += (*HEAD_ARGUMENTS, f"--dashboard-host={address(0)}") if n == 0 else (f"--address={address(0)}:6379",)
    body = {
        "Image": images["corral-ray"],
        "User": "1000:1000",
        "Cmd": ["/bin/sh", "-c", RAY_SCRIPT, "sh", *arguments],
        "Env": [*RAY_ENVIRONMENT, f"ADDRESS={address(n)}"],
        "OpenStdin": True,
    }
    return _start_attached(engine, f"{name}-work", body, host)


def _start_attached(engine: Engine, name: str, body: dict[str, Any], host: dict[str, Any]) -> Stream:
    _create(engine, name, body, host)
    stream = engine.stream(f"/containers/{name}/attach", stream="1", stdin="1", stdout="1", stderr="1")
    engine.call("POST", f"/containers/{name}/start")
    return stream


def _create(engine: Engine, name: str, body: dict[str, Any], host: dict[str, Any]) -> None:
    run = "-".join(name.split("-")[:3])
    engine.call("POST", "/containers/create", {**body, "Labels": {LABEL: run}, "HostConfig": host}, name=name)


def peers(n: int, keys: list[str], addresses: list[str]) -> str:
    others = [m for m in range(len(keys)) if m != n]
    return "".join(
        f"[Peer]\nPublicKey = {keys[m]}\nAllowedIPs = {address(m)}/32\nEndpoint = {addresses[m]}:51820\n"
        "PersistentKeepalive = 25\n"
        for m in others
    )


def _probe(engine: Engine, name: str, node_count: int) -> Stream:
    code = base64.b64encode(PROBE_SCRIPT.encode()).decode()
    command = ["python3", "-c", f"import base64; exec(base64.b64decode('{code}'))", address(0), str(node_count)]
    body = {"AttachStdout": True, "AttachStderr": True, "Cmd": command, "User": "1000:1000"}
    identifier = engine.call("POST", f"/containers/{name}-0-work/exec", body)["Id"]
    return engine.stream(f"/exec/{identifier}/start", {"Detach": False, "Tty": False})


def _ours(engine: Engine, name: str) -> list[dict[str, Any]]:
    filters = json.dumps({"label": [f"{LABEL}={name}"]})
    return engine.call("GET", "/containers/json", all="1", filters=filters)


def remove_all(engine: Engine, name: str) -> None:
    def remove(identifier: str) -> None:
        with contextlib.suppress(BareClusterFailed):
            engine.call("DELETE", f"/containers/{quote(identifier)}", force="true", v="true")

    containers = _ours(engine, name)
    # The owner of a namespace goes last; the others go together.
    first = [c["Id"] for c in containers if not c["Names"][0].endswith("-pause")]
    last = [c["Id"] for c in containers if c["Names"][0].endswith("-pause")]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remove, first))
        list(pool.map(remove, last))


def main() -> None:
    """Run it some times and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=1, help="how often, one after the other")
    parser.add_argument("--images", type=Path, default=Path(__file__).resolve().parents[1] / ".cache" / "images.json")
    arguments = parser.parse_args()
    images = json.loads(arguments.images.read_text())
    for _ in range(arguments.times):
        json.dump(run_once(images), sys.stdout)
        print(flush=True)


if __name__ == "__main__":
    main()
