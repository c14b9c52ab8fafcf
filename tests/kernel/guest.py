#!/usr/bin/python3 -EsS
"""
Process 1 of a machine whose kernel has WireGuard: two members of a mesh, each in a network namespace of its own.

Runs in the file system of corral-net and with its programs alone. It prints one JSON object a line, `{"ok": NAME}` for
each thing that holds, and turns the machine off; the test beside it reads them.
"""

import ctypes
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NETWORK, ADDRESSES, BRIDGE = "10.128.0.0/18", ("10.128.0.1", "10.128.0.2"), ("172.17.0.2", "172.17.0.3")
WITHIN_S = 240.0
"""An emulated processor is some fifty times slower than a real one."""
RESTARTS = 5
LOOKS = {
    "addresses": "ip -o address show | awk '{print $2, $4}'",
    "routes": "ip route show table all | grep -v ' table local'",
    "rules": "ip rule",
    "links": "ip -o link | awk '{print $2, $5}'",
    "firewall": "nft list ruleset",
    "peers": "for i in wgd wgr; do echo $i $(wg show $i peers | wc -l); done",
}


def main() -> None:
    """Everything in order; whatever fails ends it."""
    boot()
    members = [Member(n) for n in range(2)]
    say(ok="boot")
    for member in members:
        keys = member.wait("keys")
        check("kernel", keys["implementation"] == "kernel")
    say(ok="kernel")
    meet(members, 1)
    say(ok="met")
    for n, member in enumerate(members):
        other = ADDRESSES[1 - n]
        until("size", lambda m=member, o=other: " mtu 1420" in m.shell(f"ip route get {o}"))
        members[1 - n].start("python3", "-c", SERVE, other)
        check("echo", member.shell(f"python3 -c '{ECHO}' {ADDRESSES[n]} {other}").strip() == "1392")
    say(ok="sizes")
    before = [member.look() for member in members]
    for serial in range(2, 2 + RESTARTS):
        members[0].end()
        members[0] = Member(0)
        meet(members, serial)
    until("restarts", lambda: [member.look() for member in members] == before)
    say(ok="restarts")


SERVE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 7000))
while True: s.sendto(*s.recvfrom(2048))
"""
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0)); s.settimeout(5)
for _ in range(20):
    try: s.sendto(bytes(1392), (sys.argv[2], 7000)); print(len(s.recv(2048))); break
    except OSError: pass
"""
FINIT_MODULE = {"x86_64": 313, "aarch64": 273}[os.uname().machine]
EEXIST = 17


class Member:
    """One mesh container's program."""

    def __init__(self, n: int) -> None:
        environment = {
            "CORRAL_MESH_ADDRESS": ADDRESSES[n], "CORRAL_MESH_NETWORK": NETWORK, "CORRAL_MESH_ROLE": "node",
            "CORRAL_MESH_MTU": "1280", "CORRAL_MESH_PORT": "20000", "PATH": os.defpath + ":/usr/sbin:/sbin",
        }  # fmt: skip
        self.n = n
        self.process = subprocess.Popen(
            ("ip", "netns", "exec", f"n{n}", "/corral/mesh"),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._heard = b""
        self.messages: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        """One line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    def wait(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The first message of this kind with these fields."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            self._read()
            found[:] = [
                one for one in self.messages if one["type"] == kind and all(one.get(k) == v for k, v in fields.items())
            ]
            return bool(found)

        until(f"{kind} of {self.n}", is_there)
        return found[0]

    def end(self) -> None:
        """Kills it; what it had in the kernel stays."""
        self.process.kill()
        self.process.wait()

    def shell(self, command: str) -> str:
        """What a command in its namespace says."""
        words = ("ip", "netns", "exec", f"n{self.n}", "sh", "-c", command)
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def start(self, *command: str) -> None:
        """Starts a program in its namespace that goes on."""
        subprocess.Popen(("ip", "netns", "exec", f"n{self.n}", *command))

    def look(self) -> dict[str, list[str]]:
        """All that it has set, without keys and counters."""
        return {what: self.shell(look).splitlines() for what, look in LOOKS.items()}

    def _read(self) -> None:
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], 0)[0]:
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                check(f"member {self.n}", False, f"it ended: {self.messages[-1:]}")
            *lines, self._heard = (self._heard + chunk).split(b"\n")
            self.messages += [json.loads(line) for line in lines]


def meet(members: list[Member], serial: int) -> None:
    """Hands both the same roster and waits for the handshake of this one."""
    keys = [member.wait("keys") for member in members]
    for n, member in enumerate(members):
        other = 1 - n
        peer = {
            "address": ADDRESSES[other], "direct_key": keys[other]["direct"], "relayed_key": keys[other]["relayed"],
            "endpoints": [f"{BRIDGE[other]}:20000"], "relays": [], "passive": False,
        }  # fmt: skip
        member.messages = [one for one in member.messages if one["type"] == "keys"]
        member.send({"type": "roster", "serial": serial, "peers": [peer], "observers": []})
    for n, member in enumerate(members):
        member.wait("configured", serial=serial)
        member.wait("peers", handshaken=[ADDRESSES[1 - n]])


def boot() -> None:
    """What an init system would do, and a wire between two namespaces."""
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")):
        run("mount", "-t", kind, kind, target)
    os.symlink("/proc/self/fd/0", "/dev/stdin")
    for name in Path("/modules/order").read_text().split():
        load(Path("/modules") / name)
    run("ip", "link", "set", "lo", "up")
    for n in range(2):
        run("ip", "netns", "add", f"n{n}")
    run(*["ip", "link", "add", "eth0", "netns", "n0", "type", "veth", "peer", "name", "eth0", "netns", "n1"])
    for n, address in enumerate(BRIDGE):
        for command in ("ip link set lo up", f"ip address add {address}/16 dev eth0", "ip link set eth0 up"):
            run("ip", "netns", "exec", f"n{n}", *command.split())


def load(module: Path) -> None:
    """Puts a module into the kernel; one that is there is fine."""
    libc = ctypes.CDLL(None, use_errno=True)
    with module.open("rb") as file:
        if libc.syscall(FINIT_MODULE, file.fileno(), b"", 0) != 0 and ctypes.get_errno() != EEXIST:
            check(f"module {module.name}", False, os.strerror(ctypes.get_errno()))


def run(*command: str) -> None:
    """A command that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    check(" ".join(command), done.returncode == 0, done.stderr)


def until(what: str, holds: Callable[[], bool]) -> None:
    """Returns once it holds."""
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        check(what, time.monotonic() < deadline, f"not within {WITHIN_S:.0f} s")
        time.sleep(0.05)


def check(what: str, is_so: bool, told: str = "") -> None:
    """Ends everything unless it is so."""
    if not is_so:
        say(failed=what, told=re.sub(r"\s+", " ", told)[-600:])
        off()


def say(**message: Any) -> None:
    """One line to the test."""
    print(json.dumps(message | {"at_s": round(time.monotonic(), 1)}), flush=True)


def off() -> None:
    """Turns the machine off."""
    sys.stdout.flush()
    Path("/proc/sysrq-trigger").write_text("o")
    time.sleep(60)


if __name__ == "__main__":
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    subprocess.run(("mount", "-t", "devtmpfs", "devtmpfs", "/dev"), check=False)
    console = os.open("/dev/console", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(console, descriptor)
    try:
        main()
    except BaseException as error:
        say(failed="guest", told=repr(error))
    off()
