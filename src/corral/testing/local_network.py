"""
A whole network on this machine: control plane, hosts of several owners as slices of one engine, and a gateway.

Everything is real: the processes are started by the same commands that people type, each person with a configuration of
her own. The demo, the end-to-end tests and the benchmarks stand on it. What it makes it removes, and nothing else; with
a state file even a later process can, however the one that made it ended.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from corral.core.errors import CorralError
from corral.sdk import Client, config

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
BOOKABLE_TIMEOUT_S = 180
COMMAND_TIMEOUT_S = 300
SETTLE_S = 10.0
"""The engine takes namespaces away some time after their containers: what is left is what stays longer than this."""

PROVIDERS = ("ada", "ben", "cleo")
PORT_FIRST, PORT_LAST = 20_000, 32_767
"""Below the ephemeral range of Linux: nobody gets such a port by chance between our choice and our use of it."""
PORT_ATTEMPTS = 5
PORT_TRIES = 1000

_NAMED_NAMESPACES = ("/run/netns/", "/run/docker/netns/")
_given_ports: set[int] = set()
_random = random.SystemRandom()


class LocalNetworkFailed(Exception):
    """A part of the local network did not do what it should; the message ends with what it printed."""


class PortInUse(LocalNetworkFailed):
    """Another program listens where a part of the local network should."""

    def __init__(self, port: int, part: str) -> None:
        super().__init__(f"port {port} is in use; {part} was not started (`ss -ltnp 'sport = :{port}'` tells by whom)")
        self.port = port


@dataclass(frozen=True)
class PersonHome:
    """One person on this machine: a name, and the folder with her configuration and key."""

    name: str
    folder: Path

    def environment(self) -> dict[str, str]:
        """The process environment in which `corral` acts for this person."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}
        own = {"XDG_CONFIG_HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder / "data"), "COLUMNS": "110"}
        return kept | own


@dataclass
class LocalNetwork:
    """
    Starts and ends the parts. Use as a context manager, or call `stop`.

    Args:
        images: name to digest, as `scripts/setup` wrote them.
        folder: everything that is written goes here; it is removed at the end. Empty: a new temporary folder.
        port: of the control plane; 0 takes a free one.
        gateway_port: of the gateway; 0 takes a free one.
        prefix: of the names of slices and containers, so that two networks on one engine stay apart.
        settings: the control plane's, other than its defaults: name, as in `ServerSettings`, to value.
        state_file: where to note what exists, for `load`; whoever has ended the network removes it.
    """

    images: Mapping[str, str]
    folder: Path | None = None
    port: int = 0
    gateway_port: int = 0
    prefix: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    state_file: Path | None = None
    people: dict[str, PersonHome] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    """Host name to slice name."""
    server: subprocess.Popen[bytes] | None = None
    _labels: set[str] = field(default_factory=set[str])
    """Labels of all hosts that ever joined: what they left can be found when their agents are gone."""
    _sandboxes: set[str] = field(default_factory=set[str])
    """Network namespaces of containers that were seen."""
    _folders: set[str] = field(default_factory=set[str])
    """All that the control plane may have written to."""
    _before: tuple[set[str], set[str]] | None = None
    """Networks of the engine and namespaces with a name, as they were when this process started the network."""
    _is_port_ours: bool = False
    """Whether another port will do as well."""

    def __post_init__(self) -> None:
        """Chooses what was left open."""
        self.prefix = self.prefix or f"t{secrets.token_hex(3)}"
        self.folder = self.folder or Path(tempfile.mkdtemp(prefix="corral-network-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        # PostgreSQL does not run as root: its unprivileged user must get through to its own folder below.
        self.folder.chmod(0o711)
        self._is_port_ours = self.port == 0
        self.port = self.port or free_port()
        self.gateway_port = self.gateway_port or free_port()
        self._folders.add(str(self.folder))
        self._save()

    @classmethod
    def load(cls, state_file: Path) -> "LocalNetwork | None":
        """
        The network that another process noted in `state_file`, to go on with it or to end it; None if there is none.

        Raises:
            LocalNetworkFailed: the file is not one that we wrote.
        """
        try:
            state = json.loads(state_file.read_text())
            found = cls(
                images=state["images"],
                folder=Path(state["folder"]),
                port=int(state["port"]),
                gateway_port=int(state["gateway_port"]),
                prefix=state["prefix"],
                settings=state["settings"],
                hosts=state["hosts"],
            )
            found._labels, found._sandboxes = set(state["labels"]), set(state["sandboxes"])
            found._folders |= set(state["folders"])
            people = [str(name) for name in state["people"]]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise LocalNetworkFailed(
                f"{state_file} cannot be read ({type(error).__name__}: {error}); nothing was ended. Remove by hand "
                f"what `docker ps -a --filter name=corral-` and `ps -ef | grep 'corral serve'` show, then this file"
            ) from None
        found.people = {name: PersonHome(name, found._folder / "people" / name) for name in people}
        found.state_file = state_file
        return found

    def __enter__(self) -> "LocalNetwork":
        """Starts the control plane and its operator."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends everything."""
        self.stop()

    @property
    def url(self) -> str:
        """Where people reach the control plane."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def log_file(self) -> Path:
        """What the control plane prints."""
        return self._folder / "serve.log"

    @property
    def _folder(self) -> Path:
        assert self.folder is not None
        return self.folder

    def start(self) -> PersonHome:
        """
        Makes the operator and starts the control plane; returns the operator once it answers.

        Raises:
            PortInUse: somebody listens on a port that was asked for; nothing was started.
            LocalNetworkFailed: containers under this network's names are here already, or a part does not start.
        """
        self._before = _engine_networks(), _namespaces()
        if others := _containers("", name=f"corral-agent-{self.prefix}-"):
            raise LocalNetworkFailed(
                f"another network's agents have the names of this one's; nothing was started. End that network, or "
                f"remove them: docker rm -f -v {' '.join(others)}"
            )
        self._require_free(self.gateway_port, "the gateway")
        if not self._is_port_ours:
            self._require_free(self.port, "the control plane")
        (self._folder / "images.json").write_text(json.dumps(dict(self.images)))
        operator_key = run_corral(
            ["serve", "init", "--data-dir", str(self._folder / "data"), "--operator", "operator", "--json"],
            environment=self._server_environment(),
        )
        for attempt in range(PORT_ATTEMPTS):
            try:
                self._serve()
                break
            except PortInUse:
                if not self._is_port_ours or attempt + 1 == PORT_ATTEMPTS:
                    raise
                self.port = free_port()
        return self.sign_in("operator", json.loads(operator_key)["key"])

    def restart_control_plane(self, *, kill: bool = False) -> None:
        """Stops the control plane (or kills it) and starts it again on the same data."""
        self._stop_server(signal.SIGKILL if kill else signal.SIGTERM)
        self._serve()

    def sign_in(self, name: str, secret: str) -> PersonHome:
        """Gives a person of this name a configuration with this key."""
        person = self._person(name)
        self.corral(person, "login", "--url", self.url, "--ca-sha256", self.ca_sha256(), standard_input=secret)
        return person

    def sign_up(self, name: str) -> PersonHome:
        """A new person, as `corral signup` makes her."""
        person = self._person(name)
        self.corral(person, "signup", name, "--url", self.url, "--ca-sha256", self.ca_sha256())
        return person

    def ca_sha256(self) -> str:
        """Fingerprint of the control plane's own CA, as its operator would publish it."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        return x509.load_pem_x509_certificate(self._ca_file.read_bytes()).fingerprint(hashes.SHA256()).hex()

    def join_arguments(self, name: str, *, cores: float, memory_gib: float, role: str = "host") -> list[str]:
        """The command with which a slice of this machine joins as a host or as the gateway."""
        arguments = ["host", "join", "--run", "--name", name, "--development", "--slice", f"{self.prefix}-{name}"]
        arguments += ["--cores", f"{cores:g}", "--memory", f"{memory_gib:g}"]
        if role == "gateway":
            arguments += ["--role", "gateway", "--gateway-bind", f"127.0.0.1:{self.gateway_port}"]
        return arguments

    def join(self, owner: PersonHome, name: str, *, cores: float, memory_gib: float, role: str = "host") -> None:
        """A slice of this machine joins as a host or gateway of `owner`."""
        self.expect(name)
        try:
            self.corral(owner, *self.join_arguments(name, cores=cores, memory_gib=memory_gib, role=role))
        finally:
            self.note()

    def expect(self, name: str) -> None:
        """Says that a host of this name is about to join, so that it is found at the end, even if it joins by half."""
        self.hosts[name] = f"{self.prefix}-{name}"
        self._save()

    def note(self) -> None:
        """Notes what exists at this moment, so that it can be looked for when nothing names it any more."""
        ours = self.containers()
        if ours:
            self._sandboxes |= _sandboxes_of(ours)
        self._save()

    def furnish(self) -> PersonHome:
        """
        Three hosts of three providers (ada, ben, cleo) and a gateway join at the same time; a renter gets credit.

        Returns:
            The renter, once a cluster on all three could be booked.
        """
        cores, memory_gib = slice_size()
        operator = self.people["operator"]
        with ThreadPoolExecutor(len(PROVIDERS) + 1) as pool:
            list(pool.map(self.sign_up, PROVIDERS))
            joins = [pool.submit(self.join, operator, "gate", cores=0.1, memory_gib=0.5, role="gateway")]
            for provider in PROVIDERS:
                owner, host = self.people[provider], f"{provider}-host"
                joins.append(pool.submit(self.join, owner, host, cores=cores, memory_gib=memory_gib))
            renter = self.sign_up("rae")
            self.corral(operator, "credit", "add", renter.name, "1000")
            for join in joins:
                join.result()
        self.wait_until_bookable(renter, devices=len(PROVIDERS))
        return renter

    def wait_until_bookable(self, renter: PersonHome, *, devices: int, timeout_s: float = BOOKABLE_TIMEOUT_S) -> None:
        """
        Returns once at least so many devices are offered and a gateway serves.

        Raises:
            LocalNetworkFailed: not within `timeout_s`; the message tells how each host stands.
        """
        deadline = time.monotonic() + timeout_s
        people = [self.people[name] for name in sorted(self.people)]
        with self.client(renter) as client, self.client(self.people["operator"]) as operator:
            while True:
                offered = sum(offer.devices for offer in client.offers().offers)
                gateways = [host.status for host in operator.hosts() if host.role == "gateway"]
                is_served = "idle" in gateways or "hired" in gateways
                if is_served and offered >= devices:
                    return
                if time.monotonic() > deadline:
                    break
                time.sleep(0.2)
        hosts = [host for person in people for host in self.json(person, "host", "list")]
        shown = "; ".join(f"{host['name']} is {host['status']} {host['reason']}".strip() for host in hosts)
        raise LocalNetworkFailed(
            f"{offered} of {devices} devices are offered after {timeout_s:.0f} s, "
            f"and a gateway {'serves' if is_served else 'does not serve'}: {shown or 'there is no host'}"
        )

    def corral(self, person: PersonHome, *arguments: str, standard_input: str | None = None) -> str:
        """
        Types `corral …` as this person.

        Returns:
            What it printed to its standard output.

        Raises:
            LocalNetworkFailed: it ended with an error.
        """
        return run_corral(arguments, environment=person.environment(), standard_input=standard_input)

    def json(self, person: PersonHome, *arguments: str) -> Any:
        """Types `corral … --json` as this person and reads the answer."""
        return json.loads(self.corral(person, *arguments, "--json"))

    def client(self, person: PersonHome) -> Client:
        """A client of the SDK that acts for this person."""
        settings = config.load(config.config_path({"XDG_CONFIG_HOME": str(person.folder)}))
        return Client(self.url, settings.api_key, ca_sha256=self.ca_sha256())

    def end_clusters(self) -> Iterator[str]:
        """
        Ends every cluster of every person, while the control plane is there; yields one line about each.

        What cannot be ended in order (no control plane, no agent) ends with its agents in `stop`.
        """
        for person in self.people.values():
            try:
                with self.client(person) as client:
                    for cluster in client.clusters():
                        client.end(cluster.id)
                        yield f"cluster {cluster.name} of {person.name} has ended"
            except (CorralError, OSError) as error:
                yield f"the clusters of {person.name} end with their agents: {error}"

    def stop(self) -> None:
        """
        Ends agents, nodes and the control plane, and removes every container, volume and file of this network.

        May be called again, and by another process than the one that made the network.
        """
        self._stop_server(signal.SIGTERM)
        self._end_processes()
        self.note()
        self._remove_agents()
        for folder in self._written_folders():
            shutil.rmtree(folder, ignore_errors=True)

    def containers(self) -> list[str]:
        """Names of all containers of this network that exist at this moment."""
        found = {name for label in self._host_labels() for name in _containers(label)}
        return sorted(found | set(_containers("")) & set(self._agent_names()))

    def left_behind(self, *, settle_s: float = SETTLE_S) -> list[str]:
        """
        What still exists of this network after `stop`; should be nothing.

        Containers, volumes, networks, network namespaces, processes and folders. What goes away within `settle_s` does
        not count. Networks and namespaces that nobody knew before count too, unless a container of others uses them.
        """
        deadline = time.monotonic() + settle_s
        while (left := self._left_now()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def _left_now(self) -> list[str]:
        left = [f"container {name}" for name in self.containers()]
        volumes = set(_docker("volume", "ls", "--format", "{{.Name}}").split())
        left += [f"volume {name}" for name in sorted(volumes & set(self._volume_names()))]
        namespaces = _namespaces()
        stray = namespaces & self._sandboxes
        if self._before is not None:
            networks_before, namespaces_before = self._before
            left += [f"network {name}" for name in sorted(_engine_networks() - networks_before) if not _is_used(name)]
            new = namespaces - namespaces_before
            stray |= new - (_sandboxes_of(_containers("")) if new else set())
        left += [f"namespace {path}" for path in sorted(stray)]
        left += [f"process {pid}" for pid in self._processes()]
        return left + [f"folder {folder}" for folder in self._written_folders() if Path(folder).exists()]

    def wait_until_idle(self, *, timeout_s: float) -> bool:
        """Whether, within `timeout_s`, no container of a node or a leaf is left."""
        deadline = time.monotonic() + timeout_s
        while any(name.endswith(("-pause", "-mesh", "-work", "-web")) for name in self.containers()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    @property
    def _ca_file(self) -> Path:
        return self._folder / "data" / "tls" / "ca.pem"

    def _person(self, name: str) -> PersonHome:
        person = self.people[name] = PersonHome(name, self._folder / "people" / name)
        person.folder.mkdir(parents=True, exist_ok=True)
        self._save()
        return person

    def _save(self) -> None:
        if self.state_file is None:
            return
        state = {
            "folder": str(self.folder),
            "port": self.port,
            "gateway_port": self.gateway_port,
            "prefix": self.prefix,
            "images": dict(self.images),
            "settings": dict(self.settings),
            "hosts": dict(self.hosts),
            "people": list(self.people),
            "labels": sorted(self._labels),
            "sandboxes": sorted(self._sandboxes),
            "folders": self._written_folders(),
        }
        partial = self.state_file.with_name(f"{self.state_file.name}.{threading.get_ident()}.tmp")
        partial.write_text(json.dumps(state, indent=2) + "\n")
        partial.replace(self.state_file)

    def _server_environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}
        return kept | {f"CORRAL_{name.upper()}": value for name, value in self.settings.items()}

    def _require_free(self, port: int, part: str) -> None:
        if not all(_can_listen(address, port) for address in ("127.0.0.1", bridge_address())):
            raise PortInUse(port, part)

    def _serve(self) -> None:
        self._require_free(self.port, "the control plane")
        images = self._folder / "images.json"
        command = [str(corral_program()), "serve", "--data-dir", str(self._folder / "data"), "--images", str(images)]
        command += ["--bind", f"127.0.0.1:{self.port}", "--bind", f"{bridge_address()}:{self.port}"]
        with self.log_file.open("ab") as log:
            self.server = subprocess.Popen(
                command, env=self._server_environment(), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self.server.poll() is not None:
                self._require_free(self.port, "the control plane")
                raise LocalNetworkFailed(f"the control plane ended with {self.server.returncode}:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise LocalNetworkFailed(f"the control plane is not ready after {START_TIMEOUT_S} s:\n{self.log_end()}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        """Whether this control plane answers: only it has a certificate of its own CA."""
        try:
            context = ssl.create_default_context(cafile=str(self._ca_file))
            return httpx.get(f"{self.url}/readyz", verify=context, timeout=2).status_code == 200
        except (httpx.HTTPError, OSError):
            return False

    def log_end(self) -> str:
        """The end of what the control plane printed."""
        try:
            return self.log_file.read_text(errors="replace")[-4000:]
        except OSError:
            return ""

    def _stop_server(self, how: signal.Signals) -> None:
        if self.server is None or self.server.poll() is not None:
            return
        self.server.send_signal(how)
        try:
            self.server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait(10)

    def _end_processes(self) -> None:
        """Ends what is no child of ours, or was left by one: a control plane first, it takes its PostgreSQL along."""
        for how, is_all in ((signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGKILL, True)):
            for pid in self._processes() if is_all else self._processes("serve"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while self._processes() if is_all else self._processes("serve"):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)

    def _processes(self, *words: str) -> list[int]:
        """Processes of this machine that were started on this network's folders, and with these words."""
        folders = self._written_folders()
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            is_ours = any(one in ("--data-dir", "-D") for one in arguments) and any(
                argument == folder or argument.startswith(f"{folder}/") for argument in arguments for folder in folders
            )
            if is_ours and all(word in arguments for word in words):
                found.append(int(entry.name))
        return found

    def _written_folders(self) -> list[str]:
        """Our folder, and those elsewhere that the embedded PostgreSQL took because its user could not enter ours."""
        link = self._folder / "data" / "postgres"
        if link.is_symlink():
            self._folders.add(str(link.readlink()))
        for folder in [link, *map(Path, sorted(self._folders))]:
            record = folder / "socket-folder"
            with contextlib.suppress(OSError):
                self._folders.add(record.read_text())
        return sorted(self._folders)

    def _agent_names(self) -> list[str]:
        return [f"corral-agent-{slice_name}" for slice_name in list(self.hosts.values())]

    def _volume_names(self) -> list[str]:
        return [volume for name in self._agent_names() for volume in (name, f"{name}-auth")]

    def _host_labels(self) -> list[str]:
        """The host ids of this network's slices, read from the labels of their agents."""
        names = self._agent_names()
        if names:
            form = '{{ index .Config.Labels "corral.host" }}'
            found = _docker("container", "inspect", "--format", form, *names, check=False).split()
            self._labels |= {f"corral.host={host_id}" for host_id in found}
        return sorted(self._labels)

    def _remove_agents(self) -> None:
        """Removes all containers, the agents' first: an agent would make its nodes anew."""
        ours = self.containers()
        agents = set(self._agent_names())
        for names in ([name for name in ours if name in agents], [name for name in ours if name not in agents]):
            if names:
                _docker("rm", "-f", "-v", *names, check=False)
        if volumes := self._volume_names():
            _docker("volume", "rm", "-f", *volumes, check=False)


def slice_size() -> tuple[float, float]:
    """Cores and GiB of memory of each of three hosts on this machine: disjoint slices that leave a tenth free."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return min(2.0, int(cores * 30) / 100), min(4.0, int(memory_gib * 2.5) / 10)


def corral_program() -> Path:
    """The `corral` of the Python that runs this."""
    return Path(sys.executable).with_name("corral")


def run_corral(arguments: Sequence[str], *, environment: Mapping[str, str], standard_input: str | None = None) -> str:
    """Runs `corral`; raises LocalNetworkFailed with its standard error if it fails or does not end."""
    typed = f"`corral {' '.join(arguments)}`"
    try:
        ended = subprocess.run(
            [str(corral_program()), *arguments],
            env=dict(environment),
            input=standard_input,
            stdin=subprocess.DEVNULL if standard_input is None else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LocalNetworkFailed(f"{typed} did not end within {COMMAND_TIMEOUT_S} s") from None
    if ended.returncode != 0:
        raise LocalNetworkFailed(f"{typed} ended with {ended.returncode}:\n{ended.stderr}{ended.stdout}")
    return ended.stdout


def bridge_address() -> str:
    """The address of the engine's default bridge on this machine: how containers reach it."""
    networks = json.loads(_docker("network", "inspect", "bridge"))
    return networks[0]["IPAM"]["Config"][0].get("Gateway") or "172.17.0.1"


def free_port() -> int:
    """A TCP port on which nobody listens, out of reach of those who take any free one, and not given out before."""
    last = PORT_LAST
    with contextlib.suppress(OSError):
        last = min(last, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) - 1)
    first = PORT_FIRST if last > PORT_FIRST else 1024
    for _ in range(PORT_TRIES):
        port = _random.randint(first, last)
        if port not in _given_ports and _can_listen("", port, reuse=False):
            _given_ports.add(port)
            return port
    raise LocalNetworkFailed(f"of {PORT_TRIES} TCP ports tried from {first} to {last} none is free")


def _can_listen(address: str, port: int, *, reuse: bool = True) -> bool:
    with socket.socket() as probe:
        # Connections of an earlier listener that are still being closed are no obstacle to those who set this too.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _containers(label: str, *, name: str = "") -> list[str]:
    filters = ["--filter", f"label={label}"] if label else []
    filters += ["--filter", f"name=^{name}"] if name else []
    return _docker("ps", "-a", "--format", "{{.Names}}", *filters).split()


def _sandboxes_of(containers: Sequence[str]) -> set[str]:
    """Where the engine keeps the network namespaces of these containers; of those that are gone by now, nothing."""
    shown = _docker("container", "inspect", "--format", "{{.NetworkSettings.SandboxKey}}", *containers, check=False)
    return {os.path.realpath(path) for path in shown.split()} if containers else set()


def _namespaces() -> set[str]:
    """Network namespaces that a name keeps alive: what is mounted, not the empty files that are cleared away later."""
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - nsfs " in line)
    paths = {fields[4] for fields in mounts if fields[4].startswith(_NAMED_NAMESPACES)}
    return paths - {"/run/docker/netns/default"}  # the machine's own, for containers without one of theirs


def _engine_networks() -> set[str]:
    return set(_docker("network", "ls", "--format", "{{.Name}}").split())


def _is_used(network: str) -> bool:
    """Whether a container is on it; one that is gone by now is used no less."""
    return _docker("network", "inspect", "--format", "{{len .Containers}}", network, check=False).strip() != "0"


def _docker(*arguments: str, check: bool = True) -> str:
    try:
        ended = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=False)
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        raise LocalNetworkFailed(f"`docker {' '.join(arguments)}` failed: {error}") from None
    if check and ended.returncode != 0:
        raise LocalNetworkFailed(f"`docker {' '.join(arguments)}` failed: {ended.stderr.strip()}")
    return ended.stdout
