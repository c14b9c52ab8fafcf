"""Revisions of hosts' desired states: (epoch, number)."""

from collections.abc import Iterable

import sqlalchemy as sa

from corral.core.ids import HostId
from corral.devices.tables import host_revision, revision_epoch
from corral.platform.database import Tx
from corral.platform.nudges import notify
from corral.wire.agent import Revision

FIRST_EPOCH = 1
HOST_TOPIC = "host"
"""Nudges of this topic carry the ids of hosts whose desired state changed."""


async def epoch(tx: Tx) -> int:
    """The present epoch."""
    return (await tx.execute(sa.select(revision_epoch.c.epoch))).scalar_one_or_none() or FIRST_EPOCH


async def begin_epoch(tx: Tx) -> int:
    """Starts a new epoch and returns it; done once after a restore: what the lost past told hosts is stale."""
    raised = await epoch(tx) + 1
    await tx.execute(sa.delete(revision_epoch))
    await tx.execute(sa.insert(revision_epoch).values(epoch=raised))
    return raised


async def revision_of(tx: Tx, host_id: HostId) -> Revision:
    """The newest revision of a host's desired state."""
    number = await tx.execute(sa.select(host_revision.c.number).where(host_revision.c.host_id == host_id))
    return Revision(epoch=await epoch(tx), number=number.scalar_one())


async def bump(tx: Tx, host_ids: Iterable[HostId]) -> dict[HostId, Revision]:
    """
    Notes that the desired state of hosts changed in this transaction, and wakes their held replies at its commit.

    Rows are locked in the order of their ids, so that two transactions never wait for each other.

    Returns:
        The new revision of each host.
    """
    wanted = sorted(set(host_ids))
    if not wanted:
        return {}
    locked = sa.select(host_revision.c.host_id).where(host_revision.c.host_id.in_(wanted))
    await tx.execute(locked.order_by(host_revision.c.host_id).with_for_update())
    raised = await tx.execute(
        sa.update(host_revision)
        .where(host_revision.c.host_id.in_(wanted))
        .values(number=host_revision.c.number + 1)
        .returning(host_revision.c.host_id, host_revision.c.number)
    )
    present = await epoch(tx)
    await notify(tx, HOST_TOPIC, *wanted)
    return {HostId(row.host_id): Revision(epoch=present, number=row.number) for row in raised}
