"""What a gauge finds of links whose delay, loss and rate are known."""

import base64
import json
import shlex
import sys
import time
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.protocol.gauge import Statement, new_permit, verify_statement
from corral.relay.gauge.process import GaugeOrder
from corral.testing.ids import numbered_id
from corral.testing.lab.lab import Lab
from corral.testing.lab.links import Shape
from corral.testing.lab.nat import NatKind
from corral.wire.agent import GaugeSpec, SignedStatement

pytestmark = pytest.mark.lab

PORT = 40999
KEY, RELAY_KEY = bytes(32), Ed25519PrivateKey.from_private_bytes(b"r" * 32)
RELAY, HOST = numbered_id("hst", 1), numbered_id("hst", 2)
WITHIN_S = 30
MEASURE = """
import asyncio, sys, msgspec
from corral.agent.gauging import Effort, GaugeClient
from corral.wire.agent import GaugeSpec

async def measure():
    client = GaugeClient(msgspec.json.decode(sys.stdin.read(), type=GaugeSpec))
    effort = Effort(streams=4, seconds=3.0, bytes_max=2**30)
    await client.round_trips(64)
    if "bandwidth" in sys.argv:
        await client.download(effort)
        await client.upload(effort)
    print(msgspec.json.encode(await client.statement()).decode())

asyncio.run(measure())
"""


def order() -> str:
    """What the gauge is told."""
    raw = base64.b64encode(RELAY_KEY.private_bytes_raw()).decode()
    made = GaugeOrder(
        bind="0.0.0.0", port=PORT,  # noqa: S104 - a machine of the lab
        relay_id=RELAY, gauge_key=base64.b64encode(KEY).decode(), statement_key=raw
    )  # fmt: skip
    return msgspec.json.encode(made).decode()


def measured(lab: Lab, shape: Shape, folder: Path, *what: str) -> Statement:
    """A host behind NAT with such a link, measured by a relay without any limit."""
    relay = lab.add_machine("relay")
    host = lab.add_machine("host", nat=NatKind.cone, shape=shape)
    told = folder / "order"
    told.write_text(order() + "\n")
    gauge = f"(cat {shlex.quote(str(told))}; exec sleep 600) | exec {shlex.quote(sys.executable)} -m corral.relay.gauge"
    lab.spawn("relay", ["/bin/sh", "-c", gauge], name="gauge")
    deadline = time.monotonic() + WITHIN_S
    while '"port"' not in (said := relay.log_file("gauge").read_text()):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    permit, key = new_permit(KEY, host_id=HOST, expires_at=int(time.time()) + 600)
    spec = GaugeSpec(
        relay_id=RELAY,
        address=lab.places["relay"].outer,
        port=PORT,
        permit=base64.b64encode(permit).decode(),
        permit_key=base64.b64encode(key).decode(),
    )
    out = host.run([sys.executable, "-c", MEASURE, *what], standard_input=msgspec.json.encode(spec).decode())
    signed = msgspec.convert(json.loads(out.splitlines()[-1]), SignedStatement)
    relay_key = base64.b64encode(RELAY_KEY.public_key().public_bytes_raw()).decode()
    return verify_statement(signed.payload, signed.signature, relay_key=relay_key)


def test_a_limited_link_is_measured_as_it_is(lab: Lab, tmp_path: Path) -> None:
    """40 Mbit/s each way and 20 ms there and back, of which headers take some per cent."""
    found = measured(lab, Shape(delay_ms=10, rate_mbit=40), tmp_path, "bandwidth")
    assert 0.75 * 40e6 < found.download_bit_s < 1.02 * 40e6
    assert 0.75 * 40e6 < found.upload_bit_s < 1.02 * 40e6
    assert 20_000 <= found.rtt_us_min <= found.rtt_us < 30_000
    assert found.loss_ppm == 0


def test_loss_and_jitter_of_a_link_are_found(lab: Lab, tmp_path: Path) -> None:
    """Of twenty packets one is lost each way, so of 63 round trips about six do not come back."""
    found = measured(lab, Shape(delay_ms=5, jitter_ms=8, loss=0.05), tmp_path)
    assert 0 < found.loss_ppm < 400_000
    assert found.jitter_us > 500
    assert found.rtt_us_min >= 10_000
