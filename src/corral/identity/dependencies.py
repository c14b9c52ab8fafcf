"""Route parameters that tell who makes a request."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from corral.identity.errors import KeyMissing
from corral.identity.key import Caller
from corral.identity.service import authenticate, require_operator
from corral.platform.http import PlatformDep

_bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="An API key, `id.secret`.")


async def caller_of(
    platform: PlatformDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """
    The holder of the request's key.

    Raises:
        KeyMissing: the request has no Bearer key.
        KeyUnknown: no key has this id and secret.
        KeyExpired: the key's time is over.
        KeyRevoked: the key was revoked.
    """
    if credentials is None or not credentials.credentials:
        raise KeyMissing
    async with platform.database.transaction() as tx:
        return await authenticate(
            tx,
            credentials.credentials,
            platform.clock.now(),
            last_used_step_s=platform.settings.key_last_used_step_s,
        )


CallerDep = Annotated[Caller, Depends(caller_of)]
"""Route parameter: who makes the request; without a valid key the route is not entered."""


async def operator_of(caller: CallerDep) -> Caller:
    """
    The holder of the request's key, an operator.

    Raises:
        NotOperator: the caller is none.
    """
    require_operator(caller)
    return caller


OperatorDep = Annotated[Caller, Depends(operator_of)]
"""Route parameter: the operator who makes the request; nobody else enters the route."""
