"""
What is to be done about one cluster: a plain function of its snapshot and the time.

Everything may be planned again in the next pass, so each action is harmless when it finds its work done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from corral.clusters.guest import apart
from corral.clusters.phases import START_PHASES, details, has_containers, has_keys, reached
from corral.clusters.snapshot import NodeView, Snapshot
from corral.clusters.states import ClusterState
from corral.core.ids import NodeId
from corral.devices import Liveness
from corral.mesh import in_order
from corral.protocol.roster import Member

LEAF_GRACE_S = 5.0
"""How long the first roster waits for the gateway once all nodes are known; a later leaf joins by the next roster."""


@dataclass(frozen=True, slots=True)
class Begin:
    """The first host has answered: booked becomes starting."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A phase has been reached."""

    phase: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tell:
    """A phase on the way has something new to tell."""

    phase: str
    detail: str


@dataclass(frozen=True, slots=True)
class Publish:
    """The mesh has other members, keys or endpoints than its newest roster says."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class BecomeReady:
    """The cluster serves: charging begins."""


@dataclass(frozen=True, slots=True)
class Replace:
    """
    A node is lost: another host takes its place at no higher rate, if there is one.

    `lost_at`: since when it has not delivered; None during a start, where nothing is charged.
    """

    node_id: NodeId
    reason: str
    lost_at: datetime | None


@dataclass(frozen=True, slots=True)
class Drop:
    """A node of a running cluster is lost for good: the cluster goes on without it."""

    node_id: NodeId
    reason: str
    lost_at: datetime


@dataclass(frozen=True, slots=True)
class Joined:
    """A replacement works in a running cluster: it is charged from now on."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Away:
    """
    A node of a running cluster does not work: its host has some time to mend it, in which it is not charged.

    `reason`: what it means for the cluster as a whole; empty if nothing.
    """

    node_id: NodeId
    since: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Returned:
    """A node that was away works again: it is charged from now on."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class MoveLeaf:
    """The gateway is lost: another one takes over, if there is one."""

    node_id: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class FailStart:
    """The start fails as a whole: everything is refunded."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """A running cluster ends. `lost_at`: since when nothing was delivered; None if all was."""

    reason: str
    lost_at: datetime | None


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing of an ending cluster is left on its hosts."""


Action = (
    Begin
    | Stamp
    | Tell
    | Publish
    | BecomeReady
    | Replace
    | Drop
    | Joined
    | Away
    | Returned
    | MoveLeaf
    | FailStart
    | End
    | Finish
)


def plan(snapshot: Snapshot, now: datetime) -> list[Action]:
    """Actions that bring a cluster towards what it should be; empty when there is nothing to do but wait."""
    match snapshot.state:
        case ClusterState.BOOKED | ClusterState.STARTING:
            return _plan_start(snapshot, now)
        case ClusterState.READY:
            return _plan_ready(snapshot, now)
        case ClusterState.ENDING:
            return _plan_end(snapshot, now)
        case ClusterState.ENDED | ClusterState.FAILED:
            return []
        case _:
            assert_never(snapshot.state)


def roster_members(snapshot: Snapshot) -> tuple[Member, ...]:
    """The members that a roster can name now, in its order."""
    nodes = [node for node in snapshot.nodes if has_keys(node)]
    routers = _routers(nodes)
    members = [_member(node, routers.get(node.node_id, "")) for node in nodes]
    return in_order([*members, *apart(snapshot.guests, members)])


