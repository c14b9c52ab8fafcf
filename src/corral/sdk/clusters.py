"""What a client makes of a cluster's state while it starts and ends."""

from corral.sdk.errors import ClusterNotReady, ClusterOver, StartFailed
from corral.wire.api import Cluster

STARTING_STATES = frozenset({"booked", "starting"})
OVER_STATES = frozenset({"ended", "failed"})
LIVING_STATES = STARTING_STATES | {"ready"}


def is_started(cluster: Cluster) -> bool:
    """
    Whether the start is over and the cluster ready.

    Raises:
        StartFailed: it will not become ready.
    """
    if cluster.state in STARTING_STATES:
        return False
    if cluster.state == "ready":
        return True
    reason = cluster.reason or f"it is {cluster.state}"
    raise StartFailed(
        f"cluster {cluster.name} did not become ready: {reason}; nothing was charged, what was held is free again"
        if cluster.state == "failed"
        else f"cluster {cluster.name} did not become ready: {reason}",
        hint=f"`corral show {cluster.id}` tells more; `corral up` with the same wish tries other machines",
        cluster=cluster.name,
        state=cluster.state,
    )


def check_living(cluster: Cluster) -> None:
    """
    Makes sure that a cluster can still be changed.

    Raises:
        ClusterOver: it ends or has ended.
    """
    if cluster.state not in LIVING_STATES:
        raise ClusterOver(
            f"cluster {cluster.name} is {cluster.state}; nothing was changed",
            hint="`corral up` books a new one",
            name=cluster.name,
            state=cluster.state,
        )


def jobs_url(cluster: Cluster) -> str:
    """
    Where the cluster takes jobs.

    Raises:
        ClusterNotReady: it takes none now.
    """
    if cluster.jobs_url is None or cluster.state != "ready":
        hint = f"`corral show {cluster.name} --follow` waits for it" if cluster.state in STARTING_STATES else None
        raise ClusterNotReady(
            f"cluster {cluster.name} is {cluster.state} and takes no jobs", hint=hint, state=cluster.state
        )
    return cluster.jobs_url
