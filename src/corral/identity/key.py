"""API keys as values: `id.secret`, of which only the secret's hash is kept. Pure rules."""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime

from corral.core.ids import ID_PATTERN, KeyId, PersonId
from corral.core.randomness import Randomness
from corral.identity.errors import KeyExpired, KeyRevoked, KeyUnknown

SECRET_BYTES = 32
"""256 random bits: no guess succeeds, so a plain SHA-256 is enough to store it."""

_KEY = re.compile(ID_PATTERN.removesuffix("$") + r"\.[A-Za-z0-9_-]{43}$")


@dataclass(frozen=True)
class ApiKey:
    """One key as it is stored."""

    id: KeyId
    person_id: PersonId
    label: str
    secret_sha256: bytes
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True)
class Caller:
    """Who makes a request, and with which key."""

    person_id: PersonId
    name: str
    key_id: KeyId
    is_operator: bool
    created_at: datetime


def new_secret(randomness: Randomness) -> str:
    """The secret part of a new key: 43 characters of URL-safe base 64."""
    return base64.urlsafe_b64encode(randomness.bytes(SECRET_BYTES)).rstrip(b"=").decode()


def hash_of(secret: str) -> bytes:
    """What is stored of a secret: its SHA-256, 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


def split(text: str) -> tuple[KeyId, str]:
    """
    The id and the secret of a whole key `id.secret`.

    Raises:
        KeyUnknown: the text has not the form of a key.
    """
    if not text.isascii() or _KEY.fullmatch(text) is None:
        raise KeyUnknown
    key_id, _, secret = text.partition(".")
    return KeyId(key_id), secret


def check(key: ApiKey | None, secret: str, now: datetime) -> ApiKey:
    """
    The key, if `secret` is its secret and it may be used at `now`.

    Raises:
        KeyUnknown: there is no such key, or the secret is another.
        KeyRevoked: the key was revoked.
        KeyExpired: its time is over. These two are only told to who knows the secret.
    """
    # The comparison runs for an unknown id too, so that the time taken does not tell which ids exist.
    is_right = hmac.compare_digest(hash_of(secret), key.secret_sha256 if key is not None else bytes(32))
    if key is None or not is_right:
        raise KeyUnknown
    if key.revoked_at is not None:
        raise KeyRevoked(key.id, key.revoked_at)
    if key.expires_at is not None and key.expires_at <= now:
        raise KeyExpired(key.id, key.expires_at)
    return key