def _plan_start(snapshot: Snapshot, now: datetime) -> list[Action]:
    actions: list[Action] = []
    if snapshot.state is ClusterState.BOOKED and any(node.report is not None for node in snapshot.nodes):
        actions.append(Begin())
    held = reached(snapshot)
    if "ready" in held:
        return [*actions, *_stamps(snapshot, held[:-1]), BecomeReady()]
    if (unsigned := _unsigned(snapshot, now)) is not None:
        return [unsigned]
    if now - _began_at(snapshot, now) >= timedelta(seconds=snapshot.limits.cluster_start_s):
        missing = next(phase for phase in START_PHASES if phase not in held)
        return [FailStart(f"not ready after {snapshot.limits.cluster_start_s:.0f} s: the phase {missing!r} is missing")]
    failing = [(node, why) for node in snapshot.nodes if (why := _start_fault(node, snapshot, now)) is not None]
    for node, why in failing:
        what = "gateway" if node.kind == "leaf" else node.role
        if snapshot.is_pinned and snapshot.roster is not None:
            return [FailStart(f"the {what} on {node.host_name} failed, and its renter has signed the members: {why}")]
        if node.is_replacement:
            return [FailStart(f"the replacement for a {what}, on {node.host_name}, failed too: {why}")]
        if node.role == "head" and snapshot.workers and _stamped(snapshot, "head") is not None:
            # Ray's workers die with the head that they joined, so that there is nothing left to save.
            return [FailStart(f"the head on {node.host_name} failed after others had joined it: {why}")]
    for node, why in failing:
        reason = f"{node.host_name}: {why}"
        if node.kind == "leaf":
            actions.append(MoveLeaf(node.node_id, reason))
        else:
            actions.append(Replace(node.node_id, reason, None))
    if failing:
        return actions  # What is observed next decides about the rest.
    return [*actions, *_publish(snapshot, now), *_stamps(snapshot, held), *_tell(snapshot, held)]


def _plan_ready(snapshot: Snapshot, now: datetime) -> list[Action]:
    if snapshot.ends_at is not None and now >= snapshot.ends_at:
        return [End("its time is up", None)]
    head = snapshot.head
    if head is None:
        return [End("its head is gone", now)]
    # Another head elsewhere would save nothing: Ray's state is lost with this one.
    why = _given_up(head, snapshot, now)
    if why is not None:
        return [End(f"the head on {head.host_name} was lost: {why}", _lost_at(head, now))]
    actions: list[Action] = []
    for node in snapshot.nodes:
        why = _given_up(node, snapshot, now)
        reason = f"{node.host_name}: {why}"
        if snapshot.is_pinned and node.kind == "leaf":
            continue  # Another leaf would be another member.
        if why is not None and node.kind == "leaf":
            actions.append(MoveLeaf(node.node_id, reason))
        elif why is not None and snapshot.is_pinned:
            actions.append(Drop(node.node_id, reason, _lost_at(node, now)))
        elif why is not None:
            actions.append(Replace(node.node_id, reason, _lost_at(node, now)))
        elif _never_came(node, snapshot, now):
            reason = f"{node.host_name}: it did not join within {snapshot.limits.node_start_s:.0f} s"
            actions.append(Drop(node.node_id, reason, node.created_at))
        elif _has_joined(node, snapshot):
            actions.append(Joined(node.node_id))
        elif node.away_since is not None and _works(node, snapshot):
            actions.append(Returned(node.node_id))
        elif node.kind == "node" and node.is_charged and node.away_since is None and not _works(node, snapshot):
            actions.append(Away(node.node_id, _lost_at(node, now), _away_reason(node)))
    return [*actions, *_publish(snapshot, now)]


def _plan_end(snapshot: Snapshot, now: datetime) -> list[Action]:
    ending_at = snapshot.ending_at or now
    waited_s = (now - ending_at).total_seconds()
    # A silent host confirms nothing: its nodes end by themselves, and its devices stay unavailable until it does.
    return [Finish()] if snapshot.not_gone == 0 or waited_s >= snapshot.limits.orphan_grace_s else []


def _publish(snapshot: Snapshot, now: datetime) -> list[Action]:
    members, newest = roster_members(snapshot), snapshot.proposal or snapshot.roster
    if newest is not None:
        described = tuple(relay.described() for relay in snapshot.relays)
        is_same = (newest.members, newest.relays) == (members, described)
        return [] if is_same else [Publish(members)]
    nodes = [node for node in snapshot.nodes if node.kind == "node"]
    if not nodes or not all(has_keys(node) for node in nodes):
        return []
    leaf = snapshot.leaf
    if leaf is not None and not has_keys(leaf):
        last = max(node.reported_at or now for node in nodes)
        if (now - last).total_seconds() < LEAF_GRACE_S:
            return []
    return [Publish(members)]


