"""
Hosts in memory: they enrol, report and follow their desired state, but start no container.

They speak the messages of `corral.wire.agent` straight to an `AgentDesk`. Whatever a real agent can suffer can be
ordered: a step that never comes, a container that dies, silence, and messages that are lost, repeated or late.
"""

import asyncio
import base64
import random
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Literal

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from corral.core.clock import Clock
from corral.core.ids import HostId
from corral.core.units import GIB
from corral.devices import AgentDesk, DevicesError
from corral.protocol.gauge import Statement, sign_statement
from corral.protocol.roster import Roster, accept, payload_hash
from corral.wire.agent import (
    Check,
    Cpu,
    Desired,
    DeviceOffer,
    EnrolRequest,
    Fault,
    Hardware,
    Identity,
    LeafSpec,
    MeshKeys,
    NodeReport,
    NodeSpec,
    Observation,
    RelayReport,
    Report,
    Revision,
    SignedStatement,
)


class Trouble(StrEnum):
    """What goes wrong on a host, each from the step on that it names."""

    NO_CONTAINERS = "no_containers"
    NO_KEY = "no_key"
    NO_ROSTER = "no_roster"
    NO_RAY = "no_ray"
    DIES = "dies"
    """Ray runs, and exits at the next step; so it does when it is started anew, until the agent gives up."""
    FAULT = "fault"
    """The agent reports a fault instead of starting anything."""
    SILENT = "silent"
    """The host falls silent once it has started its containers."""


RENEWALS_MAX = 2
"""How often an agent starts a container anew that had worked."""

RAY_ENDED = Fault(code="ray_exited", message="the work container ended with status 1")


@dataclass
class SimulatedNode:
    """A node or a leaf on a simulated host, and how far it has come."""

    spec: NodeSpec | LeafSpec
    keys: MeshKeys
    steps: int = 0
    serial: int = 0
    roster: Roster | None = None
    roster_hash: str | None = None
    ray_runs: bool = False
    ray_exited: bool = False
    renewals: int = 0

    @property
    def address(self) -> str:
        """Its mesh address."""
        return self.spec.mesh.address


@dataclass
class World:
    """What hosts would find out through the mesh: who runs where."""

    clock: Clock
    randomness: random.Random
    hosts: "list[SimulatedHost]" = field(default_factory=lambda: list[SimulatedHost]())

    def member(self, cluster_id: str, address: str, direct_key: str) -> SimulatedNode | None:
        """The running member of a cluster with this address and key, on a host that is up."""
        for host in self.hosts:
            for node in host.nodes.values():
                found = (node.spec.cluster_id, node.address, node.keys.direct)
                if found == (cluster_id, address, direct_key) and not host.is_down:
                    return node
        return None

    def alive(self, head: SimulatedNode) -> tuple[str, ...]:
        """The addresses that Ray on this head holds for alive."""
        if not head.ray_runs or head.roster is None:
            return ()
        members = head.roster.members
        found = [self.member(head.spec.cluster_id, one.address, one.direct_key) for one in members]
        return tuple(sorted(node.address for node in found if node is not None and node.ray_runs))


