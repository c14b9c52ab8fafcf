"""The agent at work: assembles its parts and keeps them running until it is told to stop."""

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog

from corral import __version__
from corral.agent.bodies import AUTH_MOUNT, HostFacts
from corral.agent.connectivity import Connectivity
from corral.agent.control_plane import ControlPlane, HostTokens, ServerTime, pinned_session
from corral.agent.docker import DockerRuntime
from corral.agent.documents import DocumentRefused
from corral.agent.exchange import Exchanger
from corral.agent.gateway import AuthoriseService, GatewayConfigurer, GatewaySite, LeafProbe, LeafTarget, Readiness
from corral.agent.gateway.probe import period_s
from corral.agent.gauging import GaugeClient
from corral.agent.host_engine import HostEngine, lan_addresses
from corral.agent.images import ImageStore
from corral.agent.leaves import LeafView
from corral.agent.machine import Machine
from corral.agent.nodes import NodeKeeper
from corral.agent.settings import (
    STATE_DIR,
    HostSettings,
    auth_volume,
    image_ids,
    load_settings,
    machine_id,
    records_folder,
)
from corral.core.clock import Clock, SystemClock
from corral.core.errors import CorralError
from corral.protocol.peers import ipv4_or_none
from corral.protocol.roster import Roster
from corral.wire.agent import Desired, GaugeSpec, Hardware, NodeReport, Report, Revision

HARDWARE_PERIOD_S = 300.0
"""How often the hardware is looked at again: a card may fall off its bus, a disk fill up."""
CLOSED_MAX = 256
"""Addresses of its own that a host closes to workloads: far more than any has."""
LEAVES_PERIOD_S = 0.2
"""How often new leaves are looked for, so that their clusters are probed."""
_NOWHERE = Revision(0, 0)
_MESH_ADDRESS = re.compile(r"10\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\Z")

_log = structlog.get_logger(__name__)


async def run_agent(state_dir: Path = STATE_DIR) -> None:
    """
    Runs an installed agent until the task is cancelled. Nodes go on without it.

    Raises:
        SettingsUnreadable: nothing is installed here.
    """
    settings, key = load_settings(state_dir)
    clock = SystemClock()
    time = ServerTime(clock)
    tokens = HostTokens(host_id=settings.host_id, audience=settings.audience, key=key, time=time)
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(pinned_session(settings.ca_pem))
        engine = await stack.enter_async_context(HostEngine())
        runtime = await stack.enter_async_context(DockerRuntime(settings.host_id))
        control_plane = ControlPlane(session, settings.url, time=time, tokens=tokens)
        await _check_identity(settings, engine)
        # What the installation has found is taken for true until the first look in peace: a start costs no second.
        machine = await Machine.look(settings, engine, time, known_cpu=settings.cpu, tun_error="")
        site = _site(settings) if settings.role == "gateway" else None
        keeper = NodeKeeper(
            runtime,
            await _host_facts(settings, machine, engine),
            records_folder(state_dir, settings.host_id),
            clock,
            GatewayConfigurer(site) if site is not None else None,
        )
        agent = Agent(
            settings,
            machine,
            keeper,
            control_plane,
            engine,
            folder=records_folder(state_dir, settings.host_id),
            clock=clock,
            time=time,
            site=site,
        )
        _log.info("agent.started", host=settings.name, host_id=settings.host_id, devices=len(machine.devices))
        await agent.run()


