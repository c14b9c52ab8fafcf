"""
Installation: checks first, then enrolment, then the agent's own container.

The order matters: while a rule fails, the token is not used up; and the host's key is on its volume before the token is
shown, so that a lost reply can be asked for again.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from corral import __version__
from corral.agent.capacity import development_device
from corral.agent.control_plane import ControlPlane, ServerTime, fetch_ca, pinned_session
from corral.agent.enrol import enrol_request
from corral.agent.gateway import GatewaySite
from corral.agent.hardware import find_hardware
from corral.agent.host_engine import LABEL_HOST, LABEL_PART, EngineFailed, HostEngine
from corral.agent.requirements import RequirementFacts, check_requirements, failing
from corral.agent.settings import (
    HOST_FILE,
    KEY_FILE,
    STATE_DIR,
    HostSettings,
    auth_volume,
    container_name,
    key_bytes,
    machine_id,
    new_key,
    parse_key,
)
from corral.core.clock import SystemClock
from corral.core.errors import CorralError
from corral.core.ids import is_name
from corral.core.units import GIB
from corral.wire.agent import Check, Hardware, Identity

AUTH_FOLDER = "/run/auth"
AGENT_MEMORY_BYTES = 512 * 2**20
AGENT_PIDS = 512
TOKEN_BYTES_MAX = 1024
_DRM = Path("/sys/class/drm")


class InstallationRefused(CorralError):
    """The installation was asked for something that cannot be."""

    code = "installation_refused"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the join line says. The token is not part of it: it comes over stdin."""

    url: str
    ca_sha256: str = ""
    name: str = ""
    role: str = "host"
    development: bool = False
    slice: str = ""
    cores: float
    memory_gib: float
    advertise: str = ""
    gateway_bind: str = "127.0.0.1:8471"
    gateway_address: str = ""


async def install(wishes: Wishes, token: str) -> int:
    """
    Installs an agent on this machine; returns the exit status (1: a rule fails, nothing was changed).

    Raises:
        CorralError: it could not be done; the message says what, and what did not happen.
    """
    _check_wishes(wishes, token)
    async with HostEngine() as engine:
        image = await engine.own_image()
        hardware, checks = await _examine(engine, image, development=wishes.development)
        print_table(checks)
        if failing(checks):
            _say("This machine does not meet the requirements; it was not enrolled, and the token is still good.")
            return 1
        if wishes.development and wishes.role == "host":
            development_device(hardware, cores=wishes.cores, memory_bytes=int(wishes.memory_gib * GIB))
        settings = await _enrol(wishes, token, engine, image)
        await engine.replace_container(settings.container_name, agent_body(settings, hardware.runtimes))
        _say(f"Host {settings.name} ({settings.host_id}) is enrolled; its agent runs as {settings.container_name}.")
    return 0


async def check(*, development: bool) -> int:
    """Prints the requirement table; returns 1 if a rule fails."""
    async with HostEngine() as engine:
        try:
            image = await engine.own_image()
        except EngineFailed:
            image = ""
        _, checks = await _examine(engine, image, development=development)
    print_table(checks)
    return 1 if failing(checks) else 0


async def remove(slice_name: str) -> int:
    """Removes the agent of this machine (or slice) with everything that it made here."""
    name = container_name(slice_name)
    async with HostEngine() as engine:
        image = await engine.own_image()
        content = await engine.read_volume_file(image, name, HOST_FILE)
        if content is None:
            await engine.remove_volumes((name,))
            _say(f"No agent is installed here as {name}; nothing was removed.")
            return 0
        settings = msgspec.json.decode(content, type=HostSettings)
        count = await engine.remove_labelled(settings.host_id)
        await engine.remove_volumes((name, auth_volume(slice_name)))
    _say(f"{count} containers of host {settings.name} ({settings.host_id}) were removed, and its volumes.")
    return 0


