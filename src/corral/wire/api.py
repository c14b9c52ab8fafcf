"""
What people and the control plane say to each other, as JSON over HTTPS under `/v1`.

Money is integer micro-credits (`_uc`; 1 credit = 1 USD). Times are UTC. Ids that a client makes (`id` of a request)
make the request repeatable: the same id gives the same result and happens once.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from corral.core.ids import ID_PATTERN, NAME_PATTERN
from corral.core.money import AMOUNT_UC_MAX

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
TrafficCap = Annotated[int, Field(ge=10**8, le=10**12)]
"""Bytes an hour: from 100 MB to 1 TB."""
CAP_DESCRIPTION = "what a device may have with the internet in an hour, both ways together; null: no cap"
Hours = Annotated[int, Field(ge=1, le=8760)]


class Request(BaseModel):
    """Base of what people send: unknown fields are refused, so that a misspelt wish is never ignored."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """Base of what people receive: a client ignores fields that it does not know yet."""

    model_config = ConfigDict(extra="ignore")


# --- persons and keys ---------------------------------------------------------------------------------------------


class SignupRequest(Request):
    name: Name


class Person(Answer):
    id: str
    name: str
    is_operator: bool
    created_at: datetime


class Key(Answer):
    """An API key without its secret part."""

    id: str
    label: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewKey(Answer):
    """A key that was just made. `secret` is `id.secret`, shown this once and stored only as a hash."""

    key: Key
    secret: str


class SignedUp(Answer):
    person: Person
    key: NewKey


class CreateKeyRequest(Request):
    label: Annotated[str, Field(min_length=1, max_length=80)]
    expires_in_s: Annotated[int, Field(ge=60, le=10 * 365 * 86400)] | None = None


class WhoAmI(Answer):
    person: Person
    key_id: str
    balance_uc: int = Field(description="credits that are free to be held")
    held_uc: int = Field(description="credits held by bookings")
    earned_uc: int = Field(description="credits earned as a provider")


# --- money --------------------------------------------------------------------------------------------------------


class AddCreditRequest(Request):
    """Operator only."""

    id: Id = Field(description="client-made transfer id (prefix `tr`)")
    person: Name
    amount_uc: Annotated[int, Field(gt=0, le=AMOUNT_UC_MAX)]


class Transfer(Answer):
    """One movement of the ledger, as its two parties see it."""

    id: str
    kind: Literal["transfer", "hold", "post", "void"]
    debit: str = Field(description="account that pays")
    credit: str = Field(description="account that receives")
    amount_uc: int
    hold_id: str | None
    booking_id: str | None
    line_id: str | None
    at: datetime
    memo: str


class EarningsLine(Answer):
    booking_id: str
    line_id: str
    host: str
    device: str
    minutes: int
    rate_uc_per_hour: int
    gross_uc: int
    fee_uc: int
    net_uc: int
    settled: bool = Field(description="False while the line still runs: the figures are those posted so far")


class Earnings(Answer):
    total_net_uc: int
    lines: list[EarningsLine]


# --- hosts --------------------------------------------------------------------------------------------------------


class JoinTokenRequest(Request):
    """A token for hosts to enrol with: one use and 15 minutes, or a fleet token for many hosts."""

    uses_max: Annotated[int, Field(ge=1, le=10_000)] = 1
    expires_in_s: Annotated[int, Field(ge=60, le=30 * 86400)] = 900
    role: Literal["host", "gateway", "relay"] = "host"


class JoinToken(Answer):
    token: str
    expires_at: datetime
    uses_max: int
    role: Literal["host", "gateway", "relay"]
    url: str = Field(description="where a container on the host reaches the control plane")
    ca_sha256: str = Field(description="SHA-256 of the control plane's CA certificate (DER), hex; empty for plain HTTP")
    agent_image: str = Field(description="image of the agent, by digest")


class HostCheck(Answer):
    rule: str
    outcome: Literal["pass", "fail", "relaxed", "not_measured"]
    value: str
    need: str
    remedy: str


class Device(Answer):
    id: str
    key: str
    kind: Literal["gpu", "cpu"]
    model: str
    cores: float
    memory_bytes: int
    disk_bytes: int
    gpu_memory_bytes: int
    status: Literal["idle", "hired", "cleaning", "unavailable"]


HostStatus = Literal["checking", "idle", "hired", "paused", "draining", "failed", "offline", "left"]


Tier = Literal["", "low", "medium", "high", "ultra-high"]


class Connection(Answer):
    """What relays have measured of a host's connection. Mbit/s is a million bits per second; None: not measured."""

    download_mbit_s: float | None
    upload_mbit_s: float | None
    bandwidth_at: datetime | None
    relay: str = Field(description="the nearest relay; the next three are of it")
    rtt_ms: float | None = Field(description="median round trip")
    jitter_ms: float | None
    loss_percent: float | None
    measured_at: datetime
    tier: Tier = Field(description="empty: below the lowest, or not measured")
    is_recommended: bool


class Location(Answer):
    """Where a host is, as its provider claims; nothing that was measured contradicts it."""

    country: str
    region: str
    city: str
    latitude: float
    longitude: float


