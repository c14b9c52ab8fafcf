"""The mesh container of a node: firewall first, then WireGuard, then the address, for as long as it runs.

Environment: CORRAL_MESH_ADDRESS, CORRAL_MESH_NETWORK, CORRAL_MESH_ROLE (node or leaf), CORRAL_MESH_MTU and
CORRAL_MESH_PORT. Rosters come in on stdin; the public key, the serial in force and the peers that answered go out on
stdout. The private key is made here at every start and stays in this process and on the stdin of `wg`.
"""

import os
import select
import signal
import subprocess
import sys
import time
from typing import NamedTuple, NoReturn

from corral_program import ControlInput, Malformed, emit, end_as_fatal

from corral_net import firewall
from corral_net.roster import KEEPALIVE_S, Peer, RosterRefused, configuration, is_ipv4, read_roster

INTERFACE = firewall.MESH_INTERFACE
TUN = "/dev/net/tun"
USERSPACE_SOCKET = f"/run/wireguard/{INTERFACE}.sock"
USERSPACE_START_S = 5.0
POLL_SILENT_S = 0.05  # while a peer is expected any moment; handshakes take milliseconds on a LAN
POLL_ABSENT_S = 0.5  # once a peer has been silent for PATIENCE_S: it is away, not late
POLL_QUIET_S = 5.0
PATIENCE_S = 15.0
REPORT_S = 60.0
SESSION_S = 180.0
"""WireGuard drops a session 180 s after its handshake (REJECT_AFTER_TIME); a living one is renewed after 120 s."""
CALL_AGAIN_S, CALL_AGAIN_MAX_S = 0.1, 5.0
ANSWER_FIRST_S = 1.0


class Fatal(Exception):
    """This container cannot do its work; the text says what is missing and what to do about it."""


class Settings(NamedTuple):
    address: str
    network: str
    role: str
    mtu: int
    port: int


class PeerState(NamedTuple):
    """One peer as WireGuard sees it."""

    public_key: str
    handshake_at: int  # seconds since the epoch; 0 is never
    received_bytes: int
    sent_bytes: int


class Call(NamedTuple):
    """The next attempt to reach a peer that has not answered yet."""

    at: float
    wait_s: float  # since the attempt before


def main() -> None:
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        settings = read_settings(dict(os.environ))
        load_firewall(settings)
        userspace = make_interface()
        mesh = Mesh(settings, userspace)
        mesh.run()
    except Fatal as error:
        end_as_fatal(str(error))


def read_settings(environment: dict[str, str]) -> Settings:
    """Settings of this node.

    Raises:
        Fatal: one is missing or malformed.
    """
    address, network = environment.get("CORRAL_MESH_ADDRESS", ""), environment.get("CORRAL_MESH_NETWORK", "")
    role = environment.get("CORRAL_MESH_ROLE", "")
    mtu, port = environment.get("CORRAL_MESH_MTU", "1280"), environment.get("CORRAL_MESH_PORT", "51820")
    base, _, length = network.partition("/")
    if not is_ipv4(address):
        raise Fatal(f"CORRAL_MESH_ADDRESS is not an IPv4 address: {address!r}")
    if not is_ipv4(base) or not length.isdigit() or not 8 <= int(length) <= 30:
        raise Fatal(f"CORRAL_MESH_NETWORK is not an IPv4 network: {network!r}")
    if role not in ("node", "leaf"):
        raise Fatal(f"CORRAL_MESH_ROLE is neither node nor leaf: {role!r}")
    if not mtu.isdigit() or not 576 <= int(mtu) <= 65535 or not port.isdigit() or not 0 < int(port) < 65536:
        raise Fatal(f"CORRAL_MESH_MTU or CORRAL_MESH_PORT is out of range: {mtu!r}, {port!r}")
    return Settings(address, network, role, int(mtu), int(port))


def load_firewall(settings: Settings) -> None:
    """Close the namespace. Nothing listens yet, and the mesh address does not exist.

    Raises:
        Fatal: the rules could not be loaded.
    """
    done = _run("nft", "-f", "-", given=firewall.rules(settings.role, port=settings.port))
    if done.returncode == 0:
        return
    if "not permitted" in done.stderr:
        raise Fatal("the firewall was not loaded: this container lacks NET_ADMIN; create it with `--cap-add NET_ADMIN`")
    raise Fatal(f"the firewall was not loaded; the host's kernel needs nf_tables (`modprobe nf_tables`): {_last(done)}")


def make_interface() -> "subprocess.Popen[bytes] | None":
    """A fresh WireGuard interface, still without key, address and peers.

    Returns:
        The process of wireguard-go, or None where the kernel has WireGuard itself.

    Raises:
        Fatal: neither works here.
    """
    _run("ip", "link", "delete", INTERFACE)  # left by the kernel's own kind when this container was restarted
    if _run("ip", "link", "add", INTERFACE, "type", "wireguard").returncode == 0:
        return None
    if not os.path.exists(TUN):
        raise Fatal(
            f"the kernel has no WireGuard module and {TUN} does not exist here; create the container with "
            f"`--device {TUN}` (where the host lacks it too: `modprobe tun`)"
        )
    process = subprocess.Popen(("wireguard-go", "-f", INTERFACE), stdin=subprocess.DEVNULL, stdout=sys.stderr)
    deadline = time.monotonic() + USERSPACE_START_S
    while not os.path.exists(USERSPACE_SOCKET):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Fatal(
                f"wireguard-go did not start (status {process.returncode}); it needs NET_ADMIN, read and write access "
                f"to {TUN} and a writable /run; its own message is on stderr"
            )
        time.sleep(0.005)
    return process


class Mesh:
    """One WireGuard interface, kept at the newest roster."""

    def __init__(self, settings: Settings, userspace: "subprocess.Popen[bytes] | None") -> None:
        self._settings = settings
        self._userspace = userspace
        self._private_key = _must("wg", "genkey").strip()
        self._public_key = _must("wg", "pubkey", given=self._private_key).strip()
        self._serial: int | None = None
        self._peers: dict[str, Peer] = {}
        self._calls: dict[str, Call] = {}  # by key; only peers that never answered
        self._calling: set[str] = set()  # peers with a keepalive: WireGuard begins with them by itself
        self._handshaken: tuple[str, ...] = ()
        self._configured_at = self._reported_at = self._observed_at = 0.0
        self._input = ControlInput()

    def run(self) -> NoReturn:
        """Serve until SIGTERM.

        Raises:
            Fatal: wireguard-go died, or a command that must work failed.
        """
        self._say_key()
        poll = select.poll()
        poll.register(self._input, select.POLLIN)
        while True:
            timeout_s = (
                None if self._serial is None else max(0.0, self._observed_at + self._pause_s() - time.monotonic())
            )
            if self._userspace is not None:
                timeout_s = min(timeout_s or POLL_QUIET_S, POLL_QUIET_S)
            if not self._input.is_open and timeout_s is None:
                timeout_s = POLL_QUIET_S
            if poll.poll(None if timeout_s is None else timeout_s * 1000):
                for message in self._input.read():
                    self._obey(message)
                if not self._input.is_open:
                    poll.unregister(self._input)
            if self._userspace is not None and self._userspace.poll() is not None:
                raise Fatal(f"wireguard-go ended with status {self._userspace.returncode}; its message is on stderr")
            if self._serial is not None and time.monotonic() >= self._observed_at + self._pause_s():
                self._observe()

    def _obey(self, message: "dict[str, object] | Malformed") -> None:
        if isinstance(message, Malformed):
            emit("refused", serial=None, reason=str(message))
        elif message.get("type") == "hello":
            self._say_key()
            if self._serial is not None:
                emit("configured", serial=self._serial)
                self._reported_at = 0.0
                self._observe()
        elif message.get("type") == "roster":
            try:
                serial, peers = read_roster(
                    message, own_address=self._settings.address, serial_min=-1 if self._serial is None else self._serial
                )
            except RosterRefused as refused:
                emit("refused", serial=message.get("serial"), reason=str(refused))
            else:
                self._apply(serial, peers)
        else:
            emit("refused", serial=None, reason="the type is neither roster nor hello")

    def _apply(self, serial: int, peers: tuple[Peer, ...]) -> None:
        settings = self._settings
        others = tuple(peer for peer in peers if peer.public_key != self._public_key)
        now = time.monotonic()
        added = {peer.public_key for peer in others} - self._peers.keys()
        self._calling = (self._calling & {peer.public_key for peer in others}) | {
            key for key in added if self._public_key < key
        }
        text = configuration(
            self._private_key, port=settings.port, mark=firewall.FIREWALL_MARK, peers=others, calling=self._calling
        )
        _must("wg", "syncconf", INTERFACE, "/dev/stdin", given=text)
        if self._serial is None:
            # The address comes last: whoever waits for it finds the firewall closed and the peers known.
            commands = (
                f"address replace {settings.address}/32 dev {INTERFACE}\n"
                f"link set {INTERFACE} mtu {settings.mtu} up\n"
                f"route replace {settings.network} dev {INTERFACE} src {settings.address}\n"
            )
            _must("ip", "-batch", "-", given=commands)
        self._peers = {peer.public_key: peer for peer in others}
        self._serial, self._configured_at = serial, now
        self._calls = {key: call for key, call in self._calls.items() if key in self._peers}
        for key in added:
            wait_s = CALL_AGAIN_S if key in self._calling else ANSWER_FIRST_S
            self._calls[key] = Call(now + wait_s, wait_s)
        emit("configured", serial=serial)
        self._reported_at = 0.0  # said anew for each roster: the same addresses may be other members now
        self._observe()

    def _pause_s(self) -> float:
        if len(self._handshaken) == len(self._peers):
            return POLL_QUIET_S
        return POLL_SILENT_S if time.monotonic() < self._configured_at + PATIENCE_S else POLL_ABSENT_S

    def _observe(self) -> None:
        now, wall = time.monotonic(), time.time()
        states = read_dump(_must("wg", "show", INTERFACE, "dump"))
        self._observed_at = now
        answered = {state.public_key for state in states if state.handshake_at}
        self._keep_open(sorted(answered & self._calls.keys()))
        self._call_again([key for key, call in self._calls.items() if now >= call.at], now)
        alive = {state.public_key for state in states if state.handshake_at and wall - state.handshake_at < SESSION_S}
        handshaken = tuple(sorted(peer.address for key, peer in self._peers.items() if key in alive))
        if handshaken != self._handshaken or now >= self._reported_at + REPORT_S or not self._reported_at:
            self._handshaken, self._reported_at = handshaken, now
            received = sum(state.received_bytes for state in states)
            sent = sum(state.sent_bytes for state in states)
            emit("peers", handshaken=list(handshaken), bytes={"rx": received, "tx": sent})

    def _keep_open(self, keys: list[str]) -> None:
        """Peers answered for the first time: from now on both ends keep the path open."""
        for key in keys:
            del self._calls[key]
        if quiet := [key for key in keys if key not in self._calling]:
            self._set_peers([("peer", key, "persistent-keepalive", str(KEEPALIVE_S)) for key in quiet])
            self._calling.update(quiet)

    def _call_again(self, keys: list[str], now: float) -> None:
        """Make WireGuard begin its handshake with silent peers anew, at once.

        After an initiation it stays quiet for 5 s, whatever packets come. But an initiation to a peer that is not up
        yet is lost, and two that cross on the wire cancel each other. So of a pair only the lower key calls at first,
        and often; the other end begins only when that has failed for a second. A peer that is taken out and put back
        starts from nothing.
        """
        reachable = [peer for key in keys if (peer := self._peers[key]).endpoint is not None]
        if reachable:
            self._set_peers([("peer", peer.public_key, "remove") for peer in reachable])
            keepalive = ("persistent-keepalive", str(KEEPALIVE_S))
            self._set_peers(
                [
                    (
                        "peer",
                        peer.public_key,
                        "allowed-ips",
                        f"{peer.address}/32",
                        "endpoint",
                        str(peer.endpoint),
                        *keepalive,
                    )
                    for peer in reachable
                ]
            )
            self._calling.update(peer.public_key for peer in reachable)
        for key in keys:
            wait_s = min(2 * self._calls[key].wait_s, CALL_AGAIN_MAX_S)
            self._calls[key] = Call(now + wait_s, wait_s)

    def _set_peers(self, changes: "list[tuple[str, ...]]") -> None:
        for start in range(0, len(changes), 256):  # a command line has a bound
            words = [word for change in changes[start : start + 256] for word in change]
            _must("wg", "set", INTERFACE, *words)

    def _say_key(self) -> None:
        implementation = "kernel" if self._userspace is None else "wireguard-go"
        emit("key", public_key=self._public_key, implementation=implementation)


def read_dump(text: str) -> list[PeerState]:
    """Peers in the output of `wg show INTERFACE dump`, whose first line is the interface with its private key."""
    fields = (line.split("\t") for line in text.splitlines()[1:])
    # public key, preshared key, endpoint, allowed IPs, latest handshake, received, sent, keepalive
    return [PeerState(peer[0], int(peer[4]), int(peer[5]), int(peer[6])) for peer in fields if len(peer) == 8]


def _run(*command: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise Fatal(f"{command[0]} is not in this image; it is not corral-net") from None
    except subprocess.TimeoutExpired:
        raise Fatal(f"{command[0]} did not answer within 30 s") from None


def _must(*command: str, given: str = "") -> str:
    done = _run(*command, given=given)
    if done.returncode != 0:
        raise Fatal(f"`{' '.join(command[:2])}` failed with status {done.returncode}: {_last(done)}")
    return done.stdout


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else "no message"


def _end(*_: object) -> NoReturn:
    os._exit(0)
