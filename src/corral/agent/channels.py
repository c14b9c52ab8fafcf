"""
The lines that the containers of a node and the agent exchange, and what is known from them.

Each program prints one JSON object a line on stdout and reads one a line from stdin. What it prints comes from a
stranger's workload: it is decoded against closed types, one set for each part of a node (only a mesh can state a key),
and what does not fit is dropped. How often a program can make the agent do something is bounded.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias, assert_never

import msgspec
import structlog

from corral.agent.bodies import Part
from corral.agent.pacing import Allowance
from corral.agent.runtime import Channel, RuntimeFailed
from corral.core.clock import Clock
from corral.wire.agent import Count, MeshAddress, MeshKeys, PublicKey, Size

log = structlog.get_logger()

CHANGES_AT_ONCE, CHANGES_PER_S = 200.0, 10.0
"""What one program may tell: a start takes a few dozen changes, and each costs the agent a report."""

Reason = Annotated[str, msgspec.Meta(max_length=100_000)]
Addresses = Annotated[tuple[MeshAddress, ...], msgspec.Meta(max_length=8192)]


class Keys(msgspec.Struct, frozen=True, tag="keys"):
    direct: PublicKey
    relayed: PublicKey
    implementation: str = ""


class Configured(msgspec.Struct, frozen=True, tag="configured"):
    serial: Count


class Traffic(msgspec.Struct, frozen=True):
    rx: Size = 0
    tx: Size = 0
    internet_rx: Size = 0
    internet_tx: Size = 0


class Peers(msgspec.Struct, frozen=True, tag="peers"):
    handshaken: Addresses
    relayed: Addresses = ()
    bytes: Traffic = Traffic()
    slowed: bool = False


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    reason: Reason


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    reason: Reason


class Phase(msgspec.Struct, frozen=True, tag="phase"):
    phase: Annotated[str, msgspec.Meta(max_length=24)]
    seconds: float = 0.0
    detail: Reason = ""


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    nodes: Addresses


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    digest: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


Line: TypeAlias = Keys | Configured | Peers | Fatal | Refused | Phase | Alive | Serving


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What one container has said so far."""

    mesh_keys: MeshKeys | None = None
    roster_serial: int = 0
    handshaken: tuple[str, ...] = ()
    relayed: tuple[str, ...] = ()
    received_bytes: int = 0
    sent_bytes: int = 0
    internet_received_bytes: int = 0
    internet_sent_bytes: int = 0
    is_slowed: bool = False
    ray_phase: str = ""
    ray_detail: str = ""
    alive: tuple[str, ...] = ()
    serving: str = ""
    """Digest of the configuration that the web server runs with."""
    refused: str = ""
    """Why it refused what it was last sent; empty once it accepted something."""
    fatal: str = ""


def hear(heard: Heard, line: Line) -> Heard:
    """What is known after one more line."""
    match line:
        case Keys():
            return replace(heard, mesh_keys=MeshKeys(direct=line.direct, relayed=line.relayed))
        case Configured():
            return replace(heard, roster_serial=line.serial, refused="")
        case Peers():
            return replace(
                heard,
                handshaken=line.handshaken,
                relayed=line.relayed,
                received_bytes=line.bytes.rx,
                sent_bytes=line.bytes.tx,
                internet_received_bytes=line.bytes.internet_rx,
                internet_sent_bytes=line.bytes.internet_tx,
                is_slowed=line.slowed,
            )
        case Fatal():
            return replace(heard, fatal=line.reason)
        case Refused():
            return replace(heard, refused=line.reason)
        case Phase():
            return replace(heard, ray_phase=line.phase, ray_detail=line.detail)
        case Alive():
            return replace(heard, alive=line.nodes)
        case Serving():
            return replace(heard, serving=line.digest, refused="")
        case _:
            assert_never(line)


class PartChannel:
    """One container's stdin and stdout, with what was heard and what was sent."""

    def __init__(self, *, node_id: str, part: Part | str, container_id: str, channel: Channel, clock: Clock) -> None:
        self.node_id, self.part, self.container_id = node_id, part, container_id
        self._clock = clock
        self._decoder = _DECODERS[part]
        self._changes = Allowance(clock, burst=CHANGES_AT_ONCE, per_s=CHANGES_PER_S)
        self._dropped = 0
        self.heard = Heard()
        self.is_open = True
        self.ended = asyncio.Event()
        """Set once nothing more will be heard."""
        self.has_token = False
        """Whether the workload was sent its token over this channel."""
        self.sent_roster = ""
        """Hash of the roster that the mesh was last sent over this channel."""
        self.sent_config = ""
        """Digest of the configuration that the web server was last sent over this channel."""
        self._channel = channel

    async def listen(self, on_change: Callable[["PartChannel"], None]) -> None:
        """Reads until the container or the connection ends; calls `on_change` after each line that told something."""
        try:
            async for raw in self._channel.lines():
                line = self._read(raw)
                heard = hear(self.heard, line) if line is not None else self.heard
                if heard != self.heard:
                    self.heard = heard
                    on_change(self)
                    # Whoever has talked too much waits: its writes block once the pipes are full.
                    await self._clock.sleep(self._changes.spend())
        finally:
            self.is_open = False
            self.ended.set()
            await self._channel.close()
        on_change(self)

    def _read(self, raw: bytes) -> Line | None:
        try:
            return self._decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Its content is not logged: it is a stranger's. Once is enough: the log is not to be filled either.
            if not self._dropped:
                log.warning("channel.line_dropped", node_id=self.node_id, part=self.part, bytes=len(raw))
            self._dropped += 1
            return None

    async def send(self, **message: Any) -> bool:
        """Sends one object; False if nobody is there to read it."""
        try:
            await self._channel.send(msgspec.json.encode(message))
        except RuntimeFailed:
            self.is_open = False
            return False
        return True

    async def close(self) -> None:
        """Detaches; the container goes on."""
        self.is_open = False
        await self._channel.close()


# A container says only what its part has to say.
_MeshLine: TypeAlias = Keys | Configured | Peers | Fatal | Refused
_WorkLine: TypeAlias = Phase | Alive | Fatal
_WebLine: TypeAlias = Serving | Fatal | Refused
_DECODERS: Mapping[str, "msgspec.json.Decoder[Any]"] = {
    "mesh": msgspec.json.Decoder(_MeshLine),
    "work": msgspec.json.Decoder(_WorkLine),
    "web": msgspec.json.Decoder(_WebLine),
    "front": msgspec.json.Decoder(_WebLine),
}
