"""
Keeping the nodes of a host: observe, plan, apply, again and again.

`NodeKeeper.run` compares the newest desired state with the containers that carry our label. Engine events and new
documents only wake it early. Each node is changed by a task of its own, so that one that hangs or fails delays no
other. Beside the containers it carries the conversation with their programs: keys come out, rosters, tokens and web
configurations go in. Secrets are held in memory alone.
"""

import asyncio
import contextlib
import hashlib
import hmac
import re
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec
import structlog

from corral.agent import apply
from corral.agent.bodies import MESH_PORT, HostFacts, Part, front_body, leaf_bodies, node_bodies
from corral.agent.channels import Heard, PartChannel, peers_of
from corral.agent.faults import ended_fault, fault_code, tidy
from corral.agent.observe import Found, observe
from corral.agent.plan import ORPHAN_GRACE, Action, Build, End, Target, Wanted, agrees, plan, target_of
from corral.agent.records import Records, RosterMark
from corral.agent.runtime import Body, Container, ContainerRuntime, RuntimeFailed
from corral.core.clock import Clock
from corral.core.errors import CorralError, invariant
from corral.core.ids import ID_PATTERN
from corral.protocol.roster import Roster, RosterRefused, accept, payload_hash
from corral.wire.agent import (
    ContainerState,
    Desired,
    Fault,
    LeafSpec,
    NodeReport,
    NodeSpec,
    Revision,
    Secrets,
    SignedRoster,
)

log = structlog.get_logger()

PERIOD_S = 5.0
"""Between two looks when nothing woke us: a lost event costs this and no more."""
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 30.0
EVENTS_RETRY_S = 1.0
ERROR_LINES = 20
LAST_WORDS_S = 1.0
_NOWHERE = Revision(0, 0)


class LeafConfigurer(Protocol):
    """Writes the web servers' configurations of a gateway."""

    def leaf_configuration(self, leaf: LeafSpec, secrets: Secrets, leaf_secret: str) -> str:
        """Configuration of a leaf's nginx: it serves who shows `leaf_secret`, and swaps it for Ray's token."""
        ...

    def front_configuration(self, leaves: Sequence[tuple[str, str, str]]) -> str:
        """Configuration of the front's nginx, from (cluster name, leaf's address, leaf's secret)."""
        ...


@dataclass(frozen=True, kw_only=True)
class LeafView:
    """A leaf as the gateway's own services see it."""

    node_id: str
    cluster_id: str
    cluster_name: str
    address: str
    """On the engine's bridge; empty while the leaf does not run."""
    leaf_secret: str
    """Empty until the control plane has sent the cluster's secrets."""
    is_serving: bool

    def __repr__(self) -> str:
        """Keeps the secret out of logs and tracebacks."""
        return f"LeafView({self.cluster_name}, {self.address or 'not running'}, serving={self.is_serving})"


@dataclass(kw_only=True)
class _Work:
    """What the keeper knows of one node beside what the engine shows."""

    channels: dict[str, PartChannel] = field(default_factory=dict[str, PartChannel])
    task: asyncio.Task[None] | None = None
    devices: frozenset[str] = frozenset()
    """Held while `task` changes the node."""
    digest: str = ""
    """Of the spec that was last tried."""
    failures: int = 0
    retry_at: float = 0.0
    """Monotonic; before it the act that failed is not tried again."""
    tried: type[Action] | None = None
    failed: Fault | None = None
    """Why the last try failed."""
    ended: dict[str, Fault] = field(default_factory=dict[str, Fault])
    """By container id: how a container that ended by itself did."""
    roster_refused: Fault | None = None


