"""The main job on real hosts: three engines, three agents, three mesh ends, one Ray cluster over the lab's internet."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.lab.errors import LabFailed
from corral.testing.lab.lab import Lab
from corral.testing.lab.nat import NatKind

from .conftest import why_no_namespaces

pytestmark = [pytest.mark.lab, pytest.mark.docker, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
HOSTS = ("ada", "ben", "cleo")
WHERE = """
import collections, json, socket, time, ray
ray.init()

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(0.5)
    return socket.gethostname()

print("hosts", json.dumps(collections.Counter(ray.get([where.remote() for _ in range(6)]))), flush=True)
"""


@pytest.fixture(scope="module")
def whole() -> Iterator[Lab]:
    """Three hosts without NAT, a gateway, and a renter behind a cone NAT."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    images = json.loads((ROOT / ".cache/images.json").read_text())
    with Lab(images=images, cache=ROOT / ".cache/lab") as made:
        made.furnish(hosts=len(HOSTS), nat=NatKind.none)
        yield made
    assert made.left_behind() == []


def test_hosts_on_three_engines_become_one_cluster_and_run_a_job(whole: Lab, tmp_path: Path) -> None:
    """Nothing is shared but the lab's internet: each node is on an engine of its own, and the job runs on all three."""
    whole.corral("rae", "up", "--cpu", "1", "--nodes", "3", "--for", "1h", "--name", "whole", "-y")
    cluster = whole.json("rae", "show", "whole")
    assert cluster["state"] == "ready"
    assert sorted(cluster["providers"]) == sorted(HOSTS)
    assert sorted(node["host"] for node in cluster["nodes"]) == sorted(HOSTS)
    for host in HOSTS:
        assert len(whole.engine(host).containers("corral-nd_*-work")) == 1
    assert len({whole.engine(host).docker("info", "--format", "{{.ID}}") for host in HOSTS}) == len(HOSTS)
    (tmp_path / "where.py").write_text(WHERE)
    log = whole.corral("rae", "job", "submit", "whole", "--working-dir", str(tmp_path), "--", "python", "where.py")
    hosts = json.loads(log.partition("hosts ")[2].splitlines()[0])
    assert set(hosts) == {node["name"] for node in cluster["nodes"]}


def test_cluster_outlives_a_power_cut_of_the_control_plane(whole: Lab) -> None:
    """Its nodes go on without it; afterwards, on the same data, it knows them again, and the next job runs."""
    whole.kill_control_plane()
    with pytest.raises(LabFailed):
        whole.corral("rae", "show", "whole")
    assert whole.engine("ben").containers("corral-nd_*-work", running_only=True)
    whole.start_control_plane()
    assert whole.json("rae", "show", "whole")["state"] == "ready"
    log = whole.corral("rae", "job", "submit", "whole", "--", "python", "-c", "print('still here')")
    assert "still here" in log


def test_renter_leaves_and_every_engine_is_empty(whole: Lab) -> None:
    """Only the agents stay."""
    whole.corral("rae", "down", "whole", "-y")
    assert whole.wait_until_idle(timeout_s=120)
    for host in HOSTS:
        assert whole.engine(host).containers() == [f"corral-agent-{host}"]
