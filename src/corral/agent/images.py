"""
Images that the control plane wants on this host before anybody books it.

They are pulled ahead, by digest, and only where a public registry can have them; never on the way to a node. An image
that only this machine could have (a bare digest) is looked for and, if it is missing, told of.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Protocol

import structlog

from corral.core.clock import Clock
from corral.core.errors import CorralError

PULL_S_MAX = 3600.0
RETRY_S = 900.0
"""Between two tries at an image that could not be had."""
DISK_FREE_MIN = 20 * 2**30
"""Nothing is pulled below this: what the control plane wishes must not fill the provider's disk."""
IMAGE_BYTES_MAX = 40 * 2**30
"""The GPU images of Ray take about 12 GiB."""

# A DNS name with a dot and no port, and the path: neither an address of the provider's own network nor its loopback.
_REGISTRY = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,24}\Z")
_PRIVATE = (".local", ".localhost", ".internal", ".lan", ".home", ".arpa", ".corp", ".intranet")

_log = structlog.get_logger(__name__)


class Puller(Protocol):
    """What is asked of the engine (`HostEngine`)."""

    async def missing_images(self, images: tuple[str, ...]) -> list[str]:
        """Those that are not here; raises CorralError."""
        ...

    async def pull(self, image: str, *, bytes_max: int, free_min: int) -> None:
        """Pulls one; raises CorralError."""
        ...


class ImageStore:
    """Brings the wished images to this host, one after the other."""

    def __init__(self, engine: Puller, clock: Clock, told: Callable[[], None] = lambda: None) -> None:
        """`told` is called whenever `missing` may have changed."""
        self._engine, self._clock, self._told = engine, clock, told
        self.missing: tuple[str, ...] | None = None
        """Wished images that are not here; None before anything was wished and looked for."""
        self._wanted: tuple[str, ...] = ()
        self._nudge = asyncio.Event()
        self._notes: dict[str, str] = {}

    def want(self, images: tuple[str, ...]) -> None:
        """Takes the newest wish."""
        if images != self._wanted:
            self._wanted = images
            self._nudge.set()

    def notes(self) -> tuple[str, ...]:
        """Why images are not here, in words."""
        return tuple(self._notes.values())

    async def run(self) -> None:
        """Keeps the wished images here until it is cancelled."""
        while True:
            await self._nudge.wait()
            self._nudge.clear()
            await self._once()
            if self._notes:
                await self._clock.sleep(RETRY_S)
                self._nudge.set()

    async def _once(self) -> None:
        wanted = self._wanted
        try:
            missing = await self._engine.missing_images(wanted)
        except CorralError as error:
            self._note("", f"images could not be looked for: {error.message}")
            return
        self._notes = {image: note for image, note in self._notes.items() if image in missing}
        self._lacks(missing)
        for image in missing:
            if (reason := why_not_pulled(image)) is not None:
                self._note(image, reason)
                continue
            try:
                async with asyncio.timeout(PULL_S_MAX):
                    await self._engine.pull(image, bytes_max=IMAGE_BYTES_MAX, free_min=DISK_FREE_MIN)
            except CorralError as error:
                self._note(image, f"image {image} could not be pulled: {error.message}")
            except TimeoutError:
                self._note(image, f"image {image} could not be pulled within {PULL_S_MAX:.0f} s")
            else:
                self._notes.pop(image, None)
                _log.info("image.pulled", image=image)
                self._lacks([one for one in self.missing or () if one != image])

    def _lacks(self, missing: list[str]) -> None:
        if self.missing != tuple(missing):
            self.missing = tuple(missing)
            self._told()

    def _note(self, image: str, text: str) -> None:
        if self._notes.get(image) != text:
            _log.warning("image.missing", image=image, reason=text)
        self._notes[image] = text[:512]


def why_not_pulled(image: str) -> str | None:
    """Why no registry is asked for an image; None if one may be."""
    name, _, digest = image.rpartition("@")
    if not name:
        return f"image {digest} is not on this host, and no registry is named for it: build or load it here"
    host, slash, _ = name.partition("/")
    is_hub = not slash or (not any(mark in host for mark in ".:") and host != "localhost")
    if is_hub or (_REGISTRY.match(host) and not host.endswith(_PRIVATE)):
        return None
    return f"image {image} is not on this host, and {host} is no public registry: load it here"