class LocationRequest(Request):
    """Where a host is."""

    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] = Field(description="ISO 3166-1, like DE")
    region: Annotated[str, Field(max_length=60)] = ""
    city: Annotated[str, Field(max_length=60)] = ""
    latitude: Annotated[float, Field(ge=-90, le=90)]
    longitude: Annotated[float, Field(ge=-180, le=180)]


class Host(Answer):
    """A machine of a provider. `status` is the one word derived from intent, health, hire and liveness."""

    id: str
    name: str
    role: Literal["host", "gateway", "relay"]
    status: HostStatus
    reason: str = Field(description="what the status comes from: the failing rule, or when it was last heard of")
    intent: Literal["active", "paused", "draining", "left"]
    development: bool = Field(description="shared machine, exclusivity not proven")
    last_seen_at: datetime | None
    clock_skew_s: float | None = Field(description="the host's wall clock less ours")
    agent_version: str
    cpu_model: str
    cores: float
    memory_bytes: int
    disk_free_bytes: int
    gpus: list[str]
    devices: list[Device]
    checks: list[HostCheck]
    traffic_cap_bytes: int | None = Field(default=None, description=CAP_DESCRIPTION)
    connection: Connection | None = None
    location: Location | None = None
    location_note: str = Field(default="", description="why a claim was refused")


class IntentRequest(Request):
    intent: Literal["active", "paused", "left"] = Field(description="`left` drains first")


class TrafficCapRequest(Request):
    traffic_cap_bytes: TrafficCap | None = Field(description="per device and hour, both ways together; null: no cap")


# --- market -------------------------------------------------------------------------------------------------------


class Offer(Answer):
    """Like devices of one provider's hosts that can be rented at this moment."""

    kind: Literal["gpu", "cpu"]
    model: str
    rate_uc_per_hour: int = Field(description="per device")
    devices: int
    hosts: int
    per_host_max: int
    cores: float
    memory_bytes: int
    gpu_memory_bytes: int
    provider: str
    development: bool
    traffic_cap_bytes: int | None = Field(default=None, description=CAP_DESCRIPTION)
    tier: Tier = Field(default="", description="of the hosts' connections; empty: not measured")


class UnavailableDevices(Answer):
    """Like devices that are idle but cannot be rented, and why."""

    kind: Literal["gpu", "cpu"]
    model: str
    devices: int
    reason: str


class Offers(Answer):
    as_of: datetime = Field(description="at most 2 s old; settled when a booking commits")
    offers: list[Offer]
    unavailable: list[UnavailableDevices] = []


class ClusterRequest(Request):
    """A renter's wish."""

    name: Name | None = Field(default=None, description="empty: a name is made")
    nodes: Annotated[int, Field(ge=1, le=4094)] | None = Field(
        default=None, description="hosts to be on, each with one node; empty: as few as the GPUs need, or one for CPUs"
    )
    cpu: Annotated[int, Field(ge=0, le=4096)] = Field(default=0, description="CPU slices on each node")
    gpu_model: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    gpu_count: Annotated[int, Field(ge=0, le=100_000)] = Field(default=0, description="GPUs in all")
    hours: Hours = 1
    single_provider: bool = False
    internet: bool = Field(default=True, description="False: its workloads reach each other and nothing else")


class QuoteLine(Answer):
    device_id: str
    host: str
    provider: str
    kind: Literal["gpu", "cpu"]
    model: str
    cores: float
    memory_bytes: int
    rate_uc_per_hour: int
    development: bool = Field(description="shared machine, exclusivity not proven")
    is_head: bool
    traffic_cap_bytes: int | None = Field(default=None, description=CAP_DESCRIPTION)


class Quote(Answer):
    """A priced placement. Its rates are what is charged."""

    id: str
    name: str
    lines: list[QuoteLine]
    hours: int
    rate_uc_per_hour: int = Field(description="of all lines together")
    total_uc: int = Field(description="for all booked hours; the most that will be charged")
    hold_uc: int = Field(description="what is held now: all booked hours, at most 24 ahead")
    minimum_uc: int = Field(description="charged even if you leave early: the first hour")
    fee_basis_points: int = Field(description="the network's share, taken out of these amounts, not added to them")
    expires_at: datetime
    as_of: datetime
    internet: bool = Field(default=True, description="whether its workloads will reach the internet")


# --- clusters -----------------------------------------------------------------------------------------------------

ClusterState = Literal["booked", "starting", "ready", "ending", "ended", "failed"]


class BookRequest(Request):
    id: Id = Field(description="client-made booking id (prefix `bk`)")
    quote_id: Id
    roster_key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")] | None = Field(
        default=None, description="your Ed25519 public key, base 64: you alone sign who is a member"
    )


class Phase(Answer):
    """A step of a cluster's start. Seconds are since the step before."""

    name: Literal["quoted", "booked", "containers", "mesh", "head", "workers", "ready"]
    at: datetime | None
    seconds: float | None
    detail: str = ""


