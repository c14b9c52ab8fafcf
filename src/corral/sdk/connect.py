"""
This machine as a member of a cluster's mesh: `corral connect NAME`, as root on Linux.

The same program as in every node (`corral.member`) runs here, with interfaces, ports and filter rules of its own, so
that nothing else of the machine changes. Another thread says again and again that the machine is still there, and
fetches and verifies rosters. Without the control plane the mesh goes on as it is.
"""

import base64
import json
import os
import random
import shutil
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from corral.core.errors import CorralError
from corral.member import firewall
from corral.member.commands import Fatal, must, run
from corral.member.mesh import Mesh, Settings
from corral.protocol.addresses import CLUSTER_NETWORKS, SPACE
from corral.protocol.paths import Plane
from corral.protocol.peers import told_of
from corral.protocol.roster import Roster
from corral.sdk import config
from corral.sdk.client import Client, new_id
from corral.sdk.clusters import OVER_STATES
from corral.sdk.errors import (
    CertificateUntrusted,
    ClusterNotReady,
    ClusterOver,
    ConnectUnsupported,
    MeshFailed,
    NetworkTaken,
    Unreachable,
)
from corral.wire import api

RAY_CLIENT_PORT = 10001
PROGRAMS = {"ip": "iproute2", "wg": "wireguard-tools", "nft": "nftables"}
"""What a member needs, and the Debian packages that have it."""
RENEWALS_PER_LAPSE = 4
RETRY_S = 3.0
CLEAR_S, CLEAR_POLL_S = 3.0, 0.02
WATCH_S = 10
PORTS = (20_000, 32_766)
"""Below the ephemeral ports of Linux, so that no other program is given one by chance."""


@dataclass(frozen=True, kw_only=True)
class Connected:
    """The mesh stands and the head answers."""

    cluster: str
    address: str
    """This machine's in the mesh."""
    network: str
    head_address: str
    token_path: str
    """A file with what Ray asks for, readable by its owner alone."""

    @property
    def ray_address(self) -> str:
        """For `ray.init`."""
        return f"ray://{self.head_address}:{RAY_CLIENT_PORT}"


@dataclass(frozen=True)
class Reached:
    """Who answers, whenever that changes."""

    answering: int
    members: int
    relayed: int


@dataclass(frozen=True)
class Away:
    """Whether the control plane answers; the mesh goes on without it, and follows no changes meanwhile."""

    is_away: bool


Told = Connected | Reached | Away


def require_rights(environ: Mapping[str, str] = os.environ) -> None:
    """
    Makes sure that this process may change the network, and has what it needs.

    Raises:
        ConnectUnsupported: it is not Linux, not root, or a program is missing.
    """
    others = "`corral connect NAME --forward 8265` needs no rights"
    if sys.platform != "linux":
        raise ConnectUnsupported(
            "a machine joins a mesh on Linux alone; nothing was changed", hint=others, platform=sys.platform
        )
    if os.geteuid() != 0:
        raise ConnectUnsupported(
            "only root may make network interfaces; nothing was changed",
            hint=f"`sudo env HOME=$HOME PATH=$PATH corral connect NAME`; {others}",
        )
    path = environ.get("PATH", os.defpath)
    missing = {name: package for name, package in PROGRAMS.items() if shutil.which(name, path=path) is None}
    if missing:
        raise ConnectUnsupported(
            f"this machine lacks {', '.join(sorted(missing))}; nothing was changed",
            hint=f"apt-get install {' '.join(sorted(missing.values()))}; {others}",
        )


def require_wireguard(interface: str) -> None:
    """
    Makes sure that there is a WireGuard, of the kernel or `wireguard-go`.

    Raises:
        ConnectUnsupported: there is neither.
    """
    if run("ip", "link", "add", interface, "type", "wireguard").returncode == 0:
        run("ip", "link", "delete", interface)
        return
    if shutil.which("wireguard-go") is None or not os.path.exists("/dev/net/tun"):
        raise ConnectUnsupported(
            "this kernel has no WireGuard, and wireguard-go or /dev/net/tun is missing; nothing was changed",
            hint="`modprobe wireguard`, or `apt-get install wireguard-go` and `modprobe tun`",
        )


