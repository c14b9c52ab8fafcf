"""PostgreSQL: one metadata for all domains' tables, and transactions that the edge opens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy import Double, MetaData, exc
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from corral.platform.errors import DatabaseUnavailable, TextUnstorable

Tx = AsyncConnection
"""An open transaction. A function that receives one never commits: the edge that opened it does."""

Real: Double[float] = Double()
"""Double precision; never for money."""

Instant = TIMESTAMP(timezone=True)
"""Column type of every time: an instant, read back as an aware datetime in UTC."""

Document = JSONB
"""Column type of a JSON document."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""The tables of all domains. Names of constraints are derived, so that a migration can find them again."""


_UNSTORABLE = (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)


class Database:
    """A pool of connections to one PostgreSQL database."""

    def __init__(self, url: str, *, connections_max: int = 20) -> None:
        """
        Opens no connection yet.

        Args:
            url: `postgresql+asyncpg://…`; it holds the password, so it is never logged.
            connections_max: connections that may be open at once, > 0.
        """
        self.url = url
        self._engine = create_async_engine(
            url,
            pool_size=connections_max,
            max_overflow=0,
            hide_parameters=True,  # Errors are logged, and what was to be stored is not for logs.
            pool_pre_ping=True,  # A restarted PostgreSQL costs one round trip, not one failed request per connection.
            isolation_level="READ COMMITTED",
            connect_args={
                "timeout": 10,
                # Without jit the worst cases of short statements are better by milliseconds.
                "server_settings": {"application_name": "corral", "jit": "off", "timezone": "UTC"},
            },
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """
        Opens a transaction (READ COMMITTED): committed at the end of the block, rolled back if the block raises.

        Nothing is retried here: only the caller knows whether a second run would do the same.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer, has no connection left, or broke this one off.
            TextUnstorable: a value holds the character NUL.
        """
        try:
            connection = await self._engine.connect()
        except (exc.DBAPIError, exc.TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise DatabaseUnavailable from error
        try:
            async with connection.begin():
                yield connection
        except exc.DBAPIError as error:
            if error.connection_invalidated:
                raise DatabaseUnavailable from error
            if isinstance(error.orig, BaseException) and isinstance(error.orig.__cause__, _UNSTORABLE):
                raise TextUnstorable from error
            raise
        finally:
            # Shielded: a cancelled request must not leave its connection behind.
            await asyncio.shield(asyncio.ensure_future(connection.close()))

    async def dispose(self) -> None:
        """Closes every connection. The database may not be used afterwards."""
        await self._engine.dispose()
