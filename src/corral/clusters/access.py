"""Who may enter a cluster's pages and job endpoint: API keys, one-time tickets, sessions."""

import base64
import hashlib
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from corral import identity
from corral.clusters.states import ClusterState
from corral.clusters.tables import cluster, node, ticket, web_session
from corral.core.ids import ClusterId, HostId, KeyId, PersonId
from corral.core.randomness import Randomness
from corral.platform.database import Tx
from corral.platform.master_key import MasterKey
from corral.platform.settings import ServerSettings
from corral.wire.agent import AuthoriseReply, AuthoriseRequest

SECRET_BYTES = 32
ENTERABLE = frozenset({ClusterState.STARTING, ClusterState.READY})


def ray_token(master_key: MasterKey, cluster_id: ClusterId) -> str:
    """What Ray's processes of a cluster ask of each other and of whom they serve, hex: derived, never stored."""
    return master_key.derive("ray token", cluster_id).hex()


async def make_ticket(
    tx: Tx,
    randomness: Randomness,
    cluster_id: ClusterId,
    *,
    person_id: PersonId,
    key_id: KeyId,
    expiry_s: float,
    now: datetime,
) -> tuple[str, datetime]:
    """Makes a ticket, which works once; returns its text, which is stored nowhere, and its expiry."""
    secret = _new_secret(randomness)
    expires_at = now + timedelta(seconds=expiry_s)
    await tx.execute(sa.delete(ticket).where(ticket.c.cluster_id == cluster_id, ticket.c.expires_at <= now))
    await tx.execute(
        sa.insert(ticket).values(
            secret_hash=_hash(secret), cluster_id=cluster_id, person_id=person_id, key_id=key_id, expires_at=expires_at
        )
    )
    return secret, expires_at


async def authorise(
    tx: Tx,
    randomness: Randomness,
    settings: ServerSettings,
    gateway_id: HostId,
    request: AuthoriseRequest,
    now: datetime,
) -> AuthoriseReply:
    """
    Whether a visitor of a gateway may reach a cluster.

    Only for clusters that this gateway serves. A refusal tells no more than that: not whether the cluster exists.
    """
    proofs = [proof for proof in (request.api_key, request.ticket, request.session) if proof is not None]
    if len(proofs) != 1:
        return _refused("exactly one proof is needed")
    serves = sa.exists().where(
        node.c.cluster_id == cluster.c.id,
        node.c.host_id == gateway_id,
        node.c.kind == "leaf",
        node.c.removed_at.is_(None),
    )
    query = sa.select(cluster).where(cluster.c.name == request.cluster_name, cluster.c.ended_at.is_(None), serves)
    row = (await tx.execute(query)).one_or_none()
    if row is None or ClusterState(row.state) not in ENTERABLE:
        return _refused("there is no such cluster here, or you may not enter it")
    if request.api_key is not None:
        return await _by_key(tx, row, request.api_key, now)
    if request.ticket is not None:
        return await _by_ticket(tx, randomness, settings, row, request.ticket, now)
    return await _by_session(tx, row, request.session or "", now)


async def _by_key(tx: Tx, row: Any, api_key: str, now: datetime) -> AuthoriseReply:
    try:
        caller = await identity.authenticate(tx, api_key, now)
    except identity.IdentityError:
        return _refused("the key is not valid")
    if caller.person_id != row.renter_id:
        return _refused("there is no such cluster here, or you may not enter it")
    return AuthoriseReply(allowed=True, cluster_id=row.id)


async def _by_ticket(
    tx: Tx, randomness: Randomness, settings: ServerSettings, row: Any, secret: str, now: datetime
) -> AuthoriseReply:
    # One statement decides: of two that redeem a ticket at once, one finds it unused.
    redeemed = await tx.execute(
        sa.update(ticket)
        .where(
            ticket.c.secret_hash == _hash(secret),
            ticket.c.cluster_id == row.id,
            ticket.c.used_at.is_(None),
            ticket.c.expires_at > now,
        )
        .values(used_at=now)
        .returning(ticket.c.person_id, ticket.c.key_id)
    )
    found = redeemed.one_or_none()
    if found is None or not await identity.key_is_valid(tx, KeyId(found.key_id), now):
        return _refused("the ticket is unknown, used or expired")
    over = (web_session.c.cluster_id == row.id) & (web_session.c.expires_at <= now)
    await tx.execute(sa.delete(web_session).where(over))
    session = _new_secret(randomness)
    expires_at = now + timedelta(seconds=settings.session_expiry_s)
    await tx.execute(
        sa.insert(web_session).values(
            secret_hash=_hash(session),
            cluster_id=row.id,
            person_id=found.person_id,
            key_id=found.key_id,
            expires_at=expires_at,
        )
    )
    return AuthoriseReply(
        allowed=True, cluster_id=row.id, session=session, session_seconds=int(settings.session_expiry_s)
    )


async def _by_session(tx: Tx, row: Any, secret: str, now: datetime) -> AuthoriseReply:
    query = sa.select(web_session).where(
        web_session.c.secret_hash == _hash(secret),
        web_session.c.cluster_id == row.id,
        web_session.c.expires_at > now,
    )
    found = (await tx.execute(query)).one_or_none()
    if found is None or not await identity.key_is_valid(tx, KeyId(found.key_id), now):
        return _refused("the session is unknown or over")
    return AuthoriseReply(allowed=True, cluster_id=row.id)


def _refused(reason: str) -> AuthoriseReply:
    return AuthoriseReply(allowed=False, reason=reason)


def _new_secret(randomness: Randomness) -> str:
    return base64.urlsafe_b64encode(randomness.bytes(SECRET_BYTES)).rstrip(b"=").decode()


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
