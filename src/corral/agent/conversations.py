"""
The conversations with the programs of this host's containers: keys come out; rosters, tokens and configurations go in.

One `Conversation` for each node, with a channel to each of its talking containers. What is told to a program depends on
the newest desired state (`brief`) and on what it has said itself; both are compared anew whenever one of them changes.
Secrets are held in memory alone.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import structlog

from corral.agent.bodies import HostFacts
from corral.agent.channels import Heard, PartChannel
from corral.agent.faults import tidy
from corral.agent.leaves import LeafConfigurer, LeafView, leaf_secret
from corral.agent.observe import Found
from corral.agent.records import Records, RosterMark
from corral.agent.rosters import accepted_roster
from corral.agent.runtime import Container, ContainerRuntime, RuntimeFailed
from corral.core.clock import Clock
from corral.protocol.peers import told_of
from corral.protocol.roster import RosterRefused, payload_hash
from corral.wire.agent import Desired, Fault, LeafSpec, NodeSpec, Secrets, SignedRoster

log = structlog.get_logger()

TALKING_PARTS = ("mesh", "work", "web", "front")
LAST_WORDS_S = 1.0


@dataclass(kw_only=True)
class Conversation:
    """All that is said with one node's containers."""

    channels: dict[str, PartChannel] = field(default_factory=dict[str, PartChannel])
    members: frozenset[str] = frozenset()
    """Mesh addresses in the roster that was accepted last."""
    judged: tuple[str, str] = ("", "")
    """Hash and signature of the roster that was refused last, so that it is not judged again."""
    refused: Fault | None = None
    """Why it was."""


