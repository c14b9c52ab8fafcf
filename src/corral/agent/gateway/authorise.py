"""
Who may pass the front: a service on a unix socket that nginx asks before each request.

It asks the control plane and remembers a yes for a few seconds, so that a page of thirty files costs one question. A no
is never remembered. The answer to nginx carries the leaf's address and secret in headers; neither leaves the gateway.
"""

import asyncio
import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Literal

import structlog
from aiohttp import web

from corral.agent.gateway.web import LEAF_PORT, LEAF_SECRET_HEADER
from corral.core.clock import Clock
from corral.core.errors import CorralError
from corral.core.ids import is_name
from corral.wire.agent import AuthoriseReply, AuthoriseRequest

REMEMBERED_S = 10.0
"""How long a revoked key or an ended visit may still pass."""
REMEMBERED_MAX = 4096
ASKING_MAX = 32
"""Questions to the control plane at one time; a flood of wrong keys waits here, not there."""
CREDENTIAL_MAX = 256
UNAUTHENTICATED = "unauthenticated"
"""`AuthoriseReply.reason` for a key, ticket or session that is unknown, used, revoked or expired."""

_log = structlog.get_logger(__name__)

Ask = Callable[[AuthoriseRequest], Awaitable[AuthoriseReply]]
"""Asks the control plane; raises CorralError, OSError or TimeoutError where it does not answer."""


@dataclass(frozen=True, kw_only=True)
class LeafTarget:
    """Where the front finds one cluster's leaf."""

    cluster_id: str
    address: str
    """IPv4 on the engine's bridge."""
    secret: str

    def __repr__(self) -> str:
        """Keeps the secret out of logs."""
        return f"LeafTarget({self.cluster_id}, {self.address})"


Targets = Callable[[], Mapping[str, LeafTarget]]
"""The leaves that serve now, by cluster name."""


