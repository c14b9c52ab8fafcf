"""Fixtures for every test: one PostgreSQL per session, a fresh schema per test, a clock that stands still."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from corral.api.schema import metadata
from corral.core.randomness import SeededRandomness
from corral.platform.database import Database
from corral.platform.http import Platform
from corral.platform.master_key import MasterKey
from corral.platform.nudges import Nudges
from corral.platform.settings import ServerSettings
from corral.testing.clock import FakeClock
from corral.testing.ids import CountingIds
from corral.testing.postgres import PostgresServer

# Examples follow from the test alone, and how long one takes is the machine's business.
hypothesis.settings.register_profile("corral", deadline=None, derandomize=True)
hypothesis.settings.load_profile("corral")


async def _build_schema(url: str) -> None:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
    finally:
        await engine.dispose()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole session, with a template of the full schema."""
    server = PostgresServer()
    server.start()
    try:
        asyncio.run(server.make_template(_build_schema))
        yield server
    finally:
        server.stop()


@pytest.fixture
async def database_url(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a fresh database with the full schema and no rows."""
    url = await postgres.fresh_database()
    yield url
    await postgres.drop_database(url)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh database with the full schema and no rows."""
    opened = Database(database_url, connections_max=10)
    yield opened
    await opened.dispose()


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves only when it is told to."""
    return FakeClock()


@pytest.fixture
def ids() -> CountingIds:
    """Ids that count."""
    return CountingIds()


@pytest.fixture
def nudges(database_url: str, clock: FakeClock) -> Nudges:
    """Nudges of the fresh database; they are received only while `live_nudges` runs."""
    return Nudges(database_url, clock)


@pytest.fixture
async def live_nudges(nudges: Nudges) -> AsyncIterator[Nudges]:
    """The nudges, with their listener connection up."""
    task = asyncio.create_task(nudges.run())
    await asyncio.wait_for(nudges.connected.wait(), 20)
    yield nudges
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    """The defaults, with a data folder of the test's own."""
    return ServerSettings(data_dir=tmp_path)


@pytest.fixture
def platform(
    database: Database, clock: FakeClock, ids: CountingIds, settings: ServerSettings, nudges: Nudges
) -> Platform:
    """The platform bundle over the fresh database, fake clock and counting ids."""
    return Platform(
        database=database,
        clock=clock,
        ids=ids,
        randomness=SeededRandomness(1),
        settings=settings,
        nudges=nudges,
        master_key=MasterKey(bytes(range(32))),
        ca_sha256="",
        images={},
    )
