"""Rosters of clusters: built, signed with a per-cluster key, chained, and kept."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.dialects.postgresql import insert

from corral import devices
from corral.core.ids import ClusterId, HostId
from corral.mesh.errors import NothingProposed, ProposalOutdated
from corral.mesh.relays import RelayView, give_mailboxes
from corral.mesh.tables import roster, roster_proposal
from corral.platform.database import Tx
from corral.platform.master_key import MasterKey
from corral.protocol.roster import GENESIS, Member, Relay, Roster, accept, payload_hash, payload_of, sign
from corral.wire import api
from corral.wire.agent import SignedRoster

ROSTERS_PER_PAGE = 200
PAGE_BYTES_MAX = 8 * 2**20
"""Of payloads in one page: the rosters of a cluster with thousands of members have a megabyte or two each."""

_PURPOSE = "roster key"


@dataclass(frozen=True, slots=True)
class LatestRoster:
    """The newest roster of a cluster."""

    serial: int
    payload_hash: str
    members: tuple[Member, ...]
    """Without their mailboxes."""
    relays: tuple[Relay, ...]
    signed_at: datetime


@dataclass(frozen=True, slots=True)
class ProposedRoster:
    """A roster that waits for its renter's signature."""

    payload: str
    members: tuple[Member, ...]
    """Without their mailboxes."""
    relays: tuple[Relay, ...]
    proposed_at: datetime


def roster_key(master_key: MasterKey, cluster_id: ClusterId) -> Ed25519PrivateKey:
    """The key that signs a cluster's rosters: derived, never stored."""
    return Ed25519PrivateKey.from_private_bytes(master_key.derive(_PURPOSE, cluster_id))


def roster_public_key(master_key: MasterKey, cluster_id: ClusterId) -> str:
    """Its public part, base 64: what nodes are told when they are made."""
    return base64.b64encode(roster_key(master_key, cluster_id).public_key().public_bytes_raw()).decode()


def in_order(members: Iterable[Member]) -> tuple[Member, ...]:
    """Members in the one order in which a roster names them, so that the same members make the same roster."""
    return tuple(sorted(members, key=lambda member: (member.kind, tuple(map(int, member.address.split("."))))))


def successor(
    cluster_id: ClusterId, latest: LatestRoster | None, members: Sequence[Member], relays: Sequence[Relay] = ()
) -> Roster:
    """The roster that follows `latest`."""
    return Roster(
        cluster_id=cluster_id,
        serial=latest.serial + 1 if latest else 1,
        previous=latest.payload_hash if latest else GENESIS,
        members=in_order(members),
        relays=tuple(relays),
    )


async def latest_roster(tx: Tx, cluster_id: ClusterId) -> LatestRoster | None:
    """The newest roster of a cluster; None before the first."""
    newest = sa.select(roster).where(roster.c.cluster_id == cluster_id).order_by(roster.c.serial.desc()).limit(1)
    row = (await tx.execute(newest)).one_or_none()
    if row is None:
        return None
    found = msgspec.json.decode(row.payload, type=Roster)
    members = tuple(msgspec.structs.replace(member, mailboxes=()) for member in found.members)
    return LatestRoster(row.serial, payload_hash(row.payload), members, found.relays, row.signed_at)


async def publish_roster(
    tx: Tx,
    master_key: MasterKey,
    cluster_id: ClusterId,
    members: Sequence[Member],
    relays: Sequence[RelayView],
    now: datetime,
    *,
    hosts: Mapping[str, HostId],
) -> int:
    """
    Gives members their mailboxes, signs and stores the next roster, unless nothing changed.

    Two that do so at once get the same serial, which the primary key gives to one of them only. Round trips to relays
    are those of this moment; that they changed is no reason for another roster.

    Args:
        tx: the transaction.
        master_key: from which the roster's key is derived.
        cluster_id: the cluster.
        members: all members.
        relays: those that the cluster should use.
        now: the present.
        hosts: by node, the host that it is on: how far relays are from it is known of the host.

    Returns:
        The serial of the newest roster.
    """
    latest = await latest_roster(tx, cluster_id)
    described = tuple(one.described() for one in relays)
    if latest is not None and (latest.members, latest.relays) == (in_order(members), described):
        return latest.serial
    placed = await give_mailboxes(tx, cluster_id, members, relays, rtts_us=await _rtts_of_nodes(tx, hosts))
    following = successor(cluster_id, latest, placed, described)
    payload = payload_of(following)
    await tx.execute(
        sa.insert(roster).values(
            cluster_id=cluster_id,
            serial=following.serial,
            payload=payload,
            signature=sign(payload, roster_key(master_key, cluster_id)),
            signed_at=now,
        )
    )
    return following.serial


