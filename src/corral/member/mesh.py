"""A member of a mesh: firewall first, then WireGuard, then the address, for as long as it runs.

Environment: CORRAL_MESH_ADDRESS, CORRAL_MESH_NETWORK, CORRAL_MESH_ROLE (node or leaf), CORRAL_MESH_MTU,
CORRAL_MESH_PORT, CORRAL_MESH_CLOSED, addresses that the workload must not reach, CORRAL_MESH_INTERNET (open or closed)
and CORRAL_MESH_INTERNET_CAP, bytes an hour, 0 for no cap. Rosters come in as messages; the public keys, the serial in
force, the peers that answered, those reached through a relay and the traffic go out as messages. The private keys are
made here at every start and stay in this process and on the stdin of `wg`.

There are two planes, `direct` and `relayed`: two WireGuard interfaces with the same peers. Which of them carries the
traffic to a peer is a route, decided here by `paths` from probes inside the tunnels; how large its packets are is
decided by `path_mtu` from padded ones.
"""

import select
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, NoReturn, Protocol

from corral.member import firewall
from corral.member.calling import Calls
from corral.member.commands import Fatal, last_words, must, run
from corral.member.meter import Meter
from corral.member.probes import Prober
from corral.member.roster import Observer, Peer, Roster, RosterRefused, is_ipv4, pin_address, pin_network, read_roster
from corral.member.sizes import Sizes
from corral.member.tunnel import PeerState, Tunnel, TunnelPeer
from corral.protocol.paths import Paths, PeerPlan, Plane, Planes, Route

PLANES: "tuple[Plane, ...]" = ("direct", "relayed")
RELAYED_PORT_STEP = 1
"""The relayed plane listens beside the direct one; that port is never published."""
POLL_SILENT_S = 0.05  # while a peer is expected any moment; handshakes take milliseconds on a LAN
POLL_QUIET_S = 2.0
PATIENCE_S = 15.0  # a peer that was silent for so long is away, not late
POLL_AFTER_CALL_S = (0.1, 0.5)
PROBES_WITHIN_S = 1.0
MIND_SILENCE_S = 0.1
REPORT_S = 60.0
RENEWALS_MAX, RENEWALS_WITHIN_S = 5, 60.0
"""A WireGuard that dies more often than this within this time will not live: then the container ends."""
ENDING_S = 1.0
"""Between the first command that fails because WireGuard is dying, and its end."""
CAP_BYTES_MIN = 1_000_000  # an hour; with less not even a name is looked up in time


class Settings(NamedTuple):
    address: str
    network: str
    role: str
    mtu: int
    port: int
    closed: tuple[str, ...]
    has_internet: bool = True
    cap_bytes: int = 0
    interfaces: "tuple[str, str]" = (firewall.INTERFACES["direct"], firewall.INTERFACES["relayed"])
    """Of the direct plane and of the relayed one."""
    outside: str = firewall.HOST_INTERFACE
    """The interface that WireGuard's packets leave by; empty: it may change, and no larger packets are tried."""

    def interface(self, plane: "Plane") -> str:
        """The interface of a plane."""
        return self.interfaces[PLANES.index(plane)]


class Inbox(Protocol):
    """Where messages come from."""

    is_open: bool

    def fileno(self) -> int:
        """File descriptor that can be read when there are messages."""
        ...

    def read(self) -> "Sequence[dict[str, object] | Exception]":
        """What has arrived, in order; an exception for what was none."""
        ...


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
    if not mtu.isdigit() or not 576 <= int(mtu) <= 65535 or not port.isdigit() or not 0 < int(port) < 65535:
        raise Fatal(f"CORRAL_MESH_MTU or CORRAL_MESH_PORT is out of range: {mtu!r}, {port!r}")
    closed = tuple(dict.fromkeys(one for one in environment.get("CORRAL_MESH_CLOSED", "").split(",") if one))
    if not all(is_ipv4(one) for one in closed):
        raise Fatal(f"CORRAL_MESH_CLOSED has something that is not an IPv4 address: {closed!r}")
    internet = environment.get("CORRAL_MESH_INTERNET", "open")
    if internet not in ("open", "closed"):
        raise Fatal(f"CORRAL_MESH_INTERNET is neither open nor closed: {internet!r}")
    cap = environment.get("CORRAL_MESH_INTERNET_CAP", "0")
    if not (cap.isascii() and cap.isdigit() and len(cap) <= 16) or 0 < int(cap) < CAP_BYTES_MIN:
        raise Fatal(f"CORRAL_MESH_INTERNET_CAP is neither 0 nor at least {CAP_BYTES_MIN} bytes an hour: {cap!r}")
    return Settings(address, network, role, int(mtu), int(port), closed, internet == "open", int(cap))


