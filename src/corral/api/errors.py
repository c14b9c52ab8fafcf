"""The one table from errors to HTTP statuses, and how an error is answered: problem+json with a stable code."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from corral.bookings import errors as bookings
from corral.clusters import errors as clusters
from corral.core import money
from corral.core.errors import CorralError
from corral.devices import errors as devices
from corral.identity import errors as identity
from corral.ledger import errors as ledger
from corral.market import errors as market
from corral.mesh import errors as mesh
from corral.platform import errors as platform
from corral.protocol import addresses, gauge, roster
from corral.wire.problem import PROBLEM_MEDIA_TYPE, Problem

_log = structlog.get_logger("corral.api")

STATUS_OF: Mapping[type[CorralError], int] = {
    # Bases answer for no situation of their own; a subclass that is missing here fails a test.
    CorralError: 500,
    money.AmountMalformed: 422,
    addresses.MeshFull: 409,
    roster.RosterRefused: 409,
    gauge.PermitRefused: 403,
    gauge.StatementRefused: 422,
    # platform
    platform.PlatformError: 500,
    platform.SettingInvalid: 500,
    platform.DataFolderInUse: 500,
    platform.PostgresUnavailable: 503,
    platform.DatabaseUnavailable: 503,
    platform.ServerStopping: 503,
    platform.ListenRefused: 500,
    platform.CertificateUnusable: 500,
    platform.FileMalformed: 500,
    platform.MasterKeyMalformed: 500,
    platform.BodyTooLarge: 413,
    platform.BodyMalformed: 400,
    platform.TextUnstorable: 422,
    # identity
    identity.IdentityError: 500,
    identity.KeyMissing: 401,
    identity.KeyUnknown: 401,
    identity.KeyExpired: 401,
    identity.KeyRevoked: 401,
    identity.KeyIdUnknown: 404,
    identity.NotOperator: 403,
    identity.PersonNameTaken: 409,
    identity.PersonUnknown: 404,
    identity.SignupTooOften: 429,
    identity.TooManyKeys: 409,
    identity.OperatorExists: 409,
    # ledger
    ledger.LedgerError: 500,
    ledger.InsufficientCredit: 402,
    ledger.TransferConflict: 409,
    ledger.TransferInvalid: 422,
    ledger.HoldUnknown: 404,
    ledger.HoldExceeded: 409,
    # devices
    devices.DevicesError: 500,
    devices.JoinTokenUnknown: 401,
    devices.JoinTokenExpired: 401,
    devices.JoinTokenUsed: 401,
    devices.JoinTokenForeign: 403,
    devices.EnrolmentMalformed: 422,
    devices.HostIdentityTaken: 409,
    devices.HostNameTaken: 409,
    devices.HostRefused: 401,
    devices.HostUnknown: 404,
    devices.HostHasLeft: 409,
    devices.ReportRefused: 422,
    devices.LocationContradicted: 409,
    devices.DeviceTaken: 409,
    # market
    market.MarketError: 500,
    market.PricesMalformed: 500,
    market.WishUnclear: 422,
    market.ModelUnknown: 422,
    market.NothingFits: 409,
    market.QuoteUnknown: 404,
    market.QuoteExpired: 410,
    # bookings
    bookings.BookingsError: 500,
    bookings.BookingUnknown: 404,
    bookings.LineUnknown: 404,
    bookings.BookingConflict: 409,
    bookings.BookingOver: 409,
    bookings.BookingStarted: 409,
    bookings.BookingTooLong: 422,
    bookings.ExtensionConflict: 409,
    bookings.ExtensionUnaffordable: 402,
    bookings.ExtensionTooDear: 409,
    # mesh
    mesh.MeshError: 500,
    mesh.NoNetworkLeft: 409,
    mesh.NothingProposed: 404,
    mesh.ProposalOutdated: 409,
    # clusters
    clusters.ClustersError: 500,
    clusters.ClusterUnknown: 404,
    clusters.ClusterNameTaken: 409,
    clusters.GatewayUnavailable: 503,
    clusters.ImageUnavailable: 503,
    clusters.ClusterNotReady: 409,
    clusters.ClusterOver: 409,
    clusters.TooManyGuests: 409,
    clusters.GuestRefused: 409,
    clusters.NotAGateway: 403,
    clusters.TransitionIllegal: 500,
}

_TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    402: "Not enough credit",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    410: "Gone",
    413: "Too large",
    422: "Not valid",
    429: "Too often",
    500: "Internal error",
    503: "Not available",
}

_CODES_OF_STATUS = {400: "body_malformed", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def problem_response(
    status: int,
    *,
    code: str,
    detail: str,
    hint: str | None = None,
    facts: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An answer in the form of RFC 9457."""
    problem = Problem(
        title=_TITLES.get(status, "Error"), status=status, code=code, detail=detail, hint=hint, facts=dict(facts or {})
    )
    return JSONResponse(
        problem.model_dump(mode="json", fallback=str),
        status_code=status,
        headers=dict(headers or {}),
        media_type=PROBLEM_MEDIA_TYPE,
    )


def response_of(error: CorralError) -> JSONResponse:
    """The answer to an error of ours: its status from the table, its code, message, hint and facts from itself."""
    status = STATUS_OF.get(type(error), 500)
    headers: dict[str, str] = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(seconds := error.facts.get("retry_after_s"), int):
        headers["Retry-After"] = str(seconds)
    if status == 413:
        headers["Connection"] = "close"
    return problem_response(
        status, code=error.code, detail=error.message, hint=error.hint, facts=error.facts, headers=headers
    )


def internal_error_response() -> JSONResponse:
    """The answer to a bug: nothing about its inside; the log has the rest."""
    return problem_response(500, code="internal_error", detail="the control plane failed; the operator's log says why")


def add_error_handlers(app: FastAPI) -> None:
    """Makes `app` answer every error as a problem."""
    app.add_exception_handler(CorralError, _on_corral_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_corral_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CorralError)
    response = response_of(error)
    if response.status_code == 503:
        # Expected, though not the caller's fault: the operator learns what, in one line.
        cause = "" if error.__cause__ is None else type(error.__cause__).__name__
        _log.warning("http.unavailable", code=error.code, reason=error.message, cause=cause)
    elif response.status_code >= 500:
        _log.error("http.failed", code=error.code, exc_info=error)
    return response


async def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found: Sequence[Any] = error.errors()
    if any(problem["type"] == "json_invalid" for problem in found):
        return problem_response(400, code="body_malformed", detail="the request's body is not JSON; nothing was done")
    # What was sent is not repeated: it may be a secret, and it may be huge.
    problems = [
        {"where": ".".join(str(part) for part in problem["loc"])[:200], "what": str(problem["msg"])[:300]}
        for problem in found[:20]
    ]
    said = "; ".join(f"{problem['where']}: {problem['what']}" for problem in problems[:3])
    return problem_response(
        422,
        code="request_invalid",
        detail=f"the request is not valid; nothing was done. {said}",
        facts={"problems": problems},
    )


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    details = {
        404: f"there is nothing at {request.url.path[:200]}",
        405: f"{request.method} is not possible at {request.url.path[:200]}",
    }
    return problem_response(
        error.status_code,
        code=_CODES_OF_STATUS.get(error.status_code, "request_refused"),
        detail=details.get(error.status_code, str(error.detail)),
        headers=error.headers,
    )
