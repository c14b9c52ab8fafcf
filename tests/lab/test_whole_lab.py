"""The whole on real hosts with engines, agents and relays of their own, behind every kind of NAT."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.testing.lab.errors import LabFailed
from corral.testing.lab.lab import Lab
from corral.testing.lab.nat import NatKind
from corral.testing.local_network import slice_size

from .conftest import why_no_namespaces

pytestmark = [pytest.mark.lab, pytest.mark.docker, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NATS = {"ada": NatKind.none, "ben": NatKind.cone, "cleo": NatKind.symmetric, "dora": NatKind.symmetric}
BEHIND = {"dora": "cleo"}
"""These two share a router and its LAN; no packet gets from one to the other through the router's outer side."""
WITHIN_S = 60
WORK = """
import json, socket, sys, time, ray
ray.init()

@ray.remote(num_cpus=1)
class Store:
    def __init__(self, name):
        self.name = name
    def make(self, n):
        return bytes([n % 256]) * 2_000_000
    def take(self, blob):
        return [self.name, len(blob), socket.gethostname()]

nodes = [node for node in ray.nodes() if node["Alive"]]
strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
stores = [
    Store.options(scheduling_strategy=strategy(node["NodeID"], soft=False), num_cpus=0.3).remote(n)
    for n, node in enumerate(nodes)
]
hosts, rounds, until = set(), 0, time.monotonic() + float(sys.argv[1])
print("begun", len(nodes), flush=True)
while time.monotonic() < until or rounds < 3:
    blobs = [store.make.remote(rounds) for store in stores]
    for _, size, host in ray.get([store.take.remote(blob) for store in stores for blob in blobs], timeout=60):
        assert size == 2_000_000
        hosts.add(host)
    rounds += 1
alive = sum(node["Alive"] for node in ray.nodes())
print("result", json.dumps({"hosts": sorted(hosts), "rounds": rounds, "alive": alive}), flush=True)
"""

HOSTS = """
import json, sys, ray
ray.init(sys.argv[1])

@ray.remote(num_cpus=1)
def host():
    import socket
    return socket.gethostname()

strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
places = [strategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
print(json.dumps(sorted(ray.get([host.options(scheduling_strategy=place).remote() for place in places], timeout=120))))
"""


