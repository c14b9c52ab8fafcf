"""The waiting client and the asyncio one: the same calls, carried out in two ways."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeVar

from corral.core.clock import Clock, SystemClock
from corral.core.ids import TimeOrderedIds, is_id
from corral.core.randomness import SystemRandomness
from corral.sdk import calls, config, tls
from corral.sdk.addresses import checked_url, is_plain
from corral.sdk.clusters import OVER_STATES, is_started, jobs_url
from corral.sdk.executors import AsyncExecutor, Executor
from corral.sdk.jobs import AsyncJobs, Jobs
from corral.wire import api

if TYPE_CHECKING:
    from corral.protocol.roster import Roster
    from corral.sdk.pins import Proposal
    from corral.sdk.rosters import ChainReader, Members

T = TypeVar("T")

BILL_POLL_S = 0.5


def new_id(prefix: str) -> str:
    """A new id made by this client (`bk` booking, `tr` transfer, `ex` extension): keep it, and a retry is harmless."""
    return _ids.new(prefix)


_ids = TimeOrderedIds(SystemClock(), SystemRandomness())


class Gateway(NamedTuple):
    """A cluster's place at its gateway."""

    url: str
    api_key: str
    context: SSLContext | None
    """How to verify it; None for HTTP on this machine."""

    def __repr__(self) -> str:
        """Keeps the key out of logs and tracebacks."""
        return f"Gateway({self.url!r})"


