"""
What an agent and the control plane say to each other: enrolment, and the one exchange of report and desired state.

The desired state is closed: a node is described by the enumerated fields below and nothing else. There is no field for
a mount, a device path, a capability, a namespace, a command or an environment variable, so that a control plane in the
wrong hands cannot ask for one. Unknown fields are refused by the agent.

Times are UTC. Sizes are bytes. Addresses inside the mesh are IPv4 without a prefix length.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

PROTOCOL_VERSION = 1

# Patterns end in \Z, because `$` would let a line feed at the end pass.
Text = Annotated[str, msgspec.Meta(max_length=512)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")]
Id = Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2,4}_[0-9a-z]{26}\Z")]
MeshAddress = Annotated[str, msgspec.Meta(pattern=r"^10\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\Z")]
Endpoint = Annotated[str, msgspec.Meta(pattern=r"^[0-9.]{7,15}:[0-9]{1,5}\Z")]
PublicKey = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9+/]{43}=\Z")]
"""32 bytes in base 64: a WireGuard (X25519) or Ed25519 public key."""
ImageDigest = Annotated[str, msgspec.Meta(pattern=r"^(?:[a-z0-9][a-z0-9./:_-]{0,200}@)?sha256:[0-9a-f]{64}\Z")]
DeviceKey = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,96}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""With a time zone: one without could not be compared with any other."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of what the control plane sends to hosts: strict, so that nothing unforeseen is acted on."""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what hosts send: unknown fields are ignored, so that a newer agent may talk to an older control plane."""


class Revision(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Version of a desired state; a restored database starts a new epoch, so a stale document is always recognised."""

    epoch: int
    number: int


# --- enrolment ---------------------------------------------------------------------------------------------------


class Identity(Said, frozen=True):
    """What makes a host this host: it never changes while the machine and its engine stay the same."""

    machine_id: Text
    engine_id: Text
    slice: Annotated[str, msgspec.Meta(max_length=40)] = ""
    """Empty, or the name of a development slice: several agents then share one engine."""


class EnrolRequest(Said, frozen=True):
    """A host asks to be let in. `signature` proves the key: Ed25519 over token, line feed, public key in UTF-8."""

    token: Text
    public_key: PublicKey
    signature: Annotated[str, msgspec.Meta(max_length=128)]
    identity: Identity
    name: Annotated[str, msgspec.Meta(max_length=40)] = ""
    """Wished name; empty lets the control plane choose one."""
    role: Literal["host", "gateway", "relay"] = "host"
    development: bool = False
    agent_version: Text = ""


class EnrolReply(Message, frozen=True):
    """The host is known from now on by `host_id`; its tokens carry it as subject and `audience` as audience."""

    host_id: Id
    name: Name
    audience: Text
    server_time: Instant


# --- report ------------------------------------------------------------------------------------------------------


class Cpu(Said, frozen=True):
    """The processor, as found. Cores are what this agent may lend: fractional for a development slice."""

    model: Text
    vendor: Text = ""
    architecture: Text = ""
    cores: float = 0.0


class Gpu(Said, frozen=True):
    """One GPU, as found by the vendor's library."""

    uuid: Text
    vendor: Literal["nvidia", "amd"]
    model: Text
    """The vendor's name, unchanged."""
    memory_bytes: Size
    index: Count
    driver: Text = ""
    pci_bus_id: Text = ""
    render_node: Annotated[str, msgspec.Meta(pattern=r"^(?:renderD[0-9]{1,4})?\Z")] = ""
    mig: bool = False


class Hardware(Said, frozen=True):
    """The machine, as found. Sent with the first report and whenever it changed."""

    cpu: Cpu
    memory_bytes: Size
    disk_free_bytes: Size
    gpus: tuple[Gpu, ...] = ()
    engine_version: Text = ""
    runtimes: tuple[Text, ...] = ()
    kernel: Text = ""
    os: Text = ""
    notes: tuple[Text, ...] = ()
    """What could not be found out, and why."""


