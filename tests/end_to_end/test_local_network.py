"""The local network itself: what it refuses, and that what it leaves behind would be seen and can be ended later."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.local_network import (
    PORT_LAST,
    LocalNetwork,
    LocalNetworkFailed,
    PersonHome,
    PortInUse,
    free_port,
)

ROOT = Path(__file__).parents[2]


def docker(*arguments: str) -> str:
    """The engine's own command line, as an independent witness."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[LocalNetwork]:
    """A network of which nothing was started yet."""
    made = LocalNetwork(images={}, state_file=tmp_path / "state.json")
    yield made
    made.stop()


def test_free_ports_are_no_ephemeral_ones_and_never_the_same() -> None:
    """Between our choice and our use no outgoing connection of others can get them."""
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == len(ports)
    assert max(ports) <= PORT_LAST


@pytest.mark.docker
def test_a_port_in_use_is_said_before_anything_is_started() -> None:
    """Otherwise the other program's answers would be taken for ours."""
    made = LocalNetwork(images={}, port=free_port(), gateway_port=free_port())
    try:
        for port in (made.port, made.gateway_port):
            with socket.create_server(("127.0.0.1", port)), pytest.raises(PortInUse, match=f"port {port} is in use"):
                made.start()
        assert made.server is None
    finally:
        made.stop()


@pytest.mark.docker
@pytest.mark.postgres
def test_a_port_that_was_our_choice_is_chosen_anew_when_somebody_was_faster() -> None:
    """Two networks that start at the same moment must not fail for it."""
    made = LocalNetwork(images={})
    with socket.create_server(("127.0.0.1", made.port)) as other:
        try:
            made.start()
            assert made.port != other.getsockname()[1]
        finally:
            made.stop()
    assert made.left_behind() == []


@pytest.mark.docker
def test_what_is_left_behind_is_seen(empty: LocalNetwork) -> None:
    """Of every kind that a network could leave."""
    empty.expect("one")
    folder = empty.folder
    assert folder is not None
    volume = f"corral-agent-{empty.prefix}-one-auth"
    stray = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()", "serve", "--data-dir", str(folder / "data")]
    )
    try:
        docker("volume", "create", volume)
        assert empty.left_behind(settle_s=0) == [f"volume {volume}", f"process {stray.pid}", f"folder {folder}"]
        empty.stop()
        assert stray.wait(20) == -signal.SIGTERM
        assert empty.left_behind(settle_s=0) == []
    finally:
        stray.kill()
        stray.wait()


def test_a_network_that_was_noted_is_known_to_another_process(tmp_path: Path) -> None:
    """Ports, people, hosts and all places where something of it may be; but no key."""
    state_file = tmp_path / "state.json"
    made = LocalNetwork(images={"corral-net": "sha256:1"}, settings={"poll_s": "2"}, state_file=state_file)
    made.expect("attic")
    assert made.folder is not None
    ada = made.people["ada"] = PersonHome("ada", made.folder / "people" / "ada")
    made.expect("barn")
    loaded = LocalNetwork.load(state_file)
    assert loaded is not None
    assert (loaded.url, loaded.gateway_port, loaded.folder) == (made.url, made.gateway_port, made.folder)
    assert (loaded.hosts, loaded.people) == (made.hosts, {"ada": ada})
    assert (loaded.images, loaded.settings, loaded.prefix) == (made.images, made.settings, made.prefix)
    made.folder.rmdir()


def test_without_a_note_there_is_nothing_to_load_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    """Nothing is removed on the word of a file that we did not write."""
    assert LocalNetwork.load(tmp_path / "none.json") is None
    broken = tmp_path / "broken.json"
    for text in ("", "[]", '{"folder": 3}'):
        broken.write_text(text)
        with pytest.raises(LocalNetworkFailed, match="nothing was ended"):
            LocalNetwork.load(broken)


@pytest.mark.docker
@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_a_network_whose_maker_was_killed_is_ended_by_another_process(tmp_path: Path) -> None:
    """With its agent, volumes, control plane, PostgreSQL and files; and a second end finds nothing to do."""
    state_file = tmp_path / "state.json"
    images = json.loads((ROOT / ".cache/images.json").read_text())
    maker = subprocess.Popen([sys.executable, "-c", MAKER, json.dumps(images), str(state_file)], stdout=subprocess.PIPE)
    assert maker.stdout is not None
    assert maker.stdout.readline() == b"made\n"
    maker.kill()
    maker.wait()
    loaded = LocalNetwork.load(state_file)
    assert loaded is not None
    assert loaded.containers() == [f"corral-agent-{loaded.prefix}-attic"]
    kinds = {line.split()[0] for line in loaded.left_behind(settle_s=0)}
    assert kinds == {"container", "volume", "namespace", "process", "folder"}
    assert list(loaded.end_clusters()) == []
    for _ in range(2):
        loaded.stop()
        assert loaded.left_behind() == []


MAKER = """
import json, signal, sys
from pathlib import Path
from corral.testing.local_network import LocalNetwork
made = LocalNetwork(images=json.loads(sys.argv[1]), state_file=Path(sys.argv[2]))
made.start()
made.join(made.sign_up("ada"), "attic", cores=0.1, memory_gib=0.8)
print("made", flush=True)
signal.pause()
"""


@pytest.mark.docker
@pytest.mark.postgres
def test_a_network_or_namespace_that_was_not_there_before_is_seen(empty: LocalNetwork) -> None:
    """Nothing of ours makes any by name; one that appears meanwhile, and that nobody else uses, is told."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace with a name takes root, and iproute2")
    empty.start()
    name = f"corral-{empty.prefix}"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True)
        docker("network", "create", "--internal", name)
        empty.stop()
        assert {f"network {name}", f"namespace /run/netns/{name}"} <= set(empty.left_behind(settle_s=0))
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
        docker("network", "rm", name)
    assert empty.left_behind() == []
