"""The container runtime on Docker Engine (API 1.41 and later), through its socket."""

import asyncio
import contextlib
import json
import struct
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import aiodocker
import aiohttp
from aiodocker.stream import Stream

from corral.agent.pacing import Allowance
from corral.agent.runtime import (
    LABEL_HOST,
    Body,
    Container,
    ContainerMissing,
    ContainerRefused,
    EngineInfo,
    EngineUnreachable,
    ImageMissing,
    NameTaken,
    RuntimeFailed,
    State,
)
from corral.core.clock import SystemClock

SOCKET = "/var/run/docker.sock"

LINE_BYTES_MAX = 256 * 2**10
"""A longer line of stdout is dropped: it comes from a stranger's program and must not fill the agent's memory.

The longest of our own names 4,094 addresses, or holds what nginx says against a configuration."""

READ_BYTES_AT_ONCE, READ_BYTES_PER_S = 4 * 2**20, 64 * 2**10
"""How much of a container's stdout is read: whoever prints more is held up by its own full pipe."""
MESSAGE_COST_BYTES = 256
"""What even the smallest write costs us."""

LOG_BYTES_MAX = 256 * 2**10
"""How much of a log's end is looked at: the engine cuts a line only after 16 KiB."""

_STDOUT = 1
_FRAME = struct.Struct(">BxxxL")
_NOT_CONNECTED = 900
"""The status that aiodocker invents when the socket does not answer."""

_STATES: Mapping[str, State] = {
    "created": "created",
    "running": "running",
    "paused": "running",
    "restarting": "running",
}


