"""Machines without engines on the lab's internet: real namespaces, real sockets, and nothing left afterwards."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from corral.testing.lab import command
from corral.testing.lab.errors import LabFailed, LabRefused
from corral.testing.lab.lab import Lab
from corral.testing.lab.machine import kill_all
from corral.testing.lab.nat import NatKind
from corral.testing.lab.remains import holders, inhabitants, left_behind

from .conftest import why_no_namespaces

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 5000))
while True:
    said, visitor = server.recvfrom(2048)
    server.sendto(said + b" " + repr(visitor).encode(), visitor)
"""
ASK = """
import socket, sys, time
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.bind(("0.0.0.0", 4000))
asking.settimeout(float(sys.argv[2]) / 4)
for attempt in range(4):
    began_at_s = time.perf_counter()
    asking.sendto(b"%d" % attempt, (sys.argv[1], 5000))
    try:
        said = asking.recv(2048)
    except TimeoutError:
        continue
    if said.startswith(b"%d " % attempt):
        print(time.perf_counter() - began_at_s, said.partition(b" ")[2].decode())
        break
else:
    print("silence")
"""
MEETING_POINT = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 6000))
guests = []
while True:
    _, visitor = server.recvfrom(100)
    if visitor not in guests:
        guests.append(visitor)
    if len(guests) == 2:
        for one, other in (guests, guests[::-1]):
            server.sendto(("%s %d" % other).encode(), one)
"""
PUNCH = """
import socket, sys, time
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("0.0.0.0", 4000))
own.settimeout(0.05)
other, heard, deadline = None, False, time.monotonic() + 20
while time.monotonic() < deadline:
    if other is None:
        own.sendto(b"here", (sys.argv[1], 6000))
    else:
        own.sendto(b"got" if heard else b"hello", other)
    try:
        said, sender = own.recvfrom(100)
    except OSError:
        continue
    if sender == (sys.argv[1], 6000):
        if other is None:
            host, port = said.decode().split()
            other, deadline = (host, int(port)), time.monotonic() + float(sys.argv[2])
    else:
        # It may come from another port than the one that was told: that one is as good.
        heard, other = True, sender
        if said == b"got":
            for _ in range(5):
                own.sendto(b"got", other)
            print("met")
            break
else:
    print("never met")
"""


def python(code: str, *arguments: str) -> list[str]:
    """A command that runs this program."""
    return [sys.executable, "-ISB", "-c", code, *arguments]


def echo(lab: Lab, source: str, target: str, *, wait_s: float = 8.0) -> tuple[float, tuple[str, int]] | None:
    """Seconds until a UDP echo is back, and as whom the other side saw us; None where nothing came back."""
    said = lab.run(source, python(ASK, lab.places[target].outer, f"{wait_s}"))
    if said.startswith("silence"):
        return None
    took_s, _, seen = said.strip().partition(" ")
    host, _, port = seen.strip("()").partition(", ")
    return float(took_s), (host.strip("'"), int(port))


def test_machines_reach_each_other_under_the_addresses_they_are_seen_as(lab: Lab) -> None:
    """Without NAT under their own; behind a cone NAT under its address and the same port; symmetric: another port."""
    lab.add_machine("open")
    lab.add_machine("cone", nat=NatKind.cone)
    lab.add_machine("closed", nat=NatKind.symmetric)
    lab.spawn("open", python(ECHO), name="echo")
    lab.spawn("cone", python(ECHO), name="echo")
    seen = {name: echo(lab, name, "open") for name in ("cone", "closed")}
    assert seen["cone"] is not None
    assert seen["cone"][1] == (lab.places["cone"].outer, 4000)
    assert seen["closed"] is not None
    assert seen["closed"][1][0] == lab.places["closed"].outer
    assert seen["closed"][1][1] != 4000
    assert echo(lab, "open", "cone", wait_s=0.4) is None


def test_delay_is_felt_and_a_cut_lasts_until_it_is_restored(lab: Lab) -> None:
    """Bounds are generous above: this machine may be busy."""
    for name in ("a", "b", "c"):
        lab.add_machine(name)
        lab.spawn(name, python(ECHO), name="echo")
    lab.shape_link("b", delay_ms=100)
    lab.slow("a", "b", delay_ms=50, one_way=True)
    there = echo(lab, "a", "b")
    assert there is not None
    assert 0.25 <= there[0] < 5
    lab.cut("a", "b")
    assert echo(lab, "a", "b", wait_s=1) is None
    assert echo(lab, "c", "b") is not None
    lab.restore("a", "b")
    assert echo(lab, "a", "b") is not None
    lab.isolate("b")
    assert echo(lab, "c", "b", wait_s=1) is None
    lab.reconnect("b")
    assert echo(lab, "c", "b") is not None


def test_large_transfer_arrives_whole_through_nat_loss_and_a_thin_line(lab: Lab) -> None:
    """TCP finds every damaged packet: so translation does none."""
    lab.add_machine("server")
    lab.add_machine("client", nat=NatKind.symmetric)
    lab.shape_link("client", delay_ms=2, jitter_ms=2, loss=0.002, rate_mbit=100)
    send = "import socket, sys; c = socket.create_connection((sys.argv[1], 7000)); c.sendall(bytes(range(256)) * 16384)"
    receive = """