class NodeKeeper:
    """Keeps what runs on this host equal to the newest desired state."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        facts: HostFacts,
        state_dir: Path,
        clock: Clock,
        configurer: LeafConfigurer | None = None,
    ) -> None:
        self._runtime = runtime
        self._facts = facts
        self._records = Records(state_dir)
        self._clock = clock
        self._configurer = configurer
        self._desired = self._records.desired()
        self._target = target_of(self._desired, facts) if self._desired else None
        self._is_live = False
        """Whether a desired state came from the control plane since we started: only such a one has secrets."""
        self._skew = timedelta()
        """The server's clock less ours."""
        self._marks = self._records.rosters()
        self._works: dict[str, _Work] = {}
        self._observed: dict[str, Found] = {}
        self._orphans_since: dict[str, datetime] = {}
        self._plan_faults: Mapping[str, Fault] = {}
        self._applied = _NOWHERE
        self._has_looked = asyncio.Event()
        self._told: object = None
        self._nudge = asyncio.Event()
        self._idle = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self.changed = asyncio.Event()
        """Set when something worth reporting at once has happened; whoever reports clears it."""

    async def run(self) -> None:
        """Keeps the nodes until it is cancelled; the containers then go on as they are."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._hear_events())
            while True:
                self._nudge.clear()
                await self._pass()
                await self._wait(self._seconds_to_next())

    async def converge(self, desired: Desired, now: datetime) -> None:
        """
        Takes a desired state as the new target and wakes the loop; does not wait for it to be reached.

        One that is older than the target is ignored.

        Args:
            desired: from the control plane.
            now: server time.
        """
        self._skew = now - self._clock.now()
        if self._desired is not None and desired.revision < self._desired.revision:
            log.warning("desired.stale", revision=desired.revision, have=self._desired.revision)
            return
        if self._desired is None or msgspec.structs.replace(self._desired, server_time=desired.server_time) != desired:
            self._records.keep_desired(desired)
        self._desired, self._is_live = desired, True
        self._target = target_of(desired, self._facts)
        self._wake()

    def set_facts(self, facts: HostFacts) -> None:
        """Takes new facts about the host: its devices changed."""
        self._facts = facts
        if self._desired is not None:
            self._target = target_of(self._desired, facts)
        self._wake()

    async def settled(self) -> None:
        """Returns once the target is reached, or nothing more can be done for it at present."""
        await self._idle.wait()

    def seen(self) -> Revision:
        """The newest desired state that has been received."""
        return self._desired.revision if self._desired else _NOWHERE

    def applied(self) -> Revision:
        """The newest desired state beside which nothing else runs here any more."""
        return self._applied

    def foreign(self) -> tuple[str, ...]:
        """Nodes under our label that no desired state explains."""
        return tuple(sorted(node_id for node_id in self._orphans_since if re.match(ID_PATTERN, node_id)))

    async def ready(self) -> None:
        """Returns once the host has been looked at: before, nothing is known, and no report should be made."""
        await self._has_looked.wait()

    def reports(self) -> tuple[NodeReport, ...]:
        """
        Facts about every wanted node and leaf; none before the first look at the host.

        A leaf's `serves` and `alive` are the prober's to fill in.
        """
        if self._desired is None or not self._has_looked.is_set():
            return ()
        return tuple(self._report(spec) for spec in (*self._desired.nodes, *self._desired.leaves))

    def leaves(self) -> tuple[LeafView, ...]:
        """The leaves of this gateway."""
        return tuple(self._leaf_view(leaf) for leaf in (self._desired.leaves if self._desired else ()))

    # --- the loop -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._idle.clear()
        self._nudge.set()

    async def _wait(self, seconds: float) -> None:
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        nudged = asyncio.ensure_future(self._nudge.wait())
        try:
            await asyncio.wait({sleeping, nudged}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            nudged.cancel()

    async def _hear_events(self) -> None:
        while True:
            try:
                async for _ in self._runtime.events():
                    self._wake()
            except RuntimeFailed as error:
                log.warning("engine.events_lost", error=error.message)
            self._wake()
            await self._clock.sleep(EVENTS_RETRY_S)

    async def _pass(self) -> None:
        target = self._target
        busy_before = self._busy()
        try:
            self._observed = observed = observe(await self._runtime.list_ours())
            await asyncio.gather(self._adopt(observed), self._note_ended(observed))
        except RuntimeFailed as error:
            log.warning("engine.unreachable", error=error.message)
            self._tell()
            return
        self._has_looked.set()
        held = {**busy_before, **self._busy()}
        found = plan(target, observed, now=self._now(), orphans_since=self._orphans_since, held=held)
        self._note_orphans(found.orphans)
        self._plan_faults = found.faults
        began = self._begin(found.actions, target)
        self._forget(target)
        await self._feed_all()
        if target is not None and agrees(target, observed, busy=frozenset(held)):
            self._applied = max(self._applied, target.revision)
        if not began and not self._busy() and not self._nudge.is_set():
            self._idle.set()
        self._tell()

    def _spawn(self, act: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        invariant(self._group is not None, "nodes are changed only while the keeper runs")
        return cast(asyncio.TaskGroup, self._group).create_task(act)

    def _busy(self) -> dict[str, frozenset[str]]:
        return {node_id: work.devices for node_id, work in self._works.items() if work.task is not None}

    def _now(self) -> datetime:
        return self._clock.now() + self._skew

    def _seconds_to_next(self) -> float:
        now, moment = self._now(), self._clock.monotonic()
        ends = [found.stop_after for found in self._observed.values() if found.stop_after is not None]
        if self._target is not None:
            wanted = self._target.wanted
            ends = [end for node_id, found in self._observed.items() if (end := _end_of(found, wanted.get(node_id)))]
        ends += [since + ORPHAN_GRACE for since in self._orphans_since.values()]
        waits = [(end - now).total_seconds() for end in ends if end > now]
        waits += [work.retry_at - moment for work in self._works.values() if work.retry_at > moment]
        return max(0.01, min([PERIOD_S, *waits]))

    def _note_orphans(self, orphans: frozenset[str]) -> None:
        now = self._now()
        for node_id in orphans - self._orphans_since.keys():
            log.warning("node.orphan", node_id=node_id, grace_s=ORPHAN_GRACE.total_seconds())
        self._orphans_since = {node_id: self._orphans_since.get(node_id, now) for node_id in orphans}

    def _forget(self, target: Target | None) -> None:
        """Drops what is known of nodes that are neither wanted nor here."""
        if target is None:
            return
        gone = [
            node_id
            for node_id, work in self._works.items()
            if work.task is None and node_id not in target.wanted and node_id not in self._observed
        ]
        for node_id in gone:
            del self._works[node_id]
        kept = {node_id: mark for node_id, mark in self._marks.items() if self._is_known(node_id, target)}
        if kept != self._marks:
            self._marks = kept
            self._records.keep_rosters(kept)

    def _is_known(self, node_id: str, target: Target) -> bool:
        return node_id in target.wanted or node_id in self._observed or node_id in self._works

    # --- applying -----------------------------------------------------------------------------------------------

    def _begin(self, actions: Iterable[Action], target: Target | None) -> bool:
        """Starts a task for each node with something to do; says whether one was started."""
        by_node: dict[str, list[Action]] = {}
        for action in actions:
            by_node.setdefault(action.node_id, []).append(action)
        began = False
        for node_id, mine in by_node.items():
            work = self._works.setdefault(node_id, _Work())
            wanted = target.wanted.get(node_id) if target else None
            if wanted is not None and wanted.digest != work.digest:
                work.digest, work.failures, work.retry_at, work.failed = wanted.digest, 0, 0.0, None
            if type(mine[0]) is not work.tried:
                work.retry_at = 0.0  # a node that could not be built is not slow to end
            if work.retry_at > self._clock.monotonic():
                continue
            mine = [one for one in mine if not (isinstance(one, Build) and any(self._is_here(o) for o in one.after))]
            if mine:
                found = self._observed.get(node_id)
                work.devices = (found.devices if found else frozenset()) | frozenset(wanted.devices if wanted else ())
                work.task = self._spawn(self._change(node_id, work, mine))
                began = True
        return began

    def _is_here(self, node_id: str) -> bool:
        work = self._works.get(node_id)
        return node_id in self._observed or (work is not None and work.task is not None)

    async def _change(self, node_id: str, work: _Work, actions: list[Action]) -> None:
        try:
            for action in actions:
                work.tried = type(action)
                if isinstance(action, End):
                    await self._end(action, work)
                else:
                    await self._build(node_id, work)
        except CorralError as error:
            work.failures += 1
            work.retry_at = self._clock.monotonic() + min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** (work.failures - 1))
            fault = Fault(code=fault_code(error), message=tidy(error.message))
            if fault != work.failed:
                log.warning("node.failed", node_id=node_id, code=fault.code, error=fault.message)
            work.failed = fault
        else:
            work.failures, work.retry_at, work.failed = 0, 0.0, None
        finally:
            work.task = None
            work.devices = frozenset()
            self._wake()

    async def _end(self, action: End, work: _Work) -> None:
        log.info("node.ending", node_id=action.node_id, reason=action.reason)
        await apply.end(self._runtime, action)
        for channel in work.channels.values():
            await channel.close()
        work.channels.clear()
        work.ended.clear()
        work.roster_refused = None
        log.info("node.ended", node_id=action.node_id, reason=action.reason)

    async def _build(self, node_id: str, work: _Work) -> None:
        bodies = self._bodies(node_id)
        if bodies is None:
            return  # dropped since it was planned

        async def attach(part: Part, name: str) -> None:
            await self._attach(node_id, part, name)

        began = self._clock.monotonic()
        await apply.build(self._runtime, node_id, bodies, attach=attach)
        log.info("node.started", node_id=node_id, seconds=round(self._clock.monotonic() - began, 3))

    def _bodies(self, node_id: str) -> dict[Part, Body] | None:
        desired = self._desired
        if desired is None:
            return None
        if node_id == self._facts.host_id:
            return {"front": front_body(self._facts)}
        for spec in desired.nodes:
            if spec.node_id == node_id:
                return node_bodies(spec, self._facts, revision=desired.revision)
        for leaf in desired.leaves:
            if leaf.node_id == node_id:
                return leaf_bodies(leaf, self._facts, revision=desired.revision)
        return None

    # --- the conversation ---------------------------------------------------------------------------------------

    async def _adopt(self, observed: Mapping[str, Found]) -> None:
        """Attaches to running containers that we have no channel to: after our restart, or when one broke."""
        missing = [
            (node_id, part, container)
            for node_id, found in observed.items()
            for part, container in found.parts.items()
            if part in ("mesh", "work", "web", "front")
            and container.state == "running"
            and not self._is_attached(node_id, part, container)
        ]
        await asyncio.gather(*(self._adopt_one(node_id, part, one) for node_id, part, one in missing))

    async def _adopt_one(self, node_id: str, part: str, container: Container) -> None:
        try:
            await self._attach(node_id, part, container.name)
        except RuntimeFailed as error:
            # It has probably just ended: the next look tells.
            log.warning("channel.failed", node_id=node_id, part=part, error=error.message)

    def _is_attached(self, node_id: str, part: str, container: Container) -> bool:
        work = self._works.get(node_id)
        if work is None:
            return False
        if work.task is not None:
            return True  # its task attaches by itself
        return _has_channel(work, part, container)

    async def _attach(self, node_id: str, part: str, name: str) -> None:
        """Opens a channel unless there is one; a program that already runs is asked to say everything again."""
        work = self._works.setdefault(node_id, _Work())
        found = await self._runtime.inspect(name)
        if found is None or _has_channel(work, part, found):
            return
        link = await self._runtime.attach(name)
        if (old := work.channels.get(part)) is not None:
            await old.close()
        channel = PartChannel(node_id=node_id, part=part, container_id=found.container_id, channel=link)
        work.channels[part] = channel
        self._spawn(channel.listen(self._on_line))
        if found.state == "running":
            await channel.send(type="hello")
        await self._feed(node_id)

    def _on_line(self, channel: PartChannel) -> None:
        self._spawn(self._feed(channel.node_id))
        self._tell()

    async def _feed_all(self) -> None:
        await asyncio.gather(*(self._feed(node_id) for node_id in list(self._works)))

    async def _feed(self, node_id: str) -> None:
        """Sends a node's programs what they need and have not been sent yet."""
        work, desired = self._works.get(node_id), self._desired
        if work is None or desired is None:
            return
        if node_id == self._facts.host_id:
            await self._feed_front(work)
            return
        spec = next((one for one in (*desired.nodes, *desired.leaves) if one.node_id == node_id), None)
        if spec is None:
            return
        await asyncio.gather(
            self._feed_token(work, desired.secrets.get(node_id)),
            self._feed_roster(work, spec, desired.rosters.get(spec.cluster_id)),
            self._feed_web(work, spec, desired.secrets.get(node_id)),
        )

    async def _feed_token(self, work: _Work, secrets: Secrets | None) -> None:
        channel = work.channels.get("work")
        if channel is None or secrets is None or channel.has_token or not channel.is_open:
            return
        channel.has_token = True
        await channel.send(type="start", token=secrets.ray_token)

    async def _feed_roster(self, work: _Work, spec: NodeSpec | LeafSpec, signed: SignedRoster | None) -> None:
        channel = work.channels.get("mesh")
        if channel is None or signed is None or channel.heard.mesh_key is None or not channel.is_open:
            return
        own_hash = payload_hash(signed.payload)
        if channel.sent_roster == own_hash:
            return
        mark = self._marks.get(spec.node_id)
        try:
            roster = _accepted(signed, spec, mark)
        except RosterRefused as error:
            refused = Fault(code=error.code, message=tidy(error.message))
            if refused != work.roster_refused:
                log.warning("roster.refused", node_id=spec.node_id, error=error.message)
            work.roster_refused = refused
            self._tell()
            return
        own = next((member for member in roster.members if member.node_id == spec.node_id), None)
        if own is None or own.public_key != channel.heard.mesh_key:
            return  # made before our key was known; the next one will name it
        work.roster_refused = None
        if mark is None or mark.payload_hash != own_hash:
            # Kept before it is applied: an agent that dies in between must not accept an older one afterwards.
            self._marks = {**self._marks, spec.node_id: RosterMark(roster.serial, own_hash)}
            self._records.keep_rosters(self._marks)
        channel.sent_roster = own_hash
        peers = peers_of(roster, node_id=spec.node_id, engine_id=self._facts.engine_id)
        await channel.send(type="roster", serial=roster.serial, peers=peers)

    async def _feed_web(self, work: _Work, spec: NodeSpec | LeafSpec, secrets: Secrets | None) -> None:
        channel = work.channels.get("web")
        if channel is None or secrets is None or self._configurer is None or not isinstance(spec, LeafSpec):
            return
        text = self._configurer.leaf_configuration(spec, secrets, _leaf_secret(spec, secrets))
        await self._configure(channel, text)

    async def _feed_front(self, work: _Work) -> None:
        channel = work.channels.get("front")
        # Before the control plane has spoken the leaves' secrets are unknown; the front goes on with what it has.
        if channel is None or self._configurer is None or not self._is_live:
            return
        leaves = [
            (leaf.cluster_name, leaf.address, leaf.leaf_secret)
            for leaf in self.leaves()
            if leaf.address and leaf.leaf_secret
        ]
        await self._configure(channel, self._configurer.front_configuration(leaves))

    async def _configure(self, channel: PartChannel, text: str) -> None:
        digest = hashlib.sha256(text.encode()).hexdigest()
        if channel.is_open and digest not in (channel.sent_config, channel.heard.serving):
            channel.sent_config = digest
            await channel.send(type="config", nginx=text)

    # --- telling ------------------------------------------------------------------------------------------------

    async def _note_ended(self, observed: Mapping[str, Found]) -> None:
        """Finds out why containers ended by themselves, once for each."""
        ended = [
            (node_id, part, container)
            for node_id, found in observed.items()
            for part, container in found.parts.items()
            if container.state == "exited"
        ]
        for node_id, part, container in ended:
            work = self._works.setdefault(node_id, _Work())
            if work.task is None and container.container_id not in work.ended:
                last = await self._runtime.last_errors(container.name, lines=ERROR_LINES)
                fault = ended_fault(part, container, await self._last_words(work, part), last)
                log.warning(
                    "node.container_ended", node_id=node_id, part=part, code=fault.code, exit=container.exit_code
                )
                work.ended[container.container_id] = fault

    @staticmethod
    async def _last_words(work: _Work, part: str) -> Heard:
        """What a container that ended has said, its last line included: that may still be on its way to us."""
        channel = work.channels.get(part)
        if channel is None:
            return Heard()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await channel.ended.wait()
        return channel.heard

    def _tell(self) -> None:
        """Sets `changed` if a report would now say something else than before, byte counts apart."""
        facts = [msgspec.structs.replace(report, received_bytes=0, sent_bytes=0) for report in self.reports()]
        now = (facts, self.foreign(), self._applied)
        if now != self._told:
            self._told = now
            self.changed.set()

    def _report(self, spec: NodeSpec | LeafSpec) -> NodeReport:
        found, work = self._observed.get(spec.node_id), self._works.get(spec.node_id)
        parts = found.parts if found else {}
        channels = work.channels if work else {}
        last = "work" if isinstance(spec, NodeSpec) else "web"
        mesh = channels["mesh"].heard if "mesh" in channels else Heard()
        ray = channels["work"].heard if "work" in channels else Heard()
        return NodeReport(
            node_id=spec.node_id,
            pause=_state(parts.get("pause")),
            mesh=_state(parts.get("mesh")),
            work=_state(parts.get(last)),
            mesh_key=mesh.mesh_key,
            endpoints=self._endpoints(parts.get("pause")),
            roster_serial=mesh.roster_serial,
            handshaken=mesh.handshaken,
            ray_phase=ray.ray_phase,
            alive=ray.alive,
            received_bytes=mesh.received_bytes,
            sent_bytes=mesh.sent_bytes,
            fault=self._fault(spec.node_id, found, work),
        )

    def _endpoints(self, pause: Container | None) -> tuple[str, ...]:
        if pause is None or pause.state != "running" or not pause.address:
            return ()
        published = [
            f"{self._facts.advertise or address}:{port}"
            for address, port, inner in pause.published
            if inner == f"{MESH_PORT}/udp"
        ]
        return (f"{pause.address}:{MESH_PORT}", *published)

    def _fault(self, node_id: str, found: Found | None, work: _Work | None) -> Fault | None:
        if work is not None and found is not None:
            # The mesh and the network come first: when they go, Ray's own end is only a consequence.
            for part in ("pause", "mesh", "work", "web"):
                if part in found.parts and (fault := work.ended.get(found.parts[part].container_id)) is not None:
                    return fault
        if node_id in self._plan_faults:
            return self._plan_faults[node_id]
        if work is None:
            return None
        for part, code in (("mesh", "roster_refused"), ("web", "container_failed")):
            if part in work.channels and (reason := work.channels[part].heard.refused):
                return Fault(code=code, message=tidy(f"the {part} container refused what it was sent: {reason}"))
        return work.failed or work.roster_refused

    def _leaf_view(self, leaf: LeafSpec) -> LeafView:
        found, work = self._observed.get(leaf.node_id), self._works.get(leaf.node_id)
        pause = found.parts.get("pause") if found else None
        secrets = self._desired.secrets.get(leaf.node_id) if self._desired else None
        web = work.channels.get("web") if work else None
        return LeafView(
            node_id=leaf.node_id,
            cluster_id=leaf.cluster_id,
            cluster_name=leaf.cluster_name,
            address=pause.address if pause else "",
            leaf_secret=_leaf_secret(leaf, secrets) if secrets else "",
            is_serving=web is not None and web.is_open and web.heard.serving != "",
        )


