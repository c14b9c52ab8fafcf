"""The control plane's side of the one exchange: stores the report, answers with the desired state."""

import asyncio
import base64
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import msgspec
import structlog

from corral.core.ids import HostId, LineId
from corral.devices.authentication import HostAuthenticator
from corral.devices.enrol import enrol
from corral.devices.errors import HostRefused
from corral.devices.hires import release_cleaned
from corral.devices.hosts import Host, host_by_id
from corral.devices.measures import gauge_key, gauges_for, store_statements
from corral.devices.presence import Presence
from corral.devices.reports import Heard, facts_hash, is_late, is_unchanged, store_host_facts
from corral.devices.revisions import HOST_TOPIC, revision_of
from corral.platform.database import Tx
from corral.platform.http import Platform
from corral.platform.nudges import Nudge
from corral.wire.agent import (
    Desired,
    EnrolReply,
    EnrolRequest,
    GaugeSpec,
    LeafSpec,
    MailboxSpec,
    NodeSpec,
    Report,
    Revision,
    Secrets,
    SignedRoster,
)

HELD_MAX = 15_000
"""Replies that one process holds at once, about 16 KiB each; further ones are answered at once."""

HEARD_MAX = 200_000
"""Hosts of which a process remembers what it stored last (about 300 bytes each); a forgotten one is stored again."""

_log = structlog.get_logger("corral.devices")


@dataclass(frozen=True)
class DesiredParts:
    """What the clusters on a host want of it."""

    nodes: tuple[NodeSpec, ...] = ()
    leaves: tuple[LeafSpec, ...] = ()
    secrets: dict[str, Secrets] = field(default_factory=dict[str, Secrets])
    rosters: dict[str, SignedRoster] = field(default_factory=dict[str, SignedRoster])
    mailboxes: tuple[MailboxSpec, ...] = ()


class DesiredSource(Protocol):
    """Who knows what should run on hosts: a domain above this one."""

    async def desired_for(self, tx: Tx, host_id: HostId) -> DesiredParts:
        """What should be on the host, by the state that `tx` sees."""
        ...

    async def observe(self, tx: Tx, host: Host, report: Report, now: datetime) -> frozenset[LineId]:
        """Takes in what a host reports of its nodes; returns the lines whose nodes it still shows."""
        ...


