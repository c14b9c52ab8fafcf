"""The application: every domain's routes, in front of one platform bundle."""

from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy import select
from starlette.responses import PlainTextResponse

import corral
from corral import bookings, clusters, devices, identity, ledger, market
from corral.api.errors import add_error_handlers, problem_response
from corral.api.middleware import BodyLimit, Outermost
from corral.devices import AgentDesk, DesiredSource
from corral.market import Prices
from corral.platform.http import Platform, PlatformDep
from corral.wire.problem import PROBLEM_MEDIA_TYPE, Problem

AGENT_PREFIX = "/agent/"

_operations = APIRouter(tags=["operations"])


def create_app(platform: Platform, *, prices: Prices, desired: DesiredSource) -> FastAPI:
    """
    The control plane's ASGI application.

    Args:
        platform: database, clock, ids, settings and the like.
        prices: what devices cost.
        desired: what the clusters want of each host.
    """
    registry = CollectorRegistry()
    app = FastAPI(
        title="Corral",
        version=corral.__version__,
        description="Idle GPUs and CPUs of many owners, lent by the hour as ready Ray clusters.",
        docs_url=None,  # Its page loads scripts from a stranger's server.
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.platform = platform
    app.state.registry = registry
    app.state.prices = prices
    app.state.agent_desk = AgentDesk(platform, desired)
    app.state.signup_limit = identity.SignupLimit(
        platform.clock,
        per_address=platform.settings.signups_per_hour_per_address,
        overall=platform.settings.signups_per_hour,
    )
    for router in (
        identity.router,
        ledger.router,
        devices.router,
        market.router,
        bookings.router,
        clusters.router,
        _operations,
    ):
        app.include_router(router)
    app.router.routes.extend([*devices.agent_routes, *clusters.agent_routes])
    add_error_handlers(app)
    settings = platform.settings
    app.add_middleware(
        BodyLimit,
        limit_of=lambda path: (
            settings.body_bytes_max_agents if path.startswith(AGENT_PREFIX) else settings.body_bytes_max_people
        ),
    )
    app.add_middleware(Outermost, registry=registry)
    app.openapi = lambda: _openapi(app)
    return app


@_operations.get("/healthz", response_class=PlainTextResponse)
async def is_alive() -> PlainTextResponse:
    """Whether the process answers at all; asks nobody else."""
    return PlainTextResponse("ok\n")


@_operations.get("/readyz", response_class=PlainTextResponse)
async def is_ready(platform: PlatformDep) -> Response:
    """Whether requests can be served: PostgreSQL answers, and the process is not stopping. 503 if not."""
    if platform.nudges.is_stopping:
        return problem_response(503, code="server_stopping", detail="the control plane is stopping")
    async with platform.database.transaction() as tx:
        await tx.execute(select(1))
    return PlainTextResponse("ready\n")


@_operations.get("/metrics", response_class=PlainTextResponse)
async def show_metrics(request: Request) -> Response:
    """Counts in Prometheus' text format; nothing about single persons."""
    return Response(
        generate_latest(cast(CollectorRegistry, request.app.state.registry)), media_type=CONTENT_TYPE_LATEST
    )


@_operations.get("/ca.pem", response_class=PlainTextResponse)
async def show_ca(platform: PlatformDep) -> Response:
    """
    The control plane's CA certificate, to be pinned: compare its SHA-256 with the one that you were told.

    404 if the server's certificate comes from elsewhere, or it speaks plain HTTP.
    """
    if not platform.ca_pem:
        return problem_response(
            404, code="not_found", detail="this control plane has no certificate authority of its own"
        )
    return Response(platform.ca_pem, media_type="application/x-pem-file")


def _operation_id(route: APIRoute) -> str:
    """The function's name: what generated clients call the operation."""
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The API's description; every operation may answer with a problem, which takes the place of FastAPI's own form."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        answer = {
            "description": "What went wrong; programs compare `code`.",
            "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = answer
        app.openapi_schema = schema
    return app.openapi_schema


__all__ = ["AGENT_PREFIX", "create_app"]
