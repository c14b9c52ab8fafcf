"""
Several real hosts on one machine: each with its own namespaces, engine and agent, on an internet that can be cut.

The program that makes a lab has no link into it, on purpose: a side door would survive every cut and hide what a test
is about. It acts through programs that it runs inside of machines (`run`, `corral`, `python`, `spawn`).

All that must be known to go on with a lab, or to end it, is in its folder, so that another process can (`Lab.open`).
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from corral.testing.lab.engine import Engine, Template
from corral.testing.lab.errors import LabFailed, LabRefused
from corral.testing.lab.forwarder import DEVICE, MTU_BYTES, SOCKET_NAME, ask
from corral.testing.lab.internet import PRIVATE, PUBLIC
from corral.testing.lab.links import PLAIN, Shape
from corral.testing.lab.machine import Machine, plain_environment, require_rights
from corral.testing.lab.nat import NatKind
from corral.testing.lab.remains import FORWARDER, STATE_NAME, Process, cgroup, demolish, left_behind
from corral.testing.local_network import PersonHome, corral_program, slice_size

CONTROL, GATE, RENTER = "control", "gate", "rae"
OPERATOR = "operator"
PROVIDERS = ("ada", "ben", "cleo", "dora", "emil", "fay", "gus", "hana", "ivo", "jana", "kim", "leo")
PORT, GATEWAY_PORT, GATEWAY_FAR_PORT = 8470, 8471, 9471
READY_TIMEOUT_S = 60.0
ENGINES_AT_ONCE = 2
NODES = "corral-nd_*"
"""Containers of nodes and leaves, as in file names; agents and the gateway's front stay."""
RECEIVE_QUEUE_PACKETS = 4000
_SERVE, _RELAY = "serve", "relay"
_WAIT_READY = """
import ssl, sys, time, urllib.request
context = ssl._create_unverified_context()
deadline = time.monotonic() + float(sys.argv[2])
while True:
    try:
        urllib.request.urlopen(sys.argv[1], timeout=2, context=context)
        break
    except OSError as error:
        if time.monotonic() > deadline:
            sys.exit(f"not ready: {error}")
        time.sleep(0.05)
"""


@dataclass(frozen=True)
class Place:
    """What is recorded of one machine."""

    name: str
    number: int
    nat: NatKind
    has_engine: bool
    owner: str
    """The person who sits there; empty: nobody."""
    router: int = 0
    """Number of the machine whose router and LAN it shares; 0: it has its own."""

    @property
    def outer(self) -> str:
        """The address that others see."""
        return str(PUBLIC[self.router or self.number])

    @property
    def inner(self) -> str:
        """Its own address; behind NAT a private one in the network of its router."""
        if self.nat is NatKind.none:
            return self.outer
        return str(PRIVATE[(self.router or self.number) * 256 + (2 + self.number if self.router else 2)])

    @property
    def bridge(self) -> str:
        """Of its engine: another network on each machine."""
        return f"172.{20 + self.number // 250}.{self.number % 250}.1/24"


