"""
A whole network on this machine: control plane, hosts of several owners as slices of one engine, and a gateway.

Everything is real: the processes are started by the same commands that people type, each person with a configuration of
her own. The demo, the end-to-end tests and the benchmarks stand on it. What it makes it removes, and nothing else.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from corral.sdk import Client, config

START_TIMEOUT_S = 60
PROVIDERS = ("ada", "ben", "cleo")


class LocalNetworkFailed(Exception):
    """A part of the local network did not do what it should; the message ends with what it printed."""


@dataclass(frozen=True)
class PersonHome:
    """One person on this machine: a name, and the folder with her configuration and key."""

    name: str
    folder: Path

    def environment(self) -> dict[str, str]:
        """The process environment in which `corral` acts for this person."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}
        return kept | {"XDG_CONFIG_HOME": str(self.folder), "COLUMNS": "110"}


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
    """

    images: Mapping[str, str]
    folder: Path | None = None
    port: int = 0
    gateway_port: int = 0
    prefix: str = ""
    people: dict[str, PersonHome] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    """Host name to slice name."""
    server: subprocess.Popen[bytes] | None = None
    _labels: set[str] = field(default_factory=set[str])
    """Labels of all hosts that ever joined: what they left can be found when their agents are gone."""

    def __post_init__(self) -> None:
        """Chooses what was left open."""
        self.prefix = self.prefix or f"t{secrets.token_hex(3)}"
        self.folder = self.folder or Path(tempfile.mkdtemp(prefix="corral-network-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        # PostgreSQL does not run as root: its unprivileged user must get through to its own folder below.
        self.folder.chmod(0o711)
        self.port = self.port or free_port()
        self.gateway_port = self.gateway_port or free_port()

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
        """Makes the operator and starts the control plane; returns the operator once it answers."""
        images = self._folder / "images.json"
        images.write_text(json.dumps(dict(self.images)))
        operator_key = run_corral(
            ["serve", "init", "--data-dir", str(self._folder / "data"), "--operator", "operator", "--json"],
            environment=dict(os.environ),
        )
        self._serve(images)
        return self.sign_in("operator", json.loads(operator_key)["key"])

    def restart_control_plane(self, *, kill: bool = False) -> None:
        """Stops the control plane (or kills it) and starts it again on the same data."""
        self._stop_server(signal.SIGKILL if kill else signal.SIGTERM)
        self._serve(self._folder / "images.json")

    def sign_in(self, name: str, secret: str) -> PersonHome:
        """Gives a person of this name a configuration with this key."""
        person = self.people[name] = PersonHome(name, self._folder / "people" / name)
        person.folder.mkdir(parents=True, exist_ok=True)
        self.corral(person, "login", "--url", self.url, "--ca-sha256", self.ca_sha256(), standard_input=secret)
        return person

    def sign_up(self, name: str) -> PersonHome:
        """A new person, as `corral signup` makes her."""
        person = self.people[name] = PersonHome(name, self._folder / "people" / name)
        person.folder.mkdir(parents=True, exist_ok=True)
        self.corral(person, "signup", name, "--url", self.url, "--ca-sha256", self.ca_sha256())
        return person

    def ca_sha256(self) -> str:
        """Fingerprint of the control plane's own CA, as its operator would publish it."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        pem = next((self._folder / "data").rglob("ca.pem")).read_bytes()
        return x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()

    def join_arguments(self, name: str, *, cores: float, memory_gib: float, role: str = "host") -> list[str]:
        """The command with which a slice of this machine joins as a host or as the gateway."""
        arguments = ["host", "join", "--run", "--name", name, "--development", "--slice", f"{self.prefix}-{name}"]
        arguments += ["--cores", f"{cores:g}", "--memory", f"{memory_gib:g}"]
        if role == "gateway":
            arguments += ["--role", "gateway", "--gateway-bind", f"127.0.0.1:{self.gateway_port}"]
        return arguments

    def join(self, owner: PersonHome, name: str, *, cores: float, memory_gib: float, role: str = "host") -> None:
        """A slice of this machine joins as a host or gateway of `owner`."""
        self.hosts[name] = f"{self.prefix}-{name}"
        self.corral(owner, *self.join_arguments(name, cores=cores, memory_gib=memory_gib, role=role))

    def furnish(self) -> PersonHome:
        """
        Three hosts of three providers (ada, ben, cleo) and a gateway join at the same time; a renter gets credit.

        Returns:
            The renter.
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
        return renter

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

    def stop(self) -> None:
        """Ends agents, nodes and the control plane, and removes every container, volume and file of this network."""
        self._remove_agents()
        self._stop_server(signal.SIGTERM)
        shutil.rmtree(self._folder, ignore_errors=True)

    def containers(self) -> list[str]:
        """Names of all containers of this network that exist at this moment."""
        found = {name for label in self._host_labels() for name in _containers(label)}
        return sorted(found | set(_containers("")) & set(self._agent_names()))

    def left_behind(self) -> list[str]:
        """What still exists of this network after `stop`: containers, volumes, the control plane. Should be nothing."""
        volumes = _docker("volume", "ls", "--format", "{{.Name}}").split()
        left = self.containers() + [name for name in volumes if name.startswith(tuple(self._agent_names()))]
        if self.server is not None and self.server.poll() is None:
            left.append(f"process {self.server.pid}")
        return left

    def wait_until_idle(self, *, timeout_s: float) -> bool:
        """Whether, within `timeout_s`, no container of a node or a leaf is left."""
        deadline = time.monotonic() + timeout_s
        while any(name.endswith(("-pause", "-mesh", "-work", "-web")) for name in self.containers()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _serve(self, images: Path) -> None:
        command = [str(corral_program()), "serve", "--data-dir", str(self._folder / "data"), "--images", str(images)]
        command += ["--bind", f"127.0.0.1:{self.port}", "--bind", f"{bridge_address()}:{self.port}"]
        with self.log_file.open("ab") as log:
            self.server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if self.server.poll() is not None:
                raise LocalNetworkFailed(f"the control plane ended with {self.server.returncode}:\n{self.log_end()}")
            try:
                # Only whether it answers is asked here; the certificate is pinned by whoever signs in.
                if httpx.get(f"{self.url}/readyz", verify=False, timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise LocalNetworkFailed(f"the control plane is not ready after {START_TIMEOUT_S} s:\n{self.log_end()}")
            time.sleep(0.05)

    def log_end(self) -> str:
        """The end of what the control plane printed."""
        return self.log_file.read_text(errors="replace")[-4000:]

    def _stop_server(self, how: signal.Signals) -> None:
        if self.server is None or self.server.poll() is not None:
            return
        self.server.send_signal(how)
        try:
            self.server.wait(30)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait(10)

    def _agent_names(self) -> list[str]:
        return [f"corral-agent-{slice_name}" for slice_name in self.hosts.values()]

    def _host_labels(self) -> list[str]:
        """The host ids of this network's slices, read from the labels of their agents."""
        for name in self._agent_names():
            found = _docker(
                "inspect", "--format", '{{ index .Config.Labels "corral.host" }}', name, check=False
            ).strip()
            if found:
                self._labels.add(f"corral.host={found}")
        return sorted(self._labels)

    def _remove_agents(self) -> None:
        labels = self._host_labels()
        agents = [name for name in self._agent_names() if _docker("ps", "-aq", "--filter", f"name=^{name}$").strip()]
        if agents:
            _docker("rm", "-f", "-v", *agents, check=False)
        for label in labels:
            nodes = _containers(label)
            if nodes:
                _docker("rm", "-f", "-v", *nodes, check=False)
        for name in self._agent_names():
            for volume in _docker("volume", "ls", "-q", "--filter", f"name={name}").split():
                _docker("volume", "rm", "-f", volume, check=False)


