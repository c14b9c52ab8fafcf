"""The process behind `corral serve`: PostgreSQL, migrations, sockets, loops, and an orderly end."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from corral.api.app import create_app
from corral.api.assembly import desired_source, loops_of
from corral.api.listen import Bind, open_sockets
from corral.api.loops import Loop, finish, run_loop
from corral.api.migrate import migrate
from corral.core.clock import SystemClock
from corral.core.ids import TimeOrderedIds
from corral.core.randomness import SystemRandomness
from corral.devices import AgentDesk, begin_epoch
from corral.identity import Person, make_first_operator
from corral.market import Prices
from corral.platform.database import Database
from corral.platform.errors import FileMalformed, ListenRefused, PostgresUnavailable
from corral.platform.files import make_data_folder
from corral.platform.http import Platform
from corral.platform.master_key import FILE_VARIABLE, load_master_key
from corral.platform.nudges import Nudges
from corral.platform.postgres import EmbeddedPostgres
from corral.platform.settings import ServerSettings
from corral.platform.tls import ServerCertificate, given_certificate, own_certificate

REQUESTS_END_WITHIN_S = 2
"""Held replies are answered at once when the process stops; what still hangs after this is cut off."""

LOOPS_END_WITHIN_S = 10.0
POSTGRES_CHECK_S = 1.0

_log = structlog.get_logger("corral.serve")


@dataclass(frozen=True)
class ServeOptions:
    """Where and how to listen."""

    binds: tuple[Bind, ...]
    names: tuple[str, ...] = ()
    """DNS names and addresses that the certificate must be good for, besides those of this machine."""
    has_tls: bool = True
    certificate: Path | None = None
    key: Path | None = None


def serve(settings: ServerSettings, options: ServeOptions) -> None:
    """
    Runs the control plane until SIGTERM or SIGINT.

    Raises:
        CorralError: it could not start; nothing is left running.
    """
    if not options.has_tls and not all(bind.is_loopback for bind in options.binds):
        raise ListenRefused(
            "without TLS only loopback addresses may be listened on; nothing was started",
            hint="leave --no-tls away, or bind 127.0.0.1 alone",
        )
    make_data_folder(settings.data_dir)
    prices = Prices.load(settings.prices_file)
    images = read_images(settings.images_file)
    sockets = open_sockets(list(options.binds))  # First: a taken port must not cost a start of PostgreSQL.
    try:
        with database_server(settings) as (url, postgres):
            # Only now: the embedded PostgreSQL has made sure that no other process works on this folder.
            certificate = _certificate(settings.data_dir, options)
            asyncio.run(_serve(settings, options, prices, images, certificate, sockets, url, postgres))
    finally:
        for listening in sockets:
            listening.close()


def initialise(settings: ServerSettings, operator: str) -> tuple[Person, str]:
    """
    Makes the first operator; returns the person and the key `id.secret`, which exists nowhere else.

    Raises:
        OperatorExists: there is one.
        CorralError: the database could not be reached or started.
    """
    make_data_folder(settings.data_dir)
    load_master_key(settings.data_dir, SystemRandomness(), file=_master_key_file())
    with database_server(settings) as (url, _):
        return asyncio.run(_initialise(url, operator))


def begin_epoch_after_restore(settings: ServerSettings) -> int:
    """
    Starts a new epoch in a database that was restored from a backup; returns it.

    Hosts have seen higher revisions than the backup knows, and would take everything that it says for stale.

    Raises:
        CorralError: the database could not be reached or started.
    """
    with database_server(settings) as (url, _):
        return asyncio.run(_begin_epoch(url))


@contextmanager
def database_server(settings: ServerSettings) -> Iterator[tuple[str, EmbeddedPostgres | None]]:
    """The URL of the database that the settings name; or of the embedded server, which runs during the block."""
    if settings.database_url is not None:
        yield _with_driver(settings.database_url), None
        return
    with EmbeddedPostgres(settings.data_dir) as postgres:
        yield postgres.url, postgres


def read_images(path: Path | None) -> Mapping[str, str]:
    """
    The digests of the images, by name, from the JSON file that `scripts/setup` writes.

    Raises:
        FileMalformed: it cannot be read, or is not an object of texts.
    """
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileMalformed(f"the images' file {path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(digest, str) for digest in content.values()):
        raise FileMalformed(f"the images' file {path} does not map image names to digests")
    return content


@asynccontextmanager
async def assembled(
    settings: ServerSettings, url: str, *, images: Mapping[str, str], certificate: ServerCertificate | None
) -> AsyncIterator[Platform]:
    """The platform bundle of a real process, over the database at `url`."""
    clock, randomness = SystemClock(), SystemRandomness()
    database = Database(url, connections_max=settings.database_connections_max)
    try:
        yield Platform(
            database=database,
            clock=clock,
            ids=TimeOrderedIds(clock, randomness),
            randomness=randomness,
            settings=settings,
            nudges=Nudges(url, clock),
            master_key=load_master_key(settings.data_dir, randomness, file=_master_key_file()),
            ca_sha256=certificate.ca_sha256 if certificate is not None else "",
            ca_pem=certificate.ca_pem if certificate is not None else "",
            images=images,
        )
    finally:
        await database.dispose()


async def _serve(
    settings: ServerSettings,
    options: ServeOptions,
    prices: Prices,
    images: Mapping[str, str],
    certificate: ServerCertificate | None,
    sockets: list[socket.socket],
    url: str,
    postgres: EmbeddedPostgres | None,
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await migrate(url)
    async with assembled(settings, url, images=images, certificate=certificate) as platform:
        app = create_app(platform, prices=prices, desired=desired_source(platform))
        server = _Server(_uvicorn_config(app, certificate))
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(_run_server(server, sockets, stopping), name="http")
            support = [group.create_task(run_loop(Loop("nudges", platform.nudges.run), stopping), name="nudges")]
            if postgres is not None:
                watch = Loop("postgres", lambda: _watch(postgres))
                support.append(group.create_task(run_loop(watch, stopping), name="postgres"))
            work = [
                group.create_task(run_loop(each, stopping), name=each.name)
                for each in loops_of(platform, app, prices, stopping)
            ]
            group.create_task(_say_ready(server, options, stopping), name="ready")
            await stopping.wait()
            _log.info("serve.stopping")
            # In this order: held replies and waiting loops end, requests are finished, then what they stood on goes.
            platform.nudges.stop()
            agent_desk: AgentDesk = app.state.agent_desk
            agent_desk.close()
            server.should_exit = True
            await asyncio.wait({listening})
            await finish(work, within_s=LOOPS_END_WITHIN_S)
            for task in support:
                task.cancel()
    _log.info("serve.stopped")


async def _run_server(server: "_Server", sockets: list[socket.socket], stopping: asyncio.Event) -> None:
    await server.serve(sockets=sockets)
    if not stopping.is_set():
        raise RuntimeError("the HTTP server ended by itself")


async def _say_ready(server: "_Server", options: ServeOptions, stopping: asyncio.Event) -> None:
    while not server.started and not stopping.is_set():  # noqa: ASYNC110  (uvicorn sets a flag and tells nobody)
        await asyncio.sleep(0.01)
    if server.started:
        scheme = "https" if options.has_tls else "http"
        addresses = " ".join(f"{scheme}://{bind}" for bind in options.binds)
        print(f"corral: ready at {addresses}", file=sys.stderr, flush=True)


async def _watch(postgres: EmbeddedPostgres) -> None:
    """Fails when the embedded server is gone: whoever restarts us restarts it."""
    while postgres.pid is not None:  # noqa: ASYNC110  (a child's end is asked for, not told)
        await asyncio.sleep(POSTGRES_CHECK_S)
    raise PostgresUnavailable("the embedded PostgreSQL ended by itself", hint=f"read {postgres.folder / 'server.log'}")


async def _initialise(url: str, operator: str) -> tuple[Person, str]:
    await migrate(url)
    clock, randomness = SystemClock(), SystemRandomness()
    database = Database(url, connections_max=1)
    try:
        async with database.transaction() as tx:
            person, _, secret = await make_first_operator(
                tx, operator, clock.now(), ids=TimeOrderedIds(clock, randomness), randomness=randomness
            )
    finally:
        await database.dispose()
    return person, secret


async def _begin_epoch(url: str) -> int:
    await migrate(url)
    database = Database(url, connections_max=1)
    try:
        async with database.transaction() as tx:
            return await begin_epoch(tx)
    finally:
        await database.dispose()


class _Server(uvicorn.Server):
    """uvicorn's server, whose signals this process handles itself: there is more to stop than HTTP."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: FastAPI, certificate: ServerCertificate | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        # No X-Forwarded-For: an address that anybody can make up must not free them from a limit.
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=REQUESTS_END_WITHIN_S,
        ssl_certfile=certificate.certificate if certificate is not None else None,
        ssl_keyfile=certificate.key if certificate is not None else None,
    )


def _certificate(data_dir: Path, options: ServeOptions) -> ServerCertificate | None:
    if not options.has_tls:
        return None
    if options.certificate is not None and options.key is not None:
        return given_certificate(options.certificate, options.key)
    bound = [bind.host for bind in options.binds if bind.host not in {"0.0.0.0", "::"}]  # noqa: S104  (compared only)
    return own_certificate(data_dir, [*bound, *options.names], SystemClock().now())


def _master_key_file() -> Path | None:
    named = os.environ.get(FILE_VARIABLE, "")
    return Path(named) if named else None


def _with_driver(url: str) -> str:
    """The usual forms of a PostgreSQL URL, led to the driver that we use."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+asyncpg://" + url.removeprefix(prefix)
    return url


__all__ = ["ServeOptions", "assembled", "database_server", "initialise", "read_images", "serve"]