def clear(interfaces: Sequence[str]) -> None:
    """Takes away what a process that was killed has left: interfaces, and wireguard-go, which ends with its own."""
    for interface in interfaces:
        run("ip", "link", "delete", interface)
    sockets = [Path(f"/run/wireguard/{interface}.sock") for interface in interfaces]
    deadline = time.monotonic() + CLEAR_S
    # It removes its socket when it ends: until then a new one would lose its own by that.
    while any(path.exists() for path in sockets) and time.monotonic() < deadline:
        time.sleep(CLEAR_POLL_S)
    for path in sockets:
        path.unlink(missing_ok=True)


def overlapping_route(
    network: IPv4Network, routes: Sequence[Mapping[str, Any]], own: Sequence[str]
) -> Mapping[str, Any] | None:
    """
    A route of this machine that leads into `network`, if there is one.

    Args:
        network: the mesh's.
        routes: as `ip -json route show table all` tells them. The default route leads everywhere and does not count.
        own: interfaces whose routes do not count.
    """
    for route in routes:
        if route.get("dev") in own or route.get("dst") in (None, "default") or route.get("type") == "multicast":
            continue
        with suppress(ValueError):
            if IPv4Network(str(route["dst"])).overlaps(network):
                return route
    return None


def write_token(cluster_id: str, token: str) -> Path:
    """Keeps Ray's token of a cluster for programs of the same person (0600); returns where."""
    path = _folder() / f"{cluster_id}.token"
    config.write_private(path, token)
    return path


def forget_token(cluster_id: str) -> None:
    """Removes it; gone already is fine."""
    (_folder() / f"{cluster_id}.token").unlink(missing_ok=True)


def _folder() -> Path:
    return config.data_dir() / "connect"