@pytest.fixture(scope="module")
def whole() -> Iterator[Lab]:
    """A public host, one behind a cone and two behind a symmetric NAT, two relays; a cluster over all four."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    images = json.loads((ROOT / ".cache/images.json").read_text())
    with Lab(images=images, cache=ROOT / ".cache/lab") as made:
        made.furnish(hosts=len(NATS), nat=list(NATS.values()), relays=2, behind=BEHIND)
        made.corral("rae", "up", "--cpu", "1", "--nodes", str(len(NATS)), "--for", "2h", "--name", "whole", "-y")
        yield made
    assert made.left_behind() == []


def in_mesh(lab: Lab, host: str, *command: str) -> str:
    """What a command says in the mesh container of the node on a host."""
    engine = lab.engine(host)
    [name] = engine.containers("corral-nd_*-mesh")
    return engine.docker("exec", name, *command)


def endpoint(lab: Lab, host: str, other: str, plane: str) -> str:
    """Where a host's node sends to another's on one plane: `IP:port`; empty while it begins anew."""
    allowed = in_mesh(lab, host, "wg", "show", plane, "allowed-ips")
    found = [line.split()[0] for line in allowed.splitlines() if f"{address_of(lab, other)}/32" in line]
    endpoints = in_mesh(lab, host, "wg", "show", plane, "endpoints")
    return next((line.split()[1] for line in endpoints.splitlines() if line.split()[0] in found), "")


def address_of(lab: Lab, host: str) -> str:
    """The mesh address of the node on a host."""
    engine = lab.engine(host)
    [name] = engine.containers("corral-nd_*-mesh")
    environment = engine.docker("inspect", "--format", "{{json .Config.Env}}", name)
    return next(one.partition("=")[2] for one in json.loads(environment) if one.startswith("CORRAL_MESH_ADDRESS="))


def plane_of(lab: Lab, host: str, other: str) -> str:
    """Over which plane a host's node reaches another's."""
    route = in_mesh(lab, host, "ip", "route", "get", address_of(lab, other))
    return "relayed" if " wgr " in route else "direct"


def wait_for(what: Callable[[], bool], *, within_s: float = WITHIN_S) -> None:
    """Returns once it holds."""
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_hosts_behind_every_kind_of_nat_are_one_cluster(whole: Lab) -> None:
    """Nobody opened a port: whoever can meet directly does, on the LAN too; the others go through a relay."""
    cluster = whole.json("rae", "show", "whole")
    assert cluster["state"] == "ready"
    assert sorted(cluster["providers"]) == sorted(node["host"] for node in cluster["nodes"]) == sorted(NATS)
    assert len({whole.engine(host).docker("info", "--format", "{{.ID}}") for host in NATS}) == len(NATS)
    log = whole.corral("rae", "job", "submit", "whole", "--", "python", "-c", WORK, "0")
    result = json.loads(log.partition("result ")[2].splitlines()[0])
    assert (len(result["hosts"]), result["alive"]) == (len(NATS), len(NATS))
    for one, two in (("ada", "ben"), ("ada", "cleo"), ("cleo", "dora")):
        for host, other in ((one, two), (two, one)):
            wait_for(lambda h=host, o=other: plane_of(whole, h, o) == "direct")
    for host, other in (("ben", "cleo"), ("cleo", "ben"), ("dora", "ben")):
        assert plane_of(whole, host, other) == "relayed"
    for host, other in (("cleo", "dora"), ("dora", "cleo")):
        assert endpoint(whole, host, other, "wgd").startswith(f"{whole.places[other].inner}:")
    seen = whole.json("rae", "show", "whole", "--members")
    assert {member["name"] for member in seen["members"]} == {*NATS, "gateway"}
    assert {len(member["mailboxes"]) for member in seen["members"]} == {2}


def connected(lab: Lab, environment: dict[str, str]) -> dict[str, str]:
    """What `corral connect` says once the renter's machine is a member."""
    machine = lab.machine("rae")
    log = machine.log_file("connect")
    before = len(log.read_text()) if log.exists() else 0
    machine.spawn(["corral", "connect", "whole", "--json"], name="connect", environment=environment)
    wait_for(lambda: "ray_address" in log.read_text()[before:])
    said = log.read_text()[before:]
    return json.loads(said[said.index("{") :])


def test_a_renters_machine_behind_nat_speaks_to_ray_itself(whole: Lab, wireguard: Path, ray_python: Path) -> None:
    """Once it is a member, it needs no control plane; killed, it takes its place again; left, nothing of it is left."""
    machine = whole.machine("rae")
    environment = whole.environment("rae")
    environment["PATH"] = f"{wireguard}:{environment['PATH']}"
    before = machine.run(["ip", "-json", "route"])
    first = connected(whole, environment)
    machine.signal("connect", signal.SIGKILL)
    assert machine.wait_ended("connect", timeout_s=20)
    member = connected(whole, environment)
    assert member == first
    whole.kill_control_plane()
    client = environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": member["token_path"]}

    def hosts() -> list[str]:
        """The hosts that Ray names; none while the server that it starts for each client is not up within its 30 s."""
        try:
            said = machine.run([str(ray_python), "-c", HOSTS, member["ray_address"]], environment=client)
        except LabFailed as error:
            if "Starting Ray client server failed" not in error.message:
                raise
            return []
        return json.loads(said.splitlines()[-1])

    wait_for(lambda: hosts() == sorted(NATS), within_s=240)
    # From a node, nothing of that machine can be opened: it answers only what it asked for.
    reach = f"import socket; socket.create_connection(('{member['address']}', 22), 3)"
    with pytest.raises(LabFailed, match="timed out"):
        in_mesh(whole, "ada", "python3", "-c", reach)
    whole.start_control_plane()
    machine.signal("connect", signal.SIGINT)
    assert machine.wait_ended("connect", timeout_s=60)
    assert machine.run(["ip", "-json", "route"]) == before
    assert "corral" not in machine.run(["nft", "list", "tables"])
    wait_for(lambda: "guest" not in str(whole.json("rae", "show", "whole", "--members")["members"]))
    assert not Path(member["token_path"]).exists()


