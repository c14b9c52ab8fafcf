"""States of clusters and nodes, and the one table of legal transitions."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from corral.clusters.errors import TransitionIllegal


class ClusterState(StrEnum):
    """Where a cluster is in its life."""

    BOOKED = "booked"
    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"
    ENDED = "ended"
    FAILED = "failed"


TRANSITIONS: dict[ClusterState, frozenset[ClusterState]] = {
    ClusterState.BOOKED: frozenset({ClusterState.STARTING, ClusterState.FAILED, ClusterState.ENDING}),
    ClusterState.STARTING: frozenset({ClusterState.READY, ClusterState.FAILED, ClusterState.ENDING}),
    ClusterState.READY: frozenset({ClusterState.ENDING}),
    ClusterState.ENDING: frozenset({ClusterState.ENDED}),
    ClusterState.ENDED: frozenset(),
    ClusterState.FAILED: frozenset(),
}

LIVING = frozenset({ClusterState.BOOKED, ClusterState.STARTING, ClusterState.READY})
"""States in which nodes are wanted on hosts."""

OVER = frozenset({ClusterState.ENDED, ClusterState.FAILED})


class NodeEnd(StrEnum):
    """Why a node is not wanted any more."""

    ENDED = "ended"
    REPLACED = "replaced"
    LOST = "lost"


def check_transition(
    cluster_id: str, present: ClusterState, wanted: ClusterState, history: Sequence[tuple[str, datetime]]
) -> None:
    """
    Guards the table above.

    Raises:
        TransitionIllegal: with the cluster's history.
    """
    if wanted not in TRANSITIONS[present]:
        raise TransitionIllegal(cluster_id, present, wanted, history)