class Connection:
    """This machine in the mesh of one cluster, from `run` until it ends."""

    def __init__(self, name: str, tell: Callable[[Told], None], *, make_client: Callable[[], Client] = Client) -> None:
        """
        Changes nothing yet.

        Args:
            name: name or id of the cluster.
            tell: is called with what happens, from two threads.
            make_client: makes a client; two are used at once.
        """
        self._name, self._tell, self._make_client = name, tell, make_client
        self._inbox = _Inbox()
        self._stop = threading.Event()
        self._connected: Connected | None = None
        self._is_told = False
        self._keys = {plane: X25519PrivateKey.generate() for plane in ("direct", "relayed")}
        self._public = {plane: _text(key.public_key().public_bytes_raw()) for plane, key in self._keys.items()}
        self._roster: Roster | None = None

    def run(self) -> None:
        """
        Joins the mesh, and stays in it until an exception ends it (Ctrl-C is one); then leaves nothing behind.

        Raises:
            ConnectUnsupported: this machine cannot do it.
            NetworkTaken: the addresses of the mesh are in use on it.
            ClusterNotReady, ClusterOver: the cluster takes nobody, or has ended.
            MeshFailed: WireGuard or a command failed.
            RosterChainBroken, KeptRostersUnusable: as of `Client.members`.
            ApiError, Unreachable: before the mesh stood.
        """
        require_rights()
        with self._make_client() as client:
            cluster = client.cluster(self._name)
            if cluster.state != "ready":
                raise ClusterNotReady(
                    f"cluster {cluster.name} is {cluster.state}; this machine was not connected", state=cluster.state
                )
            kept = _Kept(cluster.id)
            guest = self._put(client, cluster.id, kept.guest_id)
            try:
                self._be_member(client, cluster, guest, kept)
            finally:
                self._stop.set()
                kept.forget()
                forget_token(cluster.id)
                with suppress(CorralError):
                    # Where nobody hears it, the mesh forgets this machine after a while.
                    client.remove_guest(cluster.id, guest.id)

    def _be_member(self, client: Client, cluster: api.Cluster, guest: api.Guest, kept: "_Kept") -> None:
        network = IPv4Network(guest.network)
        number = (int(network.network_address) - int(SPACE.network_address)) // (
            SPACE.num_addresses // CLUSTER_NETWORKS
        )
        interfaces = (f"corral{number}d", f"corral{number}r")
        table = f"corral_guest_{number}"
        with _alone(number, cluster.name):
            _require_free(network, interfaces)
            clear(interfaces)
            require_wireguard(interfaces[0])
            access = client.ray_access(cluster.id)
            self._connected = Connected(
                cluster=cluster.name,
                address=guest.address,
                network=guest.network,
                head_address=access.head_address,
                token_path=str(write_token(cluster.id, access.token)),
            )
            settings = Settings(
                guest.address, guest.network, "leaf", guest.mtu, _free_port(), (), interfaces=interfaces, outside=""
            )
            follower = threading.Thread(target=self._follow, args=(cluster, guest), daemon=True)
            mesh: Mesh | None = None
            try:
                must("nft", "-f", "-", given=firewall.guest_rules(interfaces, table=table))
                private: dict[Plane, str] = {
                    "direct": _text(self._keys["direct"].private_bytes_raw()),
                    "relayed": _text(self._keys["relayed"].private_bytes_raw()),
                }
                mesh = Mesh(settings, self._inbox, self._hear, private)
                for interface in interfaces:
                    _allow_two_planes(interface)
                follower.start()
                mesh.run()
            except Fatal as error:
                raise MeshFailed(f"this machine is not in the mesh of {cluster.name} any more: {error}") from error
            finally:
                if mesh is not None:
                    mesh.close()
                for interface in interfaces:
                    run("ip", "link", "delete", interface)
                run("nft", "-f", "-", given=firewall.no_rules(table))

    # --- what the member tells ------------------------------------------------------------------------------------

    def _hear(self, kind: str, **fields: Any) -> None:
        """The member's messages; the roster was verified before it was handed over."""
        if kind == "refused":
            raise Fatal(f"roster {fields.get('serial')} was refused: {fields.get('reason')}")
        if kind != "peers" or self._connected is None or self._roster is None:
            return
        answering = set(fields["handshaken"])
        nodes = {member.address for member in self._roster.members if member.kind == "node"}
        self._tell(Reached(len(answering & nodes), len(nodes), len(set(fields["relayed"]) & nodes)))
        if not self._is_told and self._connected.head_address in answering:
            self._is_told = True
            self._tell(self._connected)

    # --- the control plane ----------------------------------------------------------------------------------------

    def _put(self, client: Client, cluster_id: str, guest_id: str) -> api.Guest:
        return client.put_guest(
            cluster_id, guest_id, direct_key=self._public["direct"], relayed_key=self._public["relayed"]
        )

    def _follow(self, cluster: api.Cluster, guest: api.Guest) -> None:
        """Another thread: renews, follows rosters, and ends the member with the cluster."""
        try:
            with self._make_client() as client:
                self._follow_with(client, cluster, guest)
        except Exception as error:  # Whatever it is, the member must not go on with rosters that nobody follows.
            self._inbox.fail(error)

    def _follow_with(self, client: Client, cluster: api.Cluster, guest: api.Guest) -> None:
        version, is_away, renew_at = cluster.version, False, time.monotonic() + guest.lapse_s / RENEWALS_PER_LAPSE
        while not self._stop.is_set():
            try:
                if time.monotonic() >= renew_at:
                    self._put(client, cluster.id, guest.id)
                    renew_at = time.monotonic() + guest.lapse_s / RENEWALS_PER_LAPSE
                self._take(client.roster(cluster.id), guest)
                found = client.cluster_after(cluster.id, version=version, wait_s=WATCH_S)
            except CorralError as error:
                if not _is_absence(error):
                    raise
                if not is_away:
                    is_away = True
                    self._tell(Away(True))
                renew_at = 0.0
                self._stop.wait(RETRY_S)
                continue
            if is_away:
                is_away = False
                self._tell(Away(False))
            version = found.version
            if found.state in OVER_STATES or found.state == "ending":
                raise ClusterOver(f"cluster {found.name} is {found.state}; this machine has left it", state=found.state)

    def _take(self, roster: Roster | None, guest: api.Guest) -> None:
        if roster is None or (self._roster is not None and roster.serial <= self._roster.serial):
            return
        keys = (self._public["direct"], self._public["relayed"])
        own = next((one for one in roster.members if (one.direct_key, one.relayed_key) == keys), None)
        if own is None or own.address != guest.address:
            return  # The next one names this machine.
        self._roster = roster
        self._inbox.put({"type": "roster", "serial": roster.serial, **told_of(roster, own, engine_id=own.engine_id)})