def test_a_job_outlives_its_paths_its_relays_and_the_control_plane(whole: Lab, tmp_path: Path) -> None:
    """A path is cut, each relay dies in turn, and the control plane is away all the time: Ray notices nothing."""
    (tmp_path / "work.py").write_text(WORK)
    words = ["--no-wait", "--working-dir", str(tmp_path), "--", "python", "work.py", "45"]
    job = json.loads(whole.corral("rae", "job", "submit", "--json", "whole", *words))["submission_id"]
    wait_for(lambda: f"begun {len(NATS)}" in whole.corral("rae", "job", "logs", "whole", job))
    whole.kill_control_plane()
    with pytest.raises(LabFailed):
        whole.corral("rae", "show", "whole")
    whole.cut("ada", "ben")
    wait_for(lambda: plane_of(whole, "ada", "ben") == plane_of(whole, "ben", "ada") == "relayed")
    for relay, other in (("relay-1", "relay-2"), ("relay-2", "relay-1")):
        whole.kill_relay(relay)
        place = whole.places[other].outer
        for host, peer in (("ada", "ben"), ("ben", "ada"), ("ben", "cleo"), ("cleo", "ben")):
            wait_for(lambda h=host, p=peer, at=place: endpoint(whole, h, p, "wgr").startswith(f"{at}:"))
        whole.start_relay(relay)
    whole.restore("ada", "ben")
    wait_for(lambda: plane_of(whole, "ada", "ben") == plane_of(whole, "ben", "ada") == "direct")
    whole.start_control_plane()
    log = whole.corral("rae", "job", "logs", "whole", job, "--follow")
    result = json.loads(log.partition("result ")[2].splitlines()[0])
    assert (len(result["hosts"]), result["alive"]) == (len(NATS), len(NATS))
    assert whole.json("rae", "show", "whole")["state"] == "ready"


ALIVE = "import ray; ray.init(); print('alive', *sorted(node['NodeName'] for node in ray.nodes() if node['Alive']))"
WAITING = """
import ray, sys, time
ray.init()
node = next(node for node in ray.nodes() if node["NodeName"] == sys.argv[1])
strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)

@ray.remote(num_cpus=1, max_retries=0)
def wait():
    time.sleep(3600)

print("waiting", flush=True)
try:
    ray.get(wait.options(scheduling_strategy=strategy).remote())
except ray.exceptions.RayError as error:
    print("learned", type(error).__name__, flush=True)
"""


def nodes_of(lab: Lab) -> dict[str, dict[str, Any]]:
    """The nodes of the cluster that are wanted, by host."""
    nodes = lab.json("rae", "show", "whole")["nodes"]
    return {node["host"]: node for node in nodes if node["state"] not in ("lost", "replaced")}


def living(lab: Lab) -> set[str]:
    """The hosts whose nodes Ray holds for alive."""
    log = lab.corral("rae", "job", "submit", "whole", "--", "python", "-c", ALIVE)
    return set(log.partition("alive ")[2].splitlines()[0].split())


def kill_container(lab: Lab, host: str, names: str) -> None:
    """Ends one container of a host from outside, as a crash would."""
    engine = lab.engine(host)
    [name] = engine.containers(names, running_only=True)
    pid = engine.docker("inspect", "--format", "{{.State.Pid}}", name).strip()
    lab.machine(host).run(["kill", "-9", pid])


def is_mended(lab: Lab, host: str, what: str) -> bool:
    """Whether the node on a host works again after the end of a part of it."""
    node = nodes_of(lab)[host]
    return node["state"] == "running" and what in node["reason"]


LONG = pytest.mark.skipif(not os.environ.get("CORRAL_TEST_ALL"), reason="takes minutes: scripts/test --all")


@LONG
def test_what_dies_on_a_host_is_mended_there(whole: Lab) -> None:
    """A mesh, a whole network, an agent, the gateway's leaf: the same nodes go on, and the cluster stays ready."""
    before = {host: node["id"] for host, node in nodes_of(whole).items()}
    one, other = [node["host"] for node in nodes_of(whole).values() if node["role"] == "worker"][:2]
    kill_container(whole, one, "corral-nd_*-mesh")
    kill_container(whole, "gate", "corral-nd_*-mesh")
    kill_container(whole, other, f"corral-agent-{other}")
    wait_for(lambda: is_mended(whole, one, "the mesh container ended"))
    wait_for(lambda: f"corral-agent-{other}" in whole.engine(other).containers(running_only=True))
    kill_container(whole, other, "corral-nd_*-pause")
    wait_for(lambda: is_mended(whole, other, "the pause container ended"))
    wait_for(lambda: living(whole) == set(before))
    assert {host: node["id"] for host, node in nodes_of(whole).items()} == before
    assert whole.json("rae", "show", "whole")["reason"] == ""


