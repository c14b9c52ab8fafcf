"""Which phases of its start a cluster has reached, derived from what its hosts report."""

from corral.clusters.snapshot import NodeView, Snapshot

START_PHASES = ("containers", "mesh", "head", "workers", "ready")
"""In order; each implies those before it."""


def reached(snapshot: Snapshot) -> tuple[str, ...]:
    """The phases of `START_PHASES` that hold now, as a prefix: a later one implies the earlier ones."""
    facts = (
        _containers_run(snapshot),
        _mesh_stands(snapshot),
        _head_runs(snapshot),
        _workers_joined(snapshot) == len(snapshot.workers) and _head_runs(snapshot),
        is_ready(snapshot),
    )
    last = max((index for index, holds in enumerate(facts) if holds), default=-1)
    return START_PHASES[: last + 1]


def details(snapshot: Snapshot) -> dict[str, str]:
    """What is to be told about phases on the way."""
    workers = len(snapshot.workers)
    running = sum(has_containers(node) for node in _nodes(snapshot))
    waits = snapshot.roster is None and snapshot.proposal is not None
    return {
        "mesh": "waits for your signature" if waits else "",
        "containers": f"{running} of {workers + 1}",
        "workers": f"{_workers_joined(snapshot)} of {workers}",
    }


def is_ready(snapshot: Snapshot) -> bool:
    """Every node is alive in Ray and the job endpoint answers, both as seen through the gateway."""
    leaf = snapshot.leaf
    if leaf is None or leaf.report is None or snapshot.head is None or not leaf.report.serves:
        return False
    return {node.address for node in _nodes(snapshot)} <= set(leaf.report.alive)


def has_containers(node: NodeView) -> bool:
    """Whether all three containers of a node run."""
    report = node.report
    return report is not None and report.pause == report.mesh == report.work == "running"


def has_keys(node: NodeView) -> bool:
    """Whether a node has said all that a roster tells of it."""
    return node.report is not None and node.report.mesh_keys is not None and bool(node.report.endpoints)


def _nodes(snapshot: Snapshot) -> tuple[NodeView, ...]:
    return tuple(node for node in snapshot.nodes if node.kind == "node")


def _containers_run(snapshot: Snapshot) -> bool:
    return all(has_containers(node) for node in _nodes(snapshot))


def _mesh_stands(snapshot: Snapshot) -> bool:
    """Every node applied a roster, and each worker and the head have shaken hands (either one's word is enough)."""
    head = snapshot.head
    if snapshot.roster is None or head is None or head.report is None:
        return False
    if any(node.report is None or node.report.roster_serial < 1 for node in _nodes(snapshot)):
        return False
    return all(
        worker.address in head.report.handshaken or (worker.report and head.address in worker.report.handshaken)
        for worker in snapshot.workers
    )


def _head_runs(snapshot: Snapshot) -> bool:
    head = snapshot.head
    if head is None or head.report is None:
        return False
    return head.report.ray_phase == "running" or head.address in snapshot.alive


def _workers_joined(snapshot: Snapshot) -> int:
    return sum(worker.address in snapshot.alive for worker in snapshot.workers)
