"""Fixtures of the lab's own tests."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.lab.lab import Lab


def why_no_namespaces() -> str:
    """Why machines of the lab cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "namespaces are made by root alone"
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"missing: {', '.join(missing)}"
    return "" if Path("/dev/net/tun").exists() else "/dev/net/tun is missing"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab with an internet and no machine; nothing of it may be left."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    with Lab() as made:
        yield made
    assert made.left_behind() == []


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wireguard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH with `wg` and `wireguard-go` as the image corral-net has them, with the loader they need."""
    folder = tmp_path_factory.mktemp("wireguard")
    image = json.loads((ROOT / ".cache/images.json").read_text())["corral-net"]
    # The loader of the image's architecture is where every program of it says.
    find = "for name in wg wireguard-go; do readlink -f $(command -v $name); done; "
    find += "ldd $(command -v wg) | grep -o '/[^ ]*' | while read path; do readlink -f $path; done"
    docker = ("docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c")
    paths = subprocess.run((*docker, find), check=True, capture_output=True, text=True).stdout.split()
    packed = subprocess.run((*docker, f"tar -c {' '.join(paths)}"), check=True, capture_output=True).stdout
    subprocess.run(("tar", "-x", "-C", folder, "--transform", "s,.*/,,"), input=packed, check=True)
    loader = next(path for path in folder.iterdir() if path.name.startswith("ld-"))
    for name in ("wg", "wireguard-go"):
        (folder / name).rename(folder / f"{name}.real")
        (folder / name).write_text(
            f'#!/bin/sh\nexec {loader} --library-path {folder} --argv0 {name} {folder}/{name}.real "$@"\n'
        )
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def ray_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of 3.11 with Ray and nothing of Corral's: the packages of the image corral-ray on this machine's own."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("Ray's client wants the Python of the cluster, 3.11")
    folder = tmp_path_factory.mktemp("ray")
    image = json.loads((ROOT / ".cache/images.json").read_text())["corral-ray"]
    command = "tar -c -C $(python3 -c 'import ray; print(ray.__path__[0])')/.. ."
    docker = ("docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", command)
    with subprocess.Popen(docker, stdout=subprocess.PIPE) as packed:
        subprocess.run(("tar", "-x", "--no-same-owner", "-C", folder), stdin=packed.stdout, check=True)
    assert packed.returncode == 0
    program = folder / "python-with-ray"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.base_prefix}/bin/python3.11 -sS "$@"\n')
    program.chmod(0o755)
    return program
