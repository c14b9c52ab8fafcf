"""Hosts behind one router: their own addresses are told to the members of their cluster, but only where it helps."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI

from api.estate import IMAGES, Estate
from corral.platform.http import Platform
from corral.protocol.roster import Member, Roster
from corral.testing.clock import FakeClock
from keyholders import Keyholder, keyholder

ROUTER = "198.51.100.50"


@pytest.fixture
def platform(platform: Platform) -> Platform:
    """With images, so that clusters can be booked."""
    return replace(platform, images=IMAGES)


@pytest.fixture
async def estate(app: FastAPI, http: Any, platform: Platform, clock: FakeClock, operator: Keyholder) -> Estate:
    """Ada's host and the operator's gateway, each at an address of its own."""
    ada, bob = await keyholder(platform, "ada"), await keyholder(platform, "bob")
    made = Estate(app, http, platform, clock, operator, ada, bob)
    await made.build()
    for number, name in enumerate(("barn", "gate")):
        made.host(name).seen_at = f"198.51.100.{number + 1}"
        made.host(name).lan = (f"192.168.1.{number + 1}:32768",)
    await made.run(2)
    await made.book(made.renter, "mnist")
    await made.run()
    return made


def members(estate: Estate) -> tuple[Member, ...]:
    """Those of the one roster that a host was told last."""
    desired = estate.host("barn").desired
    assert desired is not None
    [signed] = desired.rosters.values()
    return msgspec.json.decode(signed.payload, type=Roster).members


async def test_a_host_that_is_alone_keeps_its_lan_to_itself(estate: Estate) -> None:
    """Nobody could call there: then nobody needs to know."""
    found = members(estate)
    assert {member.kind for member in found} == {"node", "leaf"}
    assert [(member.router, member.lan) for member in found] == [("", ())] * 2


async def test_hosts_behind_one_router_share_it_whatever_they_advertise(estate: Estate) -> None:
    """What counts is where exchanges come from; an advertised address could be anybody's."""
    for name in ("barn", "gate"):
        estate.host(name).seen_at = ROUTER
    estate.host("gate").advertise = "203.0.113.77"
    await estate.run()
    node, leaf = sorted(members(estate), key=lambda member: member.kind == "leaf")
    assert node.router == leaf.router != ""
    assert ROUTER not in node.router
    assert (node.lan, leaf.lan) == (("192.168.1.1:32768",), ("192.168.1.2:32768",))
    estate.host("gate").seen_at, estate.host("gate").advertise = "198.51.100.2", ROUTER
    await estate.run()
    assert [(member.router, member.lan) for member in members(estate)] == [("", ())] * 2
