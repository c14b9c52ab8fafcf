"""The whole on real hosts with engines, agents and relays of their own, behind every kind of NAT."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from corral.testing.lab.errors import LabFailed
from corral.testing.lab.lab import Lab
from corral.testing.lab.nat import NatKind

from .conftest import why_no_namespaces

pytestmark = [pytest.mark.lab, pytest.mark.docker, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NATS = {"ada": NatKind.none, "ben": NatKind.cone, "cleo": NatKind.symmetric}
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


@pytest.fixture(scope="module")
def whole() -> Iterator[Lab]:
    """A public host, one behind a cone and one behind a symmetric NAT, two relays; a cluster over all three."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    images = json.loads((ROOT / ".cache/images.json").read_text())
    with Lab(images=images, cache=ROOT / ".cache/lab") as made:
        made.furnish(hosts=len(NATS), nat=list(NATS.values()), relays=2)
        made.corral("rae", "up", "--cpu", "1", "--nodes", "3", "--for", "2h", "--name", "whole", "-y")
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


def wait_for(what: Callable[[], bool]) -> None:
    """Returns once it holds."""
    deadline = time.monotonic() + WITHIN_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_hosts_behind_every_kind_of_nat_are_one_cluster(whole: Lab) -> None:
    """Nobody opened a port: two of the pairs meet directly, the third cannot and goes through a relay."""
    cluster = whole.json("rae", "show", "whole")
    assert cluster["state"] == "ready"
    assert sorted(cluster["providers"]) == sorted(node["host"] for node in cluster["nodes"]) == sorted(NATS)
    assert len({whole.engine(host).docker("info", "--format", "{{.ID}}") for host in NATS}) == len(NATS)
    log = whole.corral("rae", "job", "submit", "whole", "--", "python", "-c", WORK, "0")
    result = json.loads(log.partition("result ")[2].splitlines()[0])
    assert (len(result["hosts"]), result["alive"]) == (3, 3)
    for host, other in (("ada", "ben"), ("ben", "ada"), ("ada", "cleo"), ("cleo", "ada")):
        wait_for(lambda h=host, o=other: plane_of(whole, h, o) == "direct")
    for host, other in (("ben", "cleo"), ("cleo", "ben")):
        assert plane_of(whole, host, other) == "relayed"
    seen = whole.json("rae", "show", "whole", "--members")
    assert {member["name"] for member in seen["members"]} == {*NATS, "gateway"}
    assert {len(member["mailboxes"]) for member in seen["members"]} == {2}


def test_a_job_outlives_its_paths_its_relays_and_the_control_plane(whole: Lab, tmp_path: Path) -> None:
    """A path is cut, each relay dies in turn, and the control plane is away all the time: Ray notices nothing."""
    (tmp_path / "work.py").write_text(WORK)
    words = ["--no-wait", "--working-dir", str(tmp_path), "--", "python", "work.py", "45"]
    job = json.loads(whole.corral("rae", "job", "submit", "--json", "whole", *words))["submission_id"]
    wait_for(lambda: "begun 3" in whole.corral("rae", "job", "logs", "whole", job))
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
    assert (len(result["hosts"]), result["alive"]) == (3, 3)
    assert whole.json("rae", "show", "whole")["state"] == "ready"


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
