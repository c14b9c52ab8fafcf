"""What is known of this machine, and what of it this installation lends."""

import asyncio
import contextlib
import dataclasses
import os

import msgspec
import structlog

from corral.agent.bodies import OwnDevice
from corral.agent.capacity import CapacityRefused, development_device, devices_of
from corral.agent.control_plane import ServerTime
from corral.agent.hardware import find_hardware
from corral.agent.host_engine import HostEngine
from corral.agent.requirements import Link, RequirementFacts, check_requirements
from corral.agent.settings import HostSettings
from corral.wire.agent import Check, Cpu, DeviceOffer, Hardware

DISK_STEP_BYTES = 10**10
"""Free disk moves all the time; only steps of this size are worth telling."""

_log = structlog.get_logger(__name__)


class Machine:
    """What is known of the machine, and what of it is lent."""

    def __init__(
        self, *, found: RequirementFacts, development: bool, hardware: Hardware, devices: tuple[DeviceOffer, ...]
    ) -> None:
        self._found = found
        self._development = development
        self.hardware = hardware
        self.devices = devices
        self.checks: tuple[Check, ...] = check_requirements(found, development=development)

    @classmethod
    async def look(
        cls,
        settings: HostSettings,
        engine: HostEngine,
        time: ServerTime,
        *,
        known_cpu: Cpu | None = None,
        tun_error: str | None = None,
        missing_images: tuple[str, ...] | None = None,
        link: Link | None = None,
    ) -> "Machine":
        """The machine as it is now; the tunnel test is made only where its result is not handed in."""
        facts = await engine.facts()
        hardware, tried = await asyncio.gather(
            find_hardware(facts, known_cpu=known_cpu),
            engine.tun_error(settings.own_image if tun_error is None else ""),
        )
        found = RequirementFacts(
            memory_bytes=hardware.memory_bytes,
            disk_free_bytes=hardware.disk_free_bytes,
            engine=facts,
            tun_error=tried if tun_error is None else tun_error,
            clock_skew_s=time.skew_s(),
            missing_images=missing_images,
            link=link,
        )
        return cls(
            found=found,
            development=settings.development,
            hardware=hardware,
            devices=devices_for(settings, hardware),
        )

    def add_notes(self, notes: tuple[str, ...]) -> None:
        """Adds what else could not be done on this machine, and why."""
        self.hardware = msgspec.structs.replace(self.hardware, notes=self.hardware.notes + notes)

    def compare_clock(self, skew_s: float | None) -> bool:
        """Judges this machine's clock anew; whether the table says something else now."""
        return self._judge(dataclasses.replace(self._found, clock_skew_s=skew_s))

    def lack_images(self, missing: tuple[str, ...] | None) -> bool:
        """Takes down which images are missing; whether the table says something else now."""
        return self._judge(dataclasses.replace(self._found, missing_images=missing))

    def measured(self, link: Link | None) -> None:
        """Takes down what the connection is like."""
        self._judge(dataclasses.replace(self._found, link=link))

    def _judge(self, found: RequirementFacts) -> bool:
        before = self.essence
        self._found = found
        self.checks = check_requirements(self._found, development=self._development)
        return self.essence != before

    @property
    def essence(self) -> object:
        """Equal for two looks between which nothing changed that is worth telling."""
        rough = msgspec.structs.replace(self.hardware, disk_free_bytes=self.hardware.disk_free_bytes // DISK_STEP_BYTES)
        return rough, tuple((check.rule, check.outcome) for check in self.checks)

    def own_devices(self) -> dict[str, OwnDevice]:
        """The devices with what the engine needs to hand them over."""
        gpus = {gpu.uuid: gpu for gpu in self.hardware.gpus}
        return {
            offer.key: OwnDevice(
                offer=offer,
                gpu=gpus.get(offer.key),
                device_gids=_device_gids(gpus[offer.key].render_node) if offer.key in gpus else (),
            )
            for offer in self.devices
        }


def devices_for(settings: HostSettings, hardware: Hardware) -> tuple[DeviceOffer, ...]:
    """What this installation lends: nothing as a gateway, one slice in development, else all but the reserve."""
    if settings.role == "gateway":
        return ()
    if not settings.development:
        return devices_of(hardware)
    try:
        return (development_device(hardware, cores=settings.cores, memory_bytes=settings.memory_bytes),)
    except CapacityRefused as error:
        _log.error("capacity.refused", reason=error.message)
        return ()


def _device_gids(render_node: str) -> tuple[int, ...]:
    """Groups that own an AMD card's device nodes on this host; the engine gives our copies the same."""
    gids: set[int] = set()
    for path in ("/dev/kfd", f"/dev/dri/{render_node}") if render_node else ():
        with contextlib.suppress(OSError):
            gids.add(os.stat(path).st_gid)
    return tuple(sorted(gids - {0}))