class DeviceOffer(Said, frozen=True):
    """One unit of hire: a GPU with its fixed share of the host, or a CPU slice of what is left."""

    key: DeviceKey
    """Stable on this host: the GPU's UUID, or `cpu-0`, `cpu-1`, …"""
    kind: Literal["gpu", "cpu"]
    model: Text
    cores: float
    memory_bytes: Size
    disk_bytes: Size
    gpu_memory_bytes: Size = 0


class Check(Said, frozen=True):
    """One row of the requirement table: what was found, what is needed, and what to do about it."""

    rule: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,40}\Z")]
    outcome: Literal["pass", "fail", "relaxed", "not_measured"]
    value: Text
    need: Text
    remedy: Text = ""


class Fault(Said, frozen=True):
    """Why something of a node does not work."""

    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,48}\Z")]
    message: Annotated[str, msgspec.Meta(max_length=2000)]


class MeshKeys(Said, frozen=True):
    """Public keys of a member's WireGuard, one for each plane."""

    direct: PublicKey
    relayed: PublicKey


ContainerState = Literal["missing", "created", "running", "exited"]


class NodeReport(Said, frozen=True):
    """Facts about one node (or leaf) on this host; the control plane derives the phase from them."""

    node_id: Id
    pause: ContainerState = "missing"
    mesh: ContainerState = "missing"
    work: ContainerState = "missing"
    """The Ray container of a node, the web container of a leaf."""
    mesh_keys: MeshKeys | None = None
    endpoints: tuple[Endpoint, ...] = ()
    """Where its WireGuard answers: first the address on the engine's bridge, then published ones."""
    lan: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=4)] = ()
    """The published port at private addresses of the host itself: for members behind the same router."""
    roster_serial: Count = 0
    """The serial that the mesh container has applied."""
    handshaken: tuple[MeshAddress, ...] = ()
    """Members with whom a handshake has succeeded on either plane."""
    relayed: tuple[MeshAddress, ...] = ()
    """Members that this node reaches through a relay alone."""
    ray_phase: Annotated[str, msgspec.Meta(max_length=24)] = ""
    alive: tuple[MeshAddress, ...] = ()
    """Head: the addresses that Ray holds for alive. Leaf: the same, as read through the gateway."""
    serves: bool = False
    """Leaf: the cluster's job endpoint answers through the gateway."""
    received_bytes: Size = 0
    """Of the mesh, as WireGuard's packets on the host's network: counted since the node's namespace exists."""
    sent_bytes: Size = 0
    fault: Fault | None = None
    """What the host cannot mend by itself."""
    renewals: Count = 0
    """How often containers of it that had ended were made anew; since the agent started."""
    renewed_for: Fault | None = None
    """How they had ended the last time."""
    internet_received_bytes: Size = 0
    """Of the internet, counted likewise."""
    internet_sent_bytes: Size = 0
    is_slowed: bool = False
    """Whether it has used up its internet cap, and goes on slowly."""

    def counts(self) -> tuple[int, int, int, int]:
        """Bytes: received and sent in the mesh, received and sent on the internet. All 0: nothing is known yet."""
        return (self.received_bytes, self.sent_bytes, self.internet_received_bytes, self.internet_sent_bytes)

    def without_counts(self) -> "NodeReport":
        """The facts alone: bytes change with every packet, and are no news."""
        return msgspec.structs.replace(
            self, received_bytes=0, sent_bytes=0, internet_received_bytes=0, internet_sent_bytes=0
        )


class Observation(Said, frozen=True):
    """Where a relay sees the direct plane of a member arrive from."""

    node_id: Id
    endpoint: Endpoint


