"""
The gauge as a process of its own, so that measuring never takes time from forwarding.

It has a lower priority than the relay, whose child it is and with whom it ends. Its keys come over standard input.
"""

import asyncio
import base64
import contextlib
import sys
from collections.abc import Callable

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

AGAIN_S = 30.0
"""Until a gauge that ended is started again."""
READY_S = 20.0
NICE = 10
"""Where both want the processor, forwarding gets nine tenths of it."""
_log = structlog.get_logger("corral.relay")


class GaugeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is told: one line of JSON on its standard input, which stays open while it should run."""

    bind: str
    port: int
    relay_id: str
    gauge_key: str
    """Base 64."""
    statement_key: str
    """The relay's Ed25519 private key, raw, base 64."""

    def __repr__(self) -> str:
        """Keeps the keys out of logs and tracebacks."""
        return f"GaugeOrder({self.bind}:{self.port}, …)"


class GaugeReady(msgspec.Struct, frozen=True, kw_only=True):
    """What the process says, once: one line of JSON on its standard output."""

    port: int = 0
    problem: str = ""
    """Why it does not serve; it ends then."""


class GaugeProcess:
    """
    Keeps a gauge running.

    Args:
        bind: IPv4 address.
        port: TCP and UDP; 0 lets the system choose.
        relay_id: who states.
        statement_key: the relay's key.
        told: called when `port` has changed.
    """

    def __init__(
        self, *, bind: str, port: int, relay_id: str, statement_key: Ed25519PrivateKey, told: Callable[[], None]
    ) -> None:
        self.port = 0
        """Where it serves; 0 while it does not."""
        self._bind, self._wished_port, self._relay_id, self._told = bind, port, relay_id, told
        self._statement_key = base64.b64encode(statement_key.private_bytes_raw()).decode()
        self._key = ""
        self._key_came = asyncio.Event()
        self._last_problem = ""

    def take_key(self, gauge_key: str) -> None:
        """The key with which permits are checked, base 64; another one starts the process anew."""
        if gauge_key != self._key:
            self._key = gauge_key
            self._key_came.set()

    async def run(self) -> None:
        """Keeps the gauge running until it is cancelled. Forwarding goes on without it."""
        await self._key_came.wait()
        while True:
            self._key_came.clear()
            problem = await self._run_once()
            if problem and problem != self._last_problem:
                _log.warning("relay.gauge_failed", reason=problem)
            self._last_problem = problem
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S if problem else 0):
                    await self._key_came.wait()

    async def _run_once(self) -> str:
        """Runs the process until it ends or there is another key; returns why it ended by itself."""
        order = GaugeOrder(
            bind=self._bind,
            port=self._wished_port,
            relay_id=self._relay_id,
            gauge_key=self._key,
            statement_key=self._statement_key,
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "corral.relay.gauge",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        stdin, stdout = child.stdin, child.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("a process was started without its pipes")
        try:
            stdin.write(msgspec.json.encode(order) + b"\n")
            try:
                async with asyncio.timeout(READY_S):
                    await stdin.drain()
                    ready = msgspec.json.decode(await stdout.readline(), type=GaugeReady)
            except (OSError, TimeoutError, msgspec.DecodeError) as error:
                return f"it did not start: {type(error).__name__}"
            if ready.problem:
                return ready.problem
            _log.info("relay.gauge_started", port=ready.port)
            self._last_problem = ""
            self._set_port(ready.port)
            return await self._until_over(child)
        finally:
            self._set_port(0)
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()

    async def _until_over(self, child: asyncio.subprocess.Process) -> str:
        ending, another_key = asyncio.ensure_future(child.wait()), asyncio.ensure_future(self._key_came.wait())
        try:
            await asyncio.wait({ending, another_key}, return_when=asyncio.FIRST_COMPLETED)
            return f"it ended with {child.returncode}" if ending.done() else ""
        finally:
            ending.cancel()
            another_key.cancel()

    def _set_port(self, port: int) -> None:
        if port != self.port:
            self.port = port
            self._told()
