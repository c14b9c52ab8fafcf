"""A small network behind the real application: a provider's host, an operator's gateways, a renter's cluster."""

import random
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from fastapi import FastAPI

from corral.clusters import Reconciler
from corral.devices import AgentDesk
from corral.devices.loop import flush
from corral.market import Prices
from corral.platform.http import Platform
from corral.testing.clock import FakeClock
from corral.testing.ids import numbered_id
from corral.testing.simulated_host import SimulatedHost, World
from keyholders import Keyholder

IMAGE = f"sha256:{'a' * 64}"
IMAGES = {"corral-ray": IMAGE, "corral-net": IMAGE, "corral-agent": IMAGE}


@dataclass
class Estate:
    """What belongs to whom, and the requests that make it."""

    app: FastAPI
    http: httpx.AsyncClient
    platform: Platform
    clock: FakeClock
    operator: Keyholder
    provider: Keyholder
    renter: Keyholder
    world: World = field(init=False)
    reconciler: Reconciler = field(init=False)
    booked: int = 0

    def __post_init__(self) -> None:
        """Nothing exists yet but the people."""
        self.world = World(self.clock, random.Random(5))
        self.reconciler = Reconciler(self.platform, Prices.load())

    @property
    def desk(self) -> AgentDesk:
        """Where the application receives hosts."""
        return self.app.state.agent_desk

    async def add_host(
        self,
        name: str,
        owner: Keyholder,
        *,
        role: Literal["host", "gateway", "relay"] = "host",
        slices: int = 1,
        advertise: str = "",
    ) -> SimulatedHost:
        """A host that joined by a token of its owner."""
        made = await self.ok("POST", "/v1/hosts/tokens", owner, {"role": role})
        host = SimulatedHost(self.world, self.desk, name, role=role, slices=slices)
        host.advertise = advertise
        await host.enrol(made["token"])
        await host.turn()
        await flush(self.desk)
        return host

    async def build(self) -> None:
        """One host with two slices, one gateway, and a renter with credit."""
        self.clock.advance(300)
        await self.add_host("barn", self.provider, slices=2)
        await self.add_host("gate", self.operator, role="gateway")
        body = {"id": numbered_id("tr", 1), "person": self.renter.name, "amount_uc": 50_000_000}
        await self.ok("POST", "/v1/credits", self.operator, body)

    async def quote(self, who: Keyholder, name: str | None = None) -> dict[str, Any]:
        """A quote for one slice."""
        return await self.ok("POST", "/v1/quotes", who, {"cpu": 1, "name": name})

    async def book(self, who: Keyholder, name: str) -> dict[str, Any]:
        """A cluster of one slice, not ready yet."""
        quote = await self.quote(who, name)
        self.booked += 1
        return await self.ok(
            "POST", "/v1/clusters", who, {"id": numbered_id("bk", self.booked), "quote_id": quote["id"]}
        )

    async def run(self, steps: int = 8) -> None:
        """Time passes: hosts and the reconciler have their turns."""
        for _ in range(steps):
            self.clock.advance(1)
            for host in self.world.hosts:
                await host.turn()
            await flush(self.desk)
            await self.reconciler.turn()

    def host(self, name: str) -> SimulatedHost:
        """The host of that name."""
        return next(host for host in self.world.hosts if host.name == name)

    async def ok(self, method: str, path: str, who: Keyholder, body: object = None) -> Any:
        """The answer to a request that must succeed."""
        answer = await self.http.request(method, path, json=body, headers=who.headers)
        assert answer.status_code < 300, answer.text
        return answer.json()

    async def authorise(self, host: SimulatedHost, **proof: str) -> httpx.Response:
        """What a host is told about a visitor."""
        headers = {"Authorization": f"Bearer {host.token()}"}
        return await self.http.post("/agent/v1/authorise", json=proof, headers=headers)