class DockerRuntime:
    """Containers of one host on one Docker Engine."""

    def __init__(self, host_id: str, *, socket: str = SOCKET) -> None:
        # No limit on connections: every attached channel keeps one open for as long as its container runs.
        self._connector = aiohttp.UnixConnector(socket, limit=0)
        self._docker = aiodocker.Docker(
            url="unix://localhost",
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=60, sock_connect=5),
        )
        self._host_id = host_id
        self._socket = socket

    async def __aenter__(self) -> "DockerRuntime":
        """Nothing is opened before the first request."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connections."""
        await self.close()

    async def close(self) -> None:
        """Lets go of the engine. Containers stay."""
        await self._docker.close()
        await self._connector.close()

    async def info(self) -> EngineInfo:
        """See `ContainerRuntime.info`."""
        with self._asking("the engine"):
            found, version = await asyncio.gather(self._docker.system.info(), self._docker.version())
        return EngineInfo(
            engine_id=found["ID"],
            version=version["Version"],
            api_version=version["ApiVersion"],
            runtimes=tuple(sorted(found.get("Runtimes") or {})),
            cpus=found["NCPU"],
            memory_bytes=found["MemTotal"],
            root_dir=found["DockerRootDir"],
            cgroup_version=str(found.get("CgroupVersion", "")),
            kernel=found.get("KernelVersion", ""),
            os=found.get("OperatingSystem", ""),
        )

    async def has_image(self, image: str) -> bool:
        """See `ContainerRuntime.has_image`."""
        try:
            with self._asking(f"image {image}"):
                await self._docker.images.inspect(image)
        except ContainerMissing:
            return False
        return True

    async def list_ours(self) -> tuple[Container, ...]:
        """See `ContainerRuntime.list_ours`."""
        filters = json.dumps({"label": [f"{LABEL_HOST}={self._host_id}"]})
        with self._asking("the list of containers"):
            found = await self._docker.containers.list(all=1, filters=filters)
        rows = [container._container for container in found]
        containers = [_from_list(row) for row in rows]
        # The list tells the exit status only in words, so the few that have ended are looked at one by one.
        ended = [container.name for container in containers if container.state == "exited"]
        inspected = await asyncio.gather(*(self.inspect(name) for name in ended))
        codes = {one.name: one for one in inspected if one is not None}
        return tuple(
            codes.get(container.name, container)
            for container in containers
            if container.state != "exited" or container.name in codes
        )

    async def inspect(self, name: str) -> Container | None:
        """See `ContainerRuntime.inspect`."""
        shown = await self._show(name)
        if shown is None or (shown["Config"].get("Labels") or {}).get(LABEL_HOST) != self._host_id:
            return None
        return _from_inspection(shown)

    async def create(self, name: str, body: Body) -> None:
        """See `ContainerRuntime.create`."""
        try:
            with self._asking(f"image {body['Image']}"):
                image = await self._docker.images.inspect(body["Image"])
            # A volume of the image's own would be a place on the host's disk that no limit holds for.
            if volumes := (image.get("Config") or {}).get("Volumes"):
                raise ContainerRefused(
                    f"image {body['Image']} declares volumes ({', '.join(sorted(volumes))[:200]}); "
                    f"container {name} was not created"
                )
            with self._asking(f"container {name}"):
                await self._docker.containers.create(dict(body), name=name)
        except ContainerMissing as missing:
            raise ImageMissing(
                f"image {body['Image']} is not on this host; container {name} was not created",
                hint="build or load the project's images on this host",
                image=str(body["Image"]),
            ) from missing
        except _Conflict as conflict:
            if await self.inspect(name) is None:
                raise NameTaken(
                    f"a container named {name} exists that is not ours; nothing was created or touched", name=name
                ) from conflict

    async def attach(self, name: str) -> "DockerChannel":
        """See `ContainerRuntime.attach`."""
        await self._must_be_ours(name)
        stream = self._docker.containers.container(name).attach(stdin=True, stdout=True)
        with self._asking(f"container {name}"):
            await stream.__aenter__()
        channel = DockerChannel(name, stream)
        # The engine accepts an attachment to a container that has ended, and then never says anything.
        found = await self.inspect(name)
        if found is None or found.state == "exited":
            await channel.close()
        return channel

    async def start(self, name: str) -> None:
        """See `ContainerRuntime.start`."""
        await self._must_be_ours(name)
        with self._asking(f"container {name}"):
            await self._docker.containers.container(name).start()

    async def stop(self, name: str, *, grace_s: int) -> None:
        """See `ContainerRuntime.stop`."""
        found = await self.inspect(name)
        if found is None or found.state != "running":
            return
        with contextlib.suppress(ContainerMissing), self._asking(f"container {name}"):
            await self._docker.containers.container(found.container_id).stop(t=grace_s)

    async def remove(self, name: str) -> None:
        """See `ContainerRuntime.remove`."""
        found = await self.inspect(name)
        if found is None:
            return
        with contextlib.suppress(ContainerMissing), self._asking(f"container {name}"):
            # 409 means that somebody is removing it already, which ends well without us.
            with contextlib.suppress(_Conflict):
                await self._docker.containers.container(found.container_id).delete(force=True, v=True)
            while (still := await self._show(found.container_id)) is not None:
                if still["State"]["Status"] not in ("removing", "dead"):
                    raise ContainerRefused(f"container {name} could not be removed: it is {still['State']['Status']}")
                await asyncio.sleep(0.05)

    async def last_errors(self, name: str, *, lines: int) -> tuple[str, ...]:
        """See `ContainerRuntime.last_errors`."""
        found = await self.inspect(name)
        if found is None:
            return ()
        try:
            with self._asking(f"container {name}"):
                # Not by the client's own `log`: it fails on what is no UTF-8, and a stranger's program wrote this.
                async with self._docker._query(
                    f"containers/{found.container_id}/logs", params={"stderr": 1, "stdout": 0, "tail": lines}
                ) as response:
                    framed = await _end_of(response.content, bytes_max=LOG_BYTES_MAX)
        except ContainerMissing:
            return ()
        text = framed.decode(errors="replace")
        return tuple(line for line in text.splitlines() if line)[-lines:]

    async def events(self) -> AsyncIterator[str]:
        """See `ContainerRuntime.events`."""
        filters = {
            "type": ["container"],
            "label": [f"{LABEL_HOST}={self._host_id}"],
            "event": ["create", "start", "die", "destroy"],
        }
        # A client of its own: aiodocker keeps one subscription per client, for as long as the client lives. What
        # happens while the stream is being opened is not lost, because it is asked for from a second ago.
        since = str(int(time.time()) - 1)
        async with (
            aiohttp.UnixConnector(self._socket) as connector,
            aiodocker.Docker(url="unix://localhost", connector=connector) as docker,
        ):
            subscriber = docker.events.subscribe(create_task=False)
            reading = asyncio.create_task(docker.events.run(filters=json.dumps(filters), since=since))
            try:
                while (event := await subscriber.get()) is not None:
                    name = event["Actor"]["Attributes"].get("name", "")
                    if event["Action"] == "die":
                        # The engine tells of an end before its list shows it. It holds the container's lock until
                        # then, and an inspection waits for that lock.
                        await self._show(name)
                    yield name
            finally:
                reading.cancel()
                # It ends when the connection does, with whatever error that is; the caller opens another.
                await asyncio.gather(reading, return_exceptions=True)

    async def _must_be_ours(self, name: str) -> None:
        if await self.inspect(name) is None:
            raise ContainerMissing(f"there is no container {name} of this host; nothing was done", name=name)

    async def _show(self, name: str) -> dict[str, Any] | None:
        try:
            with self._asking(f"container {name}"):
                return await self._docker.containers.container(name).show()
        except ContainerMissing:
            return None

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turns what the client raises into our errors; `what` names the object in the message."""
        try:
            yield
        except aiodocker.DockerError as error:
            raise _typed(error, what, self._socket) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineUnreachable(f"the container engine at {self._socket} does not answer: {error!r}") from error


class DockerChannel:
    """stdin and stdout of one container. See `Channel`."""

    def __init__(self, name: str, stream: Stream) -> None:
        self._name = name
        self._stream = stream
        self._allowance = Allowance(SystemClock(), burst=READ_BYTES_AT_ONCE, per_s=READ_BYTES_PER_S)
        self._is_closed = False

    async def send(self, line: bytes) -> None:
        """See `Channel.send`."""
        if self._is_closed:
            raise ContainerMissing(f"container {self._name} is no longer attached; nothing was sent")
        try:
            await self._stream.write_in(line + b"\n")
        except (aiodocker.DockerError, aiohttp.ClientError, RuntimeError, OSError, AssertionError) as error:
            # aiodocker asserts that its connection is still there; a container that has just ended took it along.
            raise ContainerMissing(f"container {self._name} no longer listens; nothing was sent") from error

    async def lines(self) -> AsyncIterator[bytes]:
        """See `Channel.lines`."""
        rest, is_skipping = bytearray(), False
        while not self._is_closed:
            try:
                message = await self._stream.read_out()
            except (aiodocker.DockerError, aiohttp.ClientError, OSError):
                return
            if message is None:
                return
            await asyncio.sleep(self._allowance.spend(len(message.data) + MESSAGE_COST_BYTES))
            if message.stream != _STDOUT:
                continue
            *complete, last = message.data.split(b"\n")
            for piece in complete:
                if not is_skipping:
                    yield bytes(rest) + piece
                rest.clear()
                is_skipping = False
            if not is_skipping:
                rest += last
            if len(rest) > LINE_BYTES_MAX:
                rest.clear()
                is_skipping = True

    async def close(self) -> None:
        """See `Channel.close`."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(aiohttp.ClientError, OSError, AssertionError):
            await self._stream.close()