@LONG
def test_a_head_whose_ray_dies_is_started_anew_and_its_workers_join_it(whole: Lab) -> None:
    """The jobs of before are lost, and the renter is told; the cluster takes new ones."""
    before = {host: node["id"] for host, node in nodes_of(whole).items()}
    [head] = [node["host"] for node in nodes_of(whole).values() if node["role"] == "head"]
    kill_container(whole, head, "corral-nd_*-work")
    wait_for(lambda: "the jobs on it are lost" in whole.json("rae", "show", "whole")["reason"])
    wait_for(lambda: all(node["state"] == "running" for node in nodes_of(whole).values()))
    wait_for(lambda: living(whole) == set(before))
    assert {host: node["id"] for host, node in nodes_of(whole).items()} == before


@LONG
def test_a_host_that_stays_away_is_replaced_and_empties_itself_when_it_is_back(whole: Lab, tmp_path: Path) -> None:
    """A driver that waits for it learns of it; another host takes the place at no higher rate; nothing is left."""
    whole.add_machine("emil", has_engine=True, owner="emil")
    whole.start_engines("emil")
    whole.sign_up("emil")
    cores, memory_gib = slice_size()
    whole.join("emil", cores=cores, memory_gib=memory_gib)
    gone = next(node for node in nodes_of(whole).values() if node["role"] == "worker")
    (tmp_path / "wait.py").write_text(WAITING)
    words = ["--no-wait", "--working-dir", str(tmp_path), "--", "python", "wait.py", gone["name"]]
    job = json.loads(whole.corral("rae", "job", "submit", "--json", "whole", *words))["submission_id"]
    wait_for(lambda: "waiting" in whole.corral("rae", "job", "logs", "whole", job))
    rate = whole.json("rae", "show", "whole")["rate_uc_per_hour"]
    whole.isolate(gone["host"])
    wait_for(lambda: "learned NodeDiedError" in whole.corral("rae", "job", "logs", "whole", job))
    wait_for(lambda: "emil" in nodes_of(whole) and nodes_of(whole)["emil"]["state"] == "running", within_s=180)
    cluster = whole.json("rae", "show", "whole")
    assert (cluster["state"], cluster["rate_uc_per_hour"] <= rate) == ("ready", True)
    assert {node["host"]: node["state"] for node in cluster["nodes"]}[gone["host"]] == "replaced"
    wait_for(lambda: living(whole) == set(nodes_of(whole)))
    # Nobody gets its device before it has confirmed that the old node is gone.
    assert whole.json(gone["provider"], "host", "show", gone["host"], at="rae")["status"] == "offline"
    assert len(whole.engine(gone["host"]).containers("corral-nd_*")) == 3
    whole.reconnect(gone["host"])
    wait_for(lambda: whole.json(gone["provider"], "host", "show", gone["host"])["status"] == "idle")
    assert whole.engine(gone["host"]).containers("corral-nd_*") == []


def test_a_renter_who_leaves_empties_every_engine(whole: Lab) -> None:
    """Only the agents stay, and no mailbox at any relay."""
    whole.corral("rae", "down", "whole", "-y")
    assert whole.wait_until_idle(timeout_s=120)
    for host in NATS:
        assert whole.engine(host).containers() == [f"corral-agent-{host}"]
    for relay in ("relay-1", "relay-2"):
        wait_for(lambda name=relay: "count=0" in whole.machine(name).log_file("relay").read_text().splitlines()[-1])


def test_a_host_is_back_after_its_daemon_has_crashed(whole: Lab) -> None:
    """Whatever ran is gone with it; the agent comes back by itself, and the host is lent again."""
    whole.kill_engine("cleo")
    whole.start_engine("cleo")
    engine = whole.engine("cleo")
    wait_for(lambda: "corral-agent-cleo" in engine.containers(running_only=True))
    wait_for(lambda: whole.json("cleo", "host", "show", "cleo")["status"] == "idle")