class SimulatedHost:
    """One host and its agent."""

    def __init__(
        self,
        world: World,
        desk: AgentDesk,
        name: str,
        *,
        slices: int = 1,
        role: Literal["host", "gateway", "relay"] = "host",
        trouble: Trouble | None = None,
        model: str = "Simulated CPU",
        cores_per_slice: float = 1.0,
    ) -> None:
        self.role: Literal["host", "gateway", "relay"] = role
        self.world, self.desk, self.name, self.trouble = world, desk, name, trouble
        self.private_key = Ed25519PrivateKey.from_private_bytes(world.randomness.randbytes(32))
        self.public_key = base64.b64encode(self.private_key.public_key().public_bytes_raw()).decode()
        self.host_id = ""
        self.audience = ""
        self.slices, self.model, self.cores_per_slice = slices, model, cores_per_slice
        self.advertise = ""
        self.seen_at = "192.0.2.7"
        """Where its exchanges come from."""
        self.lan: tuple[str, ...] = ()
        """Endpoints on its own network."""
        self.observed: dict[str, str] = {}
        """Relays: by node, where it sees that node's direct plane."""
        self.reaches_by_relay = False
        """Whether its nodes reach all others through a relay alone."""
        self.has_used_its_cap = False
        """Whether its nodes have used up what they may have with the internet."""
        self.gauge_port = 0
        """Relays: where its gauge serves."""
        self.statements: tuple[SignedStatement, ...] = ()
        """What gauges have stated of it; said with every report."""
        self.is_down = False
        self.loss = 0.0
        """Share of exchanges whose report or reply is lost."""
        self.repeats = 0.0
        """Share of reports that arrive again later, out of order."""
        self.nodes: dict[str, SimulatedNode] = {}
        self.applied = Revision(epoch=0, number=0)
        self.seen = Revision(epoch=0, number=0)
        self.desired: Desired | None = None
        self._sequence = 0
        self._must_tell_hardware = True
        self._said: Report | None = None
        self._late: list[Report] = []
        world.hosts.append(self)

    async def enrol(self, token: str) -> None:
        """Redeems a join token."""
        answer = await self.desk.enrol(self.enrol_request(token))
        self.host_id, self.audience = answer.host_id, answer.audience

    def enrol_request(self, token: str) -> EnrolRequest:
        """What it sends to be let in."""
        proof = self.private_key.sign(f"{token}\n{self.public_key}".encode())
        return EnrolRequest(
            token=token,
            public_key=self.public_key,
            signature=base64.b64encode(proof).decode(),
            identity=Identity(machine_id=f"machine-{self.name}", engine_id=f"engine-{self.name}"),
            name=self.name,
            role=self.role,
        )

    def token(self, *, life_s: float = 600) -> str:
        """A token of this host, signed with its key."""
        now = self.world.clock.now()
        claims = {"sub": self.host_id, "aud": self.audience, "iat": now, "exp": now + timedelta(seconds=life_s)}
        return jwt.encode(claims, self.private_key, algorithm="EdDSA")

    def restart_agent(self) -> None:
        """The agent starts anew: it adopts its nodes, counts from one again and has received nothing."""
        self._sequence, self._must_tell_hardware, self._said = 0, True, None
        self.applied = self.seen = Revision(epoch=0, number=0)
        self.desired = None

    async def turn(self, *, is_nudged: bool = True) -> None:
        """
        One exchange and what follows from it: reports, receives, converges by one step.

        With nothing new on either side (`is_nudged` says whether there is on the other) the reply that a real agent
        waits for would just be held: such a turn is only a sign of life.
        """
        if self.is_down:
            return
        chance = self.world.randomness
        report = self.report()
        if not is_nudged and not self._late and not self._has_news(report):
            self._sequence -= 1
            self.desk.presence.heard(HostId(self.host_id), self.world.clock.now())
            if self.desired is not None:
                self.converge(self.desired)
            return
        if chance.random() < self.repeats:
            self._late.append(report)
        if self._late and chance.random() < 0.5:
            await self._exchange(self._late.pop(0))
        if chance.random() < self.loss:
            return  # The report never arrives.
        desired = await self._exchange(report)
        if desired is not None:
            self._said = report
        if desired is not None and chance.random() >= self.loss:
            self.seen = desired.revision
            self._must_tell_hardware = not desired.saw_hardware
            self.converge(desired)
        elif self.desired is not None:
            self.converge(self.desired)

    def report(self) -> Report:
        """What it says now."""
        self._sequence += 1
        tells_machine = self._must_tell_hardware and self.role != "relay"
        return Report(
            sequence=self._sequence,
            applied=self.applied,
            seen=self.seen,
            hold_s=0,
            agent_version="simulated",
            wall_clock=self.world.clock.now(),
            advertise=self.advertise,
            hardware=self._hardware() if tells_machine else None,
            devices=self._devices() if tells_machine else None,
            checks=(Check(rule="memory", outcome="pass", value="64 GiB", need="12 GB"),) if tells_machine else None,
            nodes=tuple(self._node_report(node) for node in self.nodes.values()),
            gateway_address="http://127.0.0.1:8471" if self.role == "gateway" else "",
            relay=self._relay_report() if self.role == "relay" else None,
            statements=self.statements,
        )

    def state(self, host_id: str, **measured: int) -> SignedStatement:
        """Relays: a statement of now about a host, signed."""
        at = int(self.world.clock.now().timestamp())
        statement = Statement(relay_id=self.host_id, host_id=host_id, session=1, at=at, **measured)
        payload, signature = sign_statement(statement, self.private_key)
        return SignedStatement(payload=payload, signature=signature)

    def _relay_report(self) -> RelayReport:
        return RelayReport(
            port_first=41000,
            port_count=8,
            observer_key=self.public_key,
            gauge_port=self.gauge_port,
            observed=tuple(Observation(node_id=key, endpoint=value) for key, value in sorted(self.observed.items())),
        )

    def _has_news(self, report: Report) -> bool:
        """Whether it says more than its last one that arrived did; traffic alone is not worth a message."""

        def facts(one: Report) -> Report:
            quiet = tuple(node.without_counts() for node in one.nodes)
            return replace(one, sequence=0, seen=one.applied, wall_clock=None, nodes=quiet)

        return self._said is None or facts(self._said) != facts(report)

    def converge(self, desired: Desired) -> None:
        """Makes what should be here, ends what should not, and lets each node come one step further."""
        if self.desired is not None and desired.revision < self.desired.revision:
            return
        self.desired = desired
        wanted: dict[str, NodeSpec | LeafSpec] = {spec.node_id: spec for spec in (*desired.nodes, *desired.leaves)}
        for node_id in [known for known in self.nodes if known not in wanted]:
            del self.nodes[node_id]
        for node_id, spec in wanted.items():
            if node_id not in self.nodes:
                direct, relayed = (base64.b64encode(self.world.randomness.randbytes(32)).decode() for _ in range(2))
                self.nodes[node_id] = SimulatedNode(spec, MeshKeys(direct=direct, relayed=relayed))
            node = self.nodes[node_id]
            node.spec = spec
            self._step(node, desired)
        self.applied = desired.revision

    def _step(self, node: SimulatedNode, desired: Desired) -> None:
        if self.trouble in (Trouble.FAULT, Trouble.NO_CONTAINERS):
            return
        node.steps += 1
        if self.trouble is Trouble.SILENT and node.steps >= 2:
            self.is_down = True
        signed = desired.rosters.get(node.spec.cluster_id)
        if signed is None or self.trouble in (Trouble.NO_KEY, Trouble.NO_ROSTER):
            return
        node.roster = accept(
            signed.payload,
            signed.signature,
            cluster_id=node.spec.cluster_id,
            roster_key=node.spec.mesh.roster_key,
            last_serial=node.serial,
            last_hash=node.roster_hash,
        )
        node.serial, node.roster_hash = node.roster.serial, payload_hash(signed.payload)
        if isinstance(node.spec, NodeSpec) and self.trouble is not Trouble.NO_RAY:
            if self.trouble is Trouble.DIES and node.ray_runs:
                node.ray_runs, node.ray_exited = False, True
            elif not node.ray_exited:
                node.ray_runs = node.spec.ray.role == "head" or self._head_answers(node)
            elif node.renewals < RENEWALS_MAX:
                node.ray_exited, node.renewals = False, node.renewals + 1

    def _head_answers(self, node: SimulatedNode) -> bool:
        assert isinstance(node.spec, NodeSpec)
        head = self._peer(node, node.spec.ray.head_address)
        return head is not None and head.ray_runs

    def _peer(self, node: SimulatedNode, address: str) -> SimulatedNode | None:
        """The member at an address, if both it and this node name each other in their rosters."""
        if node.roster is None:
            return None
        for member in node.roster.members:
            if member.address == address:
                peer = self.world.member(node.spec.cluster_id, address, member.direct_key)
                if peer is not None and peer.roster is not None:
                    knows = any(one.direct_key == node.keys.direct for one in peer.roster.members)
                    return peer if knows else None
        return None

    def _node_report(self, node: SimulatedNode) -> NodeReport:
        node_id = node.spec.node_id
        if self.trouble is Trouble.FAULT:
            return NodeReport(node_id=node_id, fault=Fault(code="image_missing", message="the image is missing"))
        if node.steps < 1:
            return NodeReport(node_id=node_id)
        members = node.roster.members if node.roster is not None else ()
        others = [one.address for one in members if one.address != node.address]
        peers = tuple(sorted(address for address in others if self._peer(node, address) is not None))
        has_key = self.trouble is not Trouble.NO_KEY
        is_given_up = node.ray_exited and node.renewals == RENEWALS_MAX
        common = {
            "node_id": node_id,
            "renewals": node.renewals,
            "renewed_for": RAY_ENDED if node.renewals else None,
            "fault": RAY_ENDED if is_given_up else None,
            "pause": "running",
            "mesh": "running",
            "work": "exited" if node.ray_exited else "running",
            "mesh_keys": node.keys if has_key else None,
            "endpoints": ("172.17.0.9:51820", "0.0.0.0:32768") if has_key else (),
            "lan": self.lan if has_key else (),
            "roster_serial": node.serial,
            "handshaken": peers,
            "is_slowed": self.has_used_its_cap,
            "relayed": peers if self.reaches_by_relay else (),
            "received_bytes": node.steps * 1000,
            "sent_bytes": node.steps * 500,
            "internet_received_bytes": node.steps * 2000,
            "internet_sent_bytes": node.steps * 100,
        }
        if isinstance(node.spec, LeafSpec):
            head = self._peer(node, node.spec.head_address)
            alive = self.world.alive(head) if head is not None else ()
            return NodeReport(**common, alive=alive, serves=head is not None and head.ray_runs)
        alive = self.world.alive(node) if node.spec.ray.role == "head" else ()
        return NodeReport(**common, alive=alive, ray_phase="running" if node.ray_runs else "waiting_mesh")

    async def _exchange(self, report: Report) -> Desired | None:
        async def gone() -> None:
            await asyncio.Event().wait()

        try:
            return await self.desk.exchange(f"Bearer {self.token()}", report, observed_address=self.seen_at, gone=gone)
        except DevicesError:
            return None

    def _hardware(self) -> Hardware:
        return Hardware(
            cpu=Cpu(model=self.model, cores=self.slices * self.cores_per_slice),
            memory_bytes=64 * GIB,
            disk_free_bytes=1000 * GIB,
        )

    def _devices(self) -> tuple[DeviceOffer, ...]:
        if self.role == "gateway":
            return ()
        return tuple(
            DeviceOffer(
                key=f"cpu-{index}",
                kind="cpu",
                model=self.model,
                cores=self.cores_per_slice,
                memory_bytes=64 * GIB // self.slices,
                disk_bytes=100 * GIB,
            )
            for index in range(self.slices)
        )
