"""One local network for all end-to-end tests, and a cluster on its three hosts, made anew when a test has ended it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.sdk import Client
from corral.testing.local_network import LocalNetwork
from corral.wire import api

ROOT = Path(__file__).parents[2]
CLUSTER = "endtoend"
PATIENCE = {"node_start_s": "240", "cluster_start_s": "500"}
"""Seconds are measured in `bench/`: here a busy machine may take its time."""


@pytest.fixture(scope="package")
def network() -> Iterator[LocalNetwork]:
    """A control plane, three hosts of three providers, a gateway, and a renter with credit; bookable."""
    images = json.loads((ROOT / ".cache/images.json").read_text())
    with LocalNetwork(images=images, settings=PATIENCE) as made:
        made.furnish()
        yield made
    assert made.left_behind() == []


@pytest.fixture(scope="package")
def renter(network: LocalNetwork) -> Iterator[Client]:
    """The renter's client."""
    with network.client(network.people["rae"]) as client:
        yield client


@pytest.fixture
def cluster(network: LocalNetwork, renter: Client) -> api.Cluster:
    """A cluster of three nodes that is ready: the one of the test before, or a new one where that has ended it."""
    for one in renter.clusters():
        if one.name == CLUSTER and one.state == "ready":
            return one
    network.wait_until_bookable(network.people["rae"], devices=3)
    quote = renter.quote(name=CLUSTER, cpu=1, nodes=3, hours=1)
    return renter.wait_ready(renter.book(quote.id).id)


@pytest.fixture(scope="package")
def upstream_ray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `ray` program of an environment of its own that holds nothing but Ray as published, from our lock."""
    folder = tmp_path_factory.mktemp("upstream") / "ray"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    command = [
        str(ROOT / ".cache/tools/bin/uv"),
        "pip",
        "sync",
        "--quiet",
        "--require-hashes",
        "--python",
        str(folder / "bin/python"),
    ]
    subprocess.run([*command, str(ROOT / "images/ray/requirements.txt")], check=True, env=dict(os.environ))
    return folder / "bin/ray"


@pytest.fixture(scope="package")
def corral_beside_ray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with `corral` and what its SDK needs that Ray's own environment has not."""
    folder = tmp_path_factory.mktemp("beside-ray")
    for name in ("corral", "httpx", "httpcore", "h11", "anyio", "msgspec", "pathspec", "websockets"):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        (folder / name).symlink_to(Path(found.origin).parent)
    return folder
