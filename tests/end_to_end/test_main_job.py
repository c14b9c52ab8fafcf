"""The main job on real parts: agents, WireGuard, Ray, gateway, PostgreSQL, all on this machine."""

import json
import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from corral.sdk import Client, config
from corral.sdk.errors import ApiError
from corral.testing.local_network import LocalNetwork
from corral.wire import api

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

WHERE = """
import collections, json, socket, time, ray
ray.init()

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(0.5)
    return socket.gethostname()

print("hosts", json.dumps(collections.Counter(ray.get([where.remote() for _ in range(6)]))), flush=True)
"""


def test_cluster_spans_three_hosts_of_three_providers(cluster: api.Cluster) -> None:
    """The network glues machines of strangers; the renter sees whose they are and how long each phase took."""
    assert cluster.state == "ready"
    assert sorted(cluster.providers) == ["ada", "ben", "cleo"]
    assert len({node.host for node in cluster.nodes}) == 3
    times = [phase.at for phase in cluster.phases]
    assert [phase.name for phase in cluster.phases][-1] == "ready"
    assert all(at is not None for at in times)
    assert times == sorted(at for at in times if at is not None)


def test_job_runs_on_every_node_and_its_log_comes_back(renter: Client, cluster: api.Cluster, tmp_path: Path) -> None:
    """Ray's own job interface, without Ray on the laptop."""
    (tmp_path / "where.py").write_text(WHERE)
    jobs = renter.jobs(cluster.name)
    job_id = jobs.submit("python where.py", working_dir=tmp_path)
    log = "".join(jobs.logs(job_id, follow=True))
    hosts = json.loads(log.partition("hosts ")[2].splitlines()[0])
    assert set(hosts) == {node.name for node in cluster.nodes}


def test_upstream_ray_client_submits_follows_and_stops_jobs(
    network: LocalNetwork, cluster: api.Cluster, upstream_ray: Path, tmp_path: Path
) -> None:
    """Nothing but Ray as published, the address and the renter's key."""
    key = config.load(config.config_path({"XDG_CONFIG_HOME": str(network.people["rae"].folder)})).api_key
    (tmp_path / "main.py").write_text(WHERE)
    assert cluster.jobs_url is not None
    environment = os.environ | {
        "RAY_API_SERVER_ADDRESS": cluster.jobs_url,
        "RAY_JOB_HEADERS": json.dumps({"Authorization": f"Bearer {key}"}),
    }

    def ray(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(upstream_ray), "job", *arguments], env=environment, capture_output=True, text=True, timeout=240
        )

    submitted = ray("submit", "--working-dir", str(tmp_path), "--", "python", "main.py")
    assert submitted.returncode == 0, submitted.stderr
    assert "hosts {" in submitted.stdout
    started = ray("submit", "--no-wait", "--submission-id", "long", "--", "sleep", "600")
    assert started.returncode == 0, started.stderr
    stopped = ray("stop", "long")
    assert stopped.returncode == 0, stopped.stderr
    assert "STOPPED" in ray("status", "long").stdout.upper()


def test_control_plane_killed_while_a_job_runs_does_not_touch_the_job(
    network: LocalNetwork, renter: Client, cluster: api.Cluster, tmp_path: Path
) -> None:
    """Clusters keep running while the control plane is away; afterwards it knows them again."""
    (tmp_path / "steps.py").write_text(
        "import pathlib, time\nfor step in range(8):\n    print('step', step, flush=True)\n    time.sleep(1)\n"
    )
    jobs = renter.jobs(cluster.name)
    job_id = jobs.submit("python steps.py", working_dir=tmp_path)
    network.restart_control_plane(kill=True)
    log = "".join(jobs.logs(job_id, follow=True))
    assert "step 7" in log
    assert jobs.wait(job_id).status == "SUCCEEDED"
    assert renter.cluster(cluster.name).state == "ready"


def test_agent_killed_and_started_again_adopts_its_node(
    network: LocalNetwork, renter: Client, cluster: api.Cluster
) -> None:
    """The agent is not in the path of a job: it may die at any moment."""
    worker = next(node for node in cluster.nodes if node.role == "worker")
    agent = f"corral-agent-{network.hosts[worker.host]}"
    before = network.containers()
    subprocess.run(["docker", "kill", "--signal", signal.SIGKILL.name, agent], check=True, capture_output=True)
    subprocess.run(["docker", "start", agent], check=True, capture_output=True)
    jobs = renter.jobs(cluster.name)
    assert jobs.wait(jobs.submit("true")).status == "SUCCEEDED"
    assert network.containers() == before


def test_stranger_reaches_neither_the_cluster_nor_its_jobs(network: LocalNetwork, cluster: api.Cluster) -> None:
    """Another person's cluster looks like none at all."""
    stranger = network.sign_up("mallory")
    with network.client(stranger) as client, pytest.raises(ApiError) as refused:
        client.cluster(cluster.name)
    assert refused.value.code == "cluster_unknown"
    key = config.load(config.config_path({"XDG_CONFIG_HOME": str(stranger.folder)})).api_key
    assert httpx.get(f"{cluster.jobs_url}/api/jobs/", headers={"Authorization": f"Bearer {key}"}).status_code == 404
    assert httpx.get(f"{cluster.jobs_url}/api/jobs/").status_code == 401