import hashlib, socket
found, digest = socket.create_server(("0.0.0.0", 7000)).accept()[0], hashlib.sha256()
while chunk := found.recv(65536):
    digest.update(chunk)
print(digest.hexdigest())
"""
    digest = "import hashlib; print(hashlib.sha256(bytes(range(256)) * 16384).hexdigest())"
    retry = 'for i in $(seq 200); do "$@" 2>/dev/null && exit; sleep 0.05; done; exit 1'
    with ThreadPoolExecutor() as pool:
        received = pool.submit(lab.run, "server", python(receive), timeout_s=60)
        lab.run("client", ["sh", "-c", retry, "sh", *python(send, lab.places["server"].outer)], timeout_s=60)
        assert received.result() == lab.run("server", python(digest))
    assert lab.internet()["counts"]["lost"] > 0


@pytest.mark.parametrize(
    ("one", "other", "met"),
    [
        (NatKind.cone, NatKind.cone, True),
        (NatKind.none, NatKind.symmetric, True),
        (NatKind.cone, NatKind.symmetric, False),
        (NatKind.symmetric, NatKind.symmetric, False),
    ],
)
def test_udp_holes_can_be_punched_as_these_kinds_of_nat_allow(
    lab: Lab, one: NatKind, other: NatKind, met: bool
) -> None:
    """With plain sockets and a meeting point: what a mesh can hope for, and where it needs a relay."""
    point = lab.add_machine("point").name
    lab.add_machine("one", nat=one)
    lab.add_machine("other", nat=other)
    lab.spawn(point, python(MEETING_POINT), name="point")
    arguments = (lab.places[point].outer, "15" if met else "1.5")
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda name: lab.run(name, python(PUNCH, *arguments)).strip(), ("one", "other")))
    assert said == (["met", "met"] if met else ["never met", "never met"])


def test_machine_is_a_machine_of_its_own(lab: Lab) -> None:
    """It has a name, process numbers, a machine id and a /run of its own, and no way to the machine around it."""
    lab.add_machine("a")
    lab.add_machine("b")
    assert lab.run("a", ["hostname"]).strip() == "a"
    assert "1 " in lab.run("a", ["sh", "-c", "ls /proc | grep -x 1; echo $$ "]).replace("\n", " ")
    lab.run("a", ["touch", "/run/mark"])
    assert lab.run("b", ["sh", "-c", "ls /run/mark 2>/dev/null || echo none"]).strip() == "none"
    assert not Path("/run/mark").exists()
    if Path("/etc/machine-id").exists():
        ids = {lab.run(name, ["cat", "/etc/machine-id"]) for name in ("a", "b")}
        assert len(ids | {Path("/etc/machine-id").read_text()}) == 3
    links = json.loads(lab.run("a", ["ip", "-json", "link"]))
    assert sorted(link["ifname"] for link in links) == ["lo", "wan"]


def test_spawned_program_is_found_signalled_and_gone_with_its_machine(lab: Lab) -> None:
    """`kill` ends one program; pulling the plug ends them all."""
    lab.add_machine("a")
    machine = lab.machine("a")
    lab.spawn("a", ["sleep", "1000"], name="first")
    second = lab.spawn("a", ["sleep", "1000"], name="second")
    with pytest.raises(LabRefused):
        lab.spawn("a", ["sleep", "1000"], name="first")
    lab.kill("a", "first")
    assert not machine.runs("first")
    assert machine.runs("second")
    lab.turn_off("a")
    assert second.wait(20) != 0
    assert not machine.is_on
    with pytest.raises(LabRefused):
        lab.run("a", ["true"])
    with pytest.raises(LabRefused):
        lab.cut("a", "b")


def test_machine_turned_on_again_has_its_place_in_the_internet(lab: Lab) -> None:
    """The same address, the same link."""
    lab.add_machine("a")
    lab.add_machine("b")
    lab.shape_link("b", delay_ms=100)
    lab.turn_off("b")
    lab.turn_on("b")
    lab.spawn("b", python(ECHO), name="echo")
    there = echo(lab, "a", "b")
    assert there is not None
    assert there[0] >= 0.2


def test_program_that_fails_tells_machine_status_and_words(lab: Lab) -> None:
    """Whoever reads a failed test wants these three."""
    lab.add_machine("a")
    with pytest.raises(LabFailed, match=r"in a ended with 3:\nno luck") as failed:
        lab.run("a", ["sh", "-c", "echo no luck >&2; exit 3"])
    assert failed.value.facts["status"] == 3


def test_stop_works_after_the_internet_was_killed(lab: Lab) -> None:
    """Any part may be gone already; the fixture looks for what is left."""
    lab.add_machine("a")
    were = inhabitants(lab.folder)
    assert len(were) == 3
    kill_all([pid for pid in holders(lab.folder) if pid != lab.machine("a").pid])
    with pytest.raises(LabFailed, match="does not answer"):
        lab.internet()
    lab.stop()
    lab.stop()
    assert left_behind(lab.folder, were) == []


def test_lab_whose_maker_was_killed_is_used_and_ended_from_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    """`scripts/lab` needs nothing but the folder."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="corral-lab-"))
    make = f"""
import sys, signal
from pathlib import Path
from corral.testing.lab.lab import Lab
lab = Lab(folder=Path({str(folder)!r}))
lab.start()
lab.add_machine("a")
lab.add_machine("b")
lab.spawn("a", ["sleep", "1000"], name="sleeper")
print("made", flush=True)
signal.pause()
"""
    try:
        with subprocess.Popen([sys.executable, "-c", make], stdout=subprocess.PIPE, text=True) as maker:
            assert maker.stdout is not None
            assert maker.stdout.readline() == "made\n"
            os.kill(maker.pid, signal.SIGKILL)
        assert command.main(["--folder", str(folder), "cut", "a", "b", "--one-way"]) == 0
        assert command.main(["--folder", str(folder), "link", "b", "--delay", "40"]) == 0
        capsys.readouterr()
        assert command.main(["--folder", str(folder), "status", "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert [(way["from"], way["to"], way["cut"]) for way in status["ways"]] == [("a", "b", True)]
        assert {found["name"]: found["link"]["delay_ms"] for found in status["machines"]} == {"a": 0, "b": 40}
        were = inhabitants(folder)
        assert len(were) >= 6
        assert f"folder {folder}" in left_behind(folder, were)
        assert command.main(["--folder", str(folder), "down"]) == 0
        assert left_behind(folder, were) == []
    finally:
        with suppress(LabRefused):
            Lab(folder=folder).stop()


def test_second_lab_in_a_folder_is_refused_and_the_first_one_lives(lab: Lab) -> None:
    """Starting one by mistake must not end the other."""
    lab.add_machine("a")
    with pytest.raises(LabRefused), Lab(folder=lab.folder):
        pass
    assert lab.run("a", ["hostname"]).strip() == "a"


def test_unknown_things_are_refused_in_words(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1, what was wrong, and what there is."""
    lab.add_machine("a")
    assert command.main(["--folder", str(lab.folder), "cut", "a", "zoe"]) == 1
    assert capsys.readouterr().err == "error: there is no machine zoe\nhint: there are a\n"
    assert command.main(["--folder", str(lab.folder), "link", "a", "--loss", "2"]) == 1
    assert "loss is between 0 and 1" in capsys.readouterr().err
    assert command.main(["--folder", "/nonexistent/lab", "status"]) == 1
    assert capsys.readouterr().err == "error: there is no lab in /nonexistent/lab\nhint: scripts/lab up\n"
