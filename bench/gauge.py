"""How fast one gauge process measures over loopback, and what round trips it finds there; no container, no root."""

import argparse
import asyncio
import base64
import resource
import time
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench._report import Figure, median_with_interval, print_report
from corral.agent.gauging import Effort, GaugeClient
from corral.core.units import GIB
from corral.protocol.gauge import new_permit, read_statement
from corral.relay.gauge import GaugeProcess
from corral.wire.agent import GaugeSpec

RELAY, HOST = "hst_" + "0" * 26, "hst_" + "1" * 26
KEY = bytes(32)


async def _measure(port: int, effort: Effort, host_id: str):
    permit, key = new_permit(KEY, host_id=host_id, expires_at=int(time.time()) + 600)
    spec = GaugeSpec(
        relay_id=RELAY,
        address="127.0.0.1",
        port=port,
        permit=base64.b64encode(permit).decode(),
        permit_key=base64.b64encode(key).decode(),
    )
    client = GaugeClient(spec)
    await client.round_trips()
    await client.download(effort)
    await client.upload(effort)
    return read_statement((await client.statement()).payload)


async def _run(repeats: int, seconds: float) -> dict[str, Figure]:
    told = asyncio.Event()
    process = GaugeProcess(
        bind="127.0.0.1", port=0, relay_id=RELAY, statement_key=Ed25519PrivateKey.generate(), told=told.set
    )
    running = asyncio.create_task(process.run())
    process.take_key(base64.b64encode(KEY).decode())
    await told.wait()
    effort = Effort(streams=4, seconds=seconds, bytes_max=GIB)
    found = [await _measure(process.port, effort, f"hst_{number:026d}") for number in range(repeats)]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    # The gauge is the one child, and it has ended: what it took is known now.
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    gigabytes = sum(one.download_bytes + one.upload_bytes for one in found) / 1e9
    figures: dict[str, Figure] = {}
    for name, unit, values in (
        ("download", "Gbit/s", [one.download_bit_s / 1e9 for one in found]),
        ("upload", "Gbit/s", [one.upload_bit_s / 1e9 for one in found]),
        ("round trip", "ms", [one.rtt_us / 1e3 for one in found]),
    ):
        value, spread = median_with_interval(values)
        figures[name] = Figure(value, unit, 2.0 if unit == "Gbit/s" else None, spread)
    per_gigabyte = (spent.ru_utime + spent.ru_stime) / gigabytes
    figures["CPU of the gauge"] = Figure(per_gigabyte, "s per GB", None, (per_gigabyte, per_gigabyte))
    return figures


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once instead of seven times")
    options = parser.parse_args()
    print_report("gauge", asyncio.run(_run(1 if options.quick else 7, 2.0)))


if __name__ == "__main__":
    main()
