"""A gateway on loopback: real nginx, the real authorisation service, and a small head that tells what it got."""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from corral.agent.gateway import AuthoriseService, LeafTarget
from corral.agent.gateway.front import front_configuration
from corral.agent.gateway.web import leaf_configuration
from corral.core.clock import SystemClock
from corral.testing.local_network import free_port
from corral.wire.agent import AuthoriseReply, AuthoriseRequest, LeafSpec, MeshSpec, Secrets

RAY_TOKEN = "c0ffee" + "5a" * 29
LEAF_SECRET = "fade" * 16
KEY = "key_00000000000000000000000000.mine"
FOREIGN_KEY = "key_00000000000000000000000001.others"
SESSION = "session-of-mnist"
CLUSTER_ID = "cl_01hzzzzzzzzzzzzzzzzzzzzzzz"


@dataclass
class Head:
    """A head's dashboard: echoes what reached it, and misbehaves on request."""

    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    answers: dict[str, object] = field(default_factory=dict)
    received: int = 0
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**31)
        application.router.add_route("*", "/{path:.*}", self._serve)
        return application

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path, dict(request.headers)))
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._echo(request)
        if request.method == "PUT":
            self.received = 0
            async for chunk in request.content.iter_any():
                self.has_begun.set()
                self.received += len(chunk)
            return web.json_response({"received": self.received})
        if request.raw_path in self.answers:
            return web.json_response(self.answers[request.raw_path])
        hostile = {
            "Set-Cookie": f"ray-authentication-token={RAY_TOKEN}; Path=/",
            "Access-Control-Allow-Origin": "*",
            "WWW-Authenticate": 'Basic realm="type your password"',
            "Alt-Svc": 'h2="evil.example:443"',
            "Service-Worker-Allowed": "/",
        }
        if request.path == "/steer":
            hostile["X-Accel-Redirect"] = "/_corral/authorise"
        return web.Response(text="page of the head", headers=hostile)

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            if message.type is WSMsgType.TEXT:
                await answer.send_str(f"log: {message.data}")
        return answer


@dataclass
class ControlPlane:
    """Knows one key, one session and one ticket, all for the cluster `mnist`."""

    asked: list[AuthoriseRequest] = field(default_factory=list)
    is_down: bool = False
    tickets: set[str] = field(default_factory=lambda: {"good-ticket"})

    async def __call__(self, request: AuthoriseRequest) -> AuthoriseReply:
        self.asked.append(request)
        if self.is_down:
            raise ConnectionRefusedError("down")
        known = request.api_key in (KEY, FOREIGN_KEY) or request.session == SESSION
        if request.ticket in self.tickets:
            self.tickets.discard(request.ticket or "")
            return AuthoriseReply(allowed=True, cluster_id=CLUSTER_ID, session=SESSION, session_seconds=3600)
        if not known:
            return AuthoriseReply(allowed=False, reason="unauthenticated")
        if request.cluster_name != "mnist" or request.api_key == FOREIGN_KEY:
            return AuthoriseReply(allowed=False, reason="cluster_unknown")
        return AuthoriseReply(allowed=True, cluster_id=CLUSTER_ID)


@dataclass
class Gateway:
    url: str
    leaf_url: str
    head: Head
    control_plane: ControlPlane
    leaf_targets: dict[str, LeafTarget]
    folder: Path
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def a_leaf(head_address: str = "10.128.0.2") -> LeafSpec:
    from datetime import UTC, datetime

    return LeafSpec(
        node_id="nd_01hzzzzzzzzzzzzzzzzzzzzzzz",
        cluster_id=CLUSTER_ID,
        cluster_name="mnist",
        mesh=MeshSpec(address="10.128.48.1", network="10.128.0.0/18", mtu=1280, roster_key="A" * 43 + "="),
        head_address=head_address,
        stop_after=datetime(2030, 1, 1, tzinfo=UTC),
    )


@pytest.fixture
def nginx() -> str:
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip("nginx is not installed here (`apt-get install nginx-light`)")
    return found


@pytest.fixture
def short_folder() -> Iterator[Path]:
    # pytest's own folders are too long for the path of a unix socket.
    with tempfile.TemporaryDirectory(prefix="corral-gw-") as folder:
        yield Path(folder)


@pytest.fixture
async def gateway(nginx: str, short_folder: Path) -> AsyncIterator[Gateway]:
    head, control_plane = Head(), ControlPlane()
    head_port, leaf_port, front_port = free_port(), free_port(), free_port()
    log = short_folder / "nginx.log"
    targets = {"mnist": LeafTarget(cluster_id=CLUSTER_ID, address="127.0.0.1", secret=LEAF_SECRET)}
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_serving(head.application(), head_port))
        service = AuthoriseService(
            ask=control_plane, targets=lambda: targets, clock=SystemClock(), is_secure=False, leaf_port=leaf_port
        )
        await stack.enter_async_context(service.serving(short_folder / "socket"))
        leaf = leaf_configuration(
            a_leaf(), Secrets(ray_token=RAY_TOKEN), LEAF_SECRET, listen=f"127.0.0.1:{leaf_port}",
            head=f"127.0.0.1:{head_port}", streams=str(short_folder / "streams"),
        )  # fmt: skip
        front = front_configuration(
            domain="localhost", listen=f"127.0.0.1:{front_port}", auth_socket=str(short_folder / "socket")
        )
        stack.enter_context(_streams(short_folder / "streams"))
        stack.enter_context(_nginx(nginx, leaf, short_folder / "leaf", log))
        stack.enter_context(_nginx(nginx, front, short_folder / "front", log))
        await _accepts(leaf_port, front_port, short_folder / "streams")
        yield Gateway(
            url=f"http://127.0.0.1:{front_port}",
            leaf_url=f"http://127.0.0.1:{leaf_port}",
            head=head,
            control_plane=control_plane,
            leaf_targets=targets,
            folder=short_folder,
            log=log,
        )
        print(log.read_text())  # pytest shows it when the test failed


@pytest.fixture
async def browserless() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that keeps no cookies and sends paths exactly as they are written."""
    async with aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(), requote_redirect_url=False, auto_decompress=False
    ) as session:
        yield session


@contextlib.asynccontextmanager
async def _serving(application: web.Application, port: int) -> AsyncIterator[None]:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def _streams(path: Path) -> Iterator[None]:
    """The program that carries streams, as a leaf's web container starts it."""
    net = Path(__file__).resolve().parents[2] / "images" / "net"
    code = f"import sys; sys.path.insert(0, {str(net)!r}); from corral_net.streams import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextlib.contextmanager
def _nginx(program: str, text: str, folder: Path, log: Path) -> Iterator[None]:
    folder.mkdir()
    (folder / "tmp").mkdir()
    configuration = folder / "nginx.conf"
    configuration.write_text(re.sub(r" /tmp/(?=nginx.pid|\w+;)", f" {folder}/tmp/", text))
    # nginx as root would drop to an account that may not read the temporary folder; in its container it never is root.
    directives = "daemon off;" + (" user root;" if os.getuid() == 0 else "")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program, "-e", "stderr", "-c", str(configuration), "-g", directives],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


async def _accepts(*places: int | Path) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    for place in places:
        while True:
            try:
                if isinstance(place, Path):
                    _, writer = await asyncio.open_unix_connection(place)
                else:
                    _, writer = await asyncio.open_connection("127.0.0.1", place)
            except OSError:
                assert asyncio.get_running_loop().time() < deadline, f"nobody listens on {place}"
                await asyncio.sleep(0.02)
                continue
            writer.close()
            break
