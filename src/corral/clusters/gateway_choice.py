"""Which gateway serves a cluster."""

from collections.abc import Collection
from datetime import datetime, timedelta

import sqlalchemy as sa

from corral import devices
from corral.clusters.tables import node
from corral.core.ids import HostId
from corral.platform.database import Tx
from corral.platform.settings import ServerSettings


async def choose_gateway(
    tx: Tx, settings: ServerSettings, now: datetime, *, excluded: Collection[HostId] = ()
) -> devices.Host | None:
    """The online gateway that serves the fewest clusters; None if there is none."""
    heard_after = now - timedelta(seconds=settings.host_offline_after_s)
    online = [
        host
        for host in await devices.gateways(tx)
        if host.last_seen_at is not None and host.last_seen_at > heard_after and host.host_id not in excluded
    ]
    if not online:
        return None
    count = sa.func.count().label("leaves")
    query = sa.select(node.c.host_id, count).where(node.c.kind == "leaf", node.c.removed_at.is_(None))
    leaves = {row.host_id: row.leaves for row in await tx.execute(query.group_by(node.c.host_id))}
    return min(online, key=lambda host: (leaves.get(host.host_id, 0), host.host_id))
