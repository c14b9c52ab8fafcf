"""
Keeping the nodes of a host: observe, plan, apply, again and again.

`NodeKeeper.run` compares the newest desired state with the containers that carry our label. Engine events and new
documents only wake it early. Each node is changed by a task of its own, so that one that hangs or fails delays no
other. What is said with the containers' programs is in `conversations`.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog

from corral.agent import apply
from corral.agent.bodies import HostFacts, Part
from corral.agent.conversations import Conversations
from corral.agent.documents import DocumentRefused, accepted, is_plausible
from corral.agent.faults import ended_fault, fault_code, tidy
from corral.agent.leaves import LeafConfigurer, LeafView, leaf_view
from corral.agent.node_report import node_report
from corral.agent.observe import Found, observe
from corral.agent.pacing import until_set
from corral.agent.plan import ORPHAN_GRACE, Action, Build, End, Target, Wanted, agrees, plan, target_of
from corral.agent.records import Records
from corral.agent.renewals import Renewals
from corral.agent.runtime import ContainerRuntime, EngineUnreachable, RuntimeFailed
from corral.core.clock import Clock
from corral.core.errors import CorralError, invariant
from corral.core.ids import is_id
from corral.wire.agent import Desired, Fault, LeafSpec, NodeReport, NodeSpec, Revision

log = structlog.get_logger()

PERIOD_S = 5.0
"""Between two looks when nothing woke us: a lost event costs this and no more."""
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 30.0
EVENTS_RETRY_S = 1.0
ENGINE_PATIENCE_S = 60.0
"""How long the engine may not answer before we end: one that was started anew may have left us its old socket."""
ERROR_LINES = 20
_NOWHERE = Revision(0, 0)


@dataclass(kw_only=True)
class _Work:
    """What the keeper knows of one node beside what the engine shows."""

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
        self._renewals = Renewals(self._records, clock)
        self._clock = clock
        self._configurer = configurer
        self._time_at = clock.now() + self._records.skew(), clock.monotonic()
        """Server time, and our monotonic clock at that instant: a wall clock may be set while nodes run."""
        self._talks = Conversations(
            runtime, facts, self._records, clock, configurer, spawn=self._spawn, told=lambda: self._tell()
        )
        self._desired: Desired | None = None
        self._is_live = False
        """Whether a desired state came from the control plane since we started: only such a one has secrets."""
        self._target: Target | None = None
        self._works: dict[str, _Work] = {}
        self._observed: dict[str, Found] = {}
        self._orphans_since: dict[str, datetime] = {}
        self._plan_faults: Mapping[str, Fault] = {}
        self._applied = _NOWHERE
        self._has_looked = asyncio.Event()
        self._silent_since: float | None = None
        """Monotonic; since when the engine does not answer."""
        self._told: object = None
        self._nudge = asyncio.Event()
        self._idle = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self.changed = asyncio.Event()
        """Set when something worth reporting at once has happened; whoever reports clears it."""
        self._take_record()

    async def run(self) -> None:
        """
        Keeps the nodes until it is cancelled; the containers then go on as they are.

        Raises:
            EngineUnreachable: for `ENGINE_PATIENCE_S`. Only a new process of ours gets the socket of a new daemon: the
                old one's file stays mounted in our container. (In an exception group.)
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._hear_events())
            while True:
                self._nudge.clear()
                await self._pass()
                await until_set(self._nudge, self._clock, self._seconds_to_next())

    async def converge(self, desired: Desired, now: datetime) -> None:
        """
        Takes a desired state as the new target and wakes the loop; does not wait for it to be reached.

        One that is older than the target is ignored.

        Args:
            desired: from the control plane.
            now: server time.

        Raises:
            DocumentRefused: it contradicts itself or asks for the impossible; what was wanted before stays wanted.
        """
        if not is_plausible(now):
            raise DocumentRefused(f"the control plane's time is {now.isoformat()}; nothing was done")
        desired = accepted(desired, host_id=self._facts.host_id, now=now)
        self._time_at = now, self._clock.monotonic()
        self._records.keep_time(server=now, own=self._clock.now())
        if self._desired is not None and desired.revision < self._desired.revision:
            log.warning("desired.stale", revision=desired.revision, have=self._desired.revision)
            return
        if self._desired is None or msgspec.structs.replace(self._desired, server_time=desired.server_time) != desired:
            self._records.keep_desired(desired)
        self._aim_at(desired, is_live=True)

    def set_facts(self, facts: HostFacts) -> None:
        """Takes new facts about the host: its devices changed."""
        self._facts = facts
        if self._desired is not None:
            self._aim_at(self._desired, is_live=self._is_live)

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
        return tuple(sorted(node_id for node_id in self._orphans_since if is_id(node_id)))

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

    def _take_record(self) -> None:
        """Goes on with what is on disk; without secrets, but enough to keep nodes and to end them in time."""
        recorded = self._records.desired()
        try:
            if recorded is not None:
                self._aim_at(accepted(recorded, host_id=self._facts.host_id, now=self._now()), is_live=False)
        except DocumentRefused as error:
            log.warning("record.refused", error=error.message)

    def _aim_at(self, desired: Desired, *, is_live: bool) -> None:
        self._desired, self._is_live = desired, is_live
        self._target = target_of(desired, self._facts)
        self._talks.brief(desired, self._facts, is_live=is_live)
        self._wake()

    # --- the loop -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._idle.clear()
        self._nudge.set()

    async def _hear_events(self) -> None:
        while True:
            try:
                async for _ in self._runtime.events():
                    self._wake()
            except RuntimeFailed as error:
                if self._silent_since is None:
                    log.warning("engine.events_lost", error=error.message)
            self._wake()
            await self._clock.sleep(EVENTS_RETRY_S)

    async def _pass(self) -> None:
        target = self._target
        busy_before = self._busy()
        try:
            self._observed = observed = observe(await self._runtime.list_ours())
            await asyncio.gather(self._talks.adopt(observed, busy=self._busy()), self._note_ended(observed))
        except RuntimeFailed as error:
            self._note_silence(error)
            self._tell()
            return
        self._silent_since = None
        self._has_looked.set()
        held = {**busy_before, **self._busy()}
        found = plan(
            target,
            observed,
            now=self._now(),
            orphans_since=self._orphans_since,
            held=held,
            renewable=self._renewals.due(),
        )
        self._note_orphans(found.orphans)
        self._plan_faults = found.faults
        began = self._begin(found.actions, target)
        await self._forget(target)
        await self._talks.feed_all(self.leaves())
        self._records.save()
        if target is not None and agrees(target, observed, busy=frozenset(held)):
            self._applied = max(self._applied, target.revision)
        if not began and not self._busy() and not self._nudge.is_set():
            self._idle.set()
        self._tell()

    def _note_silence(self, error: RuntimeFailed) -> None:
        if not isinstance(error, EngineUnreachable):
            log.warning("engine.failed", error=error.message)
            return
        if self._silent_since is None:
            self._silent_since = self._clock.monotonic()
            log.warning("engine.unreachable", error=error.message, patience_s=ENGINE_PATIENCE_S)
        elif self._clock.monotonic() - self._silent_since >= ENGINE_PATIENCE_S:
            raise error

    def _spawn(self, act: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        invariant(self._group is not None, "nodes are changed only while the keeper runs")
        return cast(asyncio.TaskGroup, self._group).create_task(act)

    def _busy(self) -> dict[str, frozenset[str]]:
        return {node_id: work.devices for node_id, work in self._works.items() if work.task is not None}

    def _now(self) -> datetime:
        at, monotonic = self._time_at
        return at + timedelta(seconds=self._clock.monotonic() - monotonic)

    def _seconds_to_next(self) -> float:
        now, moment = self._now(), self._clock.monotonic()
        wanted = self._target.wanted if self._target is not None else {}
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

    async def _forget(self, target: Target | None) -> None:
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
        known = {*target.wanted, *self._observed, *self._works}
        await self._talks.keep_only(known)
        self._renewals.keep_only(known)

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
        if action.reason == "ended":
            self._renewals.note(action.node_id, self._ended_fault(action.node_id))
        await apply.end(self._runtime, action)
        if action.is_whole:
            await self._talks.end(action.node_id)
        work.ended.clear()
        log.info("node.ended", node_id=action.node_id, reason=action.reason)

    async def _build(self, node_id: str, work: _Work) -> None:
        bodies = apply.bodies_for(node_id, self._desired, self._facts) if self._desired is not None else None
        if bodies is None:
            return  # dropped since it was planned

        async def attach(part: Part, name: str) -> None:
            await self._talks.attach(node_id, part, name)

        began = self._clock.monotonic()
        await apply.build(self._runtime, node_id, bodies, attach=attach)
        log.info("node.started", node_id=node_id, seconds=round(self._clock.monotonic() - began, 3))

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
                fault = ended_fault(part, container, await self._talks.last_words(node_id, part), last)
                log.warning(
                    "node.container_ended", node_id=node_id, part=part, code=fault.code, exit=container.exit_code
                )
                work.ended[container.container_id] = fault

    def _tell(self) -> None:
        """Sets `changed` if a report would now say something else than before, byte counts apart."""
        facts = [report.without_counts() for report in self.reports()]
        self._renewals.note_worked(self._working(facts))
        now = (facts, self.foreign(), self._applied)
        if now != self._told:
            self._told = now
            self.changed.set()

    def _report(self, spec: NodeSpec | LeafSpec) -> NodeReport:
        found = self._observed.get(spec.node_id)
        return node_report(
            spec,
            found.parts if found is not None else {},
            mesh=self._talks.heard(spec.node_id, "mesh"),
            ray=self._talks.heard(spec.node_id, "work"),
            members=self._talks.members(spec.node_id),
            advertise=self._facts.advertise,
            lan=self._facts.lan,
            fault=self._fault(spec.node_id),
            renewals=self._renewals.count(spec.node_id),
            renewed_for=self._renewals.reason(spec.node_id),
        )

    def _working(self, reports: Iterable[NodeReport]) -> frozenset[str]:
        """Nodes in which Ray runs, and leaves that serve, with everything else of them."""
        return frozenset(
            report.node_id
            for report in reports
            if report.pause == report.mesh == report.work == "running"
            and (report.ray_phase == "running" or self._talks.is_serving(report.node_id))
        )

    def _fault(self, node_id: str) -> Fault | None:
        ended = self._ended_fault(node_id)
        if ended is not None and not self._renewals.may(node_id):
            return ended
        if node_id in self._plan_faults:
            return self._plan_faults[node_id]
        work = self._works.get(node_id)
        return (work.failed if work is not None else None) or self._talks.fault(node_id)

    def _ended_fault(self, node_id: str) -> Fault | None:
        """How the part of a node ended that explains the end of the others."""
        found, work = self._observed.get(node_id), self._works.get(node_id)
        if work is None or found is None:
            return None
        # The mesh and the network come first: when they go, Ray's own end is only a consequence.
        faults = (
            work.ended.get(found.parts[part].container_id)
            for part in ("pause", "mesh", "work", "web")
            if part in found.parts
        )
        return next((fault for fault in faults if fault is not None), None)

    def _leaf_view(self, leaf: LeafSpec) -> LeafView:
        found = self._observed.get(leaf.node_id)
        pause = found.parts.get("pause") if found is not None else None
        secrets = self._desired.secrets.get(leaf.node_id) if self._desired is not None else None
        return leaf_view(leaf, pause, secrets, is_serving=self._talks.is_serving(leaf.node_id))


def _end_of(found: Found, wanted: Wanted | None) -> datetime | None:
    return wanted.stop_after if wanted is not None else found.stop_after
