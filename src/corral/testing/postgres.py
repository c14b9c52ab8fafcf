"""A PostgreSQL for tests: one server per session, one quick copy of the schema per test."""

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from corral.platform.postgres import EmbeddedPostgres

TEMPLATE = "corral_template"


class PostgresServer:
    """The embedded PostgreSQL on a throw-away folder, without fsync."""

    def __init__(self) -> None:
        # 0711, as root the server runs as another user, which must get to its own folder below.
        self._folder = Path(tempfile.mkdtemp(prefix="corral-tests-"))
        self._folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        self._server = EmbeddedPostgres(self._folder, is_durable=False)
        self._numbers = count(1)
        self._has_template = False

    def start(self) -> None:
        """Starts the server, in about two seconds."""
        self._server.start()

    def stop(self) -> None:
        """Stops the server and deletes its files."""
        self._server.destroy()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def make_template(self, migrate: Callable[[str], Awaitable[None]]) -> None:
        """Makes the database that `fresh_database` copies; `migrate` receives its URL and builds the schema. Once."""
        if self._has_template:
            return
        await self._execute(f'CREATE DATABASE "{TEMPLATE}"')
        await migrate(self._server.url_of(TEMPLATE))
        self._has_template = True

    async def fresh_database(self) -> str:
        """The URL of a new database: a copy of the template, or an empty one if there is none."""
        name = f"test_{next(self._numbers)}"
        template = f' TEMPLATE "{TEMPLATE}"' if self._has_template else ""
        await self._execute(f'CREATE DATABASE "{name}"{template}')
        return self._server.url_of(name)

    async def empty_database(self) -> str:
        """The URL of a new database without any table."""
        name = f"test_{next(self._numbers)}"
        await self._execute(f'CREATE DATABASE "{name}"')
        return self._server.url_of(name)

    async def drop_database(self, url: str) -> None:
        """Removes a database made here, whoever is still connected."""
        name = url.rpartition("@/")[2].partition("?")[0]
        await self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def _execute(self, statement: str) -> None:
        engine = create_async_engine(self._server.url, isolation_level="AUTOCOMMIT")
        try:
            async with engine.connect() as connection:
                await connection.execute(text(statement))
        finally:
            await engine.dispose()