class Agent:
    """The loops of one installed agent."""

    def __init__(
        self,
        settings: HostSettings,
        machine: Machine,
        keeper: NodeKeeper,
        control_plane: ControlPlane,
        engine: HostEngine,
        *,
        folder: Path,
        clock: Clock,
        time: ServerTime,
        site: GatewaySite | None,
        gauge_client: Callable[[GaugeSpec], GaugeClient] = GaugeClient,
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._keeper = keeper
        self._control_plane = control_plane
        self._engine = engine
        self._clock = clock
        self._time = time
        self._site = site
        self._sequence = 0
        self._seen = _NOWHERE
        """Not what the keeper has on disk: that lacks the secrets, so the first reply must bring all again."""
        self._tells_machine = True
        self._told_machine: Machine | None = None
        self._readiness: dict[str, Readiness] = {}
        self._expected: dict[str, frozenset[str]] = {}
        self._images = ImageStore(engine, clock, self._images_told)
        self._connectivity = Connectivity(
            folder,
            clock,
            is_hired=lambda: any(node.work == "running" for node in keeper.reports()),
            is_development=settings.development,
            told=self._connection_told,
            client=gauge_client,
        )
        self._machine.measured(self._connectivity.link)
        self._refused_document = ""

    async def run(self) -> None:
        """Runs until cancelled; a loop that dies takes the process down, and the engine restarts it."""
        exchanger = Exchanger(
            self._control_plane,
            report=self._report,
            take=self._take,
            sent=self._sent,
            changed=self._keeper.changed,
            time=self._time,
            clock=self._clock,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keeper.run())
            # A node that a report does not name counts as unknown, so nothing is said before the host was looked at.
            await self._keeper.ready()
            group.create_task(exchanger.run())
            group.create_task(self._images.run())
            group.create_task(self._connectivity.run())
            group.create_task(self._watch_machine())
            if self._site is not None:
                group.create_task(self._serve_gateway(self._site))
                group.create_task(self._watch_leaves())

    def _report(self) -> Report:
        self._sequence += 1
        machine = self._machine if self._tells_machine else None
        self._told_machine = machine or self._told_machine
        return Report(
            sequence=self._sequence,
            applied=self._keeper.applied(),
            seen=self._seen,
            agent_version=__version__,
            wall_clock=self._clock.now(),
            advertise=self._settings.advertise,
            hardware=self._hardware_told(machine) if machine else None,
            devices=machine.devices if machine else None,
            checks=machine.checks if machine else None,
            nodes=tuple(self._with_readiness(node) for node in self._keeper.reports()),
            foreign_nodes=tuple(self._keeper.foreign()),
            gateway_address=self._site.address if self._site is not None else "",
            statements=self._connectivity.statements(),
        )

    def _hardware_told(self, machine: Machine) -> Hardware:
        if not self._settings.development:
            return machine.hardware
        # Of a shared machine, the cores of this agent's slice are told, not all.
        cores = sum(device.cores for device in machine.devices)
        return msgspec.structs.replace(
            machine.hardware, cpu=msgspec.structs.replace(machine.hardware.cpu, cores=cores), gpus=()
        )

    def _with_readiness(self, node: NodeReport) -> NodeReport:
        found = self._readiness.get(node.node_id)
        if found is None:
            return node
        return msgspec.structs.replace(node, alive=found.alive, serves=found.serves)

    def _sent(self, report: Report) -> None:
        if report.hardware is not None and self._told_machine is self._machine:
            self._tells_machine = False
        self._connectivity.sent(report.statements)

    async def _take(self, desired: Desired) -> None:
        if desired.revision < self._seen and desired.revision.epoch == self._seen.epoch:
            return
        try:
            await self._keeper.converge(desired, self._time.now())
        except DocumentRefused as error:
            if error.message != self._refused_document:
                _log.error("desired.refused", reason=error.message)
            self._refused_document = error.message
            return
        # Only what was taken has been seen: the control plane brings the rest again.
        self._seen, self._refused_document = max(self._seen, desired.revision), ""
        if self._machine.compare_clock(self._time.skew_s()) or not desired.saw_hardware:
            self._tells_machine = True
        self._expected = {cluster: _addresses(roster.payload) for cluster, roster in desired.rosters.items()}
        self._images.want(desired.prefetch)
        self._connectivity.take(desired.gauges)

    def _images_told(self) -> None:
        if self._machine.lack_images(self._images.missing):
            self._tells_machine = True
            self._keeper.changed.set()

    def _connection_told(self) -> None:
        self._machine.measured(self._connectivity.link)
        self._tells_machine = True
        self._keeper.changed.set()

    async def _watch_machine(self) -> None:
        known_cpu, tun_error = None, None  # the first look is a thorough one
        while True:
            await self._clock.sleep(HARDWARE_PERIOD_S)
            try:
                found = await Machine.look(
                    self._settings,
                    self._engine,
                    self._time,
                    known_cpu=known_cpu,
                    tun_error=tun_error,
                    missing_images=self._images.missing,
                    link=self._connectivity.link,
                )
            except (CorralError, aiohttp.ClientError, OSError, TimeoutError) as error:
                _log.warning("hardware.unknown", reason=str(error))
                continue
            tun = next((check for check in found.checks if check.rule == "tun"), None)
            known_cpu, tun_error = found.hardware.cpu, "" if tun is not None and tun.outcome == "pass" else None
            found.add_notes(self._images.notes())
            if found.essence == self._machine.essence:
                continue
            _log.info("hardware.changed", devices=len(found.devices), notes=found.hardware.notes)
            # Capacity stays as it was while only the disk moved: what nodes write is their own share.
            if _fixed(found.hardware) == _fixed(self._machine.hardware):
                found.devices = self._machine.devices
            try:
                facts = await _host_facts(self._settings, found, self._engine)
            except CorralError as error:
                _log.warning("hardware.unknown", reason=error.message)
                continue
            self._machine, self._tells_machine = found, True
            self._keeper.set_facts(facts)
            self._keeper.changed.set()

    # --- gateway ------------------------------------------------------------------------------------------------------

    async def _serve_gateway(self, site: GatewaySite) -> None:
        service = AuthoriseService(
            ask=self._control_plane.authorise, targets=self._targets, clock=self._clock, is_secure=site.is_secure
        )
        async with service.serving(Path(AUTH_MOUNT) / "socket"):
            await asyncio.Event().wait()

    def _targets(self) -> Mapping[str, LeafTarget]:
        return {
            view.cluster_name: LeafTarget(cluster_id=view.cluster_id, address=view.address, secret=view.leaf_secret)
            for view in self._keeper.leaves()
            if view.address and view.leaf_secret
        }

    async def _watch_leaves(self) -> None:
        """One watcher per leaf that serves; it ends with its leaf."""
        watchers: dict[LeafView, asyncio.Task[None]] = {}
        async with (
            # Heads are strangers' machines: what they compress is not unfolded here.
            aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, headers={"Accept-Encoding": "identity"}
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                views = {view for view in self._keeper.leaves() if view.is_serving and view.address}
                for gone in watchers.keys() - views:
                    watchers.pop(gone).cancel()
                    self._readiness.pop(gone.node_id, None)
                for view in views - watchers.keys():
                    watchers[view] = group.create_task(self._watch_leaf(session, view))
                await self._clock.sleep(LEAVES_PERIOD_S)

    async def _watch_leaf(self, session: aiohttp.ClientSession, view: LeafView) -> None:
        probe = LeafProbe.of_leaf(session, view.address, view.leaf_secret)
        complete_at = self._clock.monotonic()
        while True:
            expected = self._expected.get(view.cluster_id, frozenset())
            found = await probe.look(expected)
            if found != self._readiness.get(view.node_id, Readiness()):
                self._readiness[view.node_id] = found
                self._keeper.changed.set()
            now = self._clock.monotonic()
            if found.serves and expected and expected <= set(found.alive):
                complete_at = now
            await self._clock.sleep(period_s(found, expected=expected, incomplete_for_s=now - complete_at))


class IdentityChanged(CorralError):
    """The agent's volume belongs to another machine or engine than this one."""

    code = "identity_changed"


async def _check_identity(settings: HostSettings, engine: HostEngine) -> None:
    """
    Refuses to be a host that this is not: a copy of a machine would speak with the same key as the first.

    Raises:
        IdentityChanged: the engine's or the machine's id is not the one that was enrolled.
    """
    found = (machine_id(), (await engine.facts()).engine_id)
    if found != (settings.machine_id, settings.engine_id):
        raise IdentityChanged(
            f"host {settings.name} was enrolled on another machine or engine than this; nothing is lent",
            hint="run the line of `corral host join` here, for a host of its own",
        )


async def _host_facts(settings: HostSettings, machine: Machine, engine: HostEngine) -> HostFacts:
    # The very image that ours was built on, where it is here; else our own, which holds the same programs.
    built_on = image_ids().get("corral-net", "")
    has_built_on = bool(built_on) and not await engine.missing_images((built_on,))
    addresses = await engine.host_addresses(settings.own_image)
    own = set(addresses)
    if (advertised := ipv4_or_none(settings.advertise)) is not None:
        own.add(str(advertised))
    return HostFacts(
        host_id=settings.host_id,
        engine_id=settings.engine_id,
        net_image=built_on if has_built_on else settings.own_image,
        devices=machine.own_devices(),
        role=settings.role,
        advertise=settings.advertise,
        closed=tuple(sorted(own))[:CLOSED_MAX],
        lan=lan_addresses(addresses, await engine.bridge_networks()),
        gateway_bind=settings.gateway_bind,
        auth_volume=auth_volume(settings.slice) if settings.role == "gateway" else "",
        has_ipv6=os.access("/proc/sys/net/ipv6", os.F_OK),
    )


def _site(settings: HostSettings) -> GatewaySite:
    return GatewaySite.at(settings.gateway_address or f"http://{settings.gateway_bind}")


def _addresses(payload: str) -> frozenset[str]:
    """Mesh addresses of the nodes in a roster; only a hint for how often to look, so its signature plays no part."""
    try:
        roster = msgspec.json.decode(payload, type=Roster)
    except (msgspec.DecodeError, RecursionError):
        return frozenset()
    # An address of another form would spoil the whole report.
    return frozenset(
        member.address for member in roster.members if member.kind == "node" and _MESH_ADDRESS.match(member.address)
    )


def _fixed(hardware: Hardware) -> Any:
    return msgspec.structs.replace(hardware, disk_free_bytes=0, notes=())
