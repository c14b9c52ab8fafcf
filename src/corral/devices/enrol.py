"""Letting hosts in: join tokens made and redeemed."""

import base64
from datetime import datetime, timedelta

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from corral.core.ids import HostId, IdSource, PersonId, is_name
from corral.core.randomness import Randomness
from corral.devices.errors import EnrolmentMalformed, HostIdentityTaken, HostNameTaken, JoinTokenUsed
from corral.devices.hosts import free_name, host_of_identity, hosts_of, insert_host
from corral.devices.tables import join_token
from corral.devices.tokens import StoredToken, check_secret, check_usable, new_token, split
from corral.platform.database import Tx
from corral.wire.agent import EnrolRequest

HOST_PREFIX = "hst"


async def make_join_token(
    tx: Tx,
    ids: IdSource,
    randomness: Randomness,
    *,
    person_id: PersonId,
    role: str,
    uses_max: int,
    expires_in_s: int,
    now: datetime,
) -> tuple[str, datetime]:
    """Makes a join token; returns its text, which is stored nowhere, and its expiry."""
    token_id, token, hashed = new_token(ids, randomness)
    expires_at = now + timedelta(seconds=expires_in_s)
    await tx.execute(
        sa.insert(join_token).values(
            id=token_id,
            secret_hash=hashed,
            person_id=person_id,
            role=role,
            uses_max=uses_max,
            created_at=now,
            expires_at=expires_at,
        )
    )
    return token, expires_at


async def enrol(tx: Tx, ids: IdSource, request: EnrolRequest, now: datetime) -> tuple[HostId, str]:
    """
    Lets a host in, or recognises one that is in already.

    The same machine with the same key is the same host: a reply that was lost can be asked for again, with the same
    token even when that is used up or expired meanwhile.

    Returns:
        The host's id and name.

    Raises:
        EnrolmentMalformed: the signature or the wished name is not valid.
        JoinTokenUnknown, JoinTokenForeign, JoinTokenExpired, JoinTokenUsed: the token opens nothing.
        HostIdentityTaken: the machine is enrolled with another key, or by somebody else.
        HostNameTaken: the provider has a living host of the wished name.
    """
    _check_signature(request)
    if request.name and not is_name(request.name):
        raise EnrolmentMalformed(f"{request.name!r} is not a name for a host")
    stored = check_secret(await _token_for_update(tx, split(request.token)[0]), request.token)
    # One at a time per machine and per provider: the unique indexes would only say that something went wrong.
    await _lock(tx, f"identity {request.identity.machine_id} {request.identity.engine_id} {request.identity.slice}")
    await _lock(tx, f"provider {stored.person_id}")
    known = await host_of_identity(tx, request)
    if known is not None:
        same = known.public_key == request.public_key and known.provider_id == stored.person_id
        if not same or known.role != request.role:
            raise HostIdentityTaken
        return known.host_id, known.name
    check_usable(stored, role=request.role, now=now)
    used = await tx.execute(
        sa.update(join_token)
        .where(join_token.c.id == stored.token_id, join_token.c.uses < join_token.c.uses_max)
        .values(uses=join_token.c.uses + 1)
    )
    if used.rowcount != 1:
        raise JoinTokenUsed(stored.uses_max)
    name = await _name_for(tx, stored.person_id, request)
    host_id = HostId(ids.new(HOST_PREFIX))
    await insert_host(tx, host_id, request, provider_id=stored.person_id, token_id=stored.token_id, name=name, now=now)
    return host_id, name


async def _lock(tx: Tx, what: str) -> None:
    await tx.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"enrol {what}", 0))))


async def _name_for(tx: Tx, person_id: PersonId, request: EnrolRequest) -> str:
    if not request.name:
        wished = f"{request.role}-{request.identity.slice}" if is_name(request.identity.slice) else f"{request.role}-1"
        return await free_name(tx, person_id, wished[:40].rstrip("-"))
    taken = {one.name for one in await hosts_of(tx, person_id) if one.left_at is None}
    if request.name in taken:
        raise HostNameTaken(request.name)
    return request.name


async def _token_for_update(tx: Tx, token_id: str) -> StoredToken | None:
    row = (await tx.execute(sa.select(join_token).where(join_token.c.id == token_id).with_for_update())).one_or_none()
    if row is None:
        return None
    return StoredToken(
        token_id=row.id,
        secret_hash=row.secret_hash,
        person_id=PersonId(row.person_id),
        role=row.role,
        uses=row.uses,
        uses_max=row.uses_max,
        expires_at=row.expires_at,
    )


def _check_signature(request: EnrolRequest) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(request.public_key, validate=True))
        key.verify(
            base64.b64decode(request.signature, validate=True), f"{request.token}\n{request.public_key}".encode()
        )
    except (InvalidSignature, ValueError) as error:
        raise EnrolmentMalformed("the signature does not prove the key") from error
