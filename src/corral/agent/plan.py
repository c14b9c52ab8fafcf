"""What to do on this host: a pure comparison of what should be with what is."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from corral.agent.bodies import HostFacts, Part, SpecRefused, check_leaf, front_digest, share_of, spec_digest
from corral.agent.observe import Found
from corral.agent.runtime import Container
from corral.wire.agent import Desired, Fault, LeafSpec, NodeSpec, Revision

ORPHAN_GRACE = timedelta(seconds=60)
"""How long a node that no desired state explains is left running: a control plane that comes back may still know it."""

NODE_PARTS: tuple[Part, ...] = ("pause", "mesh", "work")
LEAF_PARTS: tuple[Part, ...] = ("pause", "mesh", "web")
FRONT_PARTS: tuple[Part, ...] = ("front",)

EndReason = Literal["stop_after", "dropped", "orphan", "replaced", "ended"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One node, leaf or front that should run here."""

    node_id: str
    kind: Literal["node", "leaf", "front"]
    digest: str
    stop_after: datetime | None
    """None for the front, which runs as long as this host is a gateway."""
    devices: tuple[str, ...] = ()
    refused: Fault | None = None
    """Why it cannot run here whatever is done."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its containers, in the order in which they start."""
        return {"node": NODE_PARTS, "leaf": LEAF_PARTS, "front": FRONT_PARTS}[self.kind]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What should be on this host, at one revision."""

    revision: Revision
    wanted: Mapping[str, Wanted] = field(default_factory=dict[str, Wanted])


@dataclass(frozen=True, kw_only=True)
class Build:
    """Create and start what is missing of a node, once nothing is left of the nodes in `after`."""

    node_id: str
    after: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class End:
    """Stop and remove containers of a node: all of them, or those that ended and are made anew."""

    node_id: str
    containers: tuple[str, ...]
    """Names, in the order in which they end: the workload, then the mesh, then the owner of the network."""
    reason: EndReason
    is_whole: bool = True
    """False where others of its containers stay."""


Action: TypeAlias = Build | End


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Actions in order, and what was found on the way."""

    actions: tuple[Action, ...] = ()
    orphans: frozenset[str] = frozenset()
    """Nodes of ours that no desired state explains."""
    faults: Mapping[str, Fault] = field(default_factory=dict[str, Fault])
    """Wanted nodes that cannot be built, by node id."""


def target_of(desired: Desired, facts: HostFacts) -> Target:
    """What a desired state means on this host."""
    wanted = {spec.node_id: _wanted_node(spec, facts) for spec in desired.nodes}
    wanted |= {leaf.node_id: _wanted_leaf(leaf, facts) for leaf in desired.leaves}
    if facts.role == "gateway" and desired.intent != "left":
        front = Wanted(node_id=facts.host_id, kind="front", digest=front_digest(facts), stop_after=None)
        wanted[facts.host_id] = front
    return Target(revision=desired.revision, wanted=wanted)


def plan(
    target: Target | None,
    observed: Mapping[str, Found],
    *,
    now: datetime,
    orphans_since: Mapping[str, datetime],
    held: Mapping[str, frozenset[str]] | None = None,
    renewable: Set[str] = frozenset(),
) -> Plan:
    """
    Actions that bring this host towards `target`; none once both agree.

    Args:
        target: what should be here; None while nothing is known, when only `stop_after` ends anything.
        observed: what is here, by node id: containers with our host's label and no others.
        now: server time.
        orphans_since: when each orphan was first seen.
        held: devices of nodes that are being changed at this moment, by node id; nothing is planned for these nodes.
        renewable: nodes whose ended containers are made anew; of others they are left to be seen.

    Returns:
        At most one End and one Build for a node, Ends first.
    """
    held = held or {}
    ends, orphans = _ends(target, observed, now=now, orphans_since=orphans_since, busy=held.keys(), renewable=renewable)
    if target is None:
        return Plan(actions=tuple(ends.values()), orphans=orphans)
    builds, faults = _builds(target, observed, ends, now=now, held=held)
    return Plan(actions=(*ends.values(), *builds), orphans=orphans, faults=faults)


def agrees(target: Target, observed: Mapping[str, Found], *, busy: frozenset[str]) -> bool:
    """Whether nothing runs here that `target` does not name, and nothing in another shape than it says."""
    if any(node_id not in target.wanted for node_id in busy):
        return False
    return all(
        (wanted := target.wanted.get(node_id)) is not None and wanted.digest == found.digest
        for node_id, found in observed.items()
    )


def _wanted_node(spec: NodeSpec, facts: HostFacts) -> Wanted:
    refused = None
    try:
        share_of(spec, facts.devices)
    except SpecRefused as error:
        refused = Fault(code=error.code, message=error.message[:2000])
    return Wanted(
        node_id=spec.node_id,
        kind="node",
        digest=spec_digest(spec),
        stop_after=spec.stop_after,
        devices=spec.devices,
        refused=refused,
    )


def _wanted_leaf(leaf: LeafSpec, facts: HostFacts) -> Wanted:
    refused = None
    try:
        check_leaf(leaf, facts)
    except SpecRefused as error:
        refused = Fault(code=error.code, message=error.message[:2000])
    return Wanted(
        node_id=leaf.node_id, kind="leaf", digest=spec_digest(leaf), stop_after=leaf.stop_after, refused=refused
    )


