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
from corral.sdk.jobs import Jobs
from corral.testing.local_network import LocalNetwork
from corral.wire import api

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

WHERE = """
import collections, json, socket, time, ray
ray.init()

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(0.2)
    return socket.gethostname()

# A worker's Python may take its time to start on a busy machine; until then the others do its share.
nodes = sum(node["Alive"] for node in ray.nodes())
hosts, deadline = collections.Counter(), time.monotonic() + 180
while len(hosts) < nodes and time.monotonic() < deadline:
    hosts.update(ray.get([where.remote() for _ in range(2 * nodes)]))
print("hosts", json.dumps(hosts), flush=True)
"""
ENDLESS = """
import itertools, time
for step in itertools.count():
    print("step", step, flush=True)
    time.sleep(0.1)
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


def test_ray_finds_a_cluster_by_the_scheme_corral(
    network: LocalNetwork, cluster: api.Cluster, upstream_ray: Path, corral_beside_ray: Path
) -> None:
    """Where `corral` is installed beside Ray, the name of the cluster is all that Ray has to be told."""
    own = {"RAY_API_SERVER_ADDRESS": f"corral://{cluster.name}", "PYTHONPATH": str(corral_beside_ray)}
    done = subprocess.run(
        [str(upstream_ray), "job", "submit", "--", "echo", "found", "it"],
        env=network.people["rae"].environment() | own,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "found it" in done.stdout


def test_control_plane_killed_while_a_job_runs_does_not_touch_the_job(
    network: LocalNetwork, renter: Client, cluster: api.Cluster, tmp_path: Path
) -> None:
    """Clusters keep running while the control plane is away; afterwards it knows them again."""
    (tmp_path / "steps.py").write_text(ENDLESS)
    jobs = renter.jobs(cluster.name)
    job_id = jobs.submit("python steps.py", working_dir=tmp_path)
    before = steps_until(jobs, job_id, 1)
    network.restart_control_plane(kill=True)
    assert jobs.status(job_id).status == "RUNNING"
    after = steps_until(jobs, job_id, before[-1] + 20)
    assert after == list(range(len(after)))
    assert renter.cluster(cluster.name).state == "ready"
    jobs.stop(job_id)
    assert jobs.wait(job_id).status == "STOPPED"


def steps_until(jobs: Jobs, job_id: str, last: int) -> list[int]:
    """The steps that a job has told, from its first, once it has told `last`."""
    log = ""
    for text in jobs.logs(job_id, follow=True):
        log += text
        steps = [int(line.split()[1]) for line in log.split("\n")[:-1] if line.startswith("step ")]
        if steps and steps[-1] >= last:
            return steps
    raise AssertionError(f"the job ended before step {last}: {log[-500:]}")


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


def test_bill_of_an_ended_cluster_adds_up_and_nothing_is_left(
    network: LocalNetwork, renter: Client, cluster: api.Cluster
) -> None:
    """What the renter paid is what providers and network got; no container of the cluster remains."""
    bill = renter.end(cluster.name)
    assert bill.final
    assert bill.ledger_sum_uc == 0
    assert bill.amount_uc == sum(line.amount_uc for line in bill.lines)
    assert all(line.amount_uc == line.provider_uc + line.fee_uc for line in bill.lines)
    assert all(line.minutes == 60 for line in bill.lines if line.minutes_not_delivered == 0)
    earned = 0
    for provider in cluster.providers:
        with network.client(network.people[provider]) as client:
            lines = [line for line in client.earnings().lines if line.booking_id == cluster.booking_id]
        assert lines
        assert all(line.settled for line in lines)
        earned += sum(line.net_uc for line in lines)
    assert earned + bill.fee_uc == bill.amount_uc
    assert network.wait_until_idle(timeout_s=60)
