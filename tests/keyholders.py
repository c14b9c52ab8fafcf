"""People with keys, and the list of all operations, for tests of the whole application."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from corral.identity import make_first_operator, sign_up
from corral.platform.http import Platform
from corral.testing.ids import numbered_id


@dataclass(frozen=True)
class Keyholder:
    """Somebody with a key."""

    name: str
    person_id: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """What a request of theirs carries."""
        return {"Authorization": f"Bearer {self.key}"}


async def keyholder(platform: Platform, name: str, *, is_operator: bool = False) -> Keyholder:
    """Signs somebody up."""
    make = make_first_operator if is_operator else sign_up
    async with platform.database.transaction() as tx:
        person, _, key = await make(tx, name, platform.clock.now(), ids=platform.ids, randomness=platform.randomness)
    return Keyholder(name, person.id, key)


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path template that the application answers."""
    for route in iter_route_contexts(app.routes):
        for method in sorted(route.methods or ()):
            if method != "HEAD":
                yield method, str(route.path)


def filled(path: str) -> str:
    """A path template with well-formed values that name nothing."""
    ids = {"key_id": numbered_id("key", 999_999), "quote_id": numbered_id("qt", 999_999)}
    ids["guest_id"] = numbered_id("gu", 999_999)
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: ids.get(match[1], "nothing"), path)
