"""One cluster as a pass of the reconciler sees it: plain values, read in one transaction."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from corral.clusters.states import ClusterState
from corral.core.ids import BookingId, ClusterId, HostId, NodeId
from corral.devices import Liveness
from corral.mesh import LatestRoster, ProposedRoster, RelayView
from corral.protocol.roster import Member
from corral.wire.agent import NodeReport

Role = Literal["head", "worker", "gateway"]

PHASES = ("quoted", "booked", "containers", "mesh", "head", "workers", "ready")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long things may take, seconds."""

    node_start_s: float
    cluster_start_s: float
    orphan_grace_s: float
    signature_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A wanted node or leaf, with the last that its host said of it."""

    node_id: NodeId
    kind: Literal["node", "leaf"]
    role: Role
    name: str
    address: str
    host_id: HostId
    host_name: str
    engine_id: str
    reachable_at: str
    """Address at which other hosts reach this one."""
    seen_at: str = ""
    """Address that its host's exchanges come from, whatever the host says."""
    liveness: Liveness
    last_seen_at: datetime | None
    created_at: datetime
    is_replacement: bool
    is_charged: bool
    """Whether its lines have begun."""
    report: NodeReport | None
    reported_at: datetime | None
    observed: tuple[str, ...] = ()
    """Endpoints at which relays see its direct plane."""
    alive_at: datetime | None
    """The last instant at which it was known to work, before a report that says otherwise."""
    away_since: datetime | None = None
    """Since when it does not work while its host mends it; None while it works."""
    returned_at: datetime | None = None
    """When it came back the last time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseView:
    """A phase that has been reached, or one with something to tell on the way."""

    at: datetime | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A cluster and everything that decides what is to be done about it."""

    cluster_id: ClusterId
    booking_id: BookingId
    name: str
    state: ClusterState
    created_at: datetime
    ready_at: datetime | None
    ending_at: datetime | None
    ends_at: datetime | None
    """When its paid time is over; None before it is ready."""
    nodes: tuple[NodeView, ...]
    """Wanted nodes and leaves."""
    not_gone: int
    """Nodes no longer wanted whose hosts have not confirmed it yet."""
    roster: LatestRoster | None
    is_pinned: bool = False
    """Whether its renter alone signs its rosters: then nobody joins by himself."""
    proposal: ProposedRoster | None = None
    """What waits for the renter's signature."""
    relays: tuple[RelayView, ...] = ()
    """Those that its members should use."""
    guests: tuple[Member, ...] = ()
    """Machines of the renter's that are in the mesh."""
    phases: Mapping[str, PhaseView]
    limits: Limits

    @property
    def head(self) -> NodeView | None:
        """The node that runs Ray's control processes."""
        return next((node for node in self.nodes if node.role == "head"), None)

    @property
    def workers(self) -> tuple[NodeView, ...]:
        """All other nodes."""
        return tuple(node for node in self.nodes if node.role == "worker")

    @property
    def leaf(self) -> NodeView | None:
        """The gateway's place in the mesh."""
        return next((node for node in self.nodes if node.kind == "leaf"), None)

    @property
    def alive(self) -> frozenset[str]:
        """Addresses that Ray holds for alive, as the head or the gateway reads them; of one that is silent, nothing."""
        asked = [node for node in (self.head, self.leaf) if node is not None and node.liveness is not Liveness.OFFLINE]
        told = [node.report.alive for node in asked if node.report is not None]
        return frozenset(address for alive in told for address in alive)
