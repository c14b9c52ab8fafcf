"""
The part of a container engine that the agent uses, as a port.

`docker.DockerRuntime` is the real adapter, `corral.testing.fake_runtime.FakeRuntime` its twin; both pass the contract
in `tests/contracts/test_container_runtime.py`. A runtime is bound to one host id: it lists and touches only containers
whose label `corral.host` is that id. The rest of the machine is the provider's.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from corral.core.errors import CorralError

LABEL_HOST = "corral.host"
LABEL_NODE = "corral.node"
LABEL_PART = "corral.part"
LABEL_REVISION = "corral.revision"
LABEL_SPEC = "corral.spec"
LABEL_STOP_AFTER = "corral.stop_after"
LABEL_DEVICES = "corral.devices"

Body: TypeAlias = Mapping[str, Any]
"""A container-create body of the Docker Engine API."""

State = Literal["created", "running", "exited"]


class RuntimeFailed(CorralError):
    """Base: the container engine did not do what it was asked."""

    code = "runtime_failed"


class EngineUnreachable(RuntimeFailed):
    """The engine does not answer: its daemon is down or restarting. Nothing is known about any container."""

    code = "engine_unreachable"


class ImageMissing(RuntimeFailed):
    """The image is not on this host. It is never pulled on the way to a container."""

    code = "image_missing"


class NameTaken(RuntimeFailed):
    """A container that is not ours has the name. It was not touched."""

    code = "name_taken"


class ContainerMissing(RuntimeFailed):
    """There is no container of ours with this name."""

    code = "container_missing"


class ContainerRefused(RuntimeFailed):
    """The engine refused a body or could not start the container; the message is the engine's own."""

    code = "container_refused"


@dataclass(frozen=True, kw_only=True)
class Container:
    """One of our containers, as the engine shows it."""

    container_id: str
    name: str
    state: State
    labels: Mapping[str, str]
    exit_code: int | None = None
    """Set when the state is exited."""
    address: str = ""
    """IPv4 on the engine's bridge; empty when not running or in another container's network."""
    published: tuple[tuple[str, int, str], ...] = field(default=())
    """Published ports: (host ip, host port, "51820/udp"), IPv4 only."""


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """The engine itself."""

    engine_id: str
    version: str
    api_version: str
    runtimes: tuple[str, ...]
    cpus: int
    memory_bytes: int
    root_dir: str
    cgroup_version: str
    kernel: str
    os: str


class Channel(Protocol):
    """A container's stdin and stdout, in lines. Closing it leaves the container and its stdin as they are."""

    async def send(self, line: bytes) -> None:
        """
        Writes one line (without its line feed) to stdin.

        Raises:
            ContainerMissing: the container has ended, or the connection is closed.
        """
        ...

    def lines(self) -> AsyncIterator[bytes]:
        """Lines of stdout from now on, without line feeds; ends when the container or the connection does."""
        ...

    async def close(self) -> None:
        """Detaches. Closing twice is fine."""
        ...


class ContainerRuntime(Protocol):
    """What the agent asks of a container engine. Names are names of containers; every act may be repeated."""

    async def info(self) -> EngineInfo:
        """
        Facts about the engine.

        Raises:
            EngineUnreachable: it does not answer. (So may every other method.)
        """
        ...

    async def has_image(self, image: str) -> bool:
        """Whether the image (by digest) is on this host."""
        ...

    async def list_ours(self) -> tuple[Container, ...]:
        """All containers that carry our host label, running or not; never a foreign one."""
        ...

    async def inspect(self, name: str) -> Container | None:
        """The container with this name if it is ours, else None."""
        ...

    async def create(self, name: str, body: Body) -> None:
        """
        Creates a container without starting it; one of ours that is already there is left as it is.

        Raises:
            ImageMissing: the image is not here.
            NameTaken: somebody else's container has the name.
            ContainerRefused: the engine refuses the body, or the image declares volumes, for which no limit holds.
        """
        ...

    async def attach(self, name: str) -> Channel:
        """
        Connects to stdin and stdout. Attached before the start, no line is lost.

        Raises:
            ContainerMissing: no such container of ours.
        """
        ...

    async def start(self, name: str) -> None:
        """
        Starts a container; one that runs is left as it is.

        Raises:
            ContainerMissing: no such container of ours.
            ContainerRefused: the engine cannot start it.
        """
        ...

    async def stop(self, name: str, *, grace_s: int) -> None:
        """Asks the container to end (SIGTERM) and kills it after `grace_s` seconds. Already ended or gone is fine."""
        ...

    async def remove(self, name: str) -> None:
        """Removes a container with its anonymous volumes, killing it if it runs. Already gone is fine."""
        ...

    async def last_errors(self, name: str, *, lines: int) -> tuple[str, ...]:
        """The last lines that the container wrote to stderr, at most `lines`; empty if it is gone."""
        ...

    def events(self) -> AsyncIterator[str]:
        """
        Names of our containers as something happens to them (start, exit, removal), within moments.

        Ends when the connection to the engine does. A nudge only: whoever listens must also look from time to time.
        """
        ...

    async def close(self) -> None:
        """Lets go of the engine. Containers stay."""
        ...
