"""Routes of hosts: Starlette and msgspec, because a report must cost microseconds."""

from typing import TypeVar, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from corral.devices.desk import AgentDesk
from corral.platform.errors import BodyMalformed, BodyTooLarge
from corral.wire.agent import EnrolRequest, Report, encode

M = TypeVar("M", bound=msgspec.Struct)

_JSON = "application/json"
_enrol_decoder = msgspec.json.Decoder(EnrolRequest)
_report_decoder = msgspec.json.Decoder(Report)


async def read_message(request: Request, decoder: "msgspec.json.Decoder[M]", *, limit_bytes: int) -> M:
    """
    The message in a request's body.

    Raises:
        BodyTooLarge: more than `limit_bytes`; what is over them is not read.
        BodyMalformed: no such message.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
    try:
        return decoder.decode(body)
    except RecursionError:  # Of a body that is nested deeper than any message of ours.
        raise BodyMalformed("the message cannot be read: it is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # A ValidationError is a DecodeError.
        raise BodyMalformed(f"the message cannot be read: {error}") from None


def reply(message: msgspec.Struct) -> Response:
    """A message as a response that nobody may keep."""
    return Response(encode(message), media_type=_JSON, headers={"cache-control": "no-store"})


def desk_of(request: Request) -> AgentDesk:
    """The desk of the application that received `request`; at `app.state.agent_desk`."""
    return cast(AgentDesk, request.app.state.agent_desk)


async def enrol(request: Request) -> Response:
    """POST /agent/v1/enrol: a join token is redeemed."""
    desk = desk_of(request)
    message = await read_message(request, _enrol_decoder, limit_bytes=desk.platform.settings.body_bytes_max_people)
    return reply(await desk.enrol(message))


async def exchange(request: Request) -> Response:
    """POST /agent/v1/exchange: a report, answered with the desired state."""
    desk = desk_of(request)
    report = await read_message(request, _report_decoder, limit_bytes=desk.platform.settings.body_bytes_max_agents)

    async def gone() -> None:
        # The body is read, so the next thing to be received is the end of the connection.
        while (await request.receive())["type"] != "http.disconnect":
            pass

    address = request.client.host if request.client is not None else ""
    desired = await desk.exchange(
        request.headers.get("authorization", ""),
        report,
        observed_address=address.removeprefix("::ffff:"),
        gone=gone,
    )
    return Response(status_code=204) if desired is None else reply(desired)


agent_routes = [
    Route("/agent/v1/enrol", enrol, methods=["POST"]),
    Route("/agent/v1/exchange", exchange, methods=["POST"]),
]