def _unsigned(snapshot: Snapshot, now: datetime) -> FailStart | None:
    """The end of a start whose renter does not sign the members."""
    if snapshot.roster is not None or snapshot.proposal is None:
        return None
    signature_s = snapshot.limits.signature_s
    if now - snapshot.proposal.proposed_at < timedelta(seconds=signature_s):
        return None
    return FailStart(f"its renter did not sign its members within {signature_s:.0f} s")


def _began_at(snapshot: Snapshot, now: datetime) -> datetime:
    """Since when a start had all that it needs: the time that its renter takes to sign is nobody's fault."""
    if not snapshot.is_pinned:
        return snapshot.created_at
    if snapshot.roster is not None:
        return max(snapshot.created_at, snapshot.roster.signed_at)
    return now if snapshot.proposal is not None else snapshot.created_at


def _stamps(snapshot: Snapshot, held: tuple[str, ...]) -> list[Action]:
    told = details(snapshot)
    return [Stamp(phase, told.get(phase, "")) for phase in held if _stamped(snapshot, phase) is None]


def _tell(snapshot: Snapshot, held: tuple[str, ...]) -> list[Action]:
    known = {phase: view.detail for phase, view in snapshot.phases.items()}
    return [
        Tell(phase, detail)
        for phase, detail in details(snapshot).items()
        if phase not in held and known.get(phase, "") != detail and _stamped(snapshot, phase) is None
    ]


def _start_fault(node: NodeView, snapshot: Snapshot, now: datetime) -> str | None:
    """
    Why a node of a starting cluster must be given up; None while it may still come.

    A node is never blamed for waiting on another: its time counts from when it had all that it needs.
    """
    why = _lost(node) or _ended_part(node)
    if why is not None:
        return why
    since = node.created_at
    report = node.report
    if not has_containers(node):
        missing = "its containers do not run"
    elif not has_keys(node):
        missing = "its mesh key is not known"
    elif snapshot.roster is None:
        return None
    elif report is not None and report.roster_serial < 1:
        missing, since = "it has not applied the roster", max(since, snapshot.roster.signed_at)
    else:
        waited = _ray_fault(node, snapshot)
        if waited is None:
            return None
        missing, since = waited
    overdue = now - since >= timedelta(seconds=snapshot.limits.node_start_s)
    return f"{missing} after {snapshot.limits.node_start_s:.0f} s" if overdue else None


def _ray_fault(node: NodeView, snapshot: Snapshot) -> tuple[str, datetime] | None:
    """What is missing of a node in the mesh, and since when it had no reason to wait for another."""
    signed_at = snapshot.roster.signed_at if snapshot.roster is not None else node.created_at
    since = max(node.created_at, signed_at)
    if node.role == "head":
        return None if "head" in reached(snapshot) else ("Ray does not run on the head", since)
    before = _stamped(snapshot, "head" if node.role == "worker" else "workers")
    if before is None:
        return None
    if node.role == "worker":
        return None if node.address in snapshot.alive else ("it has not joined Ray", max(since, before))
    return ("the job endpoint does not answer through the gateway", max(since, before))


def _lost(node: NodeView) -> str | None:
    """Why a node works no more and its host cannot help it, by its word or its silence; None if nothing says so."""
    if node.report is not None and node.report.fault is not None:
        return node.report.fault.message
    return "its host is offline" if node.liveness is Liveness.OFFLINE else None


def _ended_part(node: NodeView) -> str | None:
    """What has ended of a node of which nobody knows yet that it ever worked."""
    report = node.report
    if report is None:
        return None
    parts = {"pause": report.pause, "mesh": report.mesh, "work": report.work}
    return next((f"its {part} container has exited" for part, state in parts.items() if state == "exited"), None)


