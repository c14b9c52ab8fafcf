"""
Nudges: a hint between processes that something changed, carried by PostgreSQL's LISTEN and NOTIFY.

A nudge is never the message itself. Who receives one reads the database; who misses one loses a poll period, never
correctness. One connection per process listens, and nudges are fanned out in memory.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
import structlog
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from corral.core.clock import Clock
from corral.platform.database import Tx
from corral.platform.errors import ServerStopping

CHANNEL = "corral_nudges"
PAYLOAD_BYTES_MAX = 7_900
"""PostgreSQL refuses payloads of 8,000 bytes and more."""

RECONNECT_S = 1.0
ALIVE_CHECK_S = 15.0
"""A listener that only waits would not notice a dead connection, so it asks something trivial this often."""

_log = structlog.get_logger("corral.nudges")


class Nudge:
    """One listener's view of a topic: what was nudged since it last looked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys: set[str] = set()
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None
        self.is_stopping = False

    async def wait(self, timeout_s: float) -> set[str]:
        """
        Waits for the next nudge, at most `timeout_s`, and clears what was nudged.

        Clearing happens here, before the caller observes: a change during its work wakes it again.

        Returns:
            The nudged keys; empty after the time-out, and after a reconnection (anything may have changed).

        Raises:
            ServerStopping: this process stops. A held request is answered with it; a loop ends by it, between passes.
        """
        if self.is_stopping:
            raise ServerStopping
        if not self._woken and timeout_s > 0:
            self._waiter = asyncio.get_running_loop().create_future()
            timeout = asyncio.ensure_future(self._clock.sleep(timeout_s))
            try:
                await asyncio.wait({self._waiter, timeout}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                timeout.cancel()
                self._waiter = None
            if self.is_stopping:
                raise ServerStopping
        keys, self._keys, self._woken = self._keys, set(), False
        return keys

    def wake(self, keys: set[str]) -> None:
        """Records a nudge; wakes the waiter, if there is one."""
        self._keys |= keys
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Nudges:
    """Sends nudges inside transactions, and hands received ones to this process's listeners."""

    def __init__(self, database_url: str, clock: Clock) -> None:
        self._database_url = database_url
        self._clock = clock
        self._of_topic: defaultdict[str, set[Nudge]] = defaultdict(set)
        self._of_key: defaultdict[tuple[str, str], set[Nudge]] = defaultdict(set)
        self.connected = asyncio.Event()
        """Set while the listener connection stands."""
        self.is_stopping = False

    async def notify(self, tx: Tx, topic: str, *keys: str) -> None:
        """Nudges `topic` (for `keys`, if given) when `tx` commits, and not if it rolls back."""
        await notify(tx, topic, *keys)

    @contextmanager
    def listen(self, topic: str, key: str | None = None) -> Iterator[Nudge]:
        """Listens for nudges of `topic`; with `key`, only for those that name it or name no key."""
        nudge = Nudge(self._clock)
        nudge.is_stopping = self.is_stopping
        group = self._of_topic[topic] if key is None else self._of_key[topic, key]
        group.add(nudge)
        try:
            yield nudge
        finally:
            group.discard(nudge)
            if not group:
                if key is None:
                    self._of_topic.pop(topic, None)
                else:
                    self._of_key.pop((topic, key), None)

    def stop(self) -> None:
        """Ends every wait of this process, present and future, with `ServerStopping`."""
        self.is_stopping = True
        for group in (*self._of_topic.values(), *self._of_key.values()):
            for nudge in group:
                nudge.is_stopping = True
                nudge.wake(set())

    async def run(self) -> None:
        """Keeps the listener connection, for ever; connects again after a loss and then wakes every listener."""
        was_lost = False
        while True:
            try:
                async with self._connection() as (connection, lost):
                    self.connected.set()
                    if was_lost:
                        _log.info("nudges.reconnected")
                    was_lost = False
                    self._wake_all()
                    while not lost.is_set():
                        try:
                            await asyncio.wait_for(lost.wait(), ALIVE_CHECK_S)
                        except TimeoutError:
                            await connection.execute("select 1", timeout=ALIVE_CHECK_S)
                    raise ConnectionResetError("PostgreSQL closed the listener's connection")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
                if not was_lost:
                    _log.warning("nudges.lost", reason=type(error).__name__, poll="continues")
                was_lost = True
                await asyncio.sleep(RECONNECT_S)
            finally:
                self.connected.clear()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncpg.Connection, asyncio.Event]]:
        url = make_url(self._database_url)
        connection = await asyncpg.connect(
            host=str(url.query["host"]) if "host" in url.query else url.host,
            port=url.port or 5432,
            user=url.username,
            password=url.password,
            database=url.database,
            timeout=10,
            server_settings={"application_name": "corral nudges"},
        )
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, self._received)
            yield connection, lost
        finally:
            if not connection.is_closed():
                try:
                    await asyncio.wait_for(connection.close(), 2)
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                    connection.terminate()

    def _received(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        message = json.loads(str(payload))
        topic, keys = message["topic"], set(message["keys"])
        for nudge in self._of_topic.get(topic, ()):
            nudge.wake(keys)
        if keys:
            for key in keys:
                for nudge in self._of_key.get((topic, key), ()):
                    nudge.wake({key})
        else:
            for (of_topic, _), nudges in self._of_key.items():
                if of_topic == topic:
                    for nudge in nudges:
                        nudge.wake(set())

    def _wake_all(self) -> None:
        for group in (*self._of_topic.values(), *self._of_key.values()):
            for nudge in group:
                nudge.wake(set())


async def notify(tx: Tx, topic: str, *keys: str) -> None:
    """Nudges `topic` (for `keys`, if given) when `tx` commits, and not if it rolls back."""
    for payload in _payloads(topic, sorted(set(keys))):
        await tx.execute(select(func.pg_notify(CHANNEL, payload)))


def _payloads(topic: str, keys: list[str]) -> Iterator[str]:
    """Splits the keys over as few payloads as PostgreSQL's limit allows."""
    part: list[str] = []
    size = 0
    for key in keys:
        if part and size + len(key) + 4 > PAYLOAD_BYTES_MAX - len(topic) - 40:
            yield json.dumps({"topic": topic, "keys": part})
            part, size = [], 0
        part.append(key)
        size += len(key) + 4
    if part or not keys:
        yield json.dumps({"topic": topic, "keys": part})
