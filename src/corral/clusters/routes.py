"""Routes of renters: their clusters."""

from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Path, Query

from corral import bookings, devices, mesh
from corral.clusters.access import ENTERABLE, make_ticket, ray_token
from corral.clusters.apply import end_by_renter
from corral.clusters.book import book
from corral.clusters.errors import ClusterNotReady, ClusterOver
from corral.clusters.guest_store import GUEST_ID_PATTERN, add_guest, drop_guest, guest_views
from corral.clusters.loop import bump_cluster_of
from corral.clusters.states import LIVING, ClusterState
from corral.clusters.store import (
    CLUSTER_TOPIC,
    WORK_TOPIC,
    change,
    cluster_row,
    head_address,
    look_again,
    own_cluster,
)
from corral.clusters.tables import cluster
from corral.clusters.urls import enter_url
from corral.clusters.views import cluster_view
from corral.core.ids import BookingId, ClusterId, HostId, NodeId, QuoteId
from corral.identity import CallerDep
from corral.platform.http import PlatformDep
from corral.platform.nudges import notify
from corral.wire import api
from corral.wire.agent import SignedRoster

router = APIRouter(prefix="/v1/clusters", tags=["clusters"])

LIST_MAX = 200


@router.post("", status_code=201)
async def create_cluster(body: api.BookRequest, caller: CallerDep, platform: PlatformDep) -> api.Cluster:
    """Accepts a quote: devices, money and cluster in one step, all or nothing. The same id again books once."""
    now = platform.clock.now()
    async with platform.database.transaction() as tx:
        cluster_id = await book(
            tx,
            platform,
            booking_id=BookingId(body.id),
            quote_id=QuoteId(body.quote_id),
            renter_id=caller.person_id,
            now=now,
            roster_key=body.roster_key,
        )
        return await cluster_view(tx, await cluster_row(tx, cluster_id), now)


@router.get("")
async def list_clusters(
    caller: CallerDep,
    platform: PlatformDep,
    all_: Annotated[bool, Query(alias="all", description="those that are over, too")] = False,
) -> list[api.Cluster]:
    """The caller's clusters, newest first; at most 200."""
    query = sa.select(cluster).where(cluster.c.renter_id == caller.person_id)
    if not all_:
        query = query.where(cluster.c.ended_at.is_(None))
    async with platform.database.transaction() as tx:
        rows = await tx.execute(query.order_by(cluster.c.created_at.desc(), cluster.c.id.desc()).limit(LIST_MAX))
        now = platform.clock.now()
        return [await cluster_view(tx, row, now) for row in rows.all()]


@router.get("/{name_or_id}")
async def show_cluster(
    name_or_id: str,
    caller: CallerDep,
    platform: PlatformDep,
    newer_than: Annotated[int | None, Query(ge=0, le=2**62, description="wait for a version above this")] = None,
    wait_s: Annotated[float, Query(ge=0, le=25, description="how long to wait at most")] = 0,
) -> api.Cluster:
    """One of the caller's clusters; with `newer_than`, as soon as it differs from what the caller has seen."""
    clock = platform.clock
    deadline = clock.monotonic() + wait_s
    async with platform.database.transaction() as tx:
        # From here on by id: another cluster may get the name while we wait.
        cluster_id = ClusterId((await own_cluster(tx, caller.person_id, name_or_id)).id)
    with platform.nudges.listen(CLUSTER_TOPIC, cluster_id) as nudge:
        while True:
            async with platform.database.transaction() as tx:
                row = await cluster_row(tx, cluster_id)
                remaining_s = deadline - clock.monotonic()
                if newer_than is None or row.version > newer_than or remaining_s <= 0:
                    return await cluster_view(tx, row, clock.now())
            await nudge.wait(min(remaining_s, platform.settings.poll_s))


