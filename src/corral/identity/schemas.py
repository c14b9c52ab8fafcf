"""Identity as people see it on the wire."""

from corral.identity.key import ApiKey
from corral.identity.person import Person
from corral.wire import api


def shown_person(person: Person) -> api.Person:
    """A person on the wire."""
    return api.Person(id=person.id, name=person.name, is_operator=person.is_operator, created_at=person.created_at)


def shown_key(key: ApiKey) -> api.Key:
    """A key on the wire: without its hash."""
    return api.Key(
        id=key.id,
        label=key.label,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )
