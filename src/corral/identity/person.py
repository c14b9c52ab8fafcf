"""Persons: somebody with keys and a balance."""

from dataclasses import dataclass
from datetime import datetime

from corral.core.ids import PersonId


@dataclass(frozen=True)
class Person:
    """Somebody who may rent and provide; `is_operator` alone is special."""

    id: PersonId
    name: str
    is_operator: bool
    created_at: datetime