def load_firewall(settings: Settings) -> None:
    """Close the namespace. Nothing listens yet, and the mesh address does not exist.

    Raises:
        Fatal: the rules could not be loaded.
    """
    rules = firewall.rules(
        settings.role,
        port=settings.port,
        relayed_port=settings.port + RELAYED_PORT_STEP,
        closed=settings.closed,
        has_internet=settings.has_internet,
        cap_bytes=settings.cap_bytes,
    )
    done = run("nft", "-f", "-", given=rules)
    if done.returncode == 0:
        return
    if "not permitted" in done.stderr:
        raise Fatal("the firewall was not loaded: this container lacks NET_ADMIN; create it with `--cap-add NET_ADMIN`")
    raise Fatal(
        f"the firewall was not loaded; the host's kernel needs nf_tables (`modprobe nf_tables`): {last_words(done)}"
    )


class Mesh:
    """Both planes of one member, kept at the newest roster."""

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox,
        emit: "Callable[..., None]",
        private_keys: "dict[Plane, str] | None" = None,
    ) -> None:
        """Makes both interfaces, without addresses.

        Args:
            settings: of this member.
            inbox: rosters come from here.
            emit: is told what happens: a kind, and fields by name.
            private_keys: of both planes, base 64; made here if there are none.

        Raises:
            Fatal: WireGuard does not work here.
        """
        self._settings, self._input, self._emit = settings, inbox, emit
        self._tunnels: dict[Plane, Tunnel] = {
            plane: Tunnel(
                settings.interface(plane),
                port=settings.port + n,
                mark=firewall.FIREWALL_MARK,
                private_key=(private_keys or {}).get(plane),
            )
            for n, plane in enumerate(PLANES)
        }
        self._calls: dict[Plane, Calls] = {plane: Calls(plane) for plane in PLANES}
        self._calling: dict[Plane, set[str]] = {plane: set() for plane in PLANES}
        """Addresses of peers with a keepalive: WireGuard begins with them by itself."""
        self._endpoint_number: dict[tuple[str, Plane], int] = {}
        self._shook_at: dict[tuple[str, Plane], float] = {}
        self._paths = Paths()
        self._sizes = Sizes(settings.mtu, outside=outside_mtu(settings.outside) if settings.outside else 0)
        self._renewals: deque[float] = deque()
        self._generation: dict[Plane, int] = dict.fromkeys(PLANES, 0)
        """How often a plane was renewed: what was known of its paths is not true any more."""
        self._chosen: dict[str, Planes] = {}
        """Planes that carry the traffic to each peer."""
        self._probers: dict[Plane, Prober] = {}
        self._roster: Roster | None = None
        self._peers: dict[str, Peer] = {}
        self._of_pin: dict[str, str] = {}
        self._of_key: dict[str, str] = {}
        self._routes: dict[str, tuple[Planes, int]] = {}
        """Planes and packet size of each peer that has a route of its own."""
        self._handshaken: tuple[str, ...] = ()
        self._meter = Meter()
        self._told: tuple[object, ...] = ()
        self._is_all_there = True
        self._looks: tuple[float, ...] = ()
        self._minded_at = 0.0
        self._configured_at = self._reported_at = self._observed_at = 0.0
        self._poll = select.poll()

    def run(self) -> NoReturn:
        """Serve until SIGTERM.

        Raises:
            Fatal: wireguard-go dies again and again, or a command that must work failed.
        """
        self._say_keys()
        self._poll.register(self._input, select.POLLIN)
        while True:
            try:
                self._renew_ended()
                for descriptor, _ in self._poll.poll(self._timeout_ms()):
                    self._read(descriptor)
                if self._roster is not None:
                    self._work(time.monotonic())
            except Fatal:
                # It may have failed because WireGuard was dying under it.
                if len(self._renewals) > RENEWALS_MAX or not self._is_dying():
                    raise

    def close(self) -> None:
        """Take both interfaces away, with their addresses and routes. Only a member that owns no namespace needs it."""
        for prober in self._probers.values():
            prober.close()
        for tunnel in self._tunnels.values():
            tunnel.close()

    def _timeout_ms(self) -> float:
        if self._roster is None:
            return POLL_QUIET_S * 1000
        at = [self._observe_at(), self._paths.next_at(), self._sizes.next_at()]
        at += [calls.next_at() for calls in self._calls.values()]
        return max(0.0, min(at) - time.monotonic()) * 1000

    def _read(self, descriptor: int) -> None:
        for plane, prober in self._probers.items():
            if prober.fileno() == descriptor:
                self._hear(plane, prober)
                return
        for message in self._input.read():
            self._obey(message)
        if not self._input.is_open:
            self._poll.unregister(self._input)

    def _work(self, now: float) -> None:
        """Everything whose time has come."""
        for probe in self._paths.due(now):
            if not self._calls[probe.plane].may_probe(probe.peer):
                continue
            pin = self._pin(probe.peer, probe.plane)
            state = self._paths.state(probe.peer, now)
            rtt_s = (state.direct if probe.plane == "direct" or state.relayed is None else state.relayed).rtt_s
            self._probers[probe.plane].ask(pin, probe.sequence, rtt_s=rtt_s, interval_s=probe.interval_s)
        self._set_routes(self._paths.decide(now))
        self._sizes.send_due(now, self._probers, self._pin, lambda peer, plane: self._calls[plane].may_probe(peer))
        self._lay(self._sizes.changed())
        if now >= self._minded_at + MIND_SILENCE_S:
            self._mind_silence(now)
        for plane in PLANES:
            self._call_again(plane, now)
        if now >= self._observe_at():
            self._observe(now)

    # --- what comes in ----------------------------------------------------------------------------------------------

    def _obey(self, message: "dict[str, object] | Exception") -> None:
        if isinstance(message, Exception):
            self._emit("refused", serial=None, reason=str(message))
        elif message.get("type") == "hello":
            self._say_keys()
            if self._roster is not None:
                self._emit("configured", serial=self._roster.serial)
                self._told = ()
                self._meter.look(time.monotonic(), is_asked=True)
                self._observe(time.monotonic())
        elif message.get("type") == "roster":
            serial_min = -1 if self._roster is None else self._roster.serial
            try:
                roster = read_roster(message, own_address=self._settings.address, serial_min=serial_min)
            except RosterRefused as refused:
                self._emit("refused", serial=message.get("serial"), reason=str(refused))
            else:
                self._apply(roster)
        else:
            self._emit("refused", serial=None, reason="the type is neither roster nor hello")

    def _hear(self, plane: Plane, prober: Prober) -> None:
        now = time.monotonic()
        for probe in prober.read():
            address = self._of_pin.get(probe.pin)
            if address is None:
                continue
            if probe.size:
                said = {"size": probe.size, "sequence": probe.sequence, "is_reply": probe.is_reply}
                self._sizes.heard(address, plane, **said, now=now)
            elif probe.is_reply:
                self._paths.answered(address, plane, probe.sequence, now)
                self._sizes.lives(address, plane, now)
            elif probe.rtt_s is not None and self._peers[address].is_passive:
                self._paths.heard(address, plane, probe.rtt_s, now, probe.interval_s)

    # --- rosters ----------------------------------------------------------------------------------------------------

    def _apply(self, roster: Roster) -> None:
        now = time.monotonic()
        is_first = self._roster is None
        before, self._roster = self._peers, roster
        own = self._tunnels["direct"].public_key
        self._peers = {peer.address: peer for peer in roster.peers if peer.direct_key != own}
        network = self._settings.network
        self._of_pin = {pin_address(network, address, plane): address for address in self._peers for plane in PLANES}
        self._of_key = {_key(peer, plane): peer.address for peer in self._peers.values() for plane in PLANES}
        for plane in PLANES:
            self._sync(plane, before, roster.observers, now)
        if is_first:
            self._make_addresses()
        self._tell_paths(now)
        for address in self._chosen.keys() - self._peers.keys():
            del self._chosen[address]
        self._lay([*self._routes.keys() - self._peers.keys(), *self._sizes.changed()])
        self._configured_at = now
        self._emit("configured", serial=roster.serial)
        self._told = ()  # said anew for each roster: the same addresses may be other members now
        self._observe(now)

    def _sync(self, plane: Plane, before: "dict[str, Peer]", observers: "tuple[Observer, ...]", now: float) -> None:
        """Bring one plane to the roster; peers with another key than before are called."""
        peers = {address: peer for address, peer in self._peers.items() if plane == "direct" or peer.relays}
        kept = {
            address for address, peer in peers.items() if address in before and _same_on(plane, before[address], peer)
        }
        for address in before.keys() - kept:
            self._calls[plane].end(address)
            self._endpoint_number.pop((address, plane), None)
            self._shook_at.pop((address, plane), None)
        for address in peers:
            if not self._endpoints(address, plane):
                self._calls[plane].end(address)  # Only the peer can open the path now.
        # Without an endpoint WireGuard would try in vain for ever, and each try costs it the arithmetic of a handshake.
        first = {address for address in peers if self._is_caller(address) and self._endpoints(address, plane)}
        self._calling[plane] = (self._calling[plane] & kept) | (first - kept)
        calling = {_key(peers[address], plane) for address in self._calling[plane]}
        tunnel_peers = [self._tunnel_peer(plane, peer) for peer in peers.values()]
        # Whoever answers stays where WireGuard has found it: a NAT may have put it where no roster says.
        met = {address for address in kept if self._has_met(address, plane, now)}
        met_keys = {_key(peers[address], plane) for address in met}
        tunnel_peers = [peer._replace(endpoint=None) if peer.public_key in met_keys else peer for peer in tunnel_peers]
        if plane == "direct":
            # An observer answers nothing: it only sees where our calls come from.
            tunnel_peers += [TunnelPeer(observer.public_key, (), observer.endpoint) for observer in observers]
            calling |= {observer.public_key for observer in observers}
        self._tunnels[plane].sync(tunnel_peers, calling=calling)
        for address in peers.keys() - met:
            self._begin_calling(address, plane, now)

    def _tell_paths(self, now: float) -> None:
        plans = {address: self._plan(peer) for address, peer in self._peers.items()}
        self._paths.set_peers(plans, now)
        # A passive peer accepts no probe, so nothing is known of the way there.
        sizes = {address: _generations(plan) if not plan.passive else {} for address, plan in plans.items()}
        self._sizes.set_peers(sizes, now)

    def _plan(self, peer: Peer) -> PeerPlan:
        relayed = " ".join((str(self._generation["relayed"]), peer.relayed_key, *peer.relays)) if peer.relays else None
        direct = f"{self._generation['direct']} {peer.direct_key}"
        return PeerPlan(direct=direct, relayed=relayed, passive=peer.is_passive)

    # --- renewing ---------------------------------------------------------------------------------------------------

    def _is_dying(self) -> bool:
        """Whether a WireGuard has ended, or does so in a moment: commands fail before its end is seen."""
        deadline = time.monotonic() + ENDING_S
        while not any(tunnel.has_ended() for tunnel in self._tunnels.values()):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SILENT_S)
        return True

    def _renew_ended(self) -> None:
        """Bring planes back whose WireGuard has died.

        Raises:
            Fatal: it dies again and again, or while this is done; then what is left is done at the next turn.
        """
        ended: list[Plane] = [plane for plane in PLANES if self._tunnels[plane].has_ended()]
        if not ended:
            return
        now = time.monotonic()
        self._renewals.append(now)
        while self._renewals[0] < now - RENEWALS_WITHIN_S:
            self._renewals.popleft()
        if len(self._renewals) > RENEWALS_MAX:
            raise Fatal(
                f"wireguard-go ended {len(self._renewals)} times within {RENEWALS_WITHIN_S:.0f} s; its message is on "
                "stderr"
            )
        for plane in ended:
            self._tunnels[plane].restart()
            self._generation[plane] += 1
        if self._roster is not None:
            self._restore(self._roster, ended, now)

    def _restore(self, roster: Roster, renewed: Collection[Plane], now: float) -> None:
        """Everything that goes with an interface is set anew; so is what an interrupted change left half done."""
        self._tell_paths(now)
        for plane in PLANES:
            self._sync(plane, {} if plane in renewed else self._peers, roster.observers, now)
        self._make_addresses()
        self._routes.clear()
        must("ip", "-batch", "-", given="".join(f"route flush {peer}/32\n" for peer in self._peers))
        self._lay(self._peers)
        self._told = ()
        self._emit("configured", serial=roster.serial)

    def _has_met(self, address: str, plane: Plane, now: float) -> bool:
        """Whether a peer answers, or has just shaken hands."""
        just_now = now < self._shook_at.get((address, plane), -PROBES_WITHIN_S) + PROBES_WITHIN_S
        return just_now or self._status(address, plane, now) == "alive"

    def _make_addresses(self) -> None:
        """The addresses come last: whoever waits for them finds the firewall closed and the peers known."""
        address, network, mtu = self._settings.address, self._settings.network, self._settings.mtu
        commands: list[str] = []
        for plane in PLANES:
            interface, pin = self._settings.interface(plane), pin_address(network, address, plane)
            commands += [f"address replace {pin}/32 dev {interface}"]
            commands += [f"link set {interface} mtu {self._sizes.largest} up"]
            commands += [f"route replace {pin_network(network, plane)} dev {interface} src {pin}"]
        direct = self._settings.interface("direct")
        commands += [f"address replace {address}/32 dev {direct}"]
        commands += [f"route replace {network} dev {direct} src {address} mtu {mtu}"]
        must("ip", "-batch", "-", given="\n".join(commands) + "\n")
        for plane in PLANES if not self._probers else ():
            self._probers[plane] = prober = Prober(pin_address(network, address, plane))
            self._poll.register(prober, select.POLLIN)

    def _set_routes(self, routes: "list[Route]") -> None:
        """Takes routes as decided."""
        for route in routes:
            self._chosen[route.peer] = route.planes
        self._lay([route.peer for route in routes])

    def _lay(self, addresses: Iterable[str]) -> None:
        """Brings peers' routes to planes and packet size; the network's own is direct, at the size for everybody."""
        commands: list[str] = []
        plain: tuple[Planes, int] = ("direct",), self._settings.mtu
        for address in addresses:
            planes, size = wanted = self._chosen.get(address, plain[0]), self._sizes.mtu(address)
            if wanted == self._routes.get(address, plain):
                continue
            if wanted == plain:
                del self._routes[address]
                commands.append(f"route delete {address}/32")
                continue
            hops = [f"nexthop dev {self._settings.interface(plane)}" for plane in planes]
            way = " ".join(hops) if len(hops) > 1 else f"dev {self._settings.interface(planes[0])}"
            commands.append(f"route replace {address}/32 src {self._settings.address} mtu {size} {way}")
            self._routes[address] = wanted
        if commands:
            must("ip", "-batch", "-", given="\n".join(commands) + "\n")
            self._tell()

    # --- calling ----------------------------------------------------------------------------------------------------

    def _pin(self, address: str, plane: Plane) -> str:
        return pin_address(self._settings.network, address, plane)

    def _is_caller(self, address: str) -> bool:
        return self._tunnels["direct"].public_key < self._peers[address].direct_key

    def _begin_calling(self, address: str, plane: Plane, now: float, *, had_session: bool = False) -> None:
        if address in self._calls[plane] or not self._endpoints(address, plane):
            return
        number = self._endpoint_number.get((address, plane), 0)
        # What was used until now has failed: begin with the next one.
        offset = number + 1 if had_session else number
        is_caller = self._is_caller(address)
        self._calls[plane].begin(address, now, is_caller=is_caller, offset=offset, had_session=had_session)

    def _mind_silence(self, now: float) -> None:
        """Peers that fell silent on a plane are called there; those that answer again are not."""
        self._minded_at = now
        for address, plane in self._paths.silent(now):
            self._sizes.dies(address, plane, now)
            # After a handshake a few probes have to be given time.
            if now >= self._shook_at.get((address, plane), 0.0) + PROBES_WITHIN_S:
                self._begin_calling(address, plane, now, had_session=True)
        for plane, calls in self._calls.items():
            for address in calls.addresses():
                if self._status(address, plane, now) == "alive":
                    calls.end(address)

    def _status(self, address: str, plane: Plane, now: float) -> str:
        state = self._paths.state(address, now)
        found = state.direct if plane == "direct" else state.relayed
        return found.status if found is not None else "unknown"

    def _call_again(self, plane: Plane, now: float) -> None:
        if self._calls[plane].next_at() > now:
            return
        # Whoever has just answered must not lose its new session: calling begins with forgetting the peer.
        self._note(plane, self._states(plane), now)
        due = self._calls[plane].due(now)
        if not due:
            return
        for address, number in due:
            self._endpoint_number[address, plane] = number
        self._tunnels[plane].begin_again([self._tunnel_peer(plane, self._peers[address]) for address, _ in due])
        self._calling[plane].update(address for address, _ in due)
        self._looks = tuple(now + after_s for after_s in POLL_AFTER_CALL_S)

    def _endpoints(self, address: str, plane: Plane) -> "tuple[str, ...]":
        peer = self._peers[address]
        return peer.endpoints if plane == "direct" else peer.relays

    def _tunnel_peer(self, plane: Plane, peer: Peer) -> TunnelPeer:
        endpoints = self._endpoints(peer.address, plane)
        number = self._endpoint_number.get((peer.address, plane), 0)
        allowed = (peer.address, pin_address(self._settings.network, peer.address, plane))
        return TunnelPeer(_key(peer, plane), allowed, endpoints[number % len(endpoints)] if endpoints else None)

    # --- observing --------------------------------------------------------------------------------------------------

    def _observe_at(self) -> float:
        """When to look at WireGuard again."""
        if not self._is_all_there and self._observed_at < self._configured_at + PATIENCE_S:
            return self._observed_at + POLL_SILENT_S
        soon = (at for at in self._looks if at > self._observed_at)
        return min([self._observed_at + POLL_QUIET_S, *soon])

    def _observe(self, now: float) -> None:
        wall_s = time.time()
        alive: set[str] = set()
        for plane in PLANES:
            states = self._states(plane)
            self._note(plane, states, now)
            alive |= {self._of_key[state.public_key] for state in states if state.is_fresh(wall_s)}
        self._meter.look(now)
        self._observed_at = now
        self._is_all_there = len(alive) == len(self._peers)
        self._handshaken = tuple(sorted(alive))
        self._tell(is_periodic=now >= self._reported_at + REPORT_S)

    def _states(self, plane: Plane) -> "list[PeerState]":
        """The peers as WireGuard sees them; observers are none."""
        return [state for state in self._tunnels[plane].states() if state.public_key in self._of_key]

    def _note(self, plane: Plane, states: "list[PeerState]", now: float) -> None:
        """Peers that answered are called no more, and both ends keep the path open from now on."""
        met: list[str] = []
        for state in states:
            address = self._of_key[state.public_key]
            is_hot = self._paths.is_hot(address, now)
            padded = self._sizes.note(address, plane, endpoint=state.endpoint, is_hot=is_hot, now=now)
            self._paths.moved(address, plane, max(0, state.received_bytes + state.sent_bytes - padded), now)
            if state.handshake_at and self._calls[plane].shook_hands(address):
                self._shook_at[address, plane] = now
                met.append(address)
        if quiet := [address for address in met if address not in self._calling[plane]]:
            self._tunnels[plane].keep_open([_key(self._peers[address], plane) for address in quiet])
            self._calling[plane].update(quiet)

    def _tell(self, *, is_periodic: bool = False) -> None:
        """Say who is there, who is reached through a relay, and whether the internet is slowed, if that changed."""
        relayed = sorted(address for address, planes in self._chosen.items() if planes == ("relayed",))
        told = (self._handshaken, relayed, self._meter.is_slowed)
        if told != self._told or is_periodic:
            self._told, self._reported_at = told, time.monotonic()
            counted, is_slowed = self._meter.told(), self._meter.is_slowed
            self._emit("peers", handshaken=list(self._handshaken), relayed=relayed, bytes=counted, slowed=is_slowed)

    def _say_keys(self) -> None:
        keys = {plane: tunnel.public_key for plane, tunnel in self._tunnels.items()}
        self._emit("keys", **keys, implementation=self._tunnels["direct"].implementation)


def _key(peer: Peer, plane: Plane) -> str:
    return peer.direct_key if plane == "direct" else peer.relayed_key


def _same_on(plane: Plane, before: Peer, after: Peer) -> bool:
    """Whether a peer can go on with the session that it has on this plane."""
    if plane == "direct":
        return before.direct_key == after.direct_key
    return (before.relayed_key, before.relays) == (after.relayed_key, after.relays)


def _generations(plan: PeerPlan) -> "dict[Plane, str]":
    return {"direct": plan.direct} if plan.relayed is None else {"direct": plan.direct, "relayed": plan.relayed}


def outside_mtu(interface: str) -> int:
    """What the interface that WireGuard's packets leave by carries in one piece, bytes.

    Raises:
        Fatal: there is none.
    """
    try:
        with open(f"/sys/class/net/{interface}/mtu", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        raise Fatal(f"there is no interface {interface} here; the namespace has no network") from None
