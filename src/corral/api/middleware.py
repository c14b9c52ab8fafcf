"""What surrounds every request: body limits, the answer to a bug, security headers, the count and the log line."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corral.api.errors import internal_error_response, response_of
from corral.core.units import MIB
from corral.platform.errors import BodyTooLarge

_log = structlog.get_logger("corral.http")

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every answer that does not set its own. There is no CORS: no other origin may read an answer."""


DRAIN_BYTES, DRAIN_S = 16 * MIB, 5.0
"""How much of a refused body is read, and for how long."""


class BodyLimit:
    """Refuses bodies over a limit, announced or not: a chunked one is counted while it is read."""

    def __init__(self, app: ASGIApp, *, limit_of: Callable[[str], int]) -> None:
        """
        Args:
            app: what handles the request.
            limit_of: from a request's path to the most bytes that its body may have.
        """
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > limit:
            await _drain(receive)
            await response_of(BodyTooLarge(limit))(scope, receive, send)
            return
        received = 0
        has_answer = is_refused = False

        async def counted_receive() -> Message:
            nonlocal received, is_refused
            if is_refused:
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    is_refused = True
                    if not has_answer:
                        if message.get("more_body", False):  # Else nothing follows, and waiting for it would take long.
                            await _drain(receive)
                        await response_of(BodyTooLarge(limit))(scope, receive, send)
                    # For whoever reads the body the client is gone: it stops, and its answer is dropped below.
                    return {"type": "http.disconnect"}
            return message

        async def guarded_send(message: Message) -> None:
            nonlocal has_answer
            if not is_refused or has_answer:
                has_answer = True
                await send(message)

        await self._app(scope, counted_receive, guarded_send)


async def _drain(receive: Receive) -> None:
    """
    Reads on for a while and keeps nothing.

    A connection that is closed while the client still sends is reset, and the reset destroys the answer on its way. So
    a body that is a little too large gets its answer; a flood is cut off.
    """
    drained = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while drained < DRAIN_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


class Outermost:
    """Answers a bug with a problem, adds the security headers, counts the request and logs one line."""

    def __init__(self, app: ASGIApp, *, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "corral_http_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "corral_http_request_seconds", "Seconds until the answer was complete.", ("route",), registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # Nobody is there to be answered, or BodyLimit has answered: neither is a failure of ours.
        except Exception as error:
            _log.error("http.failed", method=scope["method"], route=_route_of(scope), exc_info=error)
            if status == 0:
                await internal_error_response()(scope, receive, send_with_headers)
        finally:
            route, seconds = _route_of(scope), time.perf_counter() - started
            self._requests.labels(_method_of(scope), route, status).inc()
            self._seconds.labels(route).observe(seconds)
            is_worth_a_line = status >= 500 or (_method_of(scope) not in {"GET", "HEAD"} and route.startswith("/v1"))
            (_log.info if is_worth_a_line else _log.debug)(
                "http.answered", method=_method_of(scope), route=route, status=status, ms=round(seconds * 1000, 1)
            )


def _route_of(scope: Scope) -> str:
    """The route's template, never the path itself: metrics must not grow with what strangers ask for."""
    route = scope.get("route")
    return getattr(route, "path", "other") if route is not None else "other"


def _method_of(scope: Scope) -> str:
    return scope["method"] if scope["method"] in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} else "OTHER"
