"""Who speaks for a host: tokens that the host signs with its own key."""

import base64
import re
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from corral.core.ids import ID_PATTERN, HostId
from corral.devices.errors import HostRefused
from corral.devices.hosts import Host, host_by_id
from corral.devices.state import Intent
from corral.platform.database import Tx

TOKEN_LIFE_S_MAX = 900
CLOCK_LEEWAY_S = 60
"""Agents use our time, but a reply may be that old when they read it."""

CACHE_ENTRIES_MAX = 200_000
"""About 500 bytes each: one token of each of 125,000 hosts, and room for more hosts."""

TOKEN_CHARACTERS_MAX = 1024
_HOST_ID = re.compile(ID_PATTERN)


@dataclass(frozen=True, slots=True)
class _Verified:
    host_id: HostId
    public_key: str
    expires_at: datetime


class HostAuthenticator:
    """Verifies hosts' tokens; remembers successes, because one verification costs as much as two exchanges."""

    def __init__(self, audience: str) -> None:
        self.audience = audience
        self._verified: OrderedDict[str, _Verified] = OrderedDict()
        self._token_of: dict[HostId, str] = {}

    async def host_of(self, tx: Tx, authorization: str, now: datetime) -> Host:
        """
        The host that an `Authorization` header speaks for.

        The host's row is read each time, whether or not the token is remembered: a host that left, or whose key
        changed, is refused at once.

        Raises:
            HostRefused: no valid token of a host that is still one of ours.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > TOKEN_CHARACTERS_MAX:
            raise HostRefused("the request carries no host token")
        remembered = self._verified.get(token)
        host = await host_by_id(tx, remembered.host_id if remembered else _subject(token))
        if host is None or host.intent is Intent.LEFT:
            self._forget(token)
            raise HostRefused("this host is not known, or has left")
        if remembered is None or remembered.public_key != host.public_key:
            remembered = self._remember(token, host, now)
        if now >= remembered.expires_at + timedelta(seconds=CLOCK_LEEWAY_S):
            self._forget(token)
            raise HostRefused("the host's token has expired")
        return host

    def _remember(self, token: str, host: Host, now: datetime) -> _Verified:
        verified = _Verified(host.host_id, host.public_key, verify(token, host, self.audience, now))
        # One token per host: a host that makes ever new ones pushes out none but its own.
        self._forget(self._token_of.get(host.host_id, ""))
        self._verified[token] = verified
        self._token_of[host.host_id] = token
        while len(self._verified) > CACHE_ENTRIES_MAX:
            self._forget(next(iter(self._verified)))
        return verified

    def _forget(self, token: str) -> None:
        forgotten = self._verified.pop(token, None)
        if forgotten is not None and self._token_of.get(forgotten.host_id) == token:
            del self._token_of[forgotten.host_id]


def verify(token: str, host: Host, audience: str, now: datetime) -> datetime:
    """
    Checks signature, audience, subject and times of a host's token against `now`.

    Returns:
        When it expires.

    Raises:
        HostRefused: one of them is wrong, or it lives longer than 15 minutes.
    """
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(host.public_key))
    try:
        # Times are compared below, with the clock that everything else here uses.
        claims = jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            audience=audience,
            options={
                "require": ["sub", "aud", "iat", "exp"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        issued = datetime.fromtimestamp(float(claims["iat"]), UTC)
        expires = datetime.fromtimestamp(float(claims["exp"]), UTC)
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, OSError) as error:
        raise HostRefused("the host's token is not valid") from error
    leeway = timedelta(seconds=CLOCK_LEEWAY_S)
    if claims["sub"] != host.host_id:
        raise HostRefused("the host's token is another host's")
    if issued > now + leeway or now >= expires + leeway or expires - issued > timedelta(seconds=TOKEN_LIFE_S_MAX):
        raise HostRefused("the host's token is not valid at this time")
    return expires


def _subject(token: str) -> HostId:
    """The subject that a token claims, unverified: it only tells whose key to verify with."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.InvalidTokenError, RecursionError) as error:
        raise HostRefused("the host's token cannot be read") from error
    subject = str(claims.get("sub", ""))
    if _HOST_ID.fullmatch(subject) is None:
        raise HostRefused("the host's token names no host")
    return HostId(subject)
