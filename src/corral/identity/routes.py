"""Routes of identity: signing up, and one's own keys."""

from typing import Annotated, cast

from fastapi import APIRouter, Path, Request, Response

from corral.core.ids import ID_PATTERN, KeyId
from corral.identity import service
from corral.identity.dependencies import CallerDep
from corral.identity.schemas import shown_key, shown_person
from corral.identity.signup_limit import SignupLimit
from corral.platform.http import PlatformDep, client_address
from corral.wire import api

router = APIRouter(prefix="/v1", tags=["identity"])


@router.post("/signup", status_code=201)
async def sign_up(request: Request, wish: api.SignupRequest, platform: PlatformDep) -> api.SignedUp:
    """Signs up a person under a free name. The answer holds the first key: it is shown this once."""
    cast(SignupLimit, request.app.state.signup_limit).count(client_address(request))
    now = platform.clock.now()
    async with platform.database.transaction() as tx:
        person, key, secret = await service.sign_up(
            tx, wish.name, now, ids=platform.ids, randomness=platform.randomness
        )
    return api.SignedUp(person=shown_person(person), key=api.NewKey(key=shown_key(key), secret=secret))


@router.get("/keys")
async def list_keys(caller: CallerDep, platform: PlatformDep) -> list[api.Key]:
    """Your API keys, oldest first, without their secrets; revoked and expired ones too."""
    async with platform.database.transaction() as tx:
        return [shown_key(key) for key in await service.keys_of(tx, caller)]


@router.post("/keys", status_code=201)
async def create_key(wish: api.CreateKeyRequest, caller: CallerDep, platform: PlatformDep) -> api.NewKey:
    """Makes another API key for you. The answer holds its secret: it is shown this once."""
    async with platform.database.transaction() as tx:
        key, secret = await service.create_key(
            tx,
            caller,
            wish.label,
            wish.expires_in_s,
            platform.clock.now(),
            keys_max=platform.settings.keys_per_person_max,
            ids=platform.ids,
            randomness=platform.randomness,
        )
    return api.NewKey(key=shown_key(key), secret=secret)


@router.delete("/keys/{key_id}", status_code=204)
async def revoke_key(
    key_id: Annotated[str, Path(pattern=ID_PATTERN)], caller: CallerDep, platform: PlatformDep
) -> Response:
    """Revokes one of your keys, from the next request on; the one that you are using, too. Again is no error."""
    async with platform.database.transaction() as tx:
        await service.revoke_key(tx, caller, KeyId(key_id), platform.clock.now())
    return Response(status_code=204)