class Client:
    """
    A person's connection to the control plane.

    ```python
    from corral import Client

    with Client() as corral:
        quote = corral.quote(cpu=1, nodes=3, hours=1)
        cluster = corral.wait_ready(corral.book(quote.id).id)
        jobs = corral.jobs(cluster.name)
        job_id = jobs.submit("python main.py", working_dir=".")
        for text in jobs.logs(job_id, follow=True):
            print(text, end="")
        print(corral.end(cluster.name))
    ```

    Every method raises `ApiError` when the control plane refuses (its `code` tells why), `Unreachable` when nobody
    answers, `CertificateUntrusted` when somebody else does, and, before anything is sent, `NotConfigured` without a key
    and `RequestInvalid` for a value that cannot be meant. Reading is repeated after a lost connection, and so is what
    carries an id made here; nothing else is.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        ca: str | Path | None = None,
        ca_sha256: str | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Clock | None = None,
    ) -> None:
        """
        Sends nothing yet. What is not given comes from CORRAL_URL, CORRAL_API_KEY, CORRAL_CA and the settings file.

        Args:
            url: the control plane; HTTPS, or HTTP on this machine.
            api_key: `id.secret`.
            ca: PEM file of the only CA to believe.
            ca_sha256: or its fingerprint (SHA-256 of the DER form, hex); the certificate is then fetched and compared.
            sleep: how to wait between attempts.
            clock: tells when something was seen first; the machine's unless given.

        Raises:
            AddressRefused: the address is plain HTTP to another machine.
            ApiKeyMalformed: `api_key` or CORRAL_API_KEY is none.
            ConfigMalformed: the settings file cannot be read.
        """
        ca_path = None if ca is None else str(ca)
        self.config = config.effective(url=url, api_key=api_key, ca=ca_path, ca_sha256=ca_sha256)
        self._sleep = sleep
        self._clock = clock or SystemClock()
        self._executor: Executor | None = None
        self._gateways: dict[str, Executor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        for executor in (self._executor, *self._gateways.values()):
            if executor is not None:
                executor.close()
        self._executor = None
        self._gateways.clear()

    # --- persons, keys, money ---

    def signup(self, name: str) -> api.SignedUp:
        """A new account and its first key, whose secret is shown this once. Needs no key."""
        return self._run(calls.signup(name))

    def whoami(self) -> api.WhoAmI:
        """Who the key belongs to, and the balance."""
        return self._run(calls.whoami())

    def keys(self) -> list[api.Key]:
        """All keys of the person, revoked ones too."""
        return self._run(calls.keys())

    def create_key(self, label: str, *, expires_in_s: int | None = None) -> api.NewKey:
        """A new key, whose secret is shown this once."""
        return self._run(calls.create_key(label, expires_in_s=expires_in_s))

    def revoke_key(self, key_id: str) -> None:
        """Ends a key at once and for good; ending it twice is harmless."""
        self._run(calls.revoke_key(key_id))

    def add_credit(self, person: str, amount_uc: int, *, transfer_id: str | None = None) -> api.Transfer:
        """Issues credit to a person (operators only), in micro-credits; once per `transfer_id`."""
        return self._run(calls.add_credit(transfer_id or new_id("tr"), person, amount_uc))

    def transfers(self) -> list[api.Transfer]:
        """Movements of the ledger in which the person has a part, newest first."""
        return self._run(calls.transfers())

    def earnings(self) -> api.Earnings:
        """What the person's hosts earned, line by line."""
        return self._run(calls.earnings())

    # --- hosts ---

    def create_join_token(
        self, *, uses_max: int = 1, expires_in_s: int = 900, role: Literal["host", "gateway", "relay"] = "host"
    ) -> api.JoinToken:
        """A token with which agents enrol hosts for the person; the role `gateway` is for operators."""
        return self._run(calls.create_join_token(uses_max=uses_max, expires_in_s=expires_in_s, role=role))

    def hosts(self) -> list[api.Host]:
        """The person's hosts."""
        return self._run(calls.hosts())

    def host(self, name_or_id: str) -> api.Host:
        """One host, with its devices and checks."""
        return self._run(calls.host(name_or_id))

    def set_intent(self, name_or_id: str, intent: Literal["active", "paused", "left"]) -> api.Host:
        """What the provider wants of the host: to be rented out, to rest, or to leave once nothing runs on it."""
        return self._run(calls.set_intent(name_or_id, intent))

    def set_traffic_cap(self, name_or_id: str, cap_bytes: int | None) -> api.Host:
        """What each device of the host may have with the internet in an hour, in later bookings; None is no cap."""
        return self._run(calls.set_traffic_cap(name_or_id, cap_bytes))

    def claim_location(
        self, name_or_id: str, *, country: str, region: str = "", city: str = "", latitude: float, longitude: float
    ) -> api.Host:
        """
        Says where the host is, in degrees and words; `country` is two letters (ISO 3166-1).

        Raises:
            Refused: a relay answers the host sooner than light could from there.
        """
        return self._run(
            calls.claim_location(
                name_or_id, country=country, region=region, city=city, latitude=latitude, longitude=longitude
            )
        )

    # --- market ---

    def offers(self) -> api.Offers:
        """What can be rented at this moment."""
        return self._run(calls.offers())

    def quote(
        self,
        *,
        name: str | None = None,
        nodes: int | None = None,
        cpu: int = 0,
        gpu_model: str | None = None,
        gpu_count: int = 0,
        hours: int = 1,
        single_provider: bool = False,
        internet: bool = True,
    ) -> api.Quote:
        """A priced placement that can be booked until it expires. Nothing is taken or held yet."""
        return self.quote_for(
            calls.wish(
                name=name,
                nodes=nodes,
                cpu=cpu,
                gpu_model=gpu_model,
                gpu_count=gpu_count,
                hours=hours,
                single_provider=single_provider,
                internet=internet,
            )
        )

    def quote_for(self, request: api.ClusterRequest) -> api.Quote:
        """A priced placement for a wish."""
        return self._run(calls.quote_for(request))

    # --- clusters ---

    def book(self, quote_id: str, *, booking_id: str | None = None, pin_members: bool = False) -> api.Cluster:
        """
        Books a quote: all of it or nothing. The same `booking_id` books once, however often it is sent.

        With `pin_members` a key that stays on this machine signs who is a member: see `proposal` and `sign`.

        Raises:
            RosterKeyMissing: that key cannot be kept.
        """
        booking_id, roster_key = booking_id or new_id("bk"), None
        if pin_members:
            from corral.sdk.pins import make_key

            roster_key = make_key(booking_id)
        return self._run(calls.book(booking_id, quote_id, roster_key=roster_key))

    def clusters(self, *, include_ended: bool = False) -> list[api.Cluster]:
        """The person's clusters, newest first."""
        return self._run(calls.clusters(include_ended=include_ended))

    def cluster(self, name_or_id: str) -> api.Cluster:
        """One cluster."""
        return self._run(calls.cluster(name_or_id))

    def cluster_after(self, name_or_id: str, *, version: int, wait_s: int) -> api.Cluster:
        """The cluster once it is newer than `version`, or as it is after `wait_s` seconds, at most 25."""
        return self._run(calls.cluster_after(name_or_id, version=version, wait_s=wait_s))

    def watch(self, name_or_id: str, *, newer_than: int = 0) -> Iterator[api.Cluster]:
        """The cluster each time that it has changed, until it has ended or failed."""
        version = newer_than
        while True:
            cluster = self._run(calls.cluster_after(name_or_id, version=version, wait_s=calls.WAIT_S_MAX))
            if cluster.version > version:
                version = cluster.version
                yield cluster
            if cluster.state in OVER_STATES:
                return

    def wait_ready(self, name_or_id: str) -> api.Cluster:
        """
        The cluster once it is ready.

        Raises:
            StartFailed: it will not become ready.
        """
        for cluster in self.watch(name_or_id):
            if is_started(cluster):
                return cluster
        raise AssertionError("a watch ends only with a state that is over, for which is_started raises")

    def end(self, name_or_id: str) -> api.Bill:
        """Ends a cluster and returns its final bill, once all has been charged and given back."""
        cluster = self._run(calls.end_cluster(name_or_id))
        while not (bill := self._run(calls.bill(cluster.id))).final:
            self._sleep(BILL_POLL_S)
        return bill

    def extend(
        self, name_or_id: str, hours: int, *, total_uc_max: int | None = None, extension_id: str | None = None
    ) -> api.Cluster:
        """Adds hours at the booked rates; refused if it would cost more than `total_uc_max`."""
        call = calls.extend(
            name_or_id, extension_id=extension_id or new_id("ex"), hours=hours, total_uc_max=total_uc_max
        )
        return self._run(call)

    def bill(self, name_or_id: str) -> api.Bill:
        """What a cluster has cost so far, or in the end."""
        return self._run(calls.bill(name_or_id))

    def members(self, name_or_id: str) -> "Members":
        """
        The members of a cluster's mesh, by its chain of signed rosters: what is new of it is fetched and verified.

        Key and end of the chain are kept under `~/.local/share/corral/rosters`, and have to be found again.

        Raises:
            RosterChainBroken: a roster does not follow from the one before, or the chain is not the one kept.
            KeptRostersUnusable: what is kept cannot be read or written.
        """
        return self._chain(name_or_id)[1]

    def roster(self, name_or_id: str) -> "Roster | None":
        """The newest roster of a cluster's mesh, verified and kept as `members` does it; None before the first."""
        return self._chain(name_or_id)[0].newest

    def ray_access(self, name_or_id: str) -> api.RayAccess:
        """Where a cluster's Ray is inside its mesh, and the token that it asks for."""
        return self._run(calls.ray_access(name_or_id))

    def guests(self, name_or_id: str) -> list[api.Guest]:
        """The person's own machines in a cluster's mesh."""
        return self._run(calls.guests(name_or_id))

    def put_guest(self, name_or_id: str, guest_id: str, *, direct_key: str, relayed_key: str) -> api.Guest:
        """
        Adds a machine to a cluster's mesh, or says that it is still there; `sdk.connect` does the rest.

        Args:
            name_or_id: of the cluster.
            guest_id: made here (`new_id("gu")`); with the same one the machine keeps its address.
            direct_key: X25519 public key of its direct plane, base 64.
            relayed_key: of its relayed plane.
        """
        return self._run(calls.put_guest(name_or_id, guest_id, direct_key=direct_key, relayed_key=relayed_key))

    def remove_guest(self, name_or_id: str, guest_id: str) -> None:
        """Takes a machine out of a cluster's mesh; again, it changes nothing."""
        self._run(calls.remove_guest(name_or_id, guest_id))

    def gateway(self, name_or_id: str) -> "Gateway":
        """
        Where programs reach a cluster that is ready, and what they must show and believe there.

        Raises:
            ClusterNotReady: it cannot be reached now.
        """
        url = checked_url(jobs_url(self.cluster(name_or_id)))
        context = None if is_plain(url) else tls.gateway_context(self.config)
        return Gateway(url, config.key_of(self.config), context)

    def proposal(self, name_or_id: str) -> "Proposal":
        """
        The roster that waits for the person's signature, looked at.

        Raises:
            ProposalRefused: it is not what this client signs.
            RosterKeyMissing: this machine does not hold the key.
            ApiError: `nothing_proposed`.
        """
        from corral.sdk.pins import look_at

        cluster = self.cluster(name_or_id)
        return look_at(self._run(calls.proposal(cluster.id)), cluster, self.members(cluster.id))

    def sign(self, proposal: "Proposal") -> api.Cluster:
        """
        Signs a proposal: its members make up the cluster's mesh from then on.

        Raises:
            RosterKeyMissing: this machine does not hold the key.
            ApiError: `proposal_outdated`, when another has been proposed since.
        """
        from corral.sdk.pins import signature_of

        signature = signature_of(proposal)
        return self._run(calls.sign_roster(proposal.cluster_id, payload=proposal.payload, signature=signature))

    def create_ticket(self, name_or_id: str) -> api.TicketAnswer:
        """A way into the cluster's dashboard for a browser: works once, for a minute."""
        return self._run(calls.create_ticket(name_or_id))

    def jobs(self, name_or_id: str) -> Jobs:
        """
        The jobs of a cluster that is ready.

        Raises:
            ClusterNotReady: it takes no jobs now.
        """
        url, key, context = self.gateway(name_or_id)
        if url not in self._gateways:
            self._gateways[url] = Executor(url, api_key=key, context=context, sleep=self._sleep)
        return Jobs(self._gateways[url], api_key=key, context=context, new_id=new_id, sleep=self._sleep)

    def _chain(self, name_or_id: str) -> "tuple[ChainReader, Members]":
        from corral.sdk.rosters import ChainReader  # needs cryptography, which no other call waits for

        cluster_id = name_or_id if is_id(name_or_id) else self.cluster(name_or_id).id
        reader = ChainReader.of(cluster_id)
        while reader.take(self._run(calls.rosters(cluster_id, after=reader.after))):
            pass
        return reader, reader.keep(self._clock.now())

    def _run(self, call: calls.Call[T]) -> T:
        if not call.is_public:
            config.key_of(self.config)
        if self._executor is None:
            context = tls.control_plane_context(self.config)
            self._executor = Executor(
                self.config.url or "", api_key=self.config.api_key, context=context, sleep=self._sleep
            )
        return self._executor.run(call)