def _ends(
    target: Target | None,
    observed: Mapping[str, Found],
    *,
    now: datetime,
    orphans_since: Mapping[str, datetime],
    busy: Set[str],
    renewable: Set[str],
) -> tuple[dict[str, End], frozenset[str]]:
    ends: dict[str, End] = {}
    orphans: set[str] = set()
    for node_id, found in observed.items():
        if _is_orphan(target, found):
            orphans.add(node_id)
        if node_id in busy:
            continue
        reason = _end_reason(
            target, found, now=now, orphan_since=orphans_since.get(node_id), is_renewable=node_id in renewable
        )
        if reason is not None:
            parts = _ended_parts(found) if reason == "ended" else found.parts
            containers = _ending_order(parts)
            ends[node_id] = End(
                node_id=node_id, containers=containers, reason=reason, is_whole=len(parts) == len(found.parts)
            )
    return ends, frozenset(orphans)


def _end_reason(
    target: Target | None, found: Found, *, now: datetime, orphan_since: datetime | None, is_renewable: bool
) -> EndReason | None:
    wanted = target.wanted.get(found.node_id) if target else None
    stop_after = wanted.stop_after if wanted else found.stop_after
    if stop_after is not None and stop_after <= now:
        return "stop_after"
    if target is None:
        return None
    if _is_orphan(target, found):
        is_over = orphan_since is not None and now - orphan_since >= ORPHAN_GRACE
        return "orphan" if is_over else None
    if wanted is not None and wanted.digest == found.digest:
        # What ended is left for the control plane to see and decide, unless the node may be mended here.
        is_mended = is_renewable or wanted.kind == "front"
        return "ended" if is_mended and _ended_parts(found) else None
    if found.revision is not None and found.revision > target.revision:
        return None  # started from a newer document than the one in hand, so ours is the stale one
    return "dropped" if wanted is None else "replaced"


def _is_orphan(target: Target | None, found: Found) -> bool:
    """
    Whether no desired state explains this node.

    A document of the same epoch that does not name a node has dropped it on purpose. One of another epoch comes from
    a restored database, which may have forgotten it.
    """
    if target is None or found.node_id in target.wanted:
        return False
    return found.revision is None or found.revision.epoch < target.revision.epoch


def _ended_parts(found: Found) -> Mapping[str, Container]:
    """What has to go before what ended can be made anew: where the network's owner ended, all that joined it."""
    ended = {part: one for part, one in found.parts.items() if one.state == "exited"}
    return found.parts if "pause" in ended else ended


def _ending_order(parts: Mapping[str, Container]) -> tuple[str, ...]:
    # The network goes last: a workload that loses it first cannot say goodbye to the other nodes.
    last = ["mesh", "pause"]
    order = sorted(parts, key=lambda part: (last.index(part) + 1 if part in last else 0, part))
    return tuple(parts[part].name for part in order)


def _builds(
    target: Target,
    observed: Mapping[str, Found],
    ends: Mapping[str, End],
    *,
    now: datetime,
    held: Mapping[str, frozenset[str]],
) -> tuple[list[Build], dict[str, Fault]]:
    staying = {
        **{node_id: found.devices for node_id, found in observed.items() if node_id not in ends},
        **{node_id: devices for node_id, devices in held.items() if node_id in target.wanted},
    }
    # More than one where two nodes were begun on the same device: then neither is completed beside the other.
    owners: dict[str, set[str]] = {}
    for node_id, devices in staying.items():
        for key in devices:
            owners.setdefault(key, set()).add(node_id)
    leaving = {node_id: observed[node_id].devices for node_id in ends} | {
        node_id: devices for node_id, devices in held.items() if node_id not in target.wanted
    }
    builds: list[Build] = []
    faults: dict[str, Fault] = {}
    for node_id, wanted in target.wanted.items():
        is_over = wanted.stop_after is not None and wanted.stop_after <= now
        if is_over or node_id in held or _is_whole(wanted, observed.get(node_id), ends):
            continue
        fault = wanted.refused or _busy_fault(wanted, owners)
        if fault is not None:
            faults[node_id] = fault
            continue
        for key in wanted.devices:
            owners.setdefault(key, set()).add(node_id)
        after = {
            other for other, devices in leaving.items() if other != node_id and not devices.isdisjoint(wanted.devices)
        }
        builds.append(Build(node_id=node_id, after=frozenset(after)))
    return builds, faults


def _is_whole(wanted: Wanted, found: Found | None, ends: Mapping[str, End]) -> bool:
    """Whether nothing is to be built: all parts have been started, or one has ended and the node with it."""
    if found is None or wanted.node_id in ends:
        return False
    if wanted.digest != found.digest:
        return True  # from a newer document than ours: not ours to complete
    states = [found.parts[part].state if part in found.parts else "missing" for part in wanted.parts]
    return "exited" in states or all(state == "running" for state in states)


def _busy_fault(wanted: Wanted, owners: Mapping[str, Set[str]]) -> Fault | None:
    for key in wanted.devices:
        others = sorted(owners.get(key, frozenset()) - {wanted.node_id})
        if others:
            return Fault(code="device_busy", message=f"device {key} is held by node {others[0]}; nothing was started")
    return None
