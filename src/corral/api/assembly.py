"""What the domains above devices put in: who knows the desired state, and the loops that run."""

import asyncio

from fastapi import FastAPI

from corral import clusters
from corral.api.loops import Loop
from corral.devices import AgentDesk, DesiredSource, places
from corral.devices import loop as devices_loop
from corral.market import Prices
from corral.platform.http import Platform


def desired_source(platform: Platform) -> DesiredSource:
    """Who tells what should run on a host: the clusters."""
    return clusters.ClusterSource(platform)


def loops_of(platform: Platform, app: FastAPI, prices: Prices, stopping: asyncio.Event) -> list[Loop]:
    """The background loops of a control plane."""
    desk: AgentDesk = app.state.agent_desk
    return [
        Loop("devices", lambda: devices_loop.run(desk, stopping)),
        Loop("places", lambda: places.run(platform, stopping)),
        Loop("clusters", lambda: clusters.run(platform, prices, stopping)),
    ]