class AuthoriseService:
    """
    Answers nginx's `auth_request` and redeems tickets.

    Args:
        ask: asks the control plane.
        targets: the leaves that serve now.
        clock: for how long answers are remembered.
        is_secure: whether browsers arrive over TLS; the cookie's name and attributes depend on it.
        leaf_port: where leaves listen.
    """

    def __init__(
        self, *, ask: Ask, targets: Targets, clock: Clock, is_secure: bool, leaf_port: int = LEAF_PORT
    ) -> None:
        self._ask = ask
        self._targets = targets
        self._clock = clock
        self._is_secure = is_secure
        self._leaf_port = leaf_port
        self._cookie_name = "__Host-corral_session" if is_secure else "corral_session"
        self._asking = asyncio.Semaphore(ASKING_MAX)
        self._allowed: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._pending: dict[bytes, asyncio.Task[AuthoriseReply]] = {}

    @contextlib.asynccontextmanager
    async def serving(self, socket: Path) -> AsyncIterator[None]:
        """Serves on the unix socket until the context ends. nginx, another user, may connect."""
        application = web.Application()
        application.router.add_get("/authorise", self._authorise)
        application.router.add_get("/enter", self._enter, allow_head=False)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(socket)).start()
            os.chmod(socket, 0o666)  # noqa: S103 (only the agent and the front mount the folder)
            yield
        finally:
            await runner.cleanup()

    async def _authorise(self, request: web.Request) -> web.Response:
        name = request.headers.get("X-Corral-Name", "")
        question = self._question(request, name)
        if question is None:
            return web.Response(status=401)
        try:
            reply = await self._reply(question)
        except (CorralError, OSError, TimeoutError) as error:
            _log.warning("gateway.control_plane_unreachable", cluster=name, reason=str(error))
            return web.Response(status=503)
        if not reply.allowed:
            return web.Response(status=401 if reply.reason == UNAUTHENTICATED else 403)
        target = self._targets().get(name)
        if target is None or target.cluster_id != reply.cluster_id:
            return web.Response(status=403)
        return web.Response(
            status=204,
            headers={"X-Corral-Leaf": f"{target.address}:{self._leaf_port}", LEAF_SECRET_HEADER: target.secret},
        )

    def _question(self, request: web.Request, name: str) -> AuthoriseRequest | None:
        """What to ask, or None where the request carries no proof that its form allows."""
        form: str = request.headers.get("X-Corral-Form", "")
        if not is_name(name):
            return None
        if form == "path":
            key = _bearer(request.headers.get("Authorization", ""))
            return AuthoriseRequest(cluster_name=name, api_key=key) if key else None
        if form == "origin":
            session = _cookie(request.headers.get("Cookie", ""), self._cookie_name)
            return AuthoriseRequest(cluster_name=name, session=session) if session else None
        return None

    async def _reply(self, question: AuthoriseRequest) -> AuthoriseReply:
        fingerprint = _fingerprint(question)
        remembered = self._allowed.get(fingerprint)
        if remembered is not None:
            if remembered[0] > self._clock.monotonic():
                return AuthoriseReply(allowed=True, cluster_id=remembered[1])
            del self._allowed[fingerprint]
        # Files of one page arrive together: one question answers them all.
        task = self._pending.get(fingerprint)
        if task is None:
            task = asyncio.create_task(self._ask_and_remember(question, fingerprint))
            self._pending[fingerprint] = task
            task.add_done_callback(lambda _: self._pending.pop(fingerprint, None))
        return await asyncio.shield(task)

    async def _ask_and_remember(self, question: AuthoriseRequest, fingerprint: bytes) -> AuthoriseReply:
        async with self._asking:
            reply = await self._ask(question)
        if reply.allowed:
            self._allowed[fingerprint] = (self._clock.monotonic() + REMEMBERED_S, reply.cluster_id)
            while len(self._allowed) > REMEMBERED_MAX:
                self._allowed.popitem(last=False)
        return reply

    async def _enter(self, request: web.Request) -> web.Response:
        name = request.headers.get("X-Corral-Name", "")
        ticket = request.query.get("ticket", "")
        if not is_name(name) or not 0 < len(ticket) <= CREDENTIAL_MAX:
            return _expired()
        try:
            async with self._asking:
                reply = await self._ask(AuthoriseRequest(cluster_name=name, ticket=ticket))
        except (CorralError, OSError, TimeoutError) as error:
            _log.warning("gateway.control_plane_unreachable", cluster=name, reason=str(error))
            return _page(503, "Not reachable now", "The network does not answer at this moment. Try again in a while.")
        if not reply.allowed or not reply.session:
            return _expired()
        return self._entered(request, reply.session, reply.session_seconds)

    def _entered(self, request: web.Request, session: str, seconds: int) -> web.Response:
        # A browser sends no Strict cookie along a redirect that another site began, so there a page leads on instead.
        if request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            response = _page(200, "Welcome", '<a href="/">Go on</a>', refresh=True)
        else:
            response = web.Response(status=303, headers={"Location": "/", "Cache-Control": "no-store"})
        # Host-only: no Domain attribute, so neither the gateway's other origins nor the console ever receive it.
        response.set_cookie(
            self._cookie_name,
            session,
            max_age=seconds,
            path="/",
            httponly=True,
            secure=self._is_secure,
            samesite="Strict",
        )
        # What an earlier cluster of this name has left in the browser (service workers, storage) goes.
        response.headers["Clear-Site-Data"] = '"storage"'
        return response


def _bearer(header: str) -> str:
    scheme, _, key = header.partition(" ")
    key = key.strip()
    return key if scheme.lower() == "bearer" and 0 < len(key) <= CREDENTIAL_MAX else ""


def _cookie(header: str, name: str) -> str:
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel is not None and 0 < len(morsel.value) <= CREDENTIAL_MAX else ""


def _fingerprint(question: AuthoriseRequest) -> bytes:
    """Names a question without keeping its credential in memory."""
    kind: Literal["key", "session"] = "key" if question.api_key is not None else "session"
    proof = question.api_key or question.session or ""
    return hashlib.sha256(f"{kind}\n{question.cluster_name}\n{proof}".encode()).digest()


def _expired() -> web.Response:
    return _page(
        401,
        "This link has expired",
        "A link to a dashboard works once, for a minute. "
        "Run <code>corral dashboard NAME</code> again and follow the link that it prints.",
    )


def _page(status: int, title: str, text: str, *, refresh: bool = False) -> web.Response:
    onward = '<meta http-equiv="refresh" content="0;url=/">' if refresh else ""
    body = (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{onward}<title>{title}</title>'
        f"<body><h1>{title}</h1><p>{text}</p></body></html>"
    )
    return web.Response(
        status=status, text=body, content_type="text/html", charset="utf-8", headers={"Cache-Control": "no-store"}
    )