def _has_channel(work: _Work, part: str, container: Container) -> bool:
    channel = work.channels.get(part)
    return channel is not None and channel.is_open and channel.container_id == container.container_id


def _accepted(signed: SignedRoster, spec: NodeSpec | LeafSpec, mark: RosterMark | None) -> Roster:
    roster = accept(
        signed.payload,
        signed.signature,
        cluster_id=spec.cluster_id,
        roster_key=spec.mesh.roster_key,
        last_serial=mark.serial if mark else 0,
        last_hash=mark.payload_hash if mark else None,
    )
    for member in roster.members:
        if member.node_id == spec.node_id and member.address != spec.mesh.address:
            raise RosterRefused(
                f"roster {roster.serial} gives node {spec.node_id} the address {member.address}, "
                f"its spec says {spec.mesh.address}; nothing was applied"
            )
    return roster


def _leaf_secret(leaf: LeafSpec, secrets: Secrets) -> str:
    """
    What the front and the prober show to a leaf.

    Derived from the cluster's token, so that it needs no memory and stays the same over our restart. Who knows the
    token gains nothing by it: the token is what the leaf would add.
    """
    return hmac.new(secrets.ray_token.encode(), f"corral leaf {leaf.node_id}".encode(), hashlib.sha256).hexdigest()


def _end_of(found: Found, wanted: Wanted | None) -> datetime | None:
    return wanted.stop_after if wanted is not None else found.stop_after


def _state(container: Container | None) -> ContainerState:
    return container.state if container is not None else "missing"
