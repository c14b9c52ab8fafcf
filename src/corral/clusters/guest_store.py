"""All SQL of guests: machines of the renter's own in the mesh of a cluster."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from corral import mesh
from corral.clusters.errors import GuestRefused, TooManyGuests
from corral.clusters.guest import endpoints, is_present
from corral.clusters.tables import guest
from corral.core.ids import ClusterId, NodeId
from corral.mesh import LatestRoster
from corral.platform.database import Tx
from corral.platform.settings import ServerSettings
from corral.protocol.addresses import MTU, leaf_address
from corral.protocol.roster import Member
from corral.wire import api

GUEST_ID_PATTERN = r"^gu_[0-9a-z]{26}$"
"""Made by the client; of its own kind, so that it can be no node's."""


async def add_guest(
    tx: Tx, cluster: Any, guest_id: NodeId, keys: api.GuestRequest, *, settings: ServerSettings, now: datetime
) -> bool:
    """
    Wants a guest in a cluster, whose row is locked here, for one lapse from now on.

    The same id keeps its address, also after it has lapsed or with other keys.

    Returns:
        Whether the next roster differs by it.

    Raises:
        GuestRefused: the id is another cluster's, or another member has one of the keys.
        TooManyGuests: the cluster has as many as it may.
    """
    cluster_id = ClusterId(cluster.id)
    present = (await tx.execute(sa.select(guest).where(guest.c.id == guest_id))).one_or_none()
    if present is not None and present.cluster_id != cluster_id:
        raise GuestRefused(cluster.name, "id")
    others = sa.select(guest).where(guest.c.cluster_id == cluster_id, guest.c.id != guest_id, guest.c.expires_at > now)
    living = (await tx.execute(others)).all()
    if len(living) >= settings.guests_per_cluster_max:
        raise TooManyGuests(cluster.name, len(living))
    roster = await mesh.latest_roster(tx, cluster_id)
    members = [one for one in roster.members if one.node_id != guest_id] if roster is not None else []
    used = {key for one in (*members, *living) for key in (one.direct_key, one.relayed_key)}
    own = {keys.direct_key, keys.relayed_key}
    if own & used or len(own) < 2:
        raise GuestRefused(cluster.name, "key")
    expires_at = now + timedelta(seconds=settings.guest_lapse_s)
    if present is not None:
        values = {"direct_key": keys.direct_key, "relayed_key": keys.relayed_key, "expires_at": expires_at}
        await tx.execute(sa.update(guest).where(guest.c.id == guest_id).values(**values))
        has_other_keys = (present.direct_key, present.relayed_key) != (keys.direct_key, keys.relayed_key)
        return has_other_keys or present.expires_at <= now
    number = (await mesh.new_members(tx, cluster_id, 1))[0]
    await tx.execute(
        insert(guest).values(
            id=guest_id,
            cluster_id=cluster_id,
            name=f"guest-{number}",
            address=str(leaf_address((await mesh.mesh_of(tx, cluster_id)).network, number)),
            direct_key=keys.direct_key,
            relayed_key=keys.relayed_key,
            created_at=now,
            expires_at=expires_at,
        )
    )
    return True


async def drop_guest(tx: Tx, cluster_id: ClusterId, guest_id: NodeId) -> bool:
    """Takes a guest out of a cluster; False if it is not there."""
    own = (guest.c.id == guest_id) & (guest.c.cluster_id == cluster_id)
    return (await tx.execute(sa.delete(guest).where(own).returning(guest.c.id))).first() is not None


async def guest_views(tx: Tx, cluster_id: ClusterId, *, settings: ServerSettings, now: datetime) -> list[api.Guest]:
    """The guests of a cluster that are there, as their renter is shown them; in the order of their arrival."""
    rows = (await tx.execute(_present(cluster_id).where(guest.c.expires_at > now))).all()
    network = str((await mesh.mesh_of(tx, cluster_id)).network)
    return [
        api.Guest(
            id=row.id,
            name=row.name,
            cluster_id=row.cluster_id,
            address=row.address,
            network=network,
            mtu=MTU,
            direct_key=row.direct_key,
            relayed_key=row.relayed_key,
            created_at=row.created_at,
            expires_at=row.expires_at,
            lapse_s=settings.guest_lapse_s,
        )
        for row in rows
    ]


async def members(
    tx: Tx,
    cluster_id: ClusterId,
    roster: LatestRoster | None,
    observed: Mapping[str, tuple[str, ...]],
    *,
    now: datetime,
    serving_since: datetime,
    lapse_s: float,
) -> tuple[Member, ...]:
    """
    The guests of a cluster as members of its mesh.

    Args:
        tx: the transaction in which they are read.
        cluster_id: the cluster.
        roster: its newest roster.
        observed: by id of a member, the endpoints at which relays see its direct plane.
        now: the time.
        serving_since: since when guests could be heard.
        lapse_s: how long a guest that is not heard of stays, seconds.
    """
    named = {one.node_id for one in roster.members} if roster is not None else set[str]()
    rows = (await tx.execute(_present(cluster_id))).all()
    return tuple(
        Member(
            node_id=row.id,
            name=row.name,
            kind="leaf",
            address=row.address,
            direct_key=row.direct_key,
            relayed_key=row.relayed_key,
            engine_id=row.id,  # on no engine: on no bridge with anybody
            endpoints=endpoints(observed.get(row.id, ())),
        )
        for row in rows
        if is_present(row.expires_at, is_named=row.id in named, now=now, serving_since=serving_since, lapse_s=lapse_s)
    )


def _present(cluster_id: ClusterId) -> sa.Select[Any]:
    return sa.select(guest).where(guest.c.cluster_id == cluster_id).order_by(guest.c.created_at, guest.c.id)