class AgentDesk:
    """Where hosts are received; one per process."""

    def __init__(self, platform: Platform, source: DesiredSource) -> None:
        self.platform = platform
        self.presence = Presence()
        self.serving_since = platform.clock.now()
        self.authenticator = HostAuthenticator(audience_of(platform))
        self._source = source
        self._heard: OrderedDict[HostId, Heard] = OrderedDict()
        self._superseded: dict[HostId, asyncio.Event] = {}
        self._closing = asyncio.Event()
        self._held = 0

    def close(self) -> None:
        """Answers every held reply at once; later ones are not held. For a process that ends."""
        self._closing.set()

    async def enrol(self, request: EnrolRequest) -> EnrolReply:
        """
        Lets a host in.

        Raises:
            DevicesError: as `devices.enrol.enrol` tells.
        """
        now = self.platform.clock.now()
        async with self.platform.database.transaction() as tx:
            host_id, name = await enrol(tx, self.platform.ids, request, now)
        self.presence.heard(host_id, now)
        return EnrolReply(host_id=host_id, name=name, audience=self.authenticator.audience, server_time=now)

    async def exchange(
        self,
        authorization: str,
        report: Report,
        *,
        observed_address: str,
        gone: Callable[[], Awaitable[None]],
    ) -> Desired | None:
        """
        Stores a report; answers with the desired state once there is one newer than `report.seen`, or time is up.

        What the report says is committed before this answers, or even waits.

        Args:
            authorization: the request's header.
            report: what the host says.
            observed_address: where the request comes from.
            gone: returns once the host has hung up; may never return.

        Returns:
            The desired state; None if the host hung up.

        Raises:
            HostRefused: it does not prove to be a host of ours.
            ReportRefused: the report is absurd.
        """
        clock = self.platform.clock
        with ExitStack() as stack:
            async with self.platform.database.transaction() as tx:
                now = clock.now()
                host = await self.authenticator.host_of(tx, authorization, now)
                nudge, superseded = stack.enter_context(self._listening(host.host_id))
                self.presence.heard(host.host_id, now)
                heard = await self._store(tx, host, report, observed_address, now)
            self._remember(host.host_id, heard)
            deadline = clock.monotonic() + min(report.hold_s, self.platform.settings.exchange_hold_s)
            while True:
                # The nudge was cleared before this reading, so that a change during it is seen by the next.
                remaining_s = deadline - clock.monotonic()
                if (
                    remaining_s <= 0
                    or self._closing.is_set()
                    or superseded.is_set()
                    or self._held >= HELD_MAX
                    or await self._has_news(host, report)
                ):
                    return await self._desired(host.host_id)
                if not await self._wait(nudge, superseded, gone, remaining_s):
                    return None

    async def _wait(
        self, nudge: Nudge, superseded: asyncio.Event, gone: Callable[[], Awaitable[None]], timeout_s: float
    ) -> bool:
        """Waits for whatever ends a held reply; False if the host hung up."""
        self._held += 1
        hung_up = asyncio.ensure_future(gone())
        others = [
            asyncio.ensure_future(nudge.wait(timeout_s)),
            asyncio.ensure_future(superseded.wait()),
            asyncio.ensure_future(self._closing.wait()),
        ]
        try:
            await asyncio.wait({hung_up, *others}, return_when=asyncio.FIRST_COMPLETED)
            return not hung_up.done()
        finally:
            self._held -= 1
            for task in (hung_up, *others):
                task.cancel()
            await asyncio.gather(hung_up, *others, return_exceptions=True)

    async def _has_news(self, host: Host, report: Report) -> bool:
        """Whether there is something to answer at once: asked far more often than a state has to be assembled."""
        if host.hardware is None and report.hardware is None and host.role != "relay":
            return True
        async with self.platform.database.transaction() as tx:
            return await revision_of(tx, host.host_id) > report.seen

    def _remember(self, host_id: HostId, heard: Heard) -> None:
        self._heard[host_id] = heard
        self._heard.move_to_end(host_id)
        while len(self._heard) > HEARD_MAX:
            self._heard.popitem(last=False)

    async def _store(self, tx: Tx, host: Host, report: Report, observed_address: str, now: datetime) -> Heard:
        """Stores the facts of a report that changed; returns what is to be remembered once that is committed."""
        last = self._heard.get(host.host_id)
        hashed = facts_hash(report, observed_address)
        if last is not None and is_late(report, last, now):
            return last
        if not is_unchanged(report, hashed, last):
            await store_host_facts(tx, self.platform.ids, host, report, observed_address, now)
            await store_statements(tx, host, report.statements, now)
            report = await _believed(tx, host, report)
            present = await self._source.observe(tx, host, report, now)
            await release_cleaned(tx, host.host_id, report.applied, present, now)
        return Heard(report.sequence, hashed, now)

    async def _desired(self, host_id: HostId) -> Desired:
        async with self.platform.database.transaction() as tx:
            # Revision first: what is assembled afterwards is at least that new, and at worst sent once more.
            revision = await revision_of(tx, host_id)
            host = await host_by_id(tx, host_id)
            if host is None:
                raise HostRefused("this host is not known")
            parts = await self._source.desired_for(tx, host_id)
            gauges = await self._gauges(tx, host)
        images = self.platform.images
        # The image of pause, mesh and web is named by the agent's own; neither a gateway nor a relay runs Ray.
        wanted = ("corral-ray",) if host.role == "host" else ()
        return Desired(
            revision=revision,
            server_time=self.platform.clock.now(),
            intent=host.intent.value,
            nodes=parts.nodes,
            leaves=parts.leaves,
            secrets=parts.secrets,
            rosters=parts.rosters,
            mailboxes=parts.mailboxes,
            gauges=gauges,
            gauge_key=self._gauge_key(host),
            prefetch=tuple(images[name] for name in wanted if name in images),
            saw_hardware=host.hardware is not None or host.role == "relay",
        )

    async def _gauges(self, tx: Tx, host: Host) -> tuple[GaugeSpec, ...]:
        if host.role == "relay":
            return ()
        return await gauges_for(
            tx,
            self.platform.master_key,
            host.host_id,
            self.platform.clock.now(),
            offline_after_s=self.platform.settings.host_offline_after_s,
        )

    def _gauge_key(self, host: Host) -> str:
        if host.role != "relay":
            return ""
        return base64.b64encode(gauge_key(self.platform.master_key, host.host_id)).decode()

    @contextmanager
    def _listening(self, host_id: HostId) -> Generator[tuple[Nudge, asyncio.Event]]:
        """Listens for a host, whose earlier held reply is answered now: a host has one exchange at a time."""
        earlier = self._superseded.get(host_id)
        if earlier is not None:
            earlier.set()
        mine = self._superseded[host_id] = asyncio.Event()
        try:
            with self.platform.nudges.listen(HOST_TOPIC, host_id) as nudge:
                yield nudge, mine
        finally:
            if self._superseded.get(host_id) is mine:
                del self._superseded[host_id]


async def _believed(tx: Tx, host: Host, report: Report) -> Report:
    """
    The report; as one that has applied nothing, if it claims a revision that was never made.

    Then the host does not tell the truth, or the database was restored without a new epoch: what the lost past told
    the host may still run there, so nothing on it counts as cleaned.
    """
    newest = await revision_of(tx, host.host_id)
    if report.applied <= newest:
        return report
    _log.warning("host.ahead", host_id=host.host_id, applied=_pair(report.applied), newest=_pair(newest))
    return msgspec.structs.replace(report, applied=Revision(epoch=0, number=0))


def _pair(revision: Revision) -> tuple[int, int]:
    """A revision in a log line."""
    return revision.epoch, revision.number


def audience_of(platform: Platform) -> str:
    """The audience of hosts' tokens: this installation's own, whatever name it is reached by."""
    return f"corral-{platform.master_key.derive('host token audience', length=16).hex()}"