class Node(Answer):
    id: str
    name: str
    role: Literal["head", "worker"]
    host: str
    provider: str
    address: str
    state: str
    devices: list[str]
    received_bytes: int = Field(default=0, description="in the mesh, as encrypted packets on the host's network")
    sent_bytes: int = 0
    reason: str = ""
    internet_received_bytes: int = Field(default=0, description="what its workload has received from the internet")
    internet_sent_bytes: int = 0
    relayed: list[str] = Field(default=[], description="names of the members that it reaches through a relay alone")
    traffic_cap_bytes: int | None = Field(
        default=None, description="what it may have with the internet in an hour, by its devices; null: no cap"
    )
    is_slowed: bool = Field(default=False, description="in the last minute it had used up its cap: it goes on slowly")


class Cluster(Answer):
    id: str
    booking_id: str
    name: str
    state: ClusterState
    reason: str
    phases: list[Phase]
    nodes: list[Node]
    providers: list[str] = Field(description="everybody whose machines it runs on: it is as trustworthy as the least")
    rate_uc_per_hour: int
    held_uc: int
    charged_uc: int
    hours: int
    created_at: datetime
    ready_at: datetime | None
    ends_at: datetime | None
    ended_at: datetime | None
    jobs_url: str | None = Field(description="Ray's job endpoint, with the Bearer key")
    version: int = Field(description="grows with every change; `GET …?newer_than=version` waits for the next")
    internet: bool = Field(default=True, description="whether its workloads reach the internet")
    is_pinned: bool = Field(default=False, description="its renter alone signs who is a member; nobody is replaced")
    awaits_signature: bool = Field(default=False, description="a roster is proposed that its renter has not signed")


class ChainedRoster(Answer):
    """One signed roster of a cluster's mesh, to be checked by who reads it."""

    serial: int
    payload: str = Field(description="canonical JSON of the roster: exactly what is signed and hashed")
    signature: str = Field(description="Ed25519 over `corral mesh roster v1`, a line feed and the payload; base 64")
    signed_at: datetime = Field(description="by the control plane's clock; not part of what is signed")


class RosterProposal(Answer):
    """The roster that follows the newest one, as soon as its renter signs it."""

    cluster_id: str
    payload: str = Field(description="canonical JSON of the roster: exactly what is to be signed")
    proposed_at: datetime = Field(description="since when a proposal waits")


class SignRosterRequest(Request):
    payload: Annotated[str, Field(max_length=4_000_000)] = Field(description="of the proposal, unchanged")
    signature: Annotated[str, Field(max_length=128)] = Field(
        description="Ed25519 over `corral mesh roster v1`, a line feed and the payload; base 64"
    )


class RosterChain(Answer):
    """A stretch of a cluster's rosters in order; an empty one is the end."""

    cluster_id: str
    roster_key: str = Field(description="the cluster's Ed25519 public key, base 64: the same for good")
    rosters: list[ChainedRoster]


WireGuardKey = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$")  # 32 bytes in base 64
]


class GuestRequest(Request):
    """The public keys with which a machine of the renter's joins the mesh. The private ones stay on it."""

    direct_key: WireGuardKey
    relayed_key: WireGuardKey


class Guest(Answer):
    """A machine of the renter's in the mesh of a cluster: a leaf, which the next roster names."""

    id: str
    name: str
    cluster_id: str
    address: str = Field(description="its own, inside the mesh")
    network: str = Field(description="the mesh's, with the prefix length")
    mtu: int
    direct_key: str
    relayed_key: str
    created_at: datetime
    expires_at: datetime = Field(description="when it leaves the mesh unless the same request is sent again before")
    lapse_s: float = Field(description="how long each such request counts")


class RayAccess(Answer):
    """What a renter needs to speak to Ray itself, from inside the mesh or through streams."""

    head_address: str = Field(description="inside the mesh")
    token: str = Field(description="what Ray asks of whom it serves; jobs and every node have it too")

    def __repr__(self) -> str:
        """Keeps the token out of logs and tracebacks."""
        return f"RayAccess({self.head_address!r})"


class TicketAnswer(Answer):
    """A way into the cluster's dashboard for a browser: works once, for a minute."""

    url: str
    expires_at: datetime


class ExtendRequest(Request):
    id: Id = Field(description="client-made id of this extension (prefix `ex`)")
    hours: Hours
    total_uc_max: Annotated[int, Field(ge=0, le=AMOUNT_UC_MAX)] | None = Field(
        default=None, description="refuse if the extension would cost more"
    )


class BillLine(Answer):
    line_id: str
    host: str
    provider: str
    device: str
    rate_uc_per_hour: int
    from_at: datetime | None
    to_at: datetime | None
    minutes: int = Field(description="charged: max(60, used) less those not delivered")
    minutes_not_delivered: int
    amount_uc: int
    provider_uc: int
    fee_uc: int
    state: Literal["active", "ended", "replaced", "refunded"]


class Bill(Answer):
    """What one booking cost, and where it went. Amounts are final once `final` is true."""

    booking_id: str
    cluster: str
    final: bool
    lines: list[BillLine]
    amount_uc: int
    held_uc: int
    returned_uc: int
    fee_uc: int
    ledger_sum_uc: int = Field(description="sum over all accounts of this booking's movements: always 0")
