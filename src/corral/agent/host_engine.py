"""What the agent asks of the engine about itself and its machine; containers of nodes are the runtime's business."""

import asyncio
import contextlib
import io
import json
import re
import secrets
import socket
import tarfile
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, cast

import aiodocker
import aiohttp

from corral.agent.hardware import EngineFacts, engine_facts
from corral.agent.hardware.memory import disk_free_bytes
from corral.core.errors import CorralError
from corral.protocol.peers import LAN_ADDRESSES_MAX, PRIVATE

SOCKET = "/var/run/docker.sock"
LABEL_PART = "corral.part"
LABEL_HOST = "corral.host"
TEST_S_MAX = 30.0
_OWN_ID = re.compile(r"/containers/([0-9a-f]{64})/")
_TUN_TEST = "ip tuntap add dev corraltest mode tun && ip link set corraltest up && ip link del corraltest"


LABEL_CORES, LABEL_MEMORY = "corral.cores", "corral.memory"
"""On an agent's container: what it lends of the machine; cores, or WHOLE_MACHINE, and bytes."""
WHOLE_MACHINE = "all"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What one agent on this engine lends."""

    name: str
    """Of its container."""
    cores: float
    memory_bytes: int
    is_whole: bool
    """Whether it lends all that the machine has."""


def lan_addresses(addresses: Iterable[str], own_networks: Iterable[IPv4Network]) -> tuple[str, ...]:
    """
    Addresses of this machine that a neighbour behind the same router may reach it at.

    Args:
        addresses: all that it has, in the order of its interfaces: physical ones come before those of programs.
        own_networks: those that exist on this machine alone.
    """
    elsewhere = tuple(own_networks)
    found = [address for address in addresses if any(IPv4Address(address) in network for network in PRIVATE)]
    found = [address for address in found if not any(IPv4Address(address) in network for network in elsewhere)]
    return tuple(found[:LAN_ADDRESSES_MAX])


class EngineFailed(CorralError):
    """The engine did not do what it was asked; the message is its own."""

    code = "engine_failed"


class HostEngine:
    """The Docker Engine whose socket is mounted here."""

    def __init__(self, socket_path: str = SOCKET) -> None:
        self._socket_path = socket_path
        self._docker: aiodocker.Docker | None = None

    async def __aenter__(self) -> "HostEngine":
        """Opens the connection; nothing is asked yet."""
        self._docker = aiodocker.Docker(
            url=f"unix://{self._socket_path}", timeout=aiohttp.ClientTimeout(total=60, sock_connect=5)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connection."""
        await self.docker.close()

    @property
    def docker(self) -> aiodocker.Docker:
        """The open client."""
        assert self._docker is not None, "used outside of its context"
        return self._docker

    async def facts(self) -> EngineFacts:
        """
        What the engine says of itself.

        Raises:
            EngineFailed: it does not answer.
        """
        try:
            info, version = await asyncio.gather(self.docker.system.info(), self.docker.version())
        except (aiodocker.DockerError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise EngineFailed(f"the container engine does not answer at {self._socket_path}: {error}") from error
        return engine_facts(info, version)

    async def own_image(self) -> str:
        """
        Id of the image that this process runs in.

        Raises:
            EngineFailed: this process is in none of the engine's containers.
        """
        for candidate in (*_own_ids(), socket.gethostname()):
            try:
                found = await self.docker.containers.container(candidate).show()
            except (aiodocker.DockerError, aiohttp.ClientError, OSError):
                continue
            return str(found["Image"])
        raise EngineFailed("the agent does not run in a container of the engine whose socket is mounted")

    async def missing_images(self, images: Iterable[str]) -> list[str]:
        """
        Those of the images (by digest or id) that are not on this host.

        Raises:
            EngineFailed: it does not answer.
        """
        missing: list[str] = []
        for image in images:
            try:
                await self.docker.images.inspect(image)
            except aiodocker.DockerError as error:
                if error.status != 404:
                    raise EngineFailed(f"image {image} cannot be looked for: {error.message}") from error
                missing.append(image)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise EngineFailed(f"the container engine does not answer: {error}") from error
        return missing

    async def pull(self, image: str, *, bytes_max: int, free_min: int) -> None:
        """
        Pulls an image, by digest, from the registry that its name tells.

        Raises:
            EngineFailed: the registry does not have it, it is larger than `bytes_max`, or it would leave less than
                `free_min` bytes of disk. A pull that is given up leaves nothing that the engine does not clean up.
        """
        layers: dict[str, int] = {}
        try:
            pulling = cast("AsyncGenerator[dict[str, Any]]", self.docker.images.pull(image, stream=True, timeout=None))
            async with contextlib.aclosing(pulling) as progress:
                _check_room(0, bytes_max=bytes_max, free_min=free_min)
                async for step in progress:
                    if "error" in step:
                        raise EngineFailed(str(step["error"])[:500])
                    detail = step.get("progressDetail") or {}
                    layers[str(step.get("id"))] = max(layers.get(str(step.get("id")), 0), int(detail.get("total") or 0))
                    _check_room(sum(layers.values()), bytes_max=bytes_max, free_min=free_min)
        except aiodocker.DockerError as error:
            raise EngineFailed(error.message) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EngineFailed(f"the container engine does not answer: {error}") from error

    async def agent_of(self, host_id: str) -> str | None:
        """
        Name of the container in which this host's agent is, or None.

        Raises:
            EngineFailed: it does not answer.
        """
        filters = {"label": [f"{LABEL_PART}=agent", f"{LABEL_HOST}={host_id}"]}
        try:
            found = await self.docker.containers.list(all=True, filters=filters)
        except (aiodocker.DockerError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EngineFailed(f"the container engine does not answer: {error}") from error
        return found[0]["Names"][0].lstrip("/") if found else None

    async def slices(self, *, but: str) -> tuple["Slice", ...]:
        """
        The agents on this engine, but for the one with this container name, with what they lend.

        Raises:
            EngineFailed: it does not answer.
        """
        try:
            found = await self.docker.containers.list(all=True, filters={"label": [f"{LABEL_PART}=agent"]})
        except (aiodocker.DockerError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EngineFailed(f"the container engine does not answer: {error}") from error
        named = ((container["Names"][0].lstrip("/"), container["Labels"]) for container in found)
        return tuple(
            Slice(
                name=name,
                cores=_number(labels.get(LABEL_CORES, "")),
                memory_bytes=int(_number(labels.get(LABEL_MEMORY, ""))),
                is_whole=labels.get(LABEL_CORES) == WHOLE_MACHINE,
            )
            for name, labels in named
            if name != but
        )

    async def tun_error(self, image: str) -> str | None:
        """
        Whether a container may make a tunnel interface, tried in a short one of our own image.

        Returns:
            Empty if it may, else why not; None where there is no image to try it with.
        """
        if not image:
            return None
        tun = {"PathOnHost": "/dev/net/tun", "PathInContainer": "/dev/net/tun", "CgroupPermissions": "rwm"}
        host = {"CapAdd": ["NET_ADMIN"], "Devices": [tun], "NetworkMode": "none"}
        try:
            await self._try(image, _TUN_TEST, host)
        except EngineFailed as error:
            return error.message
        return ""

    async def host_addresses(self, image: str) -> tuple[str, ...]:
        """
        The machine's own IPv4 addresses, loopback apart, in the order of its interfaces, as a short container of our
        own image on its network sees them.

        Raises:
            EngineFailed: they could not be found out.
        """
        said = await self._try(image, "ip -j -4 address show", {"NetworkMode": "host"})
        try:
            links = json.loads(said)
            found = dict.fromkeys(entry["local"] for link in links for entry in link["addr_info"])
        except (ValueError, KeyError, TypeError) as error:
            raise EngineFailed(f"the machine's addresses cannot be read: {error!r}") from error
        return tuple(address for address in found if not address.startswith("127."))

    async def bridge_networks(self) -> tuple[IPv4Network, ...]:
        """
        Networks that exist on this machine alone: those of the engine's bridges.

        Raises:
            EngineFailed: they could not be found out.
        """
        try:
            listed = await self.docker.networks.list()
            subnets = [
                one.get("Subnet", "")
                for network in listed
                if network["Driver"] == "bridge"
                for one in network["IPAM"].get("Config") or ()
            ]
            return tuple(IPv4Network(subnet) for subnet in subnets if ":" not in subnet and subnet)
        except (aiodocker.DockerError, aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError) as error:
            raise EngineFailed(f"the engine's networks cannot be listed: {error!r}") from error

    async def _try(self, image: str, command: str, host: Mapping[str, Any]) -> str:
        """Runs a shell command in a short container without any capability but those in `host`; returns what it said.

        Raises:
            EngineFailed: it could not be run, or failed; the message is its own.
        """
        body = {
            "Image": image,
            "Entrypoint": ["/bin/sh", "-c", command],
            "Labels": {LABEL_PART: "test"},
            "User": "0",
            "HostConfig": {
                "CapDrop": ["ALL"],
                "ReadonlyRootfs": True,
                "SecurityOpt": ["no-new-privileges"],
                "Memory": 64 * 2**20,
                "PidsLimit": 16,
                **host,
            },
        }
        try:
            container = await self.docker.containers.create(body, name=f"corral-test-{secrets.token_hex(6)}")
        except aiodocker.DockerError as error:
            raise EngineFailed(error.message) from error
        try:
            async with asyncio.timeout(TEST_S_MAX):
                await container.start()
                ended = await container.wait()
            said = "".join(await container.log(stdout=True, stderr=True)).strip()
        except TimeoutError:
            raise EngineFailed(f"the test did not end within {TEST_S_MAX:.0f} s") from None
        except (aiodocker.DockerError, aiohttp.ClientError, OSError) as error:
            raise EngineFailed(str(error)) from error
        finally:
            await container.delete(force=True)
        if ended["StatusCode"] != 0:
            raise EngineFailed(said or f"the test ended with status {ended['StatusCode']}")
        return said

    async def read_volume_file(self, image: str, volume: str, name: str) -> bytes | None:
        """A file at the root of a volume, or None. The volume is made if it does not exist."""
        async with _Holder(self.docker, image, volume) as holder:
            try:
                archive = await holder.get_archive(f"/volume/{name}")
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return None
                raise EngineFailed(f"volume {volume} cannot be read: {error.message}") from error
            member = archive.extractfile(name)
            return member.read() if member is not None else None

    async def write_volume_files(self, image: str, volume: str, files: Mapping[str, bytes]) -> None:
        """Writes files to the root of a volume, readable by root alone."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o600
                archive.addfile(entry, io.BytesIO(content))
        async with _Holder(self.docker, image, volume) as holder:
            try:
                await holder.put_archive("/volume", packed.getvalue())
            except aiodocker.DockerError as error:
                raise EngineFailed(f"volume {volume} cannot be written: {error.message}") from error

    async def replace_container(self, name: str, body: Mapping[str, Any]) -> None:
        """
        Starts a container of ours, in the place of one of ours with the same name.

        Raises:
            EngineFailed: the name is taken by somebody else's container, or the engine refuses.
        """
        try:
            existing = await self._show(name)
            if existing is not None:
                if (existing["Config"].get("Labels") or {}).get(LABEL_PART) != "agent":
                    raise EngineFailed(f"a container that is not ours has the name {name}; it was not touched")
                await self.docker.containers.container(name).delete(force=True)
            container = await self.docker.containers.create(dict(body), name=name)
            await container.start()
        except aiodocker.DockerError as error:
            raise EngineFailed(f"container {name} could not be started: {error.message}") from error

    async def remove_labelled(self, host_id: str) -> int:
        """Removes every container with this host's label; returns how many there were."""
        filters = {"label": [f"{LABEL_HOST}={host_id}"]}
        found = await self.docker.containers.list(all=True, filters=filters)
        own = set(_own_ids())
        # The agent first: it would make anew what is removed behind its back.
        found.sort(key=lambda container: container["Labels"].get(LABEL_PART) != "agent")
        count = 0
        for container in found:
            if container.id in own:
                continue
            try:
                await container.delete(force=True, v=True)
            except aiodocker.DockerError as error:
                if error.status not in (404, 409):  # gone, or being removed already
                    raise EngineFailed(
                        f"container {container.id[:12]} could not be removed: {error.message}"
                    ) from error
            count += 1
        return count

    async def remove_volumes(self, names: Iterable[str]) -> None:
        """Removes volumes; those that are gone already, or still in use, are left."""
        for name in names:
            try:
                await (await self.docker.volumes.get(name)).delete()
            except aiodocker.DockerError:
                continue

    async def _show(self, name: str) -> dict[str, Any] | None:
        try:
            return await self.docker.containers.container(name).show()
        except aiodocker.DockerError as error:
            if error.status == 404:
                return None
            raise


class _Holder:
    """A container that is never started: the engine's way to a volume's files."""

    def __init__(self, docker: aiodocker.Docker, image: str, volume: str) -> None:
        self._docker, self._image, self._volume = docker, image, volume
        self._container: Any = None

    async def __aenter__(self) -> Any:
        body = {
            "Image": self._image,
            "Labels": {LABEL_PART: "test"},
            "HostConfig": {
                "NetworkMode": "none",
                "Mounts": [{"Type": "volume", "Source": self._volume, "Target": "/volume"}],
            },
        }
        try:
            self._container = await self._docker.containers.create(body, name=f"corral-test-{secrets.token_hex(6)}")
        except aiodocker.DockerError as error:
            raise EngineFailed(f"volume {self._volume} cannot be reached: {error.message}") from error
        return self._container

    async def __aexit__(self, *_: object) -> None:
        await self._container.delete(force=True)


def _check_room(layer_bytes: int, *, bytes_max: int, free_min: int) -> None:
    free, _ = disk_free_bytes()
    if layer_bytes > bytes_max:
        raise EngineFailed(f"it is larger than {bytes_max} bytes; the pull was given up")
    if free < free_min:
        raise EngineFailed(f"{free} bytes of disk are free, {free_min} are kept; the pull was given up")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _own_ids() -> tuple[str, ...]:
    try:
        text = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ()
    return tuple(dict.fromkeys(_OWN_ID.findall(text)))
