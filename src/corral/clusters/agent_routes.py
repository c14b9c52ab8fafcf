"""The route of gateways."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from corral import devices
from corral.clusters.access import authorise
from corral.clusters.errors import NotAGateway
from corral.wire.agent import AuthoriseRequest

_decoder = msgspec.json.Decoder(AuthoriseRequest)
BODY_BYTES_MAX = 16_384


async def authorise_visitor(request: Request) -> Response:
    """POST /agent/v1/authorise: a gateway asks whether a visitor may reach a cluster."""
    desk = devices.desk_of(request)
    platform = desk.platform
    message = await devices.read_message(request, _decoder, limit_bytes=BODY_BYTES_MAX)
    async with platform.database.transaction() as tx:
        now = platform.clock.now()
        host = await desk.authenticator.host_of(tx, request.headers.get("authorization", ""), now)
        if host.role != "gateway":
            raise NotAGateway
        answer = await authorise(tx, platform.randomness, platform.settings, host.host_id, message, now)
    return devices.reply(answer)


agent_routes = [Route("/agent/v1/authorise", authorise_visitor, methods=["POST"])]
