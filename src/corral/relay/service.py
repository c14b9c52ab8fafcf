"""A relay at work: enrolled like a host, told its mailboxes by the same exchange, and nothing else of it is."""

import asyncio
import base64
import contextlib
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral import __version__
from corral.agent.control_plane import ControlPlane, HostTokens, ServerTime, fetch_ca, pinned_session
from corral.agent.enrol import enrol_request, public_key_text
from corral.agent.exchange import Exchanger
from corral.agent.settings import key_bytes, machine_id, new_key, parse_key, write_atomically
from corral.core.clock import Clock, SystemClock
from corral.core.ids import is_name
from corral.relay.errors import RelayMisconfigured, RelayNotEnrolled
from corral.relay.forwarding import Mailbox
from corral.relay.gauge import GaugeProcess
from corral.relay.metrics import serving_metrics
from corral.relay.sockets import Relay
from corral.wire.agent import Desired, Identity, MailboxSpec, Observation, RelayReport, Report, Revision

KEY_FILE, RELAY_FILE, DESIRED_FILE = "relay.key", "relay.json", "mailboxes.json"
CHECK_S = 1.0
"""How often the relay is looked at: whether its thread still runs."""
_log = structlog.get_logger("corral.relay")


@dataclass(frozen=True, kw_only=True)
class RelayOptions:
    """How a relay is run."""

    data_dir: Path
    bind: str = "0.0.0.0"  # noqa: S104 - strangers must reach it: it is where hosts behind NAT meet
    address: str = ""
    """At which hosts reach it; empty: the one that its exchanges come from."""
    port_first: int = 41000
    port_count: int = 4096
    gauge_port: int = 40999
    """TCP and UDP, at which hosts measure; 0 lets the system choose one."""
    metrics: str = ""
    """Address and port for Prometheus; empty: none."""


class RelaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a relay keeps beside its key. Nothing in it is secret."""

    url: str
    ca_pem: str = ""
    host_id: str
    name: str
    audience: str


async def enrol(data_dir: Path, *, url: str, ca_sha256: str, name: str, token: str) -> RelaySettings:
    """
    Enrols this relay; its key and settings are in `data_dir` from then on.

    The key is written before the token is shown, so that a lost reply can be asked for again.

    Raises:
        RelayMisconfigured: the wished name is none, or the folder cannot be written.
        ControlPlaneError: the control plane cannot be reached, or refuses.
    """
    if name and not is_name(name):
        raise RelayMisconfigured(f"{name!r} is not a name for a relay; nothing was enrolled", hint="--name relay-1")
    ca_pem = await fetch_ca(url, ca_sha256)
    key = _own_key(data_dir)
    # One machine may run several relays, each with a folder and so a key of its own.
    identity = Identity(machine_id=machine_id(), engine_id=f"relay {public_key_text(key)}")
    async with pinned_session(ca_pem) as session:
        control_plane = ControlPlane(session, url, time=ServerTime(SystemClock()))
        request = enrol_request(
            token, key, identity, name=name, role="relay", development=False, agent_version=__version__
        )
        reply = await control_plane.enrol(request)
    settings = RelaySettings(url=url, ca_pem=ca_pem, host_id=reply.host_id, name=reply.name, audience=reply.audience)
    write_atomically(data_dir / RELAY_FILE, msgspec.json.format(msgspec.json.encode(settings)))
    return settings


def load(data_dir: Path) -> RelaySettings | None:
    """
    The settings of an enrolled relay; None if it is not enrolled.

    Raises:
        RelayNotEnrolled: the file is damaged.
    """
    file = data_dir / RELAY_FILE
    if not file.exists():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=RelaySettings)
    except (OSError, msgspec.DecodeError) as error:
        raise RelayNotEnrolled(f"{file} cannot be read: {error}", hint="delete it and enrol again") from error


async def run(settings: RelaySettings, options: RelayOptions) -> None:
    """
    Serves until it is cancelled.

    Raises:
        RelayMisconfigured: the address or the ports cannot be.
        RelayStopped: the forwarding thread has died; whoever supervises us starts us again.
    """
    _check(options)
    clock = SystemClock()
    time = ServerTime(clock)
    key = _own_key(options.data_dir)
    tokens = HostTokens(host_id=settings.host_id, audience=settings.audience, key=key, time=time)
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(pinned_session(settings.ca_pem))
        control_plane = ControlPlane(session, settings.url, time=time, tokens=tokens)
        service = RelayService(options, control_plane, clock, time, host_id=settings.host_id, key=key)
        if options.metrics:
            stack.enter_context(serving_metrics(service.relay, options.metrics))
        stack.enter_context(service.relay)
        _log.info("relay.started", name=settings.name, host_id=settings.host_id, bind=options.bind)
        await service.run()


class RelayService:
    """The exchange of one relay, and what it is told."""

    def __init__(
        self,
        options: RelayOptions,
        control_plane: ControlPlane,
        clock: Clock,
        time: ServerTime,
        *,
        host_id: str,
        key: Ed25519PrivateKey,
    ) -> None:
        self._options = options
        self._control_plane = control_plane
        self._clock, self._time = clock, time
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # A report from before a restart must not pass for a later one.
        self._sequence = int(clock.now().timestamp() * 1000)
        self._desired: Desired | None = None
        self._served: tuple[MailboxSpec, ...] | None = None
        self._record = options.data_dir / DESIRED_FILE
        self.relay = Relay(options.bind, on_observed=self._note_observed)
        self.gauge = GaugeProcess(
            bind=options.bind,
            port=options.gauge_port,
            relay_id=host_id,
            statement_key=key,
            told=self._changed.set,
        )

    async def run(self) -> None:
        """Exchanges until it is cancelled, or the relay's thread dies."""
        exchanger = Exchanger(
            self._control_plane,
            report=self._report,
            take=self._take,
            sent=lambda _: None,
            changed=self._changed,
            time=self._time,
            clock=self._clock,
        )
        await self._take_record()
        tasks = {asyncio.create_task(exchanger.run()), asyncio.create_task(self.gauge.run())}
        try:
            over: set[asyncio.Task[None]] = set()
            while not over:
                over, _ = await asyncio.wait(tasks, timeout=CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                if not self.relay.is_running:
                    self.relay.set_mailboxes(())  # It says why.
            for task in over:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _report(self) -> Report:
        self._sequence += 1
        seen = self._desired.revision if self._desired is not None else Revision(0, 0)
        mailboxes = self._desired.mailboxes if self._desired is not None else ()
        observed = [(box.node_id, self.relay.observed(box.node_id)) for box in mailboxes]
        return Report(
            sequence=self._sequence,
            applied=seen,
            seen=seen,
            agent_version=__version__,
            wall_clock=self._clock.now(),
            advertise=self._options.address,
            relay=RelayReport(
                port_first=self._options.port_first,
                port_count=self._options.port_count,
                observer_key=base64.b64encode(self.relay.observer_key).decode(),
                observed=tuple(
                    Observation(node_id=node_id, endpoint=f"{address[0]}:{address[1]}")
                    for node_id, address in observed
                    if address is not None
                ),
                gauge_port=self.gauge.port,
            ),
        )

    async def _take_record(self) -> None:
        """Goes on with what it was told before it was started anew: the control plane may be away."""
        try:
            recorded = msgspec.json.decode(self._record.read_bytes(), type=tuple[MailboxSpec, ...])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("relay.record_unreadable", reason=str(error))
            return
        await self._serve(recorded)

    async def _take(self, desired: Desired) -> None:
        if self._desired is not None and desired.revision < self._desired.revision:
            return
        before = self._desired.mailboxes if self._desired is not None else None
        if desired.mailboxes != before:
            await asyncio.to_thread(write_atomically, self._record, msgspec.json.encode(desired.mailboxes))
        await self._serve(desired.mailboxes)
        if desired.gauge_key:
            self.gauge.take_key(desired.gauge_key)
        self._desired = desired

    async def _serve(self, specs: tuple[MailboxSpec, ...]) -> None:
        mailboxes = [
            Mailbox.from_base64(
                node_id=box.node_id, cluster_id=box.cluster_id, port=box.port, public_key=box.relayed_key
            )
            for box in specs
        ]
        failures = await asyncio.to_thread(self.relay.set_mailboxes, mailboxes)
        for failure in failures:
            _log.warning("relay.port_failed", port=failure.port, reason=failure.reason)
        if specs != self._served:
            _log.info("relay.mailboxes", count=len(mailboxes))
        self._served = specs

    def _note_observed(self, *_: object) -> None:
        """Called by the relay's thread."""
        self._loop.call_soon_threadsafe(self._changed.set)


def _own_key(data_dir: Path) -> Ed25519PrivateKey:
    """The relay's key; made at the first time."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = data_dir / KEY_FILE
        if not file.exists():
            write_atomically(file, key_bytes(new_key()))
        return parse_key(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RelayMisconfigured(f"{data_dir} cannot hold the relay's key: {error}; nothing was enrolled") from error


def _check(options: RelayOptions) -> None:
    for what, address in (("--bind", options.bind), ("--address", options.address or "0.0.0.0")):  # noqa: S104
        try:
            IPv4Address(address)
        except ValueError:
            raise RelayMisconfigured(f"{what} {address!r} is not an IPv4 address; nothing was started") from None
    if options.gauge_port and not 1024 <= options.gauge_port <= 65535:
        raise RelayMisconfigured(f"--gauge-port {options.gauge_port} is not within 1024 to 65535; nothing was started")
    if not 1024 <= options.port_first <= options.port_first + options.port_count - 1 <= 65535:
        raise RelayMisconfigured(
            f"{options.port_count} ports from {options.port_first} on are not within 1024 to 65535; nothing was started"
        )
    if options.port_first <= options.gauge_port < options.port_first + options.port_count:
        raise RelayMisconfigured(
            f"--gauge-port {options.gauge_port} is one of the mailboxes' ports; nothing was started",
            hint=f"--gauge-port {options.port_first - 1}",
        )