class Conversations:
    """
    Talks with every container of this host that has something to say.

    Args:
        runtime: attaches.
        records: keeps the mark of each node's last roster.
        clock: paces what strangers' programs set off.
        configurer: writes web configurations; None on a host that is no gateway.
        spawn: starts a task in the keeper's group.
        told: called whenever something that is reported may have changed.
    """

    def __init__(
        self,
        runtime: ContainerRuntime,
        facts: HostFacts,
        records: Records,
        clock: Clock,
        configurer: LeafConfigurer | None,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        told: Callable[[], None],
    ) -> None:
        self._runtime, self._facts, self._records, self._clock = runtime, facts, records, clock
        self._configurer, self._spawn, self._told = configurer, spawn, told
        self._marks = records.rosters()
        self._by_node: dict[str, Conversation] = {}
        self._specs: dict[str, NodeSpec | LeafSpec] = {}
        self._secrets: Mapping[str, Secrets] = {}
        self._rosters: dict[str, tuple[SignedRoster, str]] = {}
        """By cluster id, with the payload's hash."""
        self._leaves: tuple[LeafView, ...] = ()
        self._is_live = False

    def brief(self, desired: Desired, facts: HostFacts, *, is_live: bool) -> None:
        """Takes a desired state; only one that is `is_live`, straight from the control plane, has secrets."""
        self._facts, self._is_live, self._secrets = facts, is_live, desired.secrets
        self._specs = {spec.node_id: spec for spec in (*desired.nodes, *desired.leaves)}
        self._rosters = {
            cluster: known
            if (known := self._rosters.get(cluster)) is not None and known[0] == signed
            else (signed, payload_hash(signed.payload))
            for cluster, signed in desired.rosters.items()
        }

    def heard(self, node_id: str, part: str) -> Heard:
        """What a container has said so far."""
        channel = self._channel(node_id, part)
        return channel.heard if channel is not None else Heard()

    def members(self, node_id: str) -> frozenset[str]:
        """Mesh addresses that a node's programs may speak of: those in its roster, and before it has one, its own."""
        talk, spec = self._by_node.get(node_id), self._specs.get(node_id)
        if talk is not None and talk.members:
            return talk.members
        return frozenset({spec.mesh.address}) if spec is not None else frozenset()

    def fault(self, node_id: str) -> Fault | None:
        """Why what was to be told was refused, by the program or by us."""
        for part, code in (("mesh", "roster_refused"), ("web", "container_failed")):
            if reason := self.heard(node_id, part).refused:
                return Fault(code=code, message=tidy(f"the {part} container refused what it was sent: {reason}"))
        talk = self._by_node.get(node_id)
        return talk.refused if talk is not None else None

    def is_serving(self, node_id: str) -> bool:
        """Whether a leaf's web server runs with a configuration."""
        channel = self._channel(node_id, "web")
        return channel is not None and channel.is_open and channel.heard.serving != ""

    # --- beginning and ending -----------------------------------------------------------------------------------

    async def adopt(self, observed: Mapping[str, Found], *, busy: Iterable[str]) -> None:
        """Attaches to running containers that we have no channel to: after our restart, or when one broke."""
        changing = set(busy)  # their tasks attach by themselves
        missing = [
            (node_id, part, container)
            for node_id, found in observed.items()
            for part, container in found.parts.items()
            if part in TALKING_PARTS
            and node_id not in changing
            and container.state == "running"
            and not self._has_channel(node_id, part, container)
        ]
        await asyncio.gather(*(self._adopt_one(node_id, part, one) for node_id, part, one in missing))

    async def attach(self, node_id: str, part: str, name: str) -> None:
        """
        Opens a channel unless there is one; a program that already runs is asked to say everything again.

        Raises:
            RuntimeFailed: the engine could not do it.
        """
        found = await self._runtime.inspect(name)
        if found is None or self._has_channel(node_id, part, found):
            return
        link = await self._runtime.attach(name)
        talk = self._by_node.setdefault(node_id, Conversation())
        if (old := talk.channels.get(part)) is not None:
            await old.close()
        channel = PartChannel(
            node_id=node_id, part=part, container_id=found.container_id, channel=link, clock=self._clock
        )
        talk.channels[part] = channel
        self._spawn(channel.listen(self._on_line))
        if found.state == "running":
            await channel.send(type="hello")
        await self.feed(node_id)

    async def last_words(self, node_id: str, part: str) -> Heard:
        """What a container that ended has said, its last line included: that may still be on its way to us."""
        channel = self._channel(node_id, part)
        if channel is None:
            return Heard()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await channel.ended.wait()
        return channel.heard

    async def end(self, node_id: str) -> None:
        """Closes a node's channels and forgets what was said."""
        talk = self._by_node.pop(node_id, None)
        for channel in talk.channels.values() if talk is not None else ():
            await channel.close()

    async def keep_only(self, known: Set[str]) -> None:
        """Forgets all nodes that are not `known` any more, on disk too."""
        for node_id in self._by_node.keys() - known:
            await self.end(node_id)
        kept = {node_id: mark for node_id, mark in self._marks.items() if node_id in known}
        if kept != self._marks:
            self._marks = kept
            self._records.keep_rosters(kept)

    # --- telling ------------------------------------------------------------------------------------------------

    async def feed_all(self, leaves: tuple[LeafView, ...]) -> None:
        """Tells every program what it needs; `leaves` are what the front serves."""
        self._leaves = leaves
        await asyncio.gather(*(self.feed(node_id) for node_id in list(self._by_node)))

    async def feed(self, node_id: str) -> None:
        """Tells a node's programs what they need and have not been told yet."""
        talk, spec, secrets = self._by_node.get(node_id), self._specs.get(node_id), self._secrets.get(node_id)
        if talk is None:
            return
        if node_id == self._facts.host_id:
            await self._feed_front(talk)
        elif spec is not None:
            await asyncio.gather(
                self._feed_token(talk, secrets), self._feed_roster(talk, spec), self._feed_web(talk, spec, secrets)
            )

    def _on_line(self, channel: PartChannel) -> None:
        self._spawn(self.feed(channel.node_id))
        self._told()

    async def _feed_token(self, talk: Conversation, secrets: Secrets | None) -> None:
        channel = talk.channels.get("work")
        if channel is None or secrets is None or channel.has_token or not channel.is_open:
            return
        channel.has_token = True
        await channel.send(type="start", token=secrets.ray_token)

    async def _feed_roster(self, talk: Conversation, spec: NodeSpec | LeafSpec) -> None:
        channel = talk.channels.get("mesh")
        signed, own_hash = self._rosters.get(spec.cluster_id, (None, ""))
        if channel is None or signed is None or channel.heard.mesh_keys is None or not channel.is_open:
            return
        if channel.sent_roster == own_hash or talk.judged == (own_hash, signed.signature):
            return
        mark = self._marks.get(spec.node_id)
        try:
            roster = accepted_roster(signed, spec, mark)
        except RosterRefused as error:
            log.warning("roster.refused", node_id=spec.node_id, error=error.message)
            talk.judged = (own_hash, signed.signature)
            talk.refused = Fault(code=error.code, message=tidy(error.message))
            self._told()
            return
        talk.members = frozenset(member.address for member in roster.members)
        own = next((member for member in roster.members if member.node_id == spec.node_id), None)
        keys = channel.heard.mesh_keys
        if own is None or (own.direct_key, own.relayed_key) != (keys.direct, keys.relayed):
            return  # made before our key was known; the next one will name it
        talk.refused, talk.judged = None, ("", "")
        if mark is None or mark.payload_hash != own_hash:
            # Kept before it is applied: an agent that dies in between must not accept an older one afterwards.
            self._marks = {**self._marks, spec.node_id: RosterMark(roster.serial, own_hash)}
            self._records.keep_rosters(self._marks)
        channel.sent_roster = own_hash
        told = told_of(roster, own, engine_id=self._facts.engine_id)
        await channel.send(type="roster", serial=roster.serial, **told)

    async def _feed_web(self, talk: Conversation, spec: NodeSpec | LeafSpec, secrets: Secrets | None) -> None:
        channel = talk.channels.get("web")
        if channel is None or secrets is None or self._configurer is None or not isinstance(spec, LeafSpec):
            return
        await _configure(channel, self._configurer.leaf_configuration(spec, secrets, leaf_secret(spec, secrets)))

    async def _feed_front(self, talk: Conversation) -> None:
        channel = talk.channels.get("front")
        # Before the control plane has spoken the leaves' secrets are unknown; the front goes on with what it has.
        if channel is None or self._configurer is None or not self._is_live:
            return
        leaves = [
            (leaf.cluster_name, leaf.address, leaf.leaf_secret)
            for leaf in self._leaves
            if leaf.address and leaf.leaf_secret
        ]
        await _configure(channel, self._configurer.front_configuration(leaves))

    # --- channels -----------------------------------------------------------------------------------------------

    async def _adopt_one(self, node_id: str, part: str, container: Container) -> None:
        try:
            await self.attach(node_id, part, container.name)
        except RuntimeFailed as error:
            # It has probably just ended: the next look tells.
            log.warning("channel.failed", node_id=node_id, part=part, error=error.message)

    def _channel(self, node_id: str, part: str) -> PartChannel | None:
        talk = self._by_node.get(node_id)
        return talk.channels.get(part) if talk is not None else None

    def _has_channel(self, node_id: str, part: str, container: Container) -> bool:
        channel = self._channel(node_id, part)
        return channel is not None and channel.is_open and channel.container_id == container.container_id


async def _configure(channel: PartChannel, text: str) -> None:
    digest = hashlib.sha256(text.encode()).hexdigest()
    if channel.is_open and digest not in (channel.sent_config, channel.heard.serving):
        channel.sent_config = digest
        await channel.send(type="config", nginx=text)
