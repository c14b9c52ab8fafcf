"""
What a desired state may ask of a host, beyond its form.

The control plane may be in the wrong hands or simply mistaken. Whatever it says, a document is finite, does not
contradict itself, and cannot keep a node running for long once nobody speaks to the host any more.
"""

from datetime import UTC, datetime, timedelta

import msgspec

from corral.core.errors import CorralError
from corral.wire.agent import Desired

UNATTENDED_MAX = timedelta(hours=25)
"""How long a node goes on without a word from the control plane: 24 hours are held ahead at most, and one for grace."""
NODES_MAX = 1024
LEAVES_MAX = 250
"""A Linux bridge has 1,023 ports; each leaf takes one, and other containers need some too."""
EARLIEST, LATEST = datetime(2020, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Beyond these a time is a mistake, and sums with it could overflow."""


class DocumentRefused(CorralError):
    """A desired state cannot be meant as it stands. Nothing of it was acted on."""

    code = "document_refused"


def accepted(desired: Desired, *, host_id: str, now: datetime) -> Desired:
    """
    The desired state, bounded: no node in it outlives our last exchange by more than `UNATTENDED_MAX`.

    Args:
        desired: from the control plane, or from our own disk.
        host_id: our own.
        now: server time.

    Raises:
        DocumentRefused: it names a node twice or ourselves as a node, has too many nodes, or an impossible time.
    """
    ids = [spec.node_id for spec in (*desired.nodes, *desired.leaves)]
    if len(desired.nodes) > NODES_MAX or len(desired.leaves) > LEAVES_MAX:
        raise DocumentRefused(
            f"{len(desired.nodes)} nodes and {len(desired.leaves)} leaves are too many for a host; nothing was done"
        )
    if len(set(ids)) != len(ids):
        raise DocumentRefused("the desired state names a node twice; nothing was done")
    if host_id in ids:
        raise DocumentRefused("the desired state names the host itself as a node; nothing was done")
    if not is_plausible(desired.server_time) or not is_plausible(now):
        raise DocumentRefused(f"the control plane's time is {desired.server_time.isoformat()}; nothing was done")
    latest = now + UNATTENDED_MAX
    clusters = {spec.cluster_id for spec in (*desired.nodes, *desired.leaves)}
    return msgspec.structs.replace(
        desired,
        nodes=tuple(msgspec.structs.replace(spec, stop_after=min(spec.stop_after, latest)) for spec in desired.nodes),
        leaves=tuple(msgspec.structs.replace(leaf, stop_after=min(leaf.stop_after, latest)) for leaf in desired.leaves),
        rosters={cluster: roster for cluster, roster in desired.rosters.items() if cluster in clusters},
        secrets={node_id: secret for node_id, secret in desired.secrets.items() if node_id in set(ids)},
    )


def is_plausible(instant: datetime) -> bool:
    """Whether an instant can be told to a clock."""
    return instant.tzinfo is not None and EARLIEST <= instant <= LATEST
