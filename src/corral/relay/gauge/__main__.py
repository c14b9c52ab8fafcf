"""`python -m corral.relay.gauge`: the gauge of the relay that has started it, until that one ends."""

import asyncio
import base64
import os
import sys

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.relay.gauge.limits import GaugeLimits
from corral.relay.gauge.process import NICE, GaugeOrder, GaugeReady
from corral.relay.gauge.server import GaugeIdentity, GaugeServer


async def _serve() -> int:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    order = msgspec.json.decode(await reader.readline(), type=GaugeOrder)
    identity = GaugeIdentity(
        relay_id=order.relay_id,
        gauge_key=base64.b64decode(order.gauge_key),
        statement_key=Ed25519PrivateKey.from_private_bytes(base64.b64decode(order.statement_key)),
    )
    try:
        async with GaugeServer(identity, GaugeLimits()).serving(order.bind, order.port) as port:
            _say(GaugeReady(port=port))
            await reader.read()  # Until the relay closes it, or has died.
    except OSError as error:
        _say(GaugeReady(problem=f"{order.bind}:{order.port}: {error.strerror or error}"))
        return 1
    return 0


def _say(ready: GaugeReady) -> None:
    print(msgspec.json.encode(ready).decode(), flush=True)


if __name__ == "__main__":
    os.nice(NICE)
    sys.exit(asyncio.run(_serve()))
