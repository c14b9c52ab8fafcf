"""The reconciler: claims clusters that are due, observes them, plans, and does what was planned."""

import asyncio
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from corral import bookings, devices, market
from corral.clusters.apply import apply
from corral.clusters.plan import Action, plan
from corral.clusters.states import ClusterState
from corral.clusters.store import (
    WORK_TOPIC,
    claim,
    cluster_row,
    is_claimed,
    snapshot,
    unclaim,
    wanted_nodes,
)
from corral.clusters.tables import cluster, node
from corral.core.ids import BookingId, ClusterId, HostId
from corral.platform.database import Tx
from corral.platform.http import Platform

CLAIM_S = 30.0
"""A reconciler that died holds its clusters no longer than this."""

CLAIMS_MAX = 100
BACKOFF_S_MAX = 60.0
PASSES_MAX = 8
"""Passes over one cluster in a row, while each finds something new to do."""

_log = structlog.get_logger("corral.clusters")


async def run(platform: Platform, prices: market.Prices, stop: asyncio.Event) -> None:
    """Runs until `stop` is set. An absent database costs a delay; a broken invariant takes the process down."""
    reconciler = Reconciler(platform, prices)
    failing = False
    with platform.nudges.listen(WORK_TOPIC) as nudge:
        while not stop.is_set():
            await nudge.wait(
                platform.settings.poll_s
            )  # Clears the nudge; what changes from here on wakes the next turn.
            try:
                while await reconciler.turn() == CLAIMS_MAX and not stop.is_set():
                    pass
                failing = False
            except (DBAPIError, OSError) as error:
                if not failing:
                    _log.warning("clusters.turn_failed", reason=type(error).__name__)
                failing = True


class Reconciler:
    """One worker; any number of them share the clusters by claims."""

    def __init__(self, platform: Platform, prices: market.Prices) -> None:
        self._platform = platform
        self._prices = prices
        self._serving_since = platform.clock.now()
        self._unsettled: dict[BookingId, datetime] = {}
        """Bookings that could not be settled, and when each is tried again."""

    async def turn(self) -> int:
        """Looks once at every cluster that is due, and settles what is due; returns how many were claimed."""
        await self._settle()
        token = self._platform.ids.new("cm")
        now = self._platform.clock.now()
        async with self._platform.database.transaction() as tx:
            poll_s = self._platform.settings.poll_s
            claimed = await claim(tx, token, now, claim_s=CLAIM_S, count_max=CLAIMS_MAX, poll_s=poll_s)
        for cluster_id in claimed:
            await self._look(cluster_id, token)
        return len(claimed)

    async def _look(self, cluster_id: ClusterId, token: str) -> None:
        """One failing cluster never stops the others: it waits longer and longer, alone."""
        try:
            await self.reconcile(cluster_id, token)
        except devices.DeviceTaken:
            await self._release(cluster_id, token, failures=0, due_at=None)
        except Exception as error:  # The outcome is recorded with the object; only the loop above may end a process.
            await self._back_off(cluster_id, token, error)
        else:
            await self._release(cluster_id, token, failures=0, due_at=None)

    async def reconcile(self, cluster_id: ClusterId, token: str) -> None:
        """Observes, plans and applies until nothing is left to do now; stops when the claim was lost."""
        done: list[Action] = []
        for _ in range(PASSES_MAX):
            now = self._platform.clock.now()
            async with self._platform.database.transaction() as tx:
                seen = await snapshot(
                    tx, cluster_id, self._platform.settings, now=now, serving_since=self._serving_since
                )
            actions = plan(seen, now)
            for action in actions:
                async with self._platform.database.transaction() as tx:
                    if not await is_claimed(tx, cluster_id, token):
                        return
                    row = await cluster_row(tx, cluster_id)
                    is_over = ClusterState(row.state) in (ClusterState.ENDED, ClusterState.FAILED)
                    is_ending = row.state == ClusterState.ENDING and seen.state is not ClusterState.ENDING
                    if is_over or is_ending:
                        break  # Somebody else ended it: the rest of this plan is about the past.
                    await apply(tx, self._platform, self._prices, seen, action, now)
                _log.info("cluster.action", cluster_id=cluster_id, action=type(action).__name__)
            if not actions or actions == done:
                return  # The same again would change nothing either: what it waits for is not there yet.
            done = actions

    async def _release(self, cluster_id: ClusterId, token: str, *, failures: int, due_at: datetime | None) -> None:
        async with self._platform.database.transaction() as tx:
            await unclaim(tx, cluster_id, token, failures=failures, due_at=due_at)

    async def _back_off(self, cluster_id: ClusterId, token: str, error: Exception) -> None:
        async with self._platform.database.transaction() as tx:
            failures = (await cluster_row(tx, cluster_id)).failures + 1
        if failures == 1:  # Logged when the outcome changes, not each time.
            _log.error("cluster.reconcile_failed", cluster_id=cluster_id, exc_info=error)
        wait_s = min(BACKOFF_S_MAX, 2.0**failures)
        due_at = self._platform.clock.now() + timedelta(seconds=wait_s)
        await self._release(cluster_id, token, failures=failures, due_at=due_at)

    async def _settle(self) -> None:
        """Posts delivered hours, and tells hosts when more hours were held."""
        now = self._platform.clock.now()
        async with self._platform.database.transaction() as tx:
            due = await bookings.due_to_settle(tx, now)
        self._unsettled = {booking_id: at for booking_id, at in self._unsettled.items() if booking_id in due}
        for booking_id in due:
            if now < self._unsettled.get(booking_id, now):
                continue
            try:
                async with self._platform.database.transaction() as tx:
                    await settle_one(tx, booking_id, now)
            except (DBAPIError, OSError):
                raise  # Nothing can be done about any booking.
            except Exception as error:  # One booking that does not add up must not keep the others from their money.
                if booking_id not in self._unsettled:
                    _log.error("booking.settle_failed", booking_id=booking_id, exc_info=error)
                self._unsettled[booking_id] = now + timedelta(seconds=BACKOFF_S_MAX)


async def settle_one(tx: Tx, booking_id: BookingId, now: datetime) -> None:
    """Settles one booking; where more hours are held now, its nodes may run longer."""
    before = bookings.stop_after(await bookings.get(tx, booking_id))
    await bookings.settle(tx, booking_id, now=now)
    if bookings.stop_after(await bookings.get(tx, booking_id)) == before:
        return
    await bump_cluster_of(tx, booking_id)


async def bump_cluster_of(tx: Tx, booking_id: BookingId) -> None:
    """Tells every host of a booking's cluster that its specs changed."""
    row = (await tx.execute(sa.select(cluster.c.id).where(cluster.c.booking_id == booking_id))).one()
    nodes = await wanted_nodes(tx, ClusterId(row.id))
    hosts = await tx.execute(sa.select(node.c.host_id).where(node.c.id.in_(nodes)))
    await devices.bump(tx, {HostId(one.host_id) for one in hosts})
