"""Hosts, their devices, who hires them, and the one exchange with their agents."""

from corral.devices.agent_routes import agent_routes, desk_of, read_message, reply
from corral.devices.desk import AgentDesk, DesiredParts, DesiredSource
from corral.devices.errors import DevicesError, DeviceTaken
from corral.devices.hires import CensusRow, RentableDevice, census, release, rentable, start_cleaning, take
from corral.devices.hosts import (
    DeviceRow,
    Host,
    devices_by_id,
    devices_of,
    gateways,
    host_by_id,
    hosts_by_id,
)
from corral.devices.hosts import host_by_id as host
from corral.devices.measures import rtts_to_relays
from corral.devices.places import Place, places_of
from corral.devices.revisions import begin_epoch, bump, revision_of
from corral.devices.routes import router
from corral.devices.state import Health, Intent, Liveness, liveness_of, status_of

__all__ = [
    "AgentDesk",
    "CensusRow",
    "DesiredParts",
    "DesiredSource",
    "DeviceRow",
    "DeviceTaken",
    "DevicesError",
    "Health",
    "Host",
    "Intent",
    "Liveness",
    "Place",
    "RentableDevice",
    "agent_routes",
    "begin_epoch",
    "bump",
    "census",
    "desk_of",
    "devices_by_id",
    "devices_of",
    "gateways",
    "host",
    "host_by_id",
    "hosts_by_id",
    "liveness_of",
    "places_of",
    "read_message",
    "release",
    "rentable",
    "reply",
    "revision_of",
    "router",
    "rtts_to_relays",
    "start_cleaning",
    "status_of",
    "take",
]