def _given_up(node: NodeView, snapshot: Snapshot, now: datetime) -> str | None:
    """Why a node of a running cluster is lost; None while it works, or while its host may still mend it."""
    why = _lost(node)
    if why is not None or node.away_since is None or _works(node, snapshot):
        return why
    head, since = snapshot.head, node.away_since
    if node.role == "worker" and head is not None:
        if head.away_since is not None:
            return None  # There is no Ray that it could join.
        since = max(since, head.returned_at or since)
    limit_s = snapshot.limits.node_start_s
    overdue = now - since >= timedelta(seconds=limit_s)
    return f"it has been away, and did not come back within {limit_s:.0f} s" if overdue else None


def _away_reason(node: NodeView) -> str:
    if node.role != "head":
        return ""
    return f"the head on {node.host_name} ended; its host starts Ray anew, the jobs on it are lost"


def _works(node: NodeView, snapshot: Snapshot) -> bool:
    """Whether a node of a running cluster serves: its containers run, and Ray holds it for alive."""
    return has_containers(node) and node.address in snapshot.alive


def _lost_at(node: NodeView, now: datetime) -> datetime:
    """The last proof of life of a node that does not work."""
    if node.away_since is not None:
        return node.away_since
    if node.liveness is Liveness.OFFLINE:
        return min(node.last_seen_at or node.created_at, now)
    if has_containers(node) and node.report is not None and node.report.fault is None:
        return now  # It runs, but Ray has lost it: told at this moment.
    return min(node.alive_at or node.reported_at or now, now)


def _never_came(node: NodeView, snapshot: Snapshot, now: datetime) -> bool:
    """Whether a replacement in a running cluster has had its time and is not there."""
    if node.kind == "leaf" or snapshot.ready_at is None or node.created_at < snapshot.ready_at:
        return False
    overdue = now - node.created_at >= timedelta(seconds=snapshot.limits.node_start_s)
    return overdue and node.address not in snapshot.alive


def _has_joined(node: NodeView, snapshot: Snapshot) -> bool:
    """Whether a replacement that is not charged yet works."""
    return node.kind == "node" and not node.is_charged and node.address in snapshot.alive


def _stamped(snapshot: Snapshot, phase: str) -> datetime | None:
    view = snapshot.phases.get(phase)
    return view.at if view is not None else None


def _member(node: NodeView, router: str) -> Member:
    report = node.report
    keys = report.mesh_keys if report is not None else None
    return Member(
        node_id=node.node_id,
        name=node.name,
        kind=node.kind,
        address=node.address,
        direct_key=keys.direct if keys is not None else "",
        relayed_key=keys.relayed if keys is not None else "",
        engine_id=node.engine_id,
        endpoints=_endpoints(node),
        router=router,
        lan=report.lan if report is not None and router else (),
    )


def _routers(nodes: Sequence[NodeView]) -> dict[NodeId, str]:
    """
    By node: the router that it shares with members on other engines; those that are alone have none.

    What counts is where exchanges come from: nobody can claim that without a connection from there. The name says
    nothing about the address, which its provider may have replaced by an advertised one.
    """
    found: dict[str, list[NodeView]] = {}
    for node in nodes:
        if node.seen_at:
            found.setdefault(node.seen_at, []).append(node)
    return {
        node.node_id: min(one.node_id for one in together)
        for together in found.values()
        if len({one.engine_id for one in together}) > 1
        for node in together
    }


def _endpoints(node: NodeView) -> tuple[str, ...]:
    """
    Where a member answers: first on its engine's bridge, then published ports at the address of its host, then where
    relays see it.

    A port that is published on every address of a host is told at the one by which others reach it.
    """
    found = node.report.endpoints if node.report is not None else ()
    told: list[str] = []
    for endpoint in found:
        address, _, port = endpoint.rpartition(":")
        if address == "0.0.0.0":  # noqa: S104 - compared, not bound
            if not node.reachable_at:
                continue
            address = node.reachable_at
        told.append(f"{address}:{port}")
    return tuple(dict.fromkeys([*told, *node.observed])) if told else ()
