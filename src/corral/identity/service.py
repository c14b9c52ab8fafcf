"""Signing up, keys, and telling who makes a request. The caller opens the transaction."""

from datetime import datetime, timedelta

from corral.core.ids import IdSource, KeyId, PersonId
from corral.core.randomness import Randomness
from corral.identity import key as keys
from corral.identity import store
from corral.identity.errors import (
    KeyIdUnknown,
    NotOperator,
    OperatorExists,
    PersonNameTaken,
    PersonUnknown,
    TooManyKeys,
)
from corral.identity.key import ApiKey, Caller
from corral.identity.person import Person
from corral.platform.database import Tx

FIRST_KEY_LABEL = "first key"


async def sign_up(
    tx: Tx, name: str, now: datetime, *, ids: IdSource, randomness: Randomness, is_operator: bool = False
) -> tuple[Person, ApiKey, str]:
    """
    Makes a person with a first key.

    Returns:
        The person, the key, and `id.secret`, which exists nowhere else.

    Raises:
        PersonNameTaken: somebody has this name.
    """
    person = Person(PersonId(ids.new("pn")), name, is_operator, now)
    if not await store.insert_person(tx, person):
        raise PersonNameTaken(name)
    key, secret = await _make_key(tx, person.id, FIRST_KEY_LABEL, None, now, ids=ids, randomness=randomness)
    return person, key, secret


async def make_first_operator(
    tx: Tx, name: str, now: datetime, *, ids: IdSource, randomness: Randomness
) -> tuple[Person, ApiKey, str]:
    """
    Makes the first operator; works once per database.

    Raises:
        OperatorExists: there is one already.
        PersonNameTaken: somebody else has this name.
    """
    found = await store.first_operator(tx)
    if found is not None:
        raise OperatorExists(found.name)
    return await sign_up(tx, name, now, ids=ids, randomness=randomness, is_operator=True)


async def authenticate(tx: Tx, secret: str, now: datetime, *, last_used_step_s: float = 60) -> Caller:
    """
    Who holds the key `secret` (`id.secret`). Notes its use, at most once per `last_used_step_s`.

    Raises:
        KeyUnknown: no key has this id and secret, or the text is none.
        KeyExpired: the key's time is over.
        KeyRevoked: the key was revoked.
    """
    key_id, secret_part = keys.split(secret)
    found = await store.key_with_person(tx, key_id)
    key = keys.check(None if found is None else found[0], secret_part, now)
    assert found is not None
    person = found[1]
    if key.last_used_at is None or key.last_used_at + timedelta(seconds=last_used_step_s) <= now:
        await store.set_last_used(tx, key.id, now)
    return Caller(person.id, person.name, key.id, person.is_operator, person.created_at)


async def key_is_valid(tx: Tx, key_id: KeyId, now: datetime) -> bool:
    """Whether a key, whose secret was checked before, still opens what was opened with it."""
    found = await store.key_with_person(tx, key_id)
    if found is None or found[0].revoked_at is not None:
        return False
    expires_at = found[0].expires_at
    return expires_at is None or now < expires_at


async def create_key(
    tx: Tx,
    caller: Caller,
    label: str,
    expires_in_s: int | None,
    now: datetime,
    *,
    keys_max: int,
    ids: IdSource,
    randomness: Randomness,
) -> tuple[ApiKey, str]:
    """
    Makes another key for the caller; the second value is `id.secret`, which exists nowhere else.

    Raises:
        TooManyKeys: the caller has `keys_max` living keys.
    """
    await store.lock_person(tx, caller.person_id)
    if await store.living_key_count(tx, caller.person_id, now) >= keys_max:
        raise TooManyKeys(keys_max)
    expires_at = None if expires_in_s is None else now + timedelta(seconds=expires_in_s)
    return await _make_key(tx, caller.person_id, label, expires_at, now, ids=ids, randomness=randomness)


async def keys_of(tx: Tx, caller: Caller) -> list[ApiKey]:
    """All keys of the caller, oldest first."""
    return await store.keys_of(tx, caller.person_id)


async def revoke_key(tx: Tx, caller: Caller, key_id: KeyId, now: datetime) -> None:
    """
    Revokes one of the caller's own keys, from the next request on; again is no error.

    Raises:
        KeyIdUnknown: the caller has no such key; somebody else's is not told from a missing one.
    """
    if not await store.set_revoked(tx, caller.person_id, key_id, now):
        raise KeyIdUnknown(key_id)


async def person_named(tx: Tx, name: str) -> Person:
    """
    The person of that name.

    Raises:
        PersonUnknown: nobody has it.
    """
    found = await store.person_by_name(tx, name)
    if found is None:
        raise PersonUnknown(name)
    return found


async def names_of(tx: Tx, ids: list[PersonId] | set[PersonId]) -> dict[PersonId, str]:
    """The names of persons by id; unknown ids are missing."""
    return await store.names_of(tx, ids)


def require_operator(caller: Caller) -> None:
    """
    Lets only operators pass.

    Raises:
        NotOperator: the caller is none.
    """
    if not caller.is_operator:
        raise NotOperator(caller.name)


async def _make_key(
    tx: Tx,
    person_id: PersonId,
    label: str,
    expires_at: datetime | None,
    now: datetime,
    *,
    ids: IdSource,
    randomness: Randomness,
) -> tuple[ApiKey, str]:
    secret = keys.new_secret(randomness)
    key = ApiKey(KeyId(ids.new("key")), person_id, label, keys.hash_of(secret), now, expires_at, None, None)
    await store.insert_key(tx, key)
    return key, f"{key.id}.{secret}"
