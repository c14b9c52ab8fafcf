"""One cluster of three nodes and a leaf, driven by its containers' contract, for all tests of the images."""

import json
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The programs inside the images are not part of the package; their pure parts are tested where they lie.
sys.path[:0] = [
    *(str(ROOT / "images" / folder) for folder in ("common", "net", "ray")),
    *(str(ROOT / "bench"), str(Path(__file__).resolve().parent)),
]

from parts import TOKEN, Cluster, Lab, Member, bridge_address, roster  # noqa: E402


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """Ids of the images of this checkout."""
    path = ROOT / ".cache" / "images.json"
    if not path.exists():
        pytest.fail("there are no images yet; run scripts/setup")
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def lab(images: dict[str, str]) -> Iterator[Lab]:
    """Makes containers, and removes them at the end."""
    lab = Lab(images, secrets.token_hex(4))
    try:
        yield lab
    finally:
        lab.remove()


@pytest.fixture(scope="session")
def cluster(lab: Lab) -> Cluster:
    """A running cluster; everything is created at once, and each part waits inside for what it needs."""
    addresses = [f"10.128.0.{n}" for n in range(1, 4)]
    leaf_address = "10.128.0.4"
    everybody = [*addresses, leaf_address]
    with ThreadPoolExecutor(8) as pool:
        pauses = list(pool.map(lambda n: lab.pause(f"{n}-pause"), range(4)))
        works = [
            pool.submit(lab.work, f"{n}-work", pauses[n], address, addresses[0]) for n, address in enumerate(addresses)
        ]
        roles = ["node", "node", "node", "leaf"]
        meshes = list(pool.map(lambda n: lab.mesh(f"{n}-mesh", pauses[n], everybody[n], role=roles[n]), range(4)))
        keys = {everybody[n]: meshes[n].keys() for n in range(4)}
        endpoints: dict[str, str | None] = {everybody[n]: f"{bridge_address(pauses[n])}:51820" for n in range(4)}
        for n, mesh in enumerate(meshes):
            mesh.send(roster(3, keys, endpoints, own=everybody[n], passive=[leaf_address]))
        running = [work.result() for work in works]
    for work in running:
        work.send({"type": "start", "token": TOKEN})
    for n, mesh in enumerate(meshes):
        mesh.wait_type("peers", handshaken=[address for address in everybody if address != everybody[n]])
    running[0].wait_type("alive", nodes=addresses)
    members = [
        Member(everybody[n], pauses[n], meshes[n], running[n] if n < 3 else None, keys[everybody[n]]) for n in range(4)
    ]
    return Cluster(members[:3], members[3])