@router.delete("/{name_or_id}")
async def end_cluster(name_or_id: str, caller: CallerDep, platform: PlatformDep) -> api.Cluster:
    """Ends a cluster; its bill is final at once. Again, it changes nothing."""
    async with platform.database.transaction() as tx:
        row = await own_cluster(tx, caller.person_id, name_or_id, lock=True)
        now = platform.clock.now()  # Under the lock: what it waited for happened before.
        await end_by_renter(tx, ClusterId(row.id), now)
        return await cluster_view(tx, await cluster_row(tx, ClusterId(row.id)), now)


@router.post("/{name_or_id}/extension")
async def extend_cluster(
    name_or_id: str, body: api.ExtendRequest, caller: CallerDep, platform: PlatformDep
) -> api.Cluster:
    """Books more hours at the same rates; at most as dear as the caller allows."""
    async with platform.database.transaction() as tx:
        row = await own_cluster(tx, caller.person_id, name_or_id, lock=True)
        now = platform.clock.now()
        if ClusterState(row.state) not in LIVING:
            raise ClusterOver(row.name, row.state)
        await bookings.extend(
            tx,
            extension_id=body.id,
            booking_id=BookingId(row.booking_id),
            hours=body.hours,
            total_uc_max=body.total_uc_max,
            now=now,
        )
        await bump_cluster_of(tx, BookingId(row.booking_id))
        await change(tx, ClusterId(row.id))
        return await cluster_view(tx, await cluster_row(tx, ClusterId(row.id)), now)


@router.post("/{name_or_id}/tickets", status_code=201)
async def create_ticket(name_or_id: str, caller: CallerDep, platform: PlatformDep) -> api.TicketAnswer:
    """Makes a one-time way into the cluster's pages for the caller's browser."""
    async with platform.database.transaction() as tx:
        row = await own_cluster(tx, caller.person_id, name_or_id)
        gateway = await devices.host_by_id(tx, HostId(row.gateway_id))
        if ClusterState(row.state) not in ENTERABLE or gateway is None:
            raise ClusterNotReady(row.name, row.state)
        secret, expires_at = await make_ticket(
            tx,
            platform.randomness,
            ClusterId(row.id),
            person_id=caller.person_id,
            key_id=caller.key_id,
            expiry_s=platform.settings.ticket_expiry_s,
            now=platform.clock.now(),
        )
    url = enter_url(gateway.gateway_address, row.name, platform.settings.gateway_domain, secret)
    return api.TicketAnswer(url=url, expires_at=expires_at)


@router.get("/{name_or_id}/guests")
async def list_guests(name_or_id: str, caller: CallerDep, platform: PlatformDep) -> list[api.Guest]:
    """The renter's own machines in the cluster's mesh, in the order of their arrival."""
    async with platform.database.transaction() as tx:
        cluster_id = ClusterId((await own_cluster(tx, caller.person_id, name_or_id)).id)
        return await guest_views(tx, cluster_id, settings=platform.settings, now=platform.clock.now())


@router.put("/{name_or_id}/guests/{guest_id}")
async def put_guest(
    name_or_id: str,
    guest_id: Annotated[str, Path(pattern=GUEST_ID_PATTERN)],
    body: api.GuestRequest,
    caller: CallerDep,
    platform: PlatformDep,
) -> api.Guest:
    """Adds a machine of the renter's to the mesh, or says that it is still there: it leaves unless that is repeated."""
    async with platform.database.transaction() as tx:
        row = await own_cluster(tx, caller.person_id, name_or_id, lock=True)
        now = platform.clock.now()
        if ClusterState(row.state) not in ENTERABLE:
            raise ClusterNotReady(row.name, row.state)
        cluster_id = ClusterId(row.id)
        if await add_guest(tx, row, NodeId(guest_id), body, settings=platform.settings, now=now):
            await look_again(tx, cluster_id, now)
        views = await guest_views(tx, cluster_id, settings=platform.settings, now=now)
        return next(view for view in views if view.id == guest_id)