class AsyncClient:
    """
    A person's connection to the control plane, for asyncio; see `Client` for what the methods do and raise.

    ```python
    async with AsyncClient() as corral:
        print(await corral.whoami())
    ```
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        ca: str | Path | None = None,
        ca_sha256: str | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Clock | None = None,
    ) -> None:
        """Sends nothing yet; the arguments are those of `Client`."""
        ca_path = None if ca is None else str(ca)
        self.config = config.effective(url=url, api_key=api_key, ca=ca_path, ca_sha256=ca_sha256)
        self._sleep = sleep
        self._clock = clock or SystemClock()
        self._executor: AsyncExecutor | None = None
        self._gateways: dict[str, AsyncExecutor] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        for executor in (self._executor, *self._gateways.values()):
            if executor is not None:
                await executor.close()
        self._executor = None
        self._gateways.clear()

    async def signup(self, name: str) -> api.SignedUp:
        """A new account and its first key, whose secret is shown this once. Needs no key."""
        return await self._run(calls.signup(name))

    async def whoami(self) -> api.WhoAmI:
        """Who the key belongs to, and the balance."""
        return await self._run(calls.whoami())

    async def keys(self) -> list[api.Key]:
        """All keys of the person, revoked ones too."""
        return await self._run(calls.keys())

    async def create_key(self, label: str, *, expires_in_s: int | None = None) -> api.NewKey:
        """A new key, whose secret is shown this once."""
        return await self._run(calls.create_key(label, expires_in_s=expires_in_s))

    async def revoke_key(self, key_id: str) -> None:
        """Ends a key at once and for good; ending it twice is harmless."""
        await self._run(calls.revoke_key(key_id))

    async def add_credit(self, person: str, amount_uc: int, *, transfer_id: str | None = None) -> api.Transfer:
        """Issues credit to a person (operators only), in micro-credits; once per `transfer_id`."""
        return await self._run(calls.add_credit(transfer_id or new_id("tr"), person, amount_uc))

    async def transfers(self) -> list[api.Transfer]:
        """Movements of the ledger in which the person has a part, newest first."""
        return await self._run(calls.transfers())

    async def earnings(self) -> api.Earnings:
        """What the person's hosts earned, line by line."""
        return await self._run(calls.earnings())

    async def create_join_token(
        self, *, uses_max: int = 1, expires_in_s: int = 900, role: Literal["host", "gateway", "relay"] = "host"
    ) -> api.JoinToken:
        """A token with which agents enrol hosts for the person; the role `gateway` is for operators."""
        return await self._run(calls.create_join_token(uses_max=uses_max, expires_in_s=expires_in_s, role=role))

    async def hosts(self) -> list[api.Host]:
        """The person's hosts."""
        return await self._run(calls.hosts())

    async def host(self, name_or_id: str) -> api.Host:
        """One host, with its devices and checks."""
        return await self._run(calls.host(name_or_id))

    async def set_intent(self, name_or_id: str, intent: Literal["active", "paused", "left"]) -> api.Host:
        """What the provider wants of the host: to be rented out, to rest, or to leave once nothing runs on it."""
        return await self._run(calls.set_intent(name_or_id, intent))

    async def set_traffic_cap(self, name_or_id: str, cap_bytes: int | None) -> api.Host:
        """What each device of the host may have with the internet in an hour, in later bookings; None is no cap."""
        return await self._run(calls.set_traffic_cap(name_or_id, cap_bytes))

    async def claim_location(
        self, name_or_id: str, *, country: str, region: str = "", city: str = "", latitude: float, longitude: float
    ) -> api.Host:
        """
        Says where the host is, in degrees and words; `country` is two letters (ISO 3166-1).

        Raises:
            Refused: a relay answers the host sooner than light could from there.
        """
        return await self._run(
            calls.claim_location(
                name_or_id, country=country, region=region, city=city, latitude=latitude, longitude=longitude
            )
        )

    async def offers(self) -> api.Offers:
        """What can be rented at this moment."""
        return await self._run(calls.offers())

    async def quote(
        self,
        *,
        name: str | None = None,
        nodes: int | None = None,
        cpu: int = 0,
        gpu_model: str | None = None,
        gpu_count: int = 0,
        hours: int = 1,
        single_provider: bool = False,
        internet: bool = True,
    ) -> api.Quote:
        """A priced placement that can be booked until it expires. Nothing is taken or held yet."""
        return await self.quote_for(
            calls.wish(
                name=name,
                nodes=nodes,
                cpu=cpu,
                gpu_model=gpu_model,
                gpu_count=gpu_count,
                hours=hours,
                single_provider=single_provider,
                internet=internet,
            )
        )

    async def quote_for(self, request: api.ClusterRequest) -> api.Quote:
        """A priced placement for a wish."""
        return await self._run(calls.quote_for(request))

    async def book(self, quote_id: str, *, booking_id: str | None = None, pin_members: bool = False) -> api.Cluster:
        """Books a quote: all of it or nothing; see `Client.book`."""
        booking_id, roster_key = booking_id or new_id("bk"), None
        if pin_members:
            from corral.sdk.pins import make_key

            roster_key = await asyncio.to_thread(make_key, booking_id)
        return await self._run(calls.book(booking_id, quote_id, roster_key=roster_key))

    async def clusters(self, *, include_ended: bool = False) -> list[api.Cluster]:
        """The person's clusters, newest first."""
        return await self._run(calls.clusters(include_ended=include_ended))

    async def cluster(self, name_or_id: str) -> api.Cluster:
        """One cluster."""
        return await self._run(calls.cluster(name_or_id))

    async def cluster_after(self, name_or_id: str, *, version: int, wait_s: int) -> api.Cluster:
        """The cluster once it is newer than `version`, or as it is after `wait_s` seconds, at most 25."""
        return await self._run(calls.cluster_after(name_or_id, version=version, wait_s=wait_s))

    async def watch(self, name_or_id: str, *, newer_than: int = 0) -> AsyncIterator[api.Cluster]:
        """The cluster each time that it has changed, until it has ended or failed."""
        version = newer_than
        while True:
            cluster = await self._run(calls.cluster_after(name_or_id, version=version, wait_s=calls.WAIT_S_MAX))
            if cluster.version > version:
                version = cluster.version
                yield cluster
            if cluster.state in OVER_STATES:
                return

    async def wait_ready(self, name_or_id: str) -> api.Cluster:
        """The cluster once it is ready; raises `StartFailed` if it will not become so."""
        async for cluster in self.watch(name_or_id):
            if is_started(cluster):
                return cluster
        raise AssertionError("a watch ends only with a state that is over, for which is_started raises")

    async def end(self, name_or_id: str) -> api.Bill:
        """Ends a cluster and returns its final bill, once all has been charged and given back."""
        cluster = await self._run(calls.end_cluster(name_or_id))
        while not (bill := await self._run(calls.bill(cluster.id))).final:
            await self._sleep(BILL_POLL_S)
        return bill

    async def extend(
        self, name_or_id: str, hours: int, *, total_uc_max: int | None = None, extension_id: str | None = None
    ) -> api.Cluster:
        """Adds hours at the booked rates; refused if it would cost more than `total_uc_max`."""
        call = calls.extend(
            name_or_id, extension_id=extension_id or new_id("ex"), hours=hours, total_uc_max=total_uc_max
        )
        return await self._run(call)

    async def bill(self, name_or_id: str) -> api.Bill:
        """What a cluster has cost so far, or in the end."""
        return await self._run(calls.bill(name_or_id))

    async def members(self, name_or_id: str) -> "Members":
        """The members of a cluster's mesh, by its chain of signed rosters; see `Client.members`."""
        return (await self._chain(name_or_id))[1]

    async def roster(self, name_or_id: str) -> "Roster | None":
        """The newest roster of a cluster's mesh, verified and kept as `members` does it; None before the first."""
        return (await self._chain(name_or_id))[0].newest

    async def ray_access(self, name_or_id: str) -> api.RayAccess:
        """Where a cluster's Ray is inside its mesh, and the token that it asks for."""
        return await self._run(calls.ray_access(name_or_id))

    async def guests(self, name_or_id: str) -> list[api.Guest]:
        """The person's own machines in a cluster's mesh."""
        return await self._run(calls.guests(name_or_id))

    async def put_guest(self, name_or_id: str, guest_id: str, *, direct_key: str, relayed_key: str) -> api.Guest:
        """Adds a machine to a cluster's mesh, or says that it is still there; see `Client.put_guest`."""
        return await self._run(calls.put_guest(name_or_id, guest_id, direct_key=direct_key, relayed_key=relayed_key))

    async def remove_guest(self, name_or_id: str, guest_id: str) -> None:
        """Takes a machine out of a cluster's mesh; again, it changes nothing."""
        await self._run(calls.remove_guest(name_or_id, guest_id))

    async def gateway(self, name_or_id: str) -> Gateway:
        """Where programs reach a cluster that is ready, and what they must show and believe there."""
        url = checked_url(jobs_url(await self.cluster(name_or_id)))
        context = None if is_plain(url) else await asyncio.to_thread(tls.gateway_context, self.config)
        return Gateway(url, config.key_of(self.config), context)

    async def proposal(self, name_or_id: str) -> "Proposal":
        """The roster that waits for the person's signature, looked at; see `Client.proposal`."""
        from corral.sdk.pins import look_at

        cluster = await self.cluster(name_or_id)
        proposed, members = await self._run(calls.proposal(cluster.id)), await self.members(cluster.id)
        return await asyncio.to_thread(look_at, proposed, cluster, members)

    async def sign(self, proposal: "Proposal") -> api.Cluster:
        """Signs a proposal; see `Client.sign`."""
        from corral.sdk.pins import signature_of

        signature = await asyncio.to_thread(signature_of, proposal)
        return await self._run(calls.sign_roster(proposal.cluster_id, payload=proposal.payload, signature=signature))

    async def create_ticket(self, name_or_id: str) -> api.TicketAnswer:
        """A way into the cluster's dashboard for a browser: works once, for a minute."""
        return await self._run(calls.create_ticket(name_or_id))

    async def jobs(self, name_or_id: str) -> AsyncJobs:
        """The jobs of a cluster that is ready; raises `ClusterNotReady` otherwise."""
        url, key, context = await self.gateway(name_or_id)
        if url not in self._gateways:
            self._gateways[url] = AsyncExecutor(url, api_key=key, context=context, sleep=self._sleep)
        return AsyncJobs(self._gateways[url], api_key=key, context=context, new_id=new_id, sleep=self._sleep)

    async def _chain(self, name_or_id: str) -> "tuple[ChainReader, Members]":
        from corral.sdk.rosters import ChainReader

        cluster_id = name_or_id if is_id(name_or_id) else (await self.cluster(name_or_id)).id
        reader = await asyncio.to_thread(ChainReader.of, cluster_id)
        while await asyncio.to_thread(reader.take, await self._run(calls.rosters(cluster_id, after=reader.after))):
            pass
        return reader, await asyncio.to_thread(reader.keep, self._clock.now())

    async def _run(self, call: calls.Call[T]) -> T:
        if not call.is_public:
            config.key_of(self.config)
        if self._executor is None:
            context = await asyncio.to_thread(tls.control_plane_context, self.config)
            self._executor = AsyncExecutor(
                self.config.url or "", api_key=self.config.api_key, context=context, sleep=self._sleep
            )
        return await self._executor.run(call)