@dataclass
class Lab:
    """
    Use as a context manager, or call `stop`.

    Args:
        images: name to digest, as `scripts/setup` wrote them; only needed for engines.
        cache: where the engines' images are kept between labs.
        folder: everything that is written goes here; it is removed at the end. Empty: a new temporary folder.
        seed: of losses, jitter and NAT ports.
    """

    images: Mapping[str, str] = field(default_factory=dict[str, str])
    cache: Path | None = None
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="corral-lab-")))
    seed: int = 1
    places: dict[str, Place] = field(default_factory=dict[str, Place])
    people: dict[str, str] = field(default_factory=dict[str, str])
    """Person to the machine where she sits."""
    _were: set[Process] = field(default_factory=set[Process])
    _children: list["subprocess.Popen[bytes]"] = field(default_factory=list["subprocess.Popen[bytes]"])

    @classmethod
    def open(cls, folder: Path) -> "Lab":
        """
        The lab that another process made.

        Raises:
            LabRefused: there is none.
        """
        try:
            state = json.loads((folder / STATE_NAME).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise LabRefused(f"there is no lab in {folder}", hint="scripts/lab up") from None
        lab = cls(
            images=state["images"],
            cache=Path(state["cache"]) if state["cache"] else None,
            folder=folder,
            seed=state["seed"],
            people=state["people"],
        )
        lab.places = {place["name"]: Place(**(place | {"nat": NatKind(place["nat"])})) for place in state["places"]}
        return lab

    def __enter__(self) -> "Lab":
        """Starts the internet, without any machine."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends everything."""
        self.stop()

    def start(self) -> None:
        """
        Starts the internet, without any machine.

        Raises:
            LabRefused: there is a lab in this folder already.
            LabUnsupported: this machine cannot hold one.
        """
        require_rights()
        if (self.folder / STATE_NAME).exists():
            raise LabRefused(f"there is a lab in {self.folder} already; nothing was started", hint="scripts/lab down")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.stat().st_uid != os.geteuid():
            raise LabRefused(f"the folder {self.folder} is somebody else's; nothing was started")
        try:
            self._start_internet()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends all of it at once and removes every file; after any failure, and more than once."""
        self._were |= demolish(self.folder)
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
        self._children.clear()

    def left_behind(self) -> list[str]:
        """What still exists of this lab after `stop`: processes, mounts, control groups, files."""
        return left_behind(self.folder, self._were)

    # Machines ----------------------------------------------------------------------------------------------------

    def add_machine(
        self,
        name: str,
        *,
        nat: NatKind = NatKind.none,
        shape: Shape = PLAIN,
        has_engine: bool = False,
        owner: str = "",
        behind: str = "",
    ) -> Machine:
        """
        A new machine, connected to the internet.

        Args:
            name: also its host name.
            nat: what is between it and the internet.
            shape: of its line.
            has_engine: whether it gets a Docker Engine, with the images; see `start_engines`.
            owner: the person who sits there.
            behind: another machine whose router and LAN it shares, instead of a `nat` of its own.

        Raises:
            LabRefused: the name is taken, or there are too many machines.
        """
        number = len(self.places) + 1
        if name in self.places or number > 250:
            raise LabRefused(f"{name} exists already, or the lab is full; no machine was made")
        shared = self._place(behind) if behind else None
        if shared is not None and shared.nat is NatKind.none:
            raise LabRefused(f"{behind} is behind no router that {name} could share; no machine was made")
        router = (shared.router or shared.number) if shared is not None else 0
        place = Place(name, number, shared.nat if shared is not None else nat, has_engine, owner, router)
        self.places[name] = place
        if owner:
            self.people[owner] = name
        self._save()
        self._connect(place, shape)
        return self.machine(name)

    def start_engines(self, *names: str) -> None:
        """Starts the engines of these machines, two at a time; those that never ran get the images first."""
        with self._template() as template, ThreadPoolExecutor(ENGINES_AT_ONCE) as pool:

            def start(name: str) -> None:
                engine = self.engine(name)
                if not engine.data_root.exists():
                    engine.furnish(template.folder)
                engine.start()

            list(pool.map(start, names))

    def machine(self, name: str) -> Machine:
        """
        One machine.

        Raises:
            LabRefused: there is none of this name.
        """
        return Machine(self.folder, self._place(name).name)

    def engine(self, name: str) -> Engine:
        """
        The engine of a machine.

        Raises:
            LabRefused: it has none.
        """
        place = self._place(name)
        if not place.has_engine:
            raise LabRefused(f"the machine {name} has no engine")
        return Engine(self.machine(name), cgroup=f"/{cgroup(self.folder)}/{name}", bridge=place.bridge)

    def run(self, machine: str, argv: Sequence[str], *, timeout_s: float = 300) -> str:
        """Runs a program in a machine; returns what it printed. See `Machine.run`."""
        return self.machine(machine).run(argv, timeout_s=timeout_s)

    def spawn(self, machine: str, argv: Sequence[str], *, name: str) -> "subprocess.Popen[bytes]":
        """Starts a program that goes on running in a machine. See `Machine.spawn`."""
        process = self.machine(machine).spawn(argv, name=name)
        self._children.append(process)
        return process

    def kill(self, machine: str, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Signals a program that was started by `spawn`, and waits until it has ended if the signal is to kill it."""
        self.machine(machine).signal(name, how)
        if how is signal.SIGKILL:
            self.machine(machine).wait_ended(name, timeout_s=20)

    # Links -------------------------------------------------------------------------------------------------------

    def shape_link(self, machine: str, **changes: float) -> None:
        """Changes what a machine's own line does (the names are those of `Shape`), in both directions."""
        ask(self.folder, "link", name=machine, changes=changes)

    def slow(self, source: str, target: str, *, one_way: bool = False, **changes: float) -> None:
        """Changes what happens between two machines; `one_way`: only from `source` to `target`."""
        for start, end in self._directions(source, target, one_way=one_way):
            ask(self.folder, "way", source=start, target=end, changes=changes)

    def cut(self, source: str, target: str, *, one_way: bool = False) -> None:
        """Nothing passes between two machines any more; `one_way`: only from `source` to `target`."""
        for start, end in self._directions(source, target, one_way=one_way):
            ask(self.folder, "cut", source=start, target=end, is_cut=True)

    def restore(self, source: str, target: str, *, one_way: bool = False) -> None:
        """Ends a cut."""
        for start, end in self._directions(source, target, one_way=one_way):
            ask(self.folder, "cut", source=start, target=end, is_cut=False)

    def isolate(self, machine: str) -> None:
        """Cuts a machine off from all others."""
        for other in self._others(machine):
            self.cut(machine, other)

    def reconnect(self, machine: str) -> None:
        """Ends all cuts around a machine."""
        for other in self._others(machine):
            self.restore(machine, other)

    def internet(self) -> dict[str, Any]:
        """All links, cuts and counts."""
        return ask(self.folder, "status")

    # Faults ------------------------------------------------------------------------------------------------------

    def turn_off(self, machine: str) -> None:
        """Pulls a machine's plug. What it had on disk stays, and what was set for its line and ways."""
        self.machine(machine).turn_off()
        with suppress(LabRefused):
            ask(self.folder, "detach", name=machine)

    def turn_on(self, machine: str) -> None:
        """Turns a machine on again, with its engine and what that restarts by itself."""
        with suppress(LabRefused):
            ask(self.folder, "detach", name=machine)
        self._connect(self._place(machine), None)
        if self._place(machine).has_engine:
            self.start_engines(machine)

    def kill_engine(self, machine: str) -> None:
        """Kills a machine's Docker daemon; containers go on until `start_engine`, which ends them."""
        self.engine(machine).kill()

    def start_engine(self, machine: str) -> None:
        """Starts a machine's Docker daemon again."""
        self.engine(machine).start()

    def kill_container(self, machine: str, pattern: str, how: signal.Signals = signal.SIGKILL) -> list[str]:
        """Signals the containers of a machine that fit a pattern (as in file names); returns their names."""
        return self.engine(machine).kill_containers(pattern, how)

    def kill_control_plane(self) -> None:
        """Kills `corral serve`, and the PostgreSQL that it started."""
        self.turn_off(CONTROL)

    def stop_control_plane(self) -> None:
        """Ends `corral serve` in order."""
        self.machine(CONTROL).signal(_SERVE, signal.SIGTERM)
        if not self.machine(CONTROL).wait_ended(_SERVE, timeout_s=60):
            raise LabFailed("the control plane does not end")

    # The network of Corral ---------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where everybody reaches the control plane."""
        return f"https://{self._place(CONTROL).outer}:{PORT}"

    def start_control_plane(self) -> None:
        """Starts `corral serve` in a machine of its own, the first time with its operator; waits until it answers."""
        machine = self.machine(CONTROL) if CONTROL in self.places else self.add_machine(CONTROL, owner=OPERATOR)
        if not machine.is_on:
            self.turn_on(CONTROL)
        data = machine.folder / "data"
        images = machine.folder / "images.json"
        corral = str(corral_program())
        key = ""
        if not data.exists():
            images.write_text(json.dumps(dict(self.images)))
            said = machine.run([corral, "serve", "init", "--data-dir", str(data), "--operator", OPERATOR, "--json"])
            key = json.loads(said)["key"]
        command = [corral, "serve", "--data-dir", str(data), "--images", str(images), "--public-url", self.url]
        command += ["--bind", f"{self._place(CONTROL).outer}:{PORT}"]
        self.spawn(CONTROL, command, name=_SERVE)
        wait = [sys.executable, "-ISB", "-c", _WAIT_READY, f"{self.url}/readyz", f"{READY_TIMEOUT_S:g}"]
        try:
            machine.run(wait, timeout_s=READY_TIMEOUT_S + 10)
        except LabFailed as error:
            raise LabFailed(f"the control plane is not ready: {error.message}\n{machine.log_end(_SERVE)}") from error
        if key:
            self.sign_in(OPERATOR, key)

    def sign_in(self, person: str, key: str) -> None:
        """Gives a person a configuration with this key."""
        self.home(person).folder.mkdir(parents=True, exist_ok=True)
        self.corral(person, "login", "--url", self.url, "--ca-sha256", self.ca_sha256(), standard_input=key)

    def sign_up(self, person: str) -> None:
        """A new person, as `corral signup` makes her, at her machine."""
        self.home(person).folder.mkdir(parents=True, exist_ok=True)
        self.corral(person, "signup", person, "--url", self.url, "--ca-sha256", self.ca_sha256())

    def ca_sha256(self) -> str:
        """Fingerprint of the control plane's own CA, as its operator would publish it."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        pem = next((self.machine(CONTROL).folder / "data").rglob("ca.pem")).read_bytes()
        return x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()

    def join(self, machine: str, *, person: str = "", role: str = "host", cores: float, memory_gib: float) -> None:
        """
        A machine joins as a host of a person, or as the gateway, by the command that people type.

        Args:
            machine: also the host's name.
            person: whose host it will be; else the machine's owner.
            role: `host` or `gateway`.
            cores: to lend.
            memory_gib: to lend.
        """
        person = person or self._place(machine).owner
        # All machines of the lab see all cores: each lends a development slice, so that together they fit.
        words = ["host", "join", "--run", "--name", machine, "--development", "--slice", machine]
        words += ["--cores", f"{cores:g}", "--memory", f"{memory_gib:g}"]
        if role == "gateway":
            words += ["--role", "gateway", "--gateway-bind", f"127.0.0.1:{GATEWAY_PORT}"]
        self.corral(person, *words, at=machine)

    def add_relay(self, name: str) -> None:
        """A machine with a public address joins as a relay of the operator, by the commands that people type."""
        machine = self.add_machine(name)
        line = self.json(OPERATOR, "host", "join", "--role", "relay", "--name", name)["line"]
        token, command = line.removeprefix("printf %s ").split(" | ")
        secret = machine.folder / "token"
        secret.touch(mode=0o600)
        secret.write_text(token)
        enrol = [str(corral_program()), *shlex.split(command)[1:], *self._relay_words(name)]
        self.spawn(name, ["/bin/sh", "-c", f"exec {shlex.join(enrol)} < {shlex.quote(str(secret))}"], name=_RELAY)

    def start_relay(self, name: str) -> None:
        """Starts a relay again that was killed."""
        self.spawn(name, [str(corral_program()), "relay", *self._relay_words(name)], name=_RELAY)

    def kill_relay(self, name: str) -> None:
        """Kills a relay's process."""
        self.kill(name, _RELAY)

    def _relay_words(self, name: str) -> list[str]:
        return ["--data-dir", str(self.machine(name).folder / "relay"), "--address", self._place(name).outer]

    def furnish(
        self,
        *,
        hosts: int = 3,
        nat: NatKind | Sequence[NatKind] = NatKind.none,
        shape: Shape = PLAIN,
        relays: int = 0,
        behind: Mapping[str, str] | None = None,
    ) -> None:
        """
        The whole network: control plane, hosts of as many providers, a gateway, and a renter with credit.

        Args:
            hosts: how many; their providers are the first of `PROVIDERS`, and each machine has its provider's name.
            nat: of the hosts, one for all or one for each.
            shape: of the hosts' lines.
            relays: how many, each on a machine of its own.
            behind: by host: an earlier one whose router and LAN it shares.
        """
        if not 1 <= hosts <= len(PROVIDERS):
            raise LabRefused(f"a lab has 1 to {len(PROVIDERS)} hosts, not {hosts}; nothing was started")
        kinds = [nat] * hosts if isinstance(nat, NatKind) else list(nat)
        if len(kinds) != hosts:
            raise LabRefused(f"{len(kinds)} kinds of NAT were given for {hosts} hosts; nothing was started")
        providers = PROVIDERS[:hosts]
        self.add_machine(CONTROL, owner=OPERATOR)
        self.add_machine(GATE, has_engine=True)
        for provider, kind in zip(providers, kinds, strict=True):
            shared = (behind or {}).get(provider, "")
            self.add_machine(provider, nat=kind, shape=shape, has_engine=True, owner=provider, behind=shared)
        self.add_machine(RENTER, nat=NatKind.cone, owner=RENTER)
        cores, memory_gib = slice_size()
        with ThreadPoolExecutor(2) as pool:
            engines = pool.submit(self.start_engines, GATE, *providers)
            self.start_control_plane()
            list(pool.map(self.sign_up, (RENTER, *providers)))
            engines.result()
            self.corral(OPERATOR, "credit", "add", RENTER, "1000")
            for number in range(relays):
                self.add_relay(f"relay-{number + 1}")
            joins = [
                pool.submit(self.join, GATE, person=OPERATOR, role="gateway", cores=0.1, memory_gib=0.5),
                *(pool.submit(self.join, name, cores=cores, memory_gib=memory_gib) for name in providers),
            ]
            for join in joins:
                join.result()
        self.open_gateway(RENTER)

    def wait_until_idle(self, *, timeout_s: float) -> bool:
        """Whether, within `timeout_s`, no container of a node or a leaf is left on any engine."""
        deadline = time.monotonic() + timeout_s
        engines = [self.engine(place.name) for place in self.places.values() if place.has_engine]
        while any(engine.containers(NODES) for engine in engines):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def open_gateway(self, machine: str) -> None:
        """Lets a machine reach the gateway's loopback address as its own, through tunnels over the lab's internet."""
        tunnel = [sys.executable, "-m", "corral.testing.lab.tunnel"]
        far = f"{self._place(GATE).outer}:{GATEWAY_FAR_PORT}"
        near = f"127.0.0.1:{GATEWAY_PORT}"
        if not self.machine(GATE).runs("tunnel"):
            self.spawn(GATE, [*tunnel, far, near], name="tunnel")
        self.spawn(machine, [*tunnel, near, far], name="tunnel")

    def home(self, person: str) -> PersonHome:
        """
        A person's configuration; her programs run with its `environment`.

        Raises:
            LabRefused: nobody of this name sits anywhere.
        """
        if person not in self.people:
            raise LabRefused(f"there is no {person} here", hint=f"there are {', '.join(sorted(self.people))}")
        return PersonHome(person, self.folder / "people" / person)

    def environment(self, person: str) -> dict[str, str]:
        """The process environment in which this person's programs run."""
        own = {name: value for name, value in self.home(person).environment().items() if not name.startswith("DOCKER_")}
        return own | {"PATH": f"{corral_program().parent}:{own.get('PATH', os.defpath)}"}

    def corral(self, person: str, *arguments: str, standard_input: str | None = None, at: str = "") -> str:
        """
        Types `corral …` as this person.

        Args:
            person: who types.
            arguments: of `corral`.
            standard_input: what she gives it.
            at: the machine where she types; else where she sits.

        Returns:
            What it printed to its standard output.

        Raises:
            LabFailed: it ended with an error.
        """
        environment = self.environment(person)
        machine = self.machine(at or self.people[person])
        return machine.run([str(corral_program()), *arguments], environment=environment, standard_input=standard_input)

    def json(self, person: str, *arguments: str, at: str = "") -> Any:
        """Types `corral … --json` as this person and reads the answer."""
        return json.loads(self.corral(person, *arguments, "--json", at=at))

    def python(self, person: str, code: str, *arguments: str) -> str:
        """Runs Python code, which may use the SDK, as this person at her machine; returns what it printed."""
        environment = self.environment(person)
        return self.machine(self.people[person]).run([sys.executable, "-c", code, *arguments], environment=environment)

    # ---------------------------------------------------------------------------------------------------------------

    def _start_internet(self) -> None:
        # PostgreSQL does not run as root: its unprivileged user must get through to its own folder below.
        self.folder.chmod(0o711)
        self._save()
        command = [sys.executable, "-m", FORWARDER, str(self.folder), str(self.seed)]
        with (self.folder / "internet.log").open("ab") as log:
            internet = subprocess.Popen(
                command,
                env=plain_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(internet)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not (self.folder / SOCKET_NAME).exists():
            if internet.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "internet.log").read_text(errors="replace")
                raise LabFailed(f"the lab's internet did not start:\n{said[-4000:]}")
            time.sleep(0.005)

    def _place(self, name: str) -> Place:
        found = self.places.get(name)
        if found is None:
            raise LabRefused(f"there is no machine {name}", hint=f"there are {', '.join(sorted(self.places))}")
        return found

    def _others(self, machine: str) -> list[str]:
        self._place(machine)
        return [other for other in self.internet()["machines"] if other != machine]

    def _directions(self, source: str, target: str, *, one_way: bool) -> list[tuple[str, str]]:
        self._place(source)
        self._place(target)
        return [(source, target)] if one_way else [(source, target), (target, source)]

    def _connect(self, place: Place, shape: Shape | None) -> None:
        """Turns a machine on and gives it its device, its address and the way to all others."""
        machine = self.machine(place.name)
        if place.has_engine:
            with self._template() as template:
                # The machine itself keeps the images from being removed, also when we are gone.
                machine.turn_on(keep_open=[template.lock])
        else:
            machine.turn_on()
        ask(
            self.folder,
            "attach",
            name=place.name,
            pid=machine.pid,
            inner=place.inner,
            outer=place.outer,
            nat=place.nat.value,
            shape=asdict(shape) if shape is not None else None,
        )
        commands = f"""
            link set dev {DEVICE} mtu {MTU_BYTES} txqueuelen {RECEIVE_QUEUE_PACKETS}
            addr add {place.inner}/32 dev {DEVICE}
            link set dev {DEVICE} up
            route add default dev {DEVICE} src {place.inner}
        """
        machine.run(["sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6 2>/dev/null || true"])
        lines = "\n".join(line.strip() for line in commands.strip().splitlines())
        machine.run(["ip", "-batch", "-"], standard_input=lines)

    def _template(self) -> Template:
        if self.cache is None or not self.images:
            raise LabRefused("a lab with engines needs the images and a cache folder; nothing was started")
        return Template(self.cache, self.images)

    def _save(self) -> None:
        state = {
            "images": dict(self.images),
            "cache": str(self.cache) if self.cache else "",
            "seed": self.seed,
            "people": self.people,
            "places": [asdict(place) | {"nat": place.nat.value} for place in self.places.values()],
        }
        partial = self.folder / f"{STATE_NAME}.new"
        partial.write_text(json.dumps(state, indent=1))
        partial.replace(self.folder / STATE_NAME)