def slice_size() -> tuple[float, float]:
    """Cores and GiB of memory of each of three hosts on this machine: disjoint slices that leave a tenth free."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return min(2.0, int(cores * 30) / 100), min(4.0, int(memory_gib * 2.5) / 10)


def corral_program() -> Path:
    """The `corral` of the Python that runs this."""
    return Path(sys.executable).with_name("corral")


def run_corral(arguments: Sequence[str], *, environment: Mapping[str, str], standard_input: str | None = None) -> str:
    """Runs `corral`; raises LocalNetworkFailed with its standard error if it fails."""
    ended = subprocess.run(
        [str(corral_program()), *arguments],
        env=dict(environment),
        input=standard_input,
        stdin=subprocess.DEVNULL if standard_input is None else None,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if ended.returncode != 0:
        raise LocalNetworkFailed(
            f"`corral {' '.join(arguments)}` ended with {ended.returncode}:\n{ended.stderr}{ended.stdout}"
        )
    return ended.stdout


def bridge_address() -> str:
    """The address of the engine's default bridge on this machine: how containers reach it."""
    networks = json.loads(_docker("network", "inspect", "bridge"))
    return networks[0]["IPAM"]["Config"][0].get("Gateway") or "172.17.0.1"


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _containers(label: str) -> list[str]:
    filters = ["--filter", f"label={label}"] if label else []
    return _docker("ps", "-a", "--format", "{{.Names}}", *filters).split()


def _docker(*arguments: str, check: bool = True) -> str:
    ended = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=False)
    if check and ended.returncode != 0:
        raise LocalNetworkFailed(f"`docker {' '.join(arguments)}` failed: {ended.stderr.strip()}")
    return ended.stdout
