"""
Installation: checks first, then enrolment, then the agent's own container.

The order matters: while a rule fails, the token is not used up; and the host's key is on its volume before the token is
shown, so that a lost reply can be asked for again.
"""

import math
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal

import msgspec

from corral import __version__
from corral.agent.capacity import check_beside, development_device
from corral.agent.control_plane import ControlPlane, ServerTime, fetch_ca, pinned_session
from corral.agent.enrol import enrol_request
from corral.agent.gateway import GatewaySite
from corral.agent.hardware import find_hardware
from corral.agent.host_engine import (
    LABEL_CORES,
    LABEL_HOST,
    LABEL_MEMORY,
    LABEL_PART,
    WHOLE_MACHINE,
    EngineFailed,
    HostEngine,
)
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
    role: Literal["host", "gateway"] = "host"
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
        await _check_room(wishes, engine, hardware)
        settings = await _enrol(wishes, token, engine, image, hardware)
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


async def remove(slice_name: str, host_id: str = "") -> int:
    """
    Removes the agent of this machine (or slice) with everything that it made here.

    Args:
        slice_name: of a development slice; empty for the machine's one agent.
        host_id: instead of it, the host as whose agent it runs.
    """
    async with HostEngine() as engine:
        image = await engine.own_image()
        if host_id:
            found = await engine.agent_of(host_id)
            if found is None:
                _say(f"No agent of host {host_id} is here; nothing was removed.")
                return 1
            slice_name = found.removeprefix(container_name("")).removeprefix("-")
        name = container_name(slice_name)
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
        # Not `unless-stopped`: a daemon that comes back after a crash takes what it finds running for stopped by hand.
        "RestartPolicy": {"Name": "always"},
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
        "Labels": {LABEL_PART: "agent", LABEL_HOST: settings.host_id, **_lent(settings)},
        "HostConfig": host,
    }


def _lent(settings: HostSettings) -> dict[str, str]:
    """Labels from which other installations on this machine see what is left."""
    if settings.role == "gateway":
        return {}
    if not settings.development:
        return {LABEL_CORES: WHOLE_MACHINE}
    return {LABEL_CORES: f"{settings.cores:g}", LABEL_MEMORY: str(settings.memory_bytes)}


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


async def _check_room(wishes: Wishes, engine: HostEngine, hardware: Hardware) -> None:
    """
    What is lent of this machine, all agents on it together, is never more than it has.

    Raises:
        CapacityRefused: a development slice does not fit beside the others.
        InstallationRefused: another agent lends the whole machine, or this one would, beside others.
    """
    if wishes.role == "gateway":
        return
    others = await engine.slices(but=container_name(wishes.slice))
    whole = next((other for other in others if other.is_whole), None)
    if whole is not None or (not wishes.development and any(other.cores for other in others)):
        name = whole.name if whole is not None else next(other.name for other in others if other.cores)
        raise InstallationRefused(
            f"{name} lends this machine already; one machine is never lent twice, and nothing was enrolled",
            hint="take that host out with `corral host leave`, and remove its agent",
        )
    if wishes.development:
        memory_bytes = int(wishes.memory_gib * GIB)
        development_device(hardware, cores=wishes.cores, memory_bytes=memory_bytes)
        lent = [(other.name, other.cores, other.memory_bytes) for other in others]
        check_beside(lent, cores=wishes.cores, memory_bytes=memory_bytes, hardware=hardware)


async def _enrol(wishes: Wishes, token: str, engine: HostEngine, image: str, hardware: Hardware) -> HostSettings:
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
        cpu=hardware.cpu,
    )
    await _end_earlier(settings, engine, image)
    await engine.write_volume_files(image, volume, {HOST_FILE: msgspec.json.format(msgspec.json.encode(settings))})
    return settings


async def _end_earlier(settings: HostSettings, engine: HostEngine, image: str) -> None:
    """Ends what an earlier installation under another host id has left: nobody else would, now that its agent goes."""
    content = await engine.read_volume_file(image, settings.container_name, HOST_FILE)
    try:
        earlier = msgspec.json.decode(content or b"{}", type=HostSettings)
    except msgspec.DecodeError:
        return
    if earlier.host_id != settings.host_id:
        await engine.remove_labelled(earlier.host_id)


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
    if not (math.isfinite(wishes.cores) and math.isfinite(wishes.memory_gib)):
        raise InstallationRefused("--cores and --memory are numbers")
    if wishes.advertise and not _is_ipv4(wishes.advertise):
        raise InstallationRefused(
            f"{wishes.advertise!r} is not an IPv4 address; nothing was enrolled",
            hint="give --advertise the address at which other hosts reach this one, or leave it out",
        )
    address, _, port = wishes.gateway_bind.rpartition(":")
    if not _is_ipv4(address) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InstallationRefused(f"{wishes.gateway_bind!r} is not an address and a port; nothing was enrolled")
    if wishes.role == "gateway":
        GatewaySite.at(wishes.gateway_address or f"http://{wishes.gateway_bind}")


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _has_amd_cards(drm: Path) -> bool:
    vendors = (node / "device" / "vendor" for node in drm.glob("renderD*"))
    return any(vendor.is_file() and vendor.read_text().strip() == "0x1002" for vendor in vendors)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
