"""Routes of providers: join tokens and hosts."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from corral.core.ids import HostId
from corral.devices.agent_routes import desk_of
from corral.devices.desk import AgentDesk
from corral.devices.enrol import make_join_token
from corral.devices.hires import open_hires
from corral.devices.hosts import Host, devices_of, host_of, hosts_by_id, hosts_of, set_intent, set_traffic_cap
from corral.devices.location import Location
from corral.devices.measures import claim
from corral.devices.state import Intent
from corral.devices.views import host_view
from corral.identity import CallerDep, require_operator
from corral.platform.database import Tx
from corral.platform.http import PlatformDep
from corral.wire import api

router = APIRouter(prefix="/v1/hosts", tags=["hosts"])


def _desk(request: Request) -> AgentDesk:
    return desk_of(request)


DeskDep = Annotated[AgentDesk, Depends(_desk)]
"""Route parameter: the desk at which this process receives hosts."""


@router.post("/tokens", status_code=201)
async def create_join_token(body: api.JoinTokenRequest, caller: CallerDep, platform: PlatformDep) -> api.JoinToken:
    """Makes a token with which hosts join; gateways and relays only for operators. Its text is shown this once."""
    if body.role != "host":
        require_operator(caller)
    async with platform.database.transaction() as tx:
        token, expires_at = await make_join_token(
            tx,
            platform.ids,
            platform.randomness,
            person_id=caller.person_id,
            role=body.role,
            uses_max=body.uses_max,
            expires_in_s=body.expires_in_s,
            now=platform.clock.now(),
        )
    return api.JoinToken(
        token=token,
        expires_at=expires_at,
        uses_max=body.uses_max,
        role=body.role,
        url=platform.settings.agent_url,
        ca_sha256=platform.ca_sha256,
        agent_image=platform.images.get("corral-agent", ""),
    )


@router.get("")
async def list_hosts(caller: CallerDep, platform: PlatformDep, desk: DeskDep) -> list[api.Host]:
    """The caller's hosts; those that left come last."""
    async with platform.database.transaction() as tx:
        return await _views(tx, desk, await hosts_of(tx, caller.person_id))


@router.get("/{name_or_id}")
async def show_host(name_or_id: str, caller: CallerDep, platform: PlatformDep, desk: DeskDep) -> api.Host:
    """One of the caller's hosts."""
    async with platform.database.transaction() as tx:
        return (await _views(tx, desk, [await host_of(tx, caller.person_id, name_or_id)]))[0]


@router.put("/{name_or_id}/intent")
async def change_intent(
    name_or_id: str, body: api.IntentRequest, caller: CallerDep, platform: PlatformDep, desk: DeskDep
) -> api.Host:
    """Pauses or resumes a host, or lets it leave: it drains until nothing on it is hired, and leaves then."""
    wanted = Intent.DRAINING if body.intent == "left" else Intent(body.intent)
    async with platform.database.transaction() as tx:
        host = await host_of(tx, caller.person_id, name_or_id)
        await set_intent(tx, host.host_id, wanted)
        return (await _views(tx, desk, [await host_of(tx, caller.person_id, host.host_id)]))[0]


@router.put("/{name_or_id}/traffic-cap")
async def change_traffic_cap(
    name_or_id: str, body: api.TrafficCapRequest, caller: CallerDep, platform: PlatformDep, desk: DeskDep
) -> api.Host:
    """Caps what each device of a host may have with the internet in an hour, for bookings from now on."""
    async with platform.database.transaction() as tx:
        host = await host_of(tx, caller.person_id, name_or_id)
        await set_traffic_cap(tx, host.host_id, body.traffic_cap_bytes)
        return (await _views(tx, desk, [await host_of(tx, caller.person_id, host.host_id)]))[0]


@router.put("/{name_or_id}/location")
async def claim_location(
    name_or_id: str, body: api.LocationRequest, caller: CallerDep, platform: PlatformDep, desk: DeskDep
) -> api.Host:
    """Says where a host is; refused if a relay answers it sooner than light could from there."""
    async with platform.database.transaction() as tx:
        host = await host_of(tx, caller.person_id, name_or_id)
        await claim(tx, host, Location(**body.model_dump()))
        return (await _views(tx, desk, [await host_of(tx, caller.person_id, host.host_id)]))[0]


async def _views(tx: Tx, desk: AgentDesk, hosts: list[Host]) -> list[api.Host]:
    host_ids = [host.host_id for host in hosts]
    devices = await devices_of(tx, host_ids)
    hires = await open_hires(tx, host_ids)
    near = {HostId(host.connection.nearest_id) for host in hosts if host.connection is not None}
    relay_names = {relay_id: relay.name for relay_id, relay in (await hosts_by_id(tx, near)).items()}
    now = desk.platform.clock.now()
    return [
        host_view(
            host,
            [device for device in devices if device.host_id == host.host_id],
            hires.get(host.host_id, {}),
            now=now,
            serving_since=desk.serving_since,
            offline_after_s=desk.platform.settings.host_offline_after_s,
            relay_names=relay_names,
        )
        for host in hosts
    ]