def agent_body(settings: HostSettings, runtimes: tuple[str, ...]) -> dict[str, Any]:
    """
    The container-create body of the agent itself: the engine's socket, its own volume, and nothing else of the host.

    Args:
        settings: the installation.
        runtimes: the engine's; with NVIDIA's, the cards are visible for inspection (`utility`), not for work.
    """
    mounts: list[dict[str, Any]] = [
        {"Type": "bind", "Source": "/var/run/docker.sock", "Target": "/var/run/docker.sock"},
        {"Type": "volume", "Source": settings.container_name, "Target": str(STATE_DIR)},
    ]
    if settings.machine_id:
        mounts.append({"Type": "bind", "Source": "/etc/machine-id", "Target": "/etc/machine-id", "ReadOnly": True})
    if settings.role == "gateway":
        mounts.append({"Type": "volume", "Source": auth_volume(settings.slice), "Target": AUTH_FOLDER})
    host: dict[str, Any] = {
        "Mounts": mounts,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": "rw,noexec,nosuid,size=64m"},  # noqa: S108 (inside the container)
        "ExtraHosts": ["host.docker.internal:host-gateway"],
        "RestartPolicy": {"Name": "unless-stopped"},
        "Memory": AGENT_MEMORY_BYTES,
        "PidsLimit": AGENT_PIDS,
        "Init": True,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
    }
    if "nvidia" in runtimes:
        host["DeviceRequests"] = [{"Count": -1, "Capabilities": [["gpu", "utility"]]}]
    if _has_amd_cards(_DRM):
        host["Devices"] = [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}
            for path in ("/dev/kfd", "/dev/dri")
        ]
    return {
        "Image": settings.own_image,
        "Cmd": ["run"],
        "User": "0",
        "Labels": {LABEL_PART: "agent", LABEL_HOST: settings.host_id},
        "HostConfig": host,
    }


def print_table(checks: tuple[Check, ...]) -> None:
    """Writes the requirement table for people to stdout."""
    words = {"pass": "ok", "fail": "FAILS", "relaxed": "relaxed", "not_measured": "-"}
    width = max(len(row.value) for row in checks)
    for row in checks:
        print(f"{row.rule:<9} {words[row.outcome]:<8} {row.value:<{min(width, 60)}}  needs {row.need}")
        if row.remedy:
            print(f"{'':<9} {'':<8} -> {row.remedy}")


async def _examine(engine: HostEngine, image: str, *, development: bool) -> tuple[Hardware, tuple[Check, ...]]:
    facts = await engine.facts()
    hardware = await find_hardware(facts)
    found = RequirementFacts(
        memory_bytes=hardware.memory_bytes,
        disk_free_bytes=hardware.disk_free_bytes,
        engine=facts,
        tun_error=await engine.tun_error(image),
    )
    return hardware, check_requirements(found, development=development)


async def _enrol(wishes: Wishes, token: str, engine: HostEngine, image: str) -> HostSettings:
    facts = await engine.facts()
    volume = container_name(wishes.slice)
    known = await engine.read_volume_file(image, volume, KEY_FILE)
    key = parse_key(known) if known is not None else new_key()
    if known is None:
        await engine.write_volume_files(image, volume, {KEY_FILE: key_bytes(key)})
    identity = Identity(machine_id=machine_id(), engine_id=facts.engine_id, slice=wishes.slice)
    ca_pem = await fetch_ca(wishes.url, wishes.ca_sha256)
    async with pinned_session(ca_pem) as session:
        control_plane = ControlPlane(session, wishes.url, time=ServerTime(SystemClock()))
        reply = await control_plane.enrol(
            enrol_request(
                token,
                key,
                identity,
                name=wishes.name,
                role=wishes.role,
                development=wishes.development,
                agent_version=__version__,
            )
        )
    settings = HostSettings(
        url=wishes.url,
        ca_pem=ca_pem,
        host_id=reply.host_id,
        name=reply.name,
        audience=reply.audience,
        machine_id=identity.machine_id,
        engine_id=identity.engine_id,
        role="gateway" if wishes.role == "gateway" else "host",
        development=wishes.development,
        slice=wishes.slice,
        cores=wishes.cores,
        memory_gib=wishes.memory_gib,
        advertise=wishes.advertise,
        gateway_bind=wishes.gateway_bind,
        gateway_address=wishes.gateway_address,
        own_image=image,
    )
    await engine.write_volume_files(image, volume, {HOST_FILE: msgspec.json.format(msgspec.json.encode(settings))})
    return settings


def _check_wishes(wishes: Wishes, token: str) -> None:
    if not token or len(token) > TOKEN_BYTES_MAX or not token.isascii() or not token.isprintable():
        raise InstallationRefused(
            "no join token came over stdin", hint="paste the whole line of `corral host join`, with its `printf` part"
        )
    if wishes.slice and not wishes.development:
        raise InstallationRefused("--slice is for --development: outside of it a machine has one agent")
    if wishes.slice and not is_name(wishes.slice):
        raise InstallationRefused(f"{wishes.slice!r} is not a name for a slice")
    if wishes.name and not is_name(wishes.name):
        raise InstallationRefused(f"{wishes.name!r} is not a name for a host")
    if wishes.role == "gateway":
        GatewaySite.at(wishes.gateway_address or f"http://{wishes.gateway_bind}")


def _has_amd_cards(drm: Path) -> bool:
    vendors = (node / "device" / "vendor" for node in drm.glob("renderD*"))
    return any(vendor.is_file() and vendor.read_text().strip() == "0x1002" for vendor in vendors)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
