"""
A container engine in memory, small but whole: the twin of `corral.agent.docker` in tests and simulations.

`FakeEngine` is the machine's engine and outlives an agent; `FakeRuntime` is one agent's view of it. Containers run
`Program`s, found by their entrypoint: the programs of a node (`/corral/pause`, `/corral/mesh`, `/corral/ray`,
`/corral/web`) and the few shell lines that the contract suite runs on a real engine too.
"""

import asyncio
import base64
import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from corral.agent.runtime import (
    LABEL_HOST,
    LABEL_PART,
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

KILLED = 137
"""Exit status of a process that SIGKILL ended."""


class Program:
    """What runs in a container. Base: does nothing until it is told to end, then ends with 0."""

    def begin(self, process: "FakeProcess") -> None:
        """Called at the start."""

    def hear(self, process: "FakeProcess", line: bytes) -> None:
        """Called for every line on stdin."""

    def terminate(self, process: "FakeProcess") -> None:
        """Called on SIGTERM."""
        process.exit(0)


class Echo(Program):
    """`cat`."""

    def hear(self, process: "FakeProcess", line: bytes) -> None:
        """Says the line again."""
        process.say(line)


class Exiting(Program):
    """Complains and ends at once with a status."""

    def __init__(self, status: int, complaint: str = "") -> None:
        self._status, self._complaint = status, complaint

    def begin(self, process: "FakeProcess") -> None:
        """Ends."""
        if self._complaint:
            process.complain(self._complaint)
        process.exit(self._status)


class Deaf(Program):
    """`trap '' TERM; sleep`: only SIGKILL ends it."""

    def terminate(self, process: "FakeProcess") -> None:
        """Ignores it."""


class JsonProgram(Program):
    """Base of the node's programs: one JSON object a line."""

    def hear(self, process: "FakeProcess", line: bytes) -> None:
        """Reads one object and obeys it."""
        self.obey(process, json.loads(line))

    def obey(self, process: "FakeProcess", message: dict[str, Any]) -> None:
        """Called for every object on stdin."""

    @staticmethod
    def emit(process: "FakeProcess", kind: str, **fields: Any) -> None:
        """Prints one object."""
        process.say(json.dumps({"type": kind, **fields}).encode())


class FakeMesh(JsonProgram):
    """The mesh program: a key at the start, then rosters; every peer answers at once."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.serial = 0
        self.peers: list[dict[str, Any]] = []

    def begin(self, process: "FakeProcess") -> None:
        """Makes the keys, new ones at every start."""
        for plane in ("direct", "relayed"):
            digest = hashlib.sha256(f"{plane} {process.container_id}".encode()).digest()
            self.keys[plane] = base64.b64encode(digest).decode()
        self._say_keys(process)

    def obey(self, process: "FakeProcess", message: dict[str, Any]) -> None:
        """Applies a roster; refuses an older one."""
        if message["type"] == "hello":
            self._say_keys(process)
            if self.serial:
                self._say_configured(process)
        elif message["serial"] < self.serial:
            self.emit(process, "refused", serial=message["serial"], reason=f"older than {self.serial}")
        else:
            self.serial, self.peers = message["serial"], message["peers"]
            self._say_configured(process)

    def _say_keys(self, process: "FakeProcess") -> None:
        self.emit(process, "keys", **self.keys, implementation="kernel")

    def _say_configured(self, process: "FakeProcess") -> None:
        self.emit(process, "configured", serial=self.serial)
        addresses = sorted(peer["address"] for peer in self.peers)
        self.emit(process, "peers", handshaken=addresses, bytes={"rx": 10 * len(addresses), "tx": 20})


class FakeRay(JsonProgram):
    """The launcher of the workload: runs as soon as it has its token."""

    def __init__(self) -> None:
        self.token: str | None = None
        self.phase = "waiting_mesh"

    def begin(self, process: "FakeProcess") -> None:
        """Waits for the token."""
        self._say(process)

    def obey(self, process: "FakeProcess", message: dict[str, Any]) -> None:
        """Takes the token once."""
        if message["type"] == "hello":
            self._say(process)
        elif message["type"] == "start" and self.token is None:
            self.token, self.phase = message["token"], "running"
            self._say(process)

    def _say(self, process: "FakeProcess") -> None:
        self.emit(process, "phase", phase=self.phase, seconds=0.0, detail="")
        if self.phase == "running" and process.environment.get("CORRAL_RAY_ROLE") == "head":
            self.emit(process, "alive", nodes=[process.environment["CORRAL_NODE_ADDRESS"]])


class FakeWeb(JsonProgram):
    """nginx behind its launcher: serves whatever it is given."""

    def __init__(self) -> None:
        self.nginx: str | None = None

    def obey(self, process: "FakeProcess", message: dict[str, Any]) -> None:
        """Takes a configuration."""
        if message["type"] == "config":
            self.nginx = message["nginx"]
        if self.nginx is not None:
            self.emit(process, "serving", digest=hashlib.sha256(self.nginx.encode()).hexdigest())


PROGRAMS: Mapping[tuple[str, ...], Callable[[], Program]] = {
    ("/corral/pause",): Program,
    ("/corral/mesh",): FakeMesh,
    ("/corral/ray",): FakeRay,
    ("/corral/web",): FakeWeb,
    ("/bin/cat",): Echo,
    ("/bin/sleep", "600"): Deaf,  # sleep as process 1 has no handler for SIGTERM, so the kernel drops it
    ("/bin/sh", "-c", "echo broken >&2; exit 7"): lambda: Exiting(7, "broken"),
    ("/bin/sh", "-c", "printf 'bad \\377\\nlast\\n' >&2; exit 7"): lambda: Exiting(7, "bad \ufffd\nlast"),
}


class FakeProcess:
    """A container of the fake engine, and the program in it."""

    def __init__(self, engine: "FakeEngine", name: str, body: Body, number: int) -> None:
        self._engine = engine
        self.name, self.body = name, body
        self.container_id = hashlib.sha256(f"{name} {number}".encode()).hexdigest()
        self.state: State = "created"
        self.exit_code: int | None = None
        self.address = ""
        self.published: tuple[tuple[str, int, str], ...] = ()
        self.program: Program = Program()
        self.errors: deque[str] = deque(maxlen=100)
        self.channels: list[FakeChannel] = []
        self._unheard: list[bytes] = []
        self.environment = dict(entry.split("=", 1) for entry in body.get("Env", ()))
        self.labels: Mapping[str, str] = body.get("Labels", {})

    def begin(self) -> None:
        """Starts the program."""
        self.state = "running"
        if self.body["HostConfig"].get("NetworkMode") == "bridge":
            self.address, self.published = self._engine.plug(self.body)
        self.program = self._engine.program_for(self.body)
        self._engine.tell(self)
        self.program.begin(self)
        unheard, self._unheard = self._unheard, []
        for line in unheard:
            self.hear(line)

    def hear(self, line: bytes) -> None:
        """A line arrives on stdin; before the start it waits there."""
        if self.state == "running":
            self.program.hear(self, line)
        elif self.state == "created":
            self._unheard.append(line)

    def forget_unheard(self) -> None:
        """What was sent before the start, and not read when the sender went, is lost."""
        self._unheard.clear()

    def say(self, line: bytes) -> None:
        """Prints a line on stdout: to whoever is attached, else to nobody."""
        for channel in self.channels:
            channel.receive(line)

    def complain(self, line: str) -> None:
        """Prints a line on stderr."""
        self.errors.append(line)

    def exit(self, status: int) -> None:
        """Ends the program."""
        if self.state == "running":
            self.state, self.exit_code, self.address, self.published = "exited", status, "", ()
            for channel in self.channels:
                channel.receive(None)
            self.channels.clear()
            self._engine.tell(self)

    def shown(self) -> Container:
        """What the engine shows of it."""
        return Container(
            container_id=self.container_id,
            name=self.name,
            state=self.state,
            labels=self.labels,
            exit_code=self.exit_code,
            address=self.address,
            published=self.published,
        )


class FakeChannel:
    """See `corral.agent.runtime.Channel`."""

    def __init__(self, process: FakeProcess) -> None:
        self._process = process
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    def receive(self, line: bytes | None) -> None:
        """A line from the program; None at its end."""
        self._lines.put_nowait(line)

    async def send(self, line: bytes) -> None:
        """See `Channel.send`."""
        await asyncio.sleep(0)
        if self not in self._process.channels or self._process.state == "exited":
            raise ContainerMissing(f"container {self._process.name} no longer listens; nothing was sent")
        self._process.hear(line)

    async def lines(self) -> AsyncIterator[bytes]:
        """See `Channel.lines`."""
        while (line := await self._lines.get()) is not None:
            yield line

    async def close(self) -> None:
        """See `Channel.close`."""
        if self in self._process.channels:
            self._process.channels.remove(self)
            self._process.forget_unheard()
            self.receive(None)


class FakeEngine:
    """The machine's engine: every container on it, whoever made it."""

    def __init__(self, *, images: set[str] | None = None, engine_id: str = "ENGINE:FAKE") -> None:
        self.engine_id = engine_id
        self.images: set[str] = images if images is not None else set()
        self.images_with_volumes: set[str] = set()
        self.processes: dict[str, FakeProcess] = {}
        self.is_reachable = True
        self.failures: dict[tuple[str, str], RuntimeFailed] = {}
        """(method, container name) → what it raises for as long as it is here."""
        self.blocked: dict[tuple[str, str], asyncio.Event] = {}
        """(method, container name) → an event for which that call waits."""
        self.log: list[tuple[str, str]] = []
        """Every change that was asked for: (method, container name), in order."""
        self.programs: dict[tuple[str, ...], Callable[[], Program]] = dict(PROGRAMS)
        self._watchers: list[tuple[str, asyncio.Queue[str | None]]] = []
        self._made = 0
        self._plugged = 1

    def program_for(self, body: Body) -> Program:
        """A new program for a container that starts."""
        return self.programs[tuple(body["Entrypoint"]) + tuple(body.get("Cmd") or ())]()

    def make(self, name: str, body: Body) -> FakeProcess:
        """A new container, not started; also how a test makes a foreign one."""
        self._made += 1
        self.processes[name] = process = FakeProcess(self, name, body, self._made)
        self.tell(process)
        return process

    def plug(self, body: Body) -> tuple[str, tuple[tuple[str, int, str], ...]]:
        """An address on the bridge, and host ports for what the body publishes."""
        self._plugged += 1
        bindings = body["HostConfig"].get("PortBindings", {})
        published = tuple(
            (entry["HostIp"], int(entry["HostPort"] or 40000 + self._plugged), port)
            for port, entries in bindings.items()
            for entry in entries
        )
        return f"172.17.{self._plugged // 250}.{self._plugged % 250 + 1}", published

    def tell(self, process: FakeProcess) -> None:
        """Something happened to a container."""
        for host_id, queue in self._watchers:
            if process.labels.get(LABEL_HOST) == host_id:
                queue.put_nowait(process.name)

    def restart(self) -> None:
        """The daemon restarts without live-restore: whatever ran has been killed, and connections are gone."""
        for process in self.processes.values():
            process.exit(KILLED)
        self.break_connections()

    def break_connections(self) -> None:
        """Streams of events end, as when the daemon goes."""
        for _, queue in self._watchers:
            queue.put_nowait(None)
        self._watchers.clear()

    def running(self, part: str) -> list[FakeProcess]:
        """Running containers with this part label, oldest first."""
        return [one for one in self.processes.values() if one.state == "running" and one.labels.get(LABEL_PART) == part]

    async def watch(self, host_id: str) -> AsyncIterator[str]:
        """Names of a host's containers as something happens to them."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._watchers.append((host_id, queue))
        try:
            while (name := await queue.get()) is not None:
                yield name
        finally:
            self._watchers = [entry for entry in self._watchers if entry[1] is not queue]


class FakeRuntime:
    """One agent's view of a fake engine. See `corral.agent.runtime.ContainerRuntime`."""

    def __init__(self, engine: FakeEngine, host_id: str) -> None:
        self._engine = engine
        self._host_id = host_id

    async def info(self) -> EngineInfo:
        """See `ContainerRuntime.info`."""
        await self._arrive("info", "")
        return EngineInfo(
            engine_id=self._engine.engine_id,
            version="20.10.24",
            api_version="1.41",
            runtimes=("runc",),
            cpus=8,
            memory_bytes=32 * 2**30,
            root_dir="/var/lib/docker",
            cgroup_version="2",
            kernel="6.1",
            os="Fake Linux",
        )

    async def has_image(self, image: str) -> bool:
        """See `ContainerRuntime.has_image`."""
        await self._arrive("has_image", image)
        return image in self._engine.images

    async def list_ours(self) -> tuple[Container, ...]:
        """See `ContainerRuntime.list_ours`."""
        await self._arrive("list_ours", "")
        return tuple(
            one.shown() for one in self._engine.processes.values() if one.labels.get(LABEL_HOST) == self._host_id
        )

    async def inspect(self, name: str) -> Container | None:
        """See `ContainerRuntime.inspect`."""
        await self._arrive("inspect", name)
        process = self._ours(name)
        return process.shown() if process else None

    async def create(self, name: str, body: Body) -> None:
        """See `ContainerRuntime.create`."""
        await self._arrive("create", name)
        if name in self._engine.processes:
            if self._ours(name) is None:
                raise NameTaken(f"a container named {name} exists that is not ours; nothing was created", name=name)
            return
        if body["Image"] not in self._engine.images:
            raise ImageMissing(f"image {body['Image']} is not on this host; container {name} was not created")
        if body["Image"] in self._engine.images_with_volumes:
            raise ContainerRefused(f"image {body['Image']} declares volumes; container {name} was not created")
        self._engine.log.append(("create", name))
        self._engine.make(name, body)

    async def attach(self, name: str) -> FakeChannel:
        """See `ContainerRuntime.attach`."""
        await self._arrive("attach", name)
        process = self._must_be_ours(name)
        channel = FakeChannel(process)
        if process.state == "exited":
            channel.receive(None)
        else:
            process.channels.append(channel)
        return channel

    async def start(self, name: str) -> None:
        """See `ContainerRuntime.start`."""
        await self._arrive("start", name)
        process = self._must_be_ours(name)
        network = process.body["HostConfig"].get("NetworkMode", "bridge")
        if network.startswith("container:"):
            owner = self._engine.processes.get(network.removeprefix("container:"))
            if owner is None or owner.state != "running":
                raise ContainerRefused(f"cannot join network of a non running container: {network}")
        if process.state != "running":
            self._engine.log.append(("start", name))
            process.begin()

    async def stop(self, name: str, *, grace_s: int) -> None:
        """See `ContainerRuntime.stop`."""
        await self._arrive("stop", name)
        process = self._ours(name)
        if process is not None and process.state == "running":
            self._engine.log.append(("stop", name))
            process.program.terminate(process)
            process.exit(KILLED)

    async def remove(self, name: str) -> None:
        """See `ContainerRuntime.remove`."""
        await self._arrive("remove", name)
        process = self._ours(name)
        if process is not None:
            self._engine.log.append(("remove", name))
            process.exit(KILLED)
            for channel in tuple(process.channels):
                await channel.close()
            del self._engine.processes[name]
            self._engine.tell(process)

    async def last_errors(self, name: str, *, lines: int) -> tuple[str, ...]:
        """See `ContainerRuntime.last_errors`."""
        await self._arrive("last_errors", name)
        process = self._ours(name)
        return tuple("\n".join(process.errors).splitlines())[-lines:] if process else ()

    async def events(self) -> AsyncIterator[str]:
        """See `ContainerRuntime.events`."""
        await self._arrive("events", "")
        async for name in self._engine.watch(self._host_id):
            yield name

    async def close(self) -> None:
        """See `ContainerRuntime.close`: this agent's channels end, the containers stay."""
        for process in self._engine.processes.values():
            if process.labels.get(LABEL_HOST) == self._host_id:
                for channel in tuple(process.channels):
                    await channel.close()

    async def _arrive(self, method: str, name: str) -> None:
        # Every request takes a turn of the loop, so that requests of several nodes interleave as they really do.
        await asyncio.sleep(0)
        if (gate := self._engine.blocked.get((method, name))) is not None:
            await gate.wait()
        if not self._engine.is_reachable:
            raise EngineUnreachable("the container engine does not answer")
        if (failure := self._engine.failures.get((method, name))) is not None:
            raise failure

    def _ours(self, name: str) -> FakeProcess | None:
        process = self._engine.processes.get(name)
        return process if process and process.labels.get(LABEL_HOST) == self._host_id else None

    def _must_be_ours(self, name: str) -> FakeProcess:
        process = self._ours(name)
        if process is None:
            raise ContainerMissing(f"there is no container {name} of this host; nothing was done", name=name)
        return process
