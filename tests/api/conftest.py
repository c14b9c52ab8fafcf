"""The whole application over a fresh database, reached without a network."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from corral.api.app import create_app
from corral.api.assembly import desired_source
from corral.market import Prices
from corral.platform.http import Platform
from keyholders import Keyholder, keyholder


@pytest.fixture
def app(platform: Platform) -> FastAPI:
    """The control plane's application, as `corral serve` runs it."""
    prices = Prices.load()
    return create_app(platform, prices=prices, desired=desired_source(platform))


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application; a bug answers 500 and does not surface here."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("192.0.2.7", 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
        yield client


@pytest.fixture
async def ada(platform: Platform) -> Keyholder:
    """Somebody."""
    return await keyholder(platform, "ada")


@pytest.fixture
async def bob(platform: Platform) -> Keyholder:
    """Somebody else."""
    return await keyholder(platform, "bob")


@pytest.fixture
async def operator(platform: Platform) -> Keyholder:
    """The first operator."""
    return await keyholder(platform, "operator", is_operator=True)