async def propose_roster(
    tx: Tx,
    cluster_id: ClusterId,
    members: Sequence[Member],
    relays: Sequence[RelayView],
    now: datetime,
    *,
    hosts: Mapping[str, HostId],
) -> None:
    """Like `publish_roster`, but keeps the next roster for its renter to sign."""
    latest, described = await latest_roster(tx, cluster_id), tuple(one.described() for one in relays)
    if latest is not None and (latest.members, latest.relays) == (in_order(members), described):
        await tx.execute(sa.delete(roster_proposal).where(roster_proposal.c.cluster_id == cluster_id))
        return
    placed = await give_mailboxes(tx, cluster_id, members, relays, rtts_us=await _rtts_of_nodes(tx, hosts))
    payload = payload_of(successor(cluster_id, latest, placed, described))
    statement = insert(roster_proposal).values(cluster_id=cluster_id, payload=payload, proposed_at=now)
    await tx.execute(statement.on_conflict_do_update(index_elements=["cluster_id"], set_={"payload": payload}))


async def proposed_roster(tx: Tx, cluster_id: ClusterId) -> ProposedRoster | None:
    """The roster that waits for its renter's signature; None if none does."""
    row = (await tx.execute(sa.select(roster_proposal).where(roster_proposal.c.cluster_id == cluster_id))).one_or_none()
    if row is None:
        return None
    found = msgspec.json.decode(row.payload, type=Roster)
    members = tuple(msgspec.structs.replace(member, mailboxes=()) for member in found.members)
    return ProposedRoster(row.payload, members, found.relays, row.proposed_at)


async def take_signature(
    tx: Tx, cluster_id: ClusterId, signed: SignedRoster, *, roster_key: str, now: datetime
) -> None:
    """
    Makes the proposed roster of a cluster, whose row is locked, the newest one, by its renter's signature.

    Raises:
        NothingProposed: none waits.
        ProposalOutdated: what was signed is not what is proposed now.
        RosterRefused: the signature is not by the cluster's roster key.
    """
    proposed, latest = await proposed_roster(tx, cluster_id), await latest_roster(tx, cluster_id)
    if proposed is None:
        raise NothingProposed(cluster_id)
    if proposed.payload != signed.payload:
        raise ProposalOutdated(cluster_id)
    taken = accept(
        signed.payload,
        signed.signature,
        cluster_id=cluster_id,
        roster_key=roster_key,
        last_serial=latest.serial if latest else 0,
        last_hash=latest.payload_hash if latest else None,
    )
    values = {"cluster_id": cluster_id, "serial": taken.serial, "payload": signed.payload}
    await tx.execute(sa.insert(roster).values(**values, signature=signed.signature, signed_at=now))
    await tx.execute(sa.delete(roster_proposal).where(roster_proposal.c.cluster_id == cluster_id))


async def signed_rosters(tx: Tx, cluster_ids: Iterable[ClusterId]) -> dict[str, SignedRoster]:
    """The newest roster of each cluster that has one."""
    wanted = sorted(set(cluster_ids))
    if not wanted:
        return {}
    newest = (
        sa.select(roster.c.cluster_id, roster.c.payload, roster.c.signature)
        .where(roster.c.cluster_id.in_(wanted))
        .distinct(roster.c.cluster_id)
        .order_by(roster.c.cluster_id, roster.c.serial.desc())
    )
    return {
        row.cluster_id: SignedRoster(payload=row.payload, signature=row.signature) for row in await tx.execute(newest)
    }


async def chain(tx: Tx, cluster_id: ClusterId, after: int) -> list[api.ChainedRoster]:
    """
    The rosters of a cluster, living or over, that follow serial `after`, in order.

    As many as fit into one page, and one at least; empty once there are none.
    """
    of_cluster, size = roster.c.cluster_id == cluster_id, sa.func.octet_length(roster.c.payload)
    sizes = sa.select(roster.c.serial, size.label("bytes")).where(of_cluster, roster.c.serial > after)
    fitting, total_bytes = after, 0
    for row in await tx.execute(sizes.order_by(roster.c.serial).limit(ROSTERS_PER_PAGE)):
        total_bytes += row.bytes
        if fitting > after and total_bytes > PAGE_BYTES_MAX:
            break
        fitting = row.serial
    page = sa.select(roster).where(of_cluster, roster.c.serial > after, roster.c.serial <= fitting)
    return [
        api.ChainedRoster(serial=row.serial, payload=row.payload, signature=row.signature, signed_at=row.signed_at)
        for row in await tx.execute(page.order_by(roster.c.serial))
    ]


async def _rtts_of_nodes(tx: Tx, hosts: Mapping[str, HostId]) -> dict[str, Mapping[str, int]]:
    """By node, how far relays are from its host, microseconds."""
    rtts_us = await devices.rtts_to_relays(tx, set(hosts.values()))
    return {node_id: rtts_us.get(host_id, {}) for node_id, host_id in hosts.items()}
