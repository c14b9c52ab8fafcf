"""An agent's whole stay on a machine, on a real engine and a real control plane: install, report, leave, remove."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.testing.local_network import LocalNetwork, LocalNetworkFailed, corral_program, run_corral

pytestmark = [pytest.mark.docker, pytest.mark.postgres]

IMAGES = Path(__file__).parents[2] / ".cache" / "images.json"
CORES, MEMORY_GIB = 0.1, 0.8


def docker(*arguments: str) -> str:
    """The engine's own command line, as an independent witness."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def network() -> Iterator[LocalNetwork]:
    """A control plane with one provider, whose one small slice has joined."""
    if not IMAGES.exists():
        pytest.skip("the project's images have not been built: scripts/setup")
    with LocalNetwork(images=json.loads(IMAGES.read_text())) as made:
        made.join(made.sign_up("pia"), "pia-host", cores=CORES, memory_gib=MEMORY_GIB)
        yield made


@pytest.fixture(scope="module")
def agent(network: LocalNetwork) -> dict[str, Any]:
    """The agent's container as the engine shows it."""
    return json.loads(docker("inspect", f"corral-agent-{network.prefix}-pia-host"))[0]


def host(network: LocalNetwork) -> dict[str, Any]:
    """The host as its owner sees it."""
    return network.json(network.people["pia"], "host", "show", "pia-host")


def test_an_installed_host_is_there_with_its_device(network: LocalNetwork, agent: dict[str, Any]) -> None:
    """The first report holds hardware, table and the one slice; nothing of it has to be asked for again."""
    shown = host(network)
    assert shown["id"] == agent["Config"]["Labels"]["corral.host"]
    assert [(device["key"], device["cores"]) for device in shown["devices"]] == [("cpu-0", CORES)]
    assert {check["rule"]: check["outcome"] for check in shown["checks"]}["engine"] == "pass"


def test_the_agent_s_container_is_closed(agent: dict[str, Any]) -> None:
    """The engine's socket is power enough: no privilege, no capability, no writable root, no token anywhere."""
    settings = agent["HostConfig"]
    assert (settings["Privileged"], settings["CapDrop"], settings["ReadonlyRootfs"]) == (False, ["ALL"], True)
    assert not settings["CapAdd"]
    assert "no-new-privileges" in settings["SecurityOpt"]
    assert agent["Config"]["Cmd"] == ["run"]
    assert not [entry for entry in agent["Config"]["Env"] if "TOKEN" in entry or "KEY" in entry]


def test_a_slice_that_does_not_fit_is_refused(network: LocalNetwork) -> None:
    """All cores of the machine beside the slice that is there: more than it has, so nothing is enrolled."""
    arguments = network.join_arguments("big", cores=float(os.cpu_count() or 1), memory_gib=MEMORY_GIB)
    with pytest.raises(LocalNetworkFailed, match="does not fit"):
        run_corral(arguments, environment=network.people["pia"].environment())
    assert [one["name"] for one in network.json(network.people["pia"], "host", "list")] == ["pia-host"]


def test_an_agent_that_is_started_again_is_the_same_host(network: LocalNetwork, agent: dict[str, Any]) -> None:
    """Killed, not stopped; its next report continues where it was."""
    before = host(network)
    docker("kill", agent["Name"].lstrip("/"))
    docker("start", agent["Name"].lstrip("/"))
    deadline = time.monotonic() + 60
    while (after := host(network))["last_seen_at"] <= before["last_seen_at"]:
        assert time.monotonic() < deadline
    assert (after["id"], after["devices"]) == (before["id"], before["devices"])


def test_what_leave_prints_takes_everything_away(network: LocalNetwork, agent: dict[str, Any]) -> None:
    """The printed line, typed on the machine: no container, no volume is left of this host."""
    left = subprocess.run(
        [str(corral_program()), "host", "leave", "pia-host", "-y"],
        env=network.people["pia"].environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = [line.strip() for line in left.stderr.splitlines() if "docker run" in line]
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "were removed" in done.stderr
    name = agent["Name"].lstrip("/")
    assert docker("ps", "-aq", "--filter", f"label=corral.host={agent['Config']['Labels']['corral.host']}") == ""
    assert docker("volume", "ls", "-q", "--filter", f"name={name}") == ""