async def _end_of(content: aiohttp.StreamReader, *, bytes_max: int) -> bytes:
    """The last bytes of a log, without the engine's frames around each write."""
    kept = bytearray()
    try:
        while True:
            _, length = _FRAME.unpack(await content.readexactly(_FRAME.size))
            kept += await content.readexactly(length)
            del kept[:-bytes_max]
    except asyncio.IncompleteReadError:
        return bytes(kept)


class _Conflict(ContainerRefused):
    """The engine's 409: the name is in use, or the container is busy being removed."""


def _typed(error: aiodocker.DockerError, what: str, socket: str) -> RuntimeFailed:
    if error.status == _NOT_CONNECTED:
        return EngineUnreachable(f"the container engine at {socket} does not answer: {error.message}")
    if error.status == 404:
        return ContainerMissing(f"{what} is not here: {error.message}")
    if error.status == 409:
        return _Conflict(f"{what} is busy: {error.message}")
    return ContainerRefused(f"the engine refused {what}: {error.message}", status=error.status)


def _from_list(row: Mapping[str, Any]) -> Container:
    networks = (row.get("NetworkSettings") or {}).get("Networks") or {}
    ports = row.get("Ports") or ()
    return Container(
        container_id=row["Id"],
        name=row["Names"][0].lstrip("/"),
        state=_STATES.get(row["State"], "exited"),
        labels=row.get("Labels") or {},
        address=_address(networks),
        published=tuple(
            sorted(
                (port["IP"], port["PublicPort"], f"{port['PrivatePort']}/{port['Type']}")
                for port in ports
                if port.get("PublicPort") and "." in port.get("IP", "")
            )
        ),
    )


def _from_inspection(shown: Mapping[str, Any]) -> Container:
    state = _STATES.get(shown["State"]["Status"], "exited")
    settings = shown.get("NetworkSettings") or {}
    return Container(
        container_id=shown["Id"],
        name=shown["Name"].lstrip("/"),
        state=state,
        labels=shown["Config"].get("Labels") or {},
        exit_code=shown["State"]["ExitCode"] if state == "exited" else None,
        address=_address(settings.get("Networks") or {}),
        published=tuple(
            sorted(
                (binding["HostIp"], int(binding["HostPort"]), port)
                for port, bindings in (settings.get("Ports") or {}).items()
                for binding in bindings or ()
                if "." in binding["HostIp"]
            )
        ),
    )


def _address(networks: Mapping[str, Any]) -> str:
    return next((network["IPAddress"] for network in networks.values() if network.get("IPAddress")), "")
