"""The migrations make exactly the schema that the tables describe, once, however many replicas start."""

import asyncio

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from corral.api.migrate import is_current, migrate
from corral.api.schema import metadata
from corral.testing.postgres import PostgresServer


def differences(connection: Connection) -> list[object]:
    """What would have to be migrated still."""
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


async def test_the_migrated_schema_is_the_one_of_the_tables(postgres: PostgresServer):
    """Who changes a table writes a migration: `python -m corral.api.migrate NAME`."""
    url = await postgres.empty_database()
    await migrate(url)
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()
    await postgres.drop_database(url)


async def test_replicas_that_start_together_migrate_once(postgres: PostgresServer):
    """The second waits for the first and finds nothing to do."""
    url = await postgres.empty_database()
    assert not await is_current(url)
    await asyncio.gather(migrate(url), migrate(url), migrate(url))
    assert await is_current(url)
    await postgres.drop_database(url)
