"""From end to end over real sockets: a relay and its gauge, the control plane, and an agent that measures."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI

from api.estate import Estate
from corral.agent.connectivity import Connectivity
from corral.agent.control_plane import HostTokens, ServerTime
from corral.agent.enrol import enrol_request
from corral.agent.gauging import GaugeClient
from corral.core.clock import SystemClock
from corral.devices import AgentDesk
from corral.platform.http import Platform
from corral.relay import service
from corral.testing.simulated_host import SimulatedHost
from corral.wire.agent import Desired, Identity, Report
from keyholders import Keyholder

ADDRESS = "198.51.100.9"
WITHIN_S = 60


class WayToDesk:
    """A relay's way to the desk, without HTTP."""

    def __init__(self, desk: AgentDesk, tokens: HostTokens) -> None:
        self._desk, self._tokens = desk, tokens

    async def _never(self) -> None:
        await asyncio.Event().wait()

    async def exchange(self, report: Report) -> Desired | None:
        """One exchange, as the routes do it."""
        return await self._desk.exchange(
            f"Bearer {self._tokens.token()}", report, observed_address="192.0.2.1", gone=self._never
        )


@pytest.fixture
def platform(platform: Platform) -> Platform:
    """By the machine's clock, as the gauge's process has no other."""
    return replace(platform, clock=SystemClock())


async def test_a_host_is_measured_by_a_relay_and_its_provider_sees_it(
    app: FastAPI, http: Any, platform: Platform, operator: Keyholder, ada: Keyholder, tmp_path: Path
) -> None:
    """The permit fits the relay's key, the relay's signature the key that it has enrolled with."""
    estate = Estate(app, http, platform, cast(Any, platform.clock), operator, ada, ada)
    clock = SystemClock()
    time = ServerTime(clock)
    made = await estate.ok("POST", "/v1/hosts/tokens", operator, {"role": "relay"})
    key = Ed25519PrivateKey.generate()
    identity = Identity(machine_id="m", engine_id="relay")
    reply = await estate.desk.enrol(
        enrol_request(made["token"], key, identity, name="relay-1", role="relay", development=False, agent_version="")
    )
    tokens = HostTokens(host_id=reply.host_id, audience=reply.audience, key=key, time=time)
    options = service.RelayOptions(data_dir=tmp_path, bind="127.0.0.1", address=ADDRESS, gauge_port=0)
    relay = service.RelayService(
        options, cast(Any, WayToDesk(estate.desk, tokens)), clock, time, host_id=reply.host_id, key=key
    )
    serving = asyncio.create_task(relay.run())
    try:
        with relay.relay:
            async with asyncio.timeout(WITHIN_S):
                await _measure_and_look(estate, ada, tmp_path)
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def _measure_and_look(estate: Estate, ada: Keyholder, folder: Path) -> None:
    host: SimulatedHost = await estate.add_host("barn", ada)
    while host.desired is None or not host.desired.gauges:
        await host.turn()
    assert [spec.address for spec in host.desired.gauges] == [ADDRESS]
    connectivity = Connectivity(
        folder,
        SystemClock(),
        is_hired=lambda: False,
        is_development=True,
        told=lambda: None,
        client=lambda spec: GaugeClient(msgspec.structs.replace(spec, address="127.0.0.1")),
    )
    connectivity.take(host.desired.gauges)
    await connectivity.measure()
    host.statements = connectivity.statements()
    assert len(host.statements) == 2
    await host.turn()
    found = (await estate.ok("GET", "/v1/hosts/barn", ada))["connection"]
    assert found["relay"] == "relay-1"
    assert found["download_mbit_s"] > 1
    assert found["upload_mbit_s"] > 1
    assert 0 < found["rtt_ms"] < 1000
    link = connectivity.link
    assert link is not None
    assert found["download_mbit_s"] == pytest.approx(link.download_mbit_s, abs=0.1)
