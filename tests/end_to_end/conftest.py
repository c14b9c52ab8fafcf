"""One local network and one cluster of three hosts, shared by all end-to-end tests."""

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


@pytest.fixture(scope="session")
def network() -> Iterator[LocalNetwork]:
    """A control plane, three hosts of three providers, a gateway, and a renter with credit."""
    images = json.loads((ROOT / ".cache/images.json").read_text())
    with LocalNetwork(images=images) as made:
        made.furnish()
        yield made


@pytest.fixture(scope="session")
def renter(network: LocalNetwork) -> Iterator[Client]:
    """The renter's client."""
    with network.client(network.people["rae"]) as client:
        yield client


@pytest.fixture(scope="session")
def cluster(renter: Client) -> api.Cluster:
    """A cluster of three nodes that is ready."""
    quote = renter.quote(name=CLUSTER, cpu=1, nodes=3, hours=1)
    return renter.wait_ready(renter.book(quote.id).id)


@pytest.fixture(scope="session")
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