@router.delete("/{name_or_id}/guests/{guest_id}", status_code=204)
async def remove_guest(
    name_or_id: str,
    guest_id: Annotated[str, Path(pattern=GUEST_ID_PATTERN)],
    caller: CallerDep,
    platform: PlatformDep,
) -> None:
    """Takes a machine of the renter's out of the mesh; again, it changes nothing."""
    async with platform.database.transaction() as tx:
        row = await own_cluster(tx, caller.person_id, name_or_id, lock=True)
        if await drop_guest(tx, ClusterId(row.id), NodeId(guest_id)):
            await look_again(tx, ClusterId(row.id), platform.clock.now())


@router.get("/{name_or_id}/ray")
async def show_ray_access(name_or_id: str, caller: CallerDep, platform: PlatformDep) -> api.RayAccess:
    """Where the cluster's Ray is, and the token that it asks for: the renter's jobs have it anyway."""
    async with platform.database.transaction() as tx:
        row = await own_cluster(tx, caller.person_id, name_or_id)
        head = await head_address(tx, ClusterId(row.id))
        if ClusterState(row.state) not in ENTERABLE or head is None:
            raise ClusterNotReady(row.name, row.state)
        return api.RayAccess(head_address=head, token=ray_token(platform.master_key, ClusterId(row.id)))


@router.get("/{name_or_id}/bill")
async def show_bill(name_or_id: str, caller: CallerDep, platform: PlatformDep) -> api.Bill:
    """What a cluster cost, and where it went; while it runs, what it would be if it ended now."""
    async with platform.database.transaction() as tx:
        row = await own_cluster(tx, caller.person_id, name_or_id)
        return await bookings.bill(tx, BookingId(row.booking_id), now=platform.clock.now())


@router.get("/{name_or_id}/rosters")
async def list_rosters(
    name_or_id: str,
    caller: CallerDep,
    platform: PlatformDep,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="serial of the last roster already known")] = 0,
) -> api.RosterChain:
    """The signed rosters of a cluster's mesh that follow serial `after`: at most 200, in order; empty at the end."""
    async with platform.database.transaction() as tx:
        row = await own_cluster(tx, caller.person_id, name_or_id)
        cluster_id = ClusterId(row.id)
        return api.RosterChain(
            cluster_id=cluster_id,
            roster_key=row.roster_key or mesh.roster_public_key(platform.master_key, cluster_id),
            rosters=await mesh.chain(tx, cluster_id, after),
        )


@router.get("/{name_or_id}/proposal")
async def show_proposal(name_or_id: str, caller: CallerDep, platform: PlatformDep) -> api.RosterProposal:
    """The next roster of a cluster whose renter alone signs, if one waits for it."""
    async with platform.database.transaction() as tx:
        cluster_id = ClusterId((await own_cluster(tx, caller.person_id, name_or_id)).id)
        proposed = await mesh.proposed_roster(tx, cluster_id)
    if proposed is None:
        raise mesh.NothingProposed(cluster_id)
    return api.RosterProposal(cluster_id=cluster_id, payload=proposed.payload, proposed_at=proposed.proposed_at)


@router.post("/{name_or_id}/rosters", status_code=201)
async def sign_proposal(
    name_or_id: str, body: api.SignRosterRequest, caller: CallerDep, platform: PlatformDep
) -> api.Cluster:
    """Takes the renter's signature under the roster that is proposed; its nodes are told at once."""
    async with platform.database.transaction() as tx:
        row = await own_cluster(tx, caller.person_id, name_or_id, lock=True)
        cluster_id, now = ClusterId(row.id), platform.clock.now()
        if ClusterState(row.state) not in LIVING:
            raise ClusterOver(row.name, row.state)
        signed = SignedRoster(payload=body.payload, signature=body.signature)
        await mesh.take_signature(tx, cluster_id, signed, roster_key=row.roster_key or "", now=now)
        await bump_cluster_of(tx, BookingId(row.booking_id))
        await change(tx, cluster_id, due_at=now)
        await notify(tx, WORK_TOPIC, cluster_id)
        return await cluster_view(tx, await cluster_row(tx, cluster_id), now)