class RelayReport(Said, frozen=True):
    """What a relay is, and what it has seen."""

    port_first: Annotated[int, msgspec.Meta(ge=1024, le=65535)]
    port_count: Annotated[int, msgspec.Meta(ge=1, le=64512)]
    """It serves mailboxes at `port_count` UDP ports from `port_first` on."""
    observer_key: PublicKey
    """Changes when it is started anew."""
    observed: Annotated[tuple[Observation, ...], msgspec.Meta(max_length=65536)] = ()
    gauge_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """TCP and UDP port at which hosts measure; 0: at this relay they cannot."""


class SignedStatement(Said, frozen=True):
    """What a relay's gauge has measured of this host: `protocol.gauge.Statement`, as the relay signed it."""

    payload: Annotated[str, msgspec.Meta(max_length=2048)]
    signature: Annotated[str, msgspec.Meta(max_length=128)]


class Report(Said, frozen=True):
    """What a host says in an exchange."""

    sequence: Size
    """Counts reports since the agent started; tells a late one from the last one."""
    applied: Revision
    """The newest desired state that this host has fully applied: what is not in it no longer runs here."""
    seen: Revision
    """The newest desired state that this host has received; the reply is held while there is none newer."""
    hold_s: Annotated[float, msgspec.Meta(ge=0, le=25)] = 25.0
    """How long the reply may be held; 0 asks for it at once."""
    agent_version: Text = ""
    wall_clock: datetime | None = None
    advertise: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Address at which other hosts reach this one; empty: the one from which the exchange comes."""
    hardware: Hardware | None = None
    devices: tuple[DeviceOffer, ...] | None = None
    checks: tuple[Check, ...] | None = None
    nodes: tuple[NodeReport, ...] = ()
    foreign_nodes: tuple[Id, ...] = ()
    """Nodes found under our label that no desired state names; ended after the orphan grace."""
    gateway_address: Annotated[str, msgspec.Meta(max_length=256)] = ""
    """Gateways only: the origin at which people reach this gateway, for example `http://127.0.0.1:8471`."""
    relay: RelayReport | None = None
    """Relays only."""
    statements: Annotated[tuple[SignedStatement, ...], msgspec.Meta(max_length=64)] = ()
    """What gauges have measured since the last report that arrived."""


# --- desired state -----------------------------------------------------------------------------------------------


class MeshSpec(Message, frozen=True):
    """A member's place in its cluster's mesh."""

    address: MeshAddress
    network: Annotated[str, msgspec.Meta(pattern=r"^10\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}/[0-9]{1,2}\Z")]
    mtu: Annotated[int, msgspec.Meta(ge=1280, le=8920)]
    roster_key: PublicKey
    """Ed25519 key with which this cluster's rosters are signed."""


class RaySpec(Message, frozen=True):
    """How Ray runs on a node."""

    role: Literal["head", "worker"]
    head_address: MeshAddress
    num_cpus: Annotated[int, msgspec.Meta(ge=0, le=4096)]
    num_gpus: Annotated[int, msgspec.Meta(ge=0, le=64)]
    object_store_bytes: Annotated[int, msgspec.Meta(ge=80 * 2**20, le=2**44)]


class NodeSpec(Message, frozen=True):
    """All that a host is told about a node. Closed: see the module's text."""

    node_id: Id
    cluster_id: Id
    cluster_name: Name
    node_name: Name
    image: ImageDigest
    devices: Annotated[tuple[DeviceKey, ...], msgspec.Meta(min_length=1, max_length=4096)]
    """Keys of this host's own devices; what they hold of the host is known to the agent, not told to it."""
    mesh: MeshSpec
    ray: RaySpec
    stop_after: Instant
    """The node ends itself at this instant, whether or not the control plane can be reached."""
    has_internet: bool = True
    """Whether its workload may reach the internet; never more than the host's firewall lets it."""
    internet_cap_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    """What its workload may have with the internet in an hour, both ways together; 0 is no cap."""


