"""
Migrations of the schema: run at the start of `corral serve`, one replica at a time.

A migration that was released is never edited. To write the next one, change the tables and run
`python -m corral.api.migrate NAME`: it compares them with the migrated schema on a PostgreSQL of its own.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, exc, text
from sqlalchemy.ext.asyncio import create_async_engine

from corral.platform.errors import DatabaseUnavailable
from corral.platform.logs import configure_logs
from corral.platform.postgres import EmbeddedPostgres

FOLDER = Path(__file__).parent / "migrations"

_LOCK = 0x636F7272616C02
"""Advisory lock: replicas that start together migrate one after the other, and the second finds nothing to do."""

_log = structlog.get_logger("corral.migrate")


async def migrate(url: str) -> None:
    """
    Brings the schema of the database to this version's; does nothing if it is there.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            # Held until the transaction ends, which is when the new schema becomes visible.
            await connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            before, after = await connection.run_sync(_upgrade)
    except (OSError, exc.InterfaceError, exc.OperationalError) as error:
        raise DatabaseUnavailable from error
    finally:
        await engine.dispose()
    if before != after:
        _log.info("schema.migrated", before=before, after=after)


async def is_current(url: str) -> bool:
    """Whether the schema of the database is this version's."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_revision_of) == _head()
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> tuple[str | None, str | None]:
    before = _revision_of(connection)
    command.upgrade(_config(connection), "head")
    return before, _revision_of(connection)


def _revision_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _head() -> str | None:
    return ScriptDirectory.from_config(_config(None)).get_current_head()


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


async def _write_next(url: str, name: str) -> str:
    """Writes the migration from the newest one's schema to the tables'; returns its file."""
    await migrate(url)
    number = 1 + sum(1 for _ in ScriptDirectory.from_config(_config(None)).walk_revisions())
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:

            def write(sync_connection: Connection) -> Any:
                return command.revision(
                    _config(sync_connection), message=name, autogenerate=True, rev_id=f"{number:04d}"
                )

            script = await connection.run_sync(write)
    finally:
        await engine.dispose()
    return str(script.path)


def main(arguments: list[str]) -> int:
    """Writes the next migration under the name given."""
    if len(arguments) != 1:
        print("usage: python -m corral.api.migrate NAME", file=sys.stderr)
        return 2
    configure_logs(log_format="console", level="warning")
    folder = Path(tempfile.mkdtemp(prefix="corral-migrate-"))
    folder.chmod(0o711)
    postgres = EmbeddedPostgres(folder, is_durable=False)
    try:
        postgres.start()
        print(asyncio.run(_write_next(postgres.url, arguments[0])))
    finally:
        postgres.destroy()
        (folder / "postgres.lock").unlink(missing_ok=True)
        folder.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
