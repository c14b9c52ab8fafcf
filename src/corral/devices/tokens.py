"""Join tokens: `id.secret`, stored as a hash, looked up by id."""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime

from corral.core.ids import IdSource, PersonId
from corral.core.randomness import Randomness
from corral.devices.errors import JoinTokenExpired, JoinTokenForeign, JoinTokenUnknown, JoinTokenUsed

SECRET_BYTES = 32
ID_PREFIX = "jt"


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A join token as its row tells it."""

    token_id: str
    secret_hash: bytes
    person_id: PersonId
    role: str
    uses: int
    uses_max: int
    expires_at: datetime


def new_token(ids: IdSource, randomness: Randomness) -> tuple[str, str, bytes]:
    """Id, full text and hash of the secret part of a new token."""
    token_id = ids.new(ID_PREFIX)
    secret = base64.urlsafe_b64encode(randomness.bytes(SECRET_BYTES)).rstrip(b"=").decode()
    return token_id, f"{token_id}.{secret}", secret_hash(secret)


def secret_hash(secret: str) -> bytes:
    """SHA-256 of a secret with 256 random bits: no salt or stretching is needed for those."""
    return hashlib.sha256(secret.encode()).digest()


def split(token: str) -> tuple[str, str]:
    """Id and secret part of a token's text; empty strings where it has none."""
    token_id, _, secret = token.partition(".")
    return token_id, secret


def check_secret(stored: StoredToken | None, token: str) -> StoredToken:
    """
    The token whose secret is in `token`.

    Raises:
        JoinTokenUnknown: there is none, or the secret is another.
    """
    if stored is None or not hmac.compare_digest(stored.secret_hash, secret_hash(split(token)[1])):
        raise JoinTokenUnknown
    return stored


def check_usable(stored: StoredToken, *, role: str, now: datetime) -> None:
    """
    Whether one more host may enter by this token.

    Raises:
        JoinTokenForeign: it is for another role.
        JoinTokenExpired: its time is over.
        JoinTokenUsed: it was used up.
    """
    if stored.role != role:
        raise JoinTokenForeign(stored.role, role)
    if now >= stored.expires_at:
        raise JoinTokenExpired(stored.expires_at.isoformat())
    if stored.uses >= stored.uses_max:
        raise JoinTokenUsed(stored.uses_max)