class _Inbox:
    """Messages from the following thread to the member's."""

    def __init__(self) -> None:
        self.is_open = True
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._messages: deque[dict[str, object]] = deque()
        self._error: Exception | None = None

    def fileno(self) -> int:
        return self._read_end

    def put(self, message: dict[str, object]) -> None:
        self._messages.append(message)
        os.write(self._write_end, b".")

    def fail(self, error: Exception) -> None:
        """Ends the member with this error."""
        self._error = error
        os.write(self._write_end, b".")

    def read(self) -> list[dict[str, object]]:
        with suppress(BlockingIOError):
            os.read(self._read_end, 4096)
        if self._error is not None:
            raise self._error
        return [self._messages.popleft() for _ in range(len(self._messages))]


class _Kept:
    """What is kept of a connection while it lasts, so that a crash is followed by the same address."""

    def __init__(self, cluster_id: str) -> None:
        self._path = _folder() / f"{cluster_id}.{socket.gethostname()}"
        try:
            self.guest_id = self._path.read_text().strip()
        except (OSError, UnicodeDecodeError):
            self.guest_id = new_id("gu")
            config.write_private(self._path, self.guest_id + "\n")

    def forget(self) -> None:
        """Nothing is left of it."""
        self._path.unlink(missing_ok=True)


class _alone:
    """
    Holds the only connection to one network on this machine; gone with the process, however it ends.

    Raises:
        NetworkTaken: another process has it.
    """

    def __init__(self, number: int, name: str) -> None:
        self._name, self._place = name, f"\0corral-connect-{number}"

    def __enter__(self) -> None:
        # An abstract address belongs to a network namespace, as interfaces do.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(self._place)
        except OSError as error:
            self._socket.close()
            raise NetworkTaken(
                f"another `corral connect` of this machine uses the addresses of {self._name}; nothing was changed",
                hint="end it first",
            ) from error

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _require_free(network: IPv4Network, own: Sequence[str]) -> None:
    routes = json.loads(must("ip", "-json", "-4", "route", "show", "table", "all") or "[]")
    found = overlapping_route(network, routes, own)
    if found is not None:
        where = f"to {found['dst']}" + (f" through {found['dev']}" if "dev" in found else "")
        raise NetworkTaken(
            f"this machine has a route {where}, which overlaps the mesh's network {network}; nothing was changed",
            hint="take that route (a VPN, a container network) away meanwhile, or use `--forward`",
            network=str(network),
            route=str(found["dst"]),
        )


def _free_port() -> int:
    """A UDP port that is free together with the next one."""
    for _ in range(200):
        port = random.SystemRandom().randrange(*PORTS)
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind(("", port))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(("", port + 1))
                return port
    raise MeshFailed("this machine has no two free UDP ports next to each other; nothing was changed")


def _allow_two_planes(interface: str) -> None:
    """A peer's packets may come over one plane while ours go over the other: the reverse path is checked loosely."""
    with suppress(OSError):
        Path(f"/proc/sys/net/ipv4/conf/{interface}/rp_filter").write_text("2")


def _is_absence(error: CorralError) -> bool:
    return isinstance(error, Unreachable | CertificateUntrusted) or bool(getattr(error, "is_unavailable", False))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
