"""All SQL of identity."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert

from corral.core.ids import KeyId, PersonId
from corral.identity.key import ApiKey
from corral.identity.person import Person
from corral.identity.tables import api_key, person
from corral.platform.database import Tx

_OPERATOR_LOCK = 0x636F7272616C01
"""Advisory lock: two `corral serve init` at once make one operator."""


async def insert_person(tx: Tx, new: Person) -> bool:
    """Stores a person; False if the name is taken."""
    statement = (
        insert(person)
        .values(id=new.id, name=new.name, is_operator=new.is_operator, created_at=new.created_at)
        .on_conflict_do_nothing(index_elements=[person.c.name])
        .returning(person.c.id)
    )
    return (await tx.execute(statement)).first() is not None


async def person_by_name(tx: Tx, name: str) -> Person | None:
    """The person of that name."""
    row = (await tx.execute(select(person).where(person.c.name == name))).mappings().first()
    return None if row is None else _person(row)


async def person_by_id(tx: Tx, person_id: PersonId) -> Person | None:
    """The person of that id."""
    row = (await tx.execute(select(person).where(person.c.id == person_id))).mappings().first()
    return None if row is None else _person(row)


async def names_of(tx: Tx, ids: Iterable[str]) -> dict[PersonId, str]:
    """The names of persons by id; unknown ids are missing."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    rows = await tx.execute(select(person.c.id, person.c.name).where(person.c.id.in_(wanted)))
    return {PersonId(identifier): name for identifier, name in rows.tuples()}


async def first_operator(tx: Tx) -> Person | None:
    """The operator who was made first. Holds a lock until the transaction ends, so that only one can be made."""
    await tx.execute(select(func.pg_advisory_xact_lock(_OPERATOR_LOCK)))
    statement = select(person).where(person.c.is_operator).order_by(person.c.created_at, person.c.id).limit(1)
    row = (await tx.execute(statement)).mappings().first()
    return None if row is None else _person(row)


async def insert_key(tx: Tx, new: ApiKey) -> None:
    """Stores a key."""
    await tx.execute(
        insert(api_key).values(
            id=new.id,
            person_id=new.person_id,
            label=new.label,
            secret_sha256=new.secret_sha256,
            created_at=new.created_at,
            expires_at=new.expires_at,
        )
    )


async def key_with_person(tx: Tx, key_id: KeyId) -> tuple[ApiKey, Person] | None:
    """A key and whose it is."""
    statement = (
        select(api_key, person.c.name, person.c.is_operator, person.c.created_at.label("person_created_at"))
        .join(person, person.c.id == api_key.c.person_id)
        .where(api_key.c.id == key_id)
    )
    row = (await tx.execute(statement)).mappings().first()
    if row is None:
        return None
    owner = Person(PersonId(row["person_id"]), row["name"], row["is_operator"], row["person_created_at"])
    return _key(row), owner


async def keys_of(tx: Tx, person_id: PersonId) -> list[ApiKey]:
    """A person's keys, revoked and expired ones too, oldest first."""
    statement = select(api_key).where(api_key.c.person_id == person_id).order_by(api_key.c.created_at, api_key.c.id)
    return [_key(row) for row in (await tx.execute(statement)).mappings()]


async def lock_person(tx: Tx, person_id: PersonId) -> None:
    """Makes changes to one person's keys wait for each other."""
    await tx.execute(select(person.c.id).where(person.c.id == person_id).with_for_update())


async def living_key_count(tx: Tx, person_id: PersonId, now: datetime) -> int:
    """How many of a person's keys can be used at `now`."""
    statement = select(func.count()).where(
        api_key.c.person_id == person_id,
        api_key.c.revoked_at.is_(None),
        (api_key.c.expires_at.is_(None)) | (api_key.c.expires_at > now),
    )
    return (await tx.execute(statement)).scalar_one()


async def set_revoked(tx: Tx, person_id: PersonId, key_id: KeyId, now: datetime) -> bool:
    """Revokes a person's own key; the first time counts. False if the person has no such key."""
    statement = (
        update(api_key)
        .where(api_key.c.id == key_id, api_key.c.person_id == person_id)
        .values(revoked_at=func.coalesce(api_key.c.revoked_at, now))
        .returning(api_key.c.id)
    )
    return (await tx.execute(statement)).first() is not None


async def set_last_used(tx: Tx, key_id: KeyId, now: datetime) -> None:
    """Notes that a key was used."""
    await tx.execute(update(api_key).where(api_key.c.id == key_id).values(last_used_at=now))


async def has_person(tx: Tx, person_id: PersonId) -> bool:
    """Whether there is a person with this id."""
    return (await tx.execute(select(exists().where(person.c.id == person_id)))).scalar_one()


def _person(row: RowMapping | dict[str, Any]) -> Person:
    return Person(PersonId(row["id"]), row["name"], row["is_operator"], row["created_at"])


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(
        id=KeyId(row["id"]),
        person_id=PersonId(row["person_id"]),
        label=row["label"],
        secret_sha256=row["secret_sha256"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
    )