class LeafSpec(Message, frozen=True):
    """Gateways only: a leaf of a cluster's mesh, and the web server in front of its head."""

    node_id: Id
    cluster_id: Id
    cluster_name: Name
    mesh: MeshSpec
    head_address: MeshAddress
    stop_after: Instant


class MailboxSpec(Message, frozen=True):
    """Relays only: the port of one member of a cluster, and the key by which calls to it are recognised."""

    node_id: Id
    cluster_id: Id
    port: Annotated[int, msgspec.Meta(ge=1024, le=65535)]
    relayed_key: PublicKey


class GaugeSpec(Message, frozen=True):
    """Where a host may measure its connection, and the permit to do so (`protocol.gauge`)."""

    relay_id: Id
    address: Annotated[str, msgspec.Meta(pattern=r"^[0-9.]{7,15}\Z")]
    port: Annotated[int, msgspec.Meta(ge=1024, le=65535)]
    permit: Annotated[str, msgspec.Meta(max_length=128)]
    """Base 64."""
    permit_key: Annotated[str, msgspec.Meta(max_length=64)]
    """Base 64."""

    def __repr__(self) -> str:
        """Keeps the key out of logs and tracebacks."""
        return f"GaugeSpec({self.relay_id} at {self.address}:{self.port}, …)"


class Secrets(Message, frozen=True):
    """What a node or a leaf needs and nobody else may read; kept apart so that no log or digest ever includes it."""

    ray_token: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

    def __repr__(self) -> str:
        """Keeps the values out of logs and tracebacks."""
        return "Secrets(…)"


class SignedRoster(Message, frozen=True):
    """A roster as signed: `payload` is the canonical JSON of `protocol.roster.Roster`."""

    payload: Annotated[str, msgspec.Meta(max_length=4_000_000)]
    signature: Annotated[str, msgspec.Meta(max_length=128)]


class Desired(Message, frozen=True):
    """What should be on a host. Level-triggered: the whole of it, every time; nothing is ever a command."""

    revision: Revision
    server_time: Instant
    intent: Literal["active", "paused", "draining", "left"]
    nodes: tuple[NodeSpec, ...] = ()
    leaves: tuple[LeafSpec, ...] = ()
    secrets: dict[str, Secrets] = {}
    """By node id."""
    rosters: dict[str, SignedRoster] = {}
    """By cluster id: the newest roster of each cluster that has a node or a leaf here."""
    mailboxes: Annotated[tuple[MailboxSpec, ...], msgspec.Meta(max_length=65536)] = ()
    gauges: Annotated[tuple[GaugeSpec, ...], msgspec.Meta(max_length=16)] = ()
    """Not for relays: where to measure, the nearest first as far as that is known."""
    gauge_key: Annotated[str, msgspec.Meta(pattern=r"^(?:[A-Za-z0-9+/]{43}=)?\Z")] = ""
    """Relays only: the key with which permits are checked, base 64."""
    prefetch: Annotated[tuple[ImageDigest, ...], msgspec.Meta(max_length=16)] = ()
    """Images to have ready before anybody books this host."""
    saw_hardware: bool = True
    """False asks the agent to send hardware, devices and checks again with its next report."""


# --- gateway ------------------------------------------------------------------------------------------------------


class AuthoriseRequest(Said, frozen=True):
    """A gateway asks whether a visitor may reach a cluster; exactly one of the three proofs is set."""

    cluster_name: Annotated[str, msgspec.Meta(max_length=64)]
    api_key: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    ticket: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    session: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class AuthoriseReply(Message, frozen=True):
    """The answer. `session` is set when a ticket was redeemed: the value of the cluster's cookie."""

    allowed: bool
    cluster_id: str = ""
    session: str | None = None
    session_seconds: int = 0
    reason: str = ""


def encode(message: msgspec.Struct) -> bytes:
    """Writes a message as JSON."""
    return _encoder.encode(message)


_encoder = msgspec.json.Encoder()
