"""
A small control plane for tests of the SDK and the command line: the people's routes on the wire's own models.

It keeps the rules that a client can see (ids made by the client count once, unknown keys are refused), nothing else.
"""

import base64
import hashlib
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from corral.protocol.roster import GENESIS, Mailbox, Member, Relay, Roster, accept, payload_hash, payload_of, sign
from corral.wire import api
from corral.wire.problem import PROBLEM_MEDIA_TYPE, Problem
from sdk.fake_ray import FakeRay

NOW = datetime(2027, 1, 15, 12, 0, tzinfo=UTC)
KEY = "key_00000000000000000000000001.secret-of-ada"
RATE_UC = 120_000
PHASES = ("quoted", "booked", "containers", "mesh", "head", "workers", "ready")
HOSTS = ("alpha", "beta", "gamma")


class Refused(Exception):
    """A problem document on its way out."""

    def __init__(self, status: int, code: str, detail: str, hint: str | None = None, **facts: Any) -> None:
        super().__init__(detail)
        self.problem = Problem(title=code, status=status, code=code, detail=detail, hint=hint, facts=facts)


def an_id(prefix: str, number: int) -> str:
    """A well-formed id that is the same in each run."""
    return f"{prefix}_{number:026d}"


@dataclass
class FakeControlPlane:
    """All that it knows, for tests to look at and to change."""

    persons: dict[str, str] = field(default_factory=lambda: {KEY: "ada"})
    keys: list[api.Key] = field(default_factory=list)
    balance_uc: int = 5_000_000
    issued: dict[str, api.AddCreditRequest] = field(default_factory=dict)
    bookings: dict[str, api.Cluster] = field(default_factory=dict)
    extensions: set[str] = field(default_factory=set)
    pins: dict[str, str] = field(default_factory=dict)
    """By cluster id: the public key of the renter who alone signs."""
    proposals: dict[str, Roster] = field(default_factory=dict)
    hosts: dict[str, api.Host] = field(default_factory=dict)
    quotes: dict[str, api.Quote] = field(default_factory=dict)
    rosters: dict[str, list[api.ChainedRoster]] = field(default_factory=dict)
    """By id of the cluster: the chain as it is served."""
    guests: dict[str, api.Guest] = field(default_factory=dict)
    roster_key: Ed25519PrivateKey = field(
        default_factory=lambda: Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    )
    rosters_per_page: int = 200
    enrolling: list[api.Host] = field(default_factory=list)
    """Hosts that are there once the list of hosts has been looked at."""
    reporting: set[str] = field(default_factory=set)
    """Names of hosts whose agents report between any two looks at one of them."""
    agent_image: str = f"sha256:{'cd' * 32}"
    start_fails: str = ""
    """A reason makes the next starts fail."""
    answers_lost: int = 0
    """This many requests are acted on, but answered with 503."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    base_url: str = ""
    ray: FakeRay = field(default_factory=lambda: FakeRay(KEY))

    def app(self) -> Starlette:
        """The ASGI application."""
        get, post = ["GET"], ["POST"]
        cluster = "/v1/clusters/{name}"
        routes: list[Route | Mount] = [
            Route("/v1/signup", self._do(self._signup, is_public=True), methods=post),
            Route("/v1/whoami", self._do(self._whoami), methods=get),
            Route("/v1/keys", self._do(self._keys), methods=["GET", "POST"]),
            Route("/v1/keys/{key_id}", self._do(self._revoke), methods=["DELETE"]),
            Route("/v1/credits", self._do(self._credit), methods=post),
            Route("/v1/transfers", self._do(self._transfers), methods=get),
            Route("/v1/earnings", self._do(self._earnings), methods=get),
            Route("/v1/hosts/tokens", self._do(self._token), methods=post),
            Route("/v1/hosts", self._do(self._hosts), methods=get),
            Route("/v1/hosts/{name}", self._do(self._host), methods=get),
            Route("/v1/hosts/{name}/intent", self._do(self._intent), methods=["PUT"]),
            Route("/v1/hosts/{name}/traffic-cap", self._do(self._traffic_cap), methods=["PUT"]),
            Route("/v1/hosts/{name}/location", self._do(self._location), methods=["PUT"]),
            Route("/v1/offers", self._do(self._offers), methods=get),
            Route("/v1/quotes", self._do(self._quote), methods=post),
            Route("/v1/clusters", self._do(self._clusters), methods=["GET", "POST"]),
            Route(cluster, self._do(self._cluster), methods=["GET", "DELETE"]),
            Route(f"{cluster}/extension", self._do(self._extend), methods=post),
            Route(f"{cluster}/tickets", self._do(self._ticket), methods=post),
            Route(f"{cluster}/bill", self._do(self._bill), methods=get),
            Route(f"{cluster}/rosters", self._do(self._rosters), methods=["GET", "POST"]),
            Route(f"{cluster}/proposal", self._do(self._proposal), methods=get),
            Route(f"{cluster}/ray", self._do(self._ray_access), methods=get),
            Route(f"{cluster}/guests", self._do(self._guests), methods=get),
            Route(f"{cluster}/guests/{{guest}}", self._do(self._guest), methods=["PUT", "DELETE"]),
            Mount("/c/{name}", routes=self.ray.routes()),
        ]
        return Starlette(routes=routes)

    def _do(
        self, handle: Callable[[Request, bytes], Any], *, is_public: bool = False
    ) -> Callable[..., Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            self.requests.append((request.method, request.url.path))
            try:
                if not is_public and request.headers.get("Authorization", "")[7:] not in self.persons:
                    raise Refused(401, "key_unknown", "this API key is not known", "`corral login`")
                result = handle(request, await request.body())
            except Refused as refused:
                content = refused.problem.model_dump(mode="json")
                return JSONResponse(content, refused.problem.status, media_type=PROBLEM_MEDIA_TYPE)
            except ValidationError as error:
                problem = Problem(
                    title="malformed", status=422, code="request_malformed", detail=error.errors()[0]["msg"]
                )
                return JSONResponse(problem.model_dump(mode="json"), 422, media_type=PROBLEM_MEDIA_TYPE)
            if self.answers_lost > 0:
                self.answers_lost -= 1
                return Response(status_code=503)
            if result is None:
                return Response(status_code=204)
            return JSONResponse([_json(item) for item in result] if isinstance(result, list) else _json(result))

        return endpoint

    # --- persons and money ---

    def _signup(self, _: Request, body: bytes) -> api.SignedUp:
        name = api.SignupRequest.model_validate_json(body).name
        if name in self.persons.values():
            raise Refused(409, "name_taken", f"the name {name} is taken; no account was made", name=name)
        number = len(self.persons) + 1
        secret = f"{an_id('key', number)}.secret-of-{name}"
        self.persons[secret] = name
        return api.SignedUp(person=self._person(name), key=api.NewKey(key=self._key(number, "first"), secret=secret))

    def _whoami(self, request: Request, _: bytes) -> api.WhoAmI:
        secret = request.headers["Authorization"][7:]
        return api.WhoAmI(
            person=self._person(self.persons[secret]),
            key_id=secret.partition(".")[0],
            balance_uc=self.balance_uc,
            held_uc=0,
            earned_uc=0,
        )

    def _keys(self, request: Request, body: bytes) -> list[api.Key] | api.NewKey:
        if request.method == "GET":
            return [self._key(1, "first"), *self.keys]
        wish = api.CreateKeyRequest.model_validate_json(body)
        key = self._key(len(self.keys) + 7, wish.label)
        if wish.expires_in_s is not None:
            key.expires_at = NOW + timedelta(seconds=wish.expires_in_s)
        self.keys.append(key)
        return api.NewKey(key=key, secret=f"{key.id}.a-new-secret")

    def _revoke(self, request: Request, _: bytes) -> None:
        if all(key.id != request.path_params["key_id"] for key in self.keys):
            raise Refused(404, "key_unknown", f"there is no key {request.path_params['key_id']}; nothing was revoked")

    def _credit(self, _: Request, body: bytes) -> api.Transfer:
        wish = api.AddCreditRequest.model_validate_json(body)
        if wish.id not in self.issued:
            self.issued[wish.id] = wish
            self.balance_uc += wish.amount_uc
        return self._transfer(wish.amount_uc)

    def _transfers(self, _: Request, __: bytes) -> list[api.Transfer]:
        return [self._transfer(wish.amount_uc) for wish in self.issued.values()]

    def _earnings(self, _: Request, __: bytes) -> api.Earnings:
        line = api.EarningsLine(
            booking_id=an_id("bk", 1),
            line_id=an_id("ln", 1),
            host="alpha",
            device="cpu-0",
            minutes=60,
            rate_uc_per_hour=RATE_UC,
            gross_uc=RATE_UC,
            fee_uc=6_000,
            net_uc=114_000,
            settled=True,
        )
        return api.Earnings(total_net_uc=114_000, lines=[line])

    # --- hosts ---

    def _token(self, _: Request, body: bytes) -> api.JoinToken:
        wish = api.JoinTokenRequest.model_validate_json(body)
        if wish.role == "gateway":
            raise Refused(403, "operator_only", "only an operator may join a gateway; no token was made")
        return api.JoinToken(
            token="jt_token-of-one-use",
            expires_at=NOW + timedelta(seconds=wish.expires_in_s),
            uses_max=wish.uses_max,
            role=wish.role,
            url="https://host.docker.internal:8470",
            ca_sha256="ab" * 32,
            agent_image=self.agent_image,
        )

    def _hosts(self, _: Request, __: bytes) -> list[api.Host]:
        found = list(self.hosts.values())
        self.hosts |= {host.name: host for host in self.enrolling}
        return found

    def _host(self, request: Request, _: bytes) -> api.Host:
        name = request.path_params["name"]
        for host in self.hosts.values():
            if host.name in self.reporting:
                host.last_seen_at = (host.last_seen_at or NOW) + timedelta(seconds=30)
        for host in self.hosts.values():
            if name in {host.name, host.id}:
                return host
        raise Refused(404, "host_unknown", f"you have no host {name}", "`corral host list`", host=name)

    def _location(self, request: Request, body: bytes) -> api.Host:
        host, place = self._host(request, body), api.LocationRequest.model_validate_json(body)
        host.location = api.Location(**place.model_dump())
        return host

    def _intent(self, request: Request, body: bytes) -> api.Host:
        host, intent = self._host(request, body), api.IntentRequest.model_validate_json(body).intent
        host.intent = intent
        host.status = {"active": "idle", "paused": "paused", "left": "draining"}[intent]  # pyright: ignore[reportAttributeAccessIssue]
        return host

    def _traffic_cap(self, request: Request, body: bytes) -> api.Host:
        host = self._host(request, body)
        host.traffic_cap_bytes = api.TrafficCapRequest.model_validate_json(body).traffic_cap_bytes
        return host

    # --- market and clusters ---

    def _offers(self, _: Request, __: bytes) -> api.Offers:
        offer = api.Offer(
            kind="cpu",
            model="AMD EPYC 7763",
            rate_uc_per_hour=RATE_UC,
            devices=3,
            hosts=3,
            per_host_max=1,
            cores=1,
            memory_bytes=2 * 2**30,
            gpu_memory_bytes=0,
            provider="grace",
            development=True,
        )
        return api.Offers(as_of=NOW, offers=[offer])

    def _quote(self, _: Request, body: bytes) -> api.Quote:
        wish = api.ClusterRequest.model_validate_json(body)
        nodes = wish.nodes or 1
        if nodes > len(HOSTS) or wish.gpu_count:
            raise Refused(
                409,
                "no_placement",
                f"3 of {max(nodes, wish.gpu_count)} devices exist; nothing was booked",
                "`corral offers` shows what is free",
            )
        rate = RATE_UC * nodes
        lines = [
            api.QuoteLine(
                device_id=an_id("dev", number + 1),
                host=HOSTS[number],
                provider="grace" if number < 2 else "edsger",
                kind="cpu",
                model="AMD EPYC 7763",
                cores=1,
                memory_bytes=2 * 2**30,
                rate_uc_per_hour=RATE_UC,
                development=number == 1,
                is_head=number == 0,
                traffic_cap_bytes=5 * 10**9 if number == 1 else None,
            )
            for number in range(nodes)
        ]
        quote = api.Quote(
            id=an_id("qt", len(self.quotes) + 1),
            name=wish.name or "brisk-otter",
            lines=lines,
            hours=wish.hours,
            rate_uc_per_hour=rate,
            total_uc=rate * wish.hours,
            hold_uc=rate * min(wish.hours, 24),
            minimum_uc=rate,
            fee_basis_points=500,
            expires_at=NOW + timedelta(minutes=5),
            as_of=NOW,
            internet=wish.internet,
        )
        self.quotes[quote.id] = quote
        return quote

    def _clusters(self, request: Request, body: bytes) -> list[api.Cluster] | api.Cluster:
        if request.method == "GET":
            every = request.query_params.get("all") == "true"
            return [cluster for cluster in self.bookings.values() if every or cluster.state not in {"ended", "failed"}]
        wish = api.BookRequest.model_validate_json(body)
        if wish.id in self.bookings:
            return self.bookings[wish.id]
        quote = self.quotes[wish.quote_id]
        if quote.hold_uc > self.balance_uc:
            raise Refused(
                409,
                "insufficient_credit",
                f"{quote.hold_uc} uc are needed, {self.balance_uc} uc are free; nothing was booked",
                "`corral whoami` shows what is free",
                needed_uc=quote.hold_uc,
                free_uc=self.balance_uc,
            )
        self.balance_uc -= quote.hold_uc
        self.bookings[wish.id] = cluster = self._booked(wish, quote)
        if wish.roster_key is not None:
            self.pins[cluster.id], cluster.is_pinned = wish.roster_key, True
        return cluster

    def _cluster(self, request: Request, _: bytes) -> api.Cluster:
        cluster = self._found(request)
        if request.method == "DELETE":
            cluster.state, cluster.ended_at, cluster.held_uc = "ended", NOW + timedelta(minutes=30), 0
            cluster.charged_uc = cluster.rate_uc_per_hour
            cluster.version += 1
        elif "newer_than" in request.query_params and cluster.state in {"booked", "starting"}:
            self._advance(cluster)
        return cluster

    def _extend(self, request: Request, body: bytes) -> api.Cluster:
        cluster, wish = self._found(request), api.ExtendRequest.model_validate_json(body)
        if wish.id not in self.extensions:
            self.extensions.add(wish.id)
            cluster.hours += wish.hours
            cluster.ends_at = (cluster.ends_at or NOW) + timedelta(hours=wish.hours)
        return cluster

    def _ticket(self, request: Request, _: bytes) -> api.TicketAnswer:
        url = f"http://{self._found(request).name}.localhost:8471/?ticket=one-time"
        return api.TicketAnswer(url=url, expires_at=NOW + timedelta(minutes=1))

    def _bill(self, request: Request, _: bytes) -> api.Bill:
        cluster = self._found(request)
        lines = [
            api.BillLine(
                line_id=an_id("ln", number + 1),
                host=node.host,
                provider=node.provider,
                device="cpu-0",
                rate_uc_per_hour=RATE_UC,
                from_at=NOW,
                to_at=NOW + timedelta(hours=1),
                minutes=60,
                minutes_not_delivered=0,
                amount_uc=RATE_UC,
                provider_uc=114_000,
                fee_uc=6_000,
                state="ended",
            )
            for number, node in enumerate(cluster.nodes)
        ]
        amount = RATE_UC * len(lines)
        return api.Bill(
            booking_id=cluster.booking_id,
            cluster=cluster.name,
            final=cluster.state == "ended",
            lines=lines,
            amount_uc=amount,
            held_uc=0,
            returned_uc=amount * (cluster.hours - 1),
            fee_uc=6_000 * len(lines),
            ledger_sum_uc=0,
        )

    def _guests(self, request: Request, _: bytes) -> list[api.Guest]:
        cluster_id = self._found(request).id
        return [guest for guest in self.guests.values() if guest.cluster_id == cluster_id]

    def _guest(self, request: Request, body: bytes) -> api.Guest | None:
        cluster_id, guest_id = self._found(request).id, request.path_params["guest"]
        if request.method == "DELETE":
            self.guests.pop(guest_id, None)
            return None
        keys = api.GuestRequest.model_validate_json(body)
        guest = api.Guest(
            id=guest_id,
            name="guest-9",
            cluster_id=cluster_id,
            address="10.128.48.9",
            network="10.128.0.0/18",
            mtu=1280,
            direct_key=keys.direct_key,
            relayed_key=keys.relayed_key,
            created_at=NOW,
            expires_at=NOW + timedelta(minutes=2),
            lapse_s=120,
        )
        self.guests[guest_id] = guest
        return guest

    def _ray_access(self, request: Request, _: bytes) -> api.RayAccess:
        self._found(request)
        return api.RayAccess(head_address="10.128.0.1", token="c0ffee" * 8)

    def _proposal(self, request: Request, _: bytes) -> api.RosterProposal:
        cluster = self._found(request)
        if cluster.id not in self.proposals:
            raise Refused(404, "nothing_proposed", f"no change of cluster {cluster.id} waits; nothing was changed", "")
        payload = payload_of(self.proposals[cluster.id])
        return api.RosterProposal(cluster_id=cluster.id, payload=payload, proposed_at=NOW)

    def propose(self, cluster: api.Cluster, *members: Member) -> None:
        """Proposes the next roster of a pinned cluster."""
        chain = self.rosters.setdefault(cluster.id, [])
        previous = payload_hash(chain[-1].payload) if chain else GENESIS
        self.proposals[cluster.id] = Roster(
            cluster_id=cluster.id, serial=len(chain) + 1, previous=previous, members=members, relays=(A_RELAY,)
        )
        cluster.awaits_signature = True

    def _signed(self, cluster: api.Cluster, body: bytes) -> api.Cluster:
        wish = api.SignRosterRequest.model_validate_json(body)
        roster = self.proposals.pop(cluster.id)
        assert payload_of(roster) == wish.payload
        previous = roster.previous if roster.serial > 1 else None
        accept(
            wish.payload,
            wish.signature,
            cluster_id=cluster.id,
            roster_key=self.pins[cluster.id],
            last_serial=roster.serial - 1,
            last_hash=previous,
        )
        chained = api.ChainedRoster(serial=roster.serial, payload=wish.payload, signature=wish.signature, signed_at=NOW)
        self.rosters.setdefault(cluster.id, []).append(chained)
        cluster.awaits_signature = False
        return cluster

    def _rosters(self, request: Request, body: bytes) -> api.RosterChain | api.Cluster:
        if request.method == "POST":
            return self._signed(self._found(request), body)
        cluster_id, after = self._found(request).id, int(request.query_params.get("after", "0"))
        later = [one for one in self.rosters.get(cluster_id, []) if one.serial > after]
        return api.RosterChain(
            cluster_id=cluster_id,
            roster_key=self.pins.get(cluster_id) or public_key(self.roster_key),
            rosters=later[: self.rosters_per_page],
        )

    def publish(self, cluster_id: str, *members: Member) -> None:
        """Signs the next roster of a cluster."""
        chain = self.rosters.setdefault(cluster_id, [])
        previous = payload_hash(chain[-1].payload) if chain else GENESIS
        roster = Roster(
            cluster_id=cluster_id, serial=len(chain) + 1, previous=previous, members=members, relays=(A_RELAY,)
        )
        chain.append(signed(roster, self.roster_key))

    # --- builders ---

    def _found(self, request: Request) -> api.Cluster:
        name = request.path_params["name"]
        for cluster in self.bookings.values():
            if name in {cluster.name, cluster.id}:
                return cluster
        raise Refused(404, "cluster_unknown", f"you have no cluster {name}", "`corral ps --all`", cluster=name)

    def _advance(self, cluster: api.Cluster) -> None:
        cluster.version += 1
        cluster.state = "starting"
        following = next(phase for phase in cluster.phases if phase.at is None)
        if self.start_fails and following.name == "mesh":
            cluster.state, cluster.reason, cluster.ended_at, cluster.held_uc = "failed", self.start_fails, NOW, 0
            return
        if following.name == "mesh" and cluster.is_pinned and not self.rosters.get(cluster.id):
            following.detail = "waits for your signature"
            members = [msgspec.structs.replace(a_member(n), node_id=node.id) for n, node in enumerate(cluster.nodes, 1)]
            self.propose(cluster, *members, a_member(9, leaf=True))
            return
        following.at, following.seconds, following.detail = NOW, 1.5, ""
        if following.name == "ready":
            cluster.state, cluster.ready_at = "ready", NOW
            cluster.ends_at = NOW + timedelta(hours=cluster.hours)
            cluster.jobs_url = f"{self.base_url}/c/{cluster.name}"

    def _booked(self, wish: api.BookRequest, quote: api.Quote) -> api.Cluster:
        nodes = [
            api.Node(
                id=an_id("nd", number + 1),
                name=line.host,
                role="head" if line.is_head else "worker",
                host=line.host,
                provider=line.provider,
                address=f"10.128.0.{number + 2}",
                state="running",
                devices=["cpu-0"],
                received_bytes=1536 * number,
                sent_bytes=10**9 * number,
                internet_received_bytes=int(1.26e6),
                internet_sent_bytes=999 * number,
                relayed=["gateway"] if number == 1 else [],
                traffic_cap_bytes=line.traffic_cap_bytes,
                is_slowed=number == 1,
            )
            for number, line in enumerate(quote.lines)
        ]
        return api.Cluster(
            id=an_id("cl", len(self.bookings) + 1),
            booking_id=wish.id,
            name=quote.name,
            state="booked",
            reason="",
            phases=[
                api.Phase(name=name, at=NOW if number < 2 else None, seconds=0.2 if number < 2 else None)
                for number, name in enumerate(PHASES)
            ],
            nodes=nodes,
            providers=sorted({line.provider for line in quote.lines}),
            rate_uc_per_hour=quote.rate_uc_per_hour,
            held_uc=quote.hold_uc,
            charged_uc=0,
            hours=quote.hours,
            created_at=NOW,
            ready_at=None,
            ends_at=None,
            ended_at=None,
            jobs_url=None,
            version=1,
            internet=quote.internet,
        )

    def _person(self, name: str) -> api.Person:
        return api.Person(id=an_id("per", 1), name=name, is_operator=False, created_at=NOW)

    def _key(self, number: int, label: str) -> api.Key:
        return api.Key(
            id=an_id("key", number), label=label, created_at=NOW, expires_at=None, revoked_at=None, last_used_at=None
        )

    def _transfer(self, amount_uc: int) -> api.Transfer:
        return api.Transfer(
            id=an_id("tr", 1),
            kind="transfer",
            debit="network:issued",
            credit=f"balance:{an_id('per', 1)}",
            amount_uc=amount_uc,
            hold_id=None,
            booking_id=None,
            line_id=None,
            at=NOW,
            memo="credit",
        )


def public_key(key: Ed25519PrivateKey) -> str:
    """The public part, base 64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def signed(roster: Roster, key: Ed25519PrivateKey) -> api.ChainedRoster:
    """A roster as it is served."""
    payload = payload_of(roster)
    signed_at = NOW + timedelta(seconds=roster.serial)
    return api.ChainedRoster(serial=roster.serial, payload=payload, signature=sign(payload, key), signed_at=signed_at)


def resigned(one: api.ChainedRoster, key: Ed25519PrivateKey, **changes: Any) -> api.ChainedRoster:
    """A served roster with other content, signed anew."""
    return signed(msgspec.structs.replace(msgspec.json.decode(one.payload, type=Roster), **changes), key)


A_RELAY = Relay(relay_id=an_id("hst", 900), site="192.0.2.90", address="192.0.2.90", observer_key="observer")


def a_member(number: int, *, start: int = 1, leaf: bool = False) -> Member:
    """A member as its mesh container is after its start number `start`: each start has keys of its own."""
    direct, relayed = (
        base64.b64encode(hashlib.sha256(f"{plane} {number} {start}".encode()).digest()).decode()
        for plane in ("direct", "relayed")
    )
    return Member(
        node_id=an_id("nd", number),
        name="gate" if leaf else f"n{number}",
        kind="leaf" if leaf else "node",
        address=f"10.128.48.{number}" if leaf else f"10.128.0.{number}",
        direct_key=direct,
        relayed_key=relayed,
        engine_id=f"engine-{number}",
        endpoints=() if leaf else ("172.17.0.2:51820", f"198.51.100.{number}:32768"),
        mailboxes=(Mailbox(relay_id=A_RELAY.relay_id, port=41000 + number),),
    )


def a_host(name: str = "alpha", number: int = 1) -> api.Host:
    """An idle host with one CPU slice, and one rule that development relaxed."""
    device = api.Device(
        id=an_id("dev", number),
        key="cpu-0",
        kind="cpu",
        model="AMD EPYC 7763",
        cores=0.4,
        memory_bytes=2 * 2**30,
        disk_bytes=10 * 2**30,
        gpu_memory_bytes=0,
        status="idle",
    )
    checks = [
        api.HostCheck(rule="docker", outcome="pass", value="20.10", need="20.10 or newer", remedy=""),
        api.HostCheck(rule="disk", outcome="relaxed", value="80 GB", need="500 GB free", remedy="free 420 GB"),
    ]
    return api.Host(
        id=an_id("hst", number),
        name=name,
        role="host",
        status="idle",
        reason="",
        intent="active",
        development=True,
        last_seen_at=NOW,
        clock_skew_s=0.2,
        agent_version="0.1.0",
        cpu_model="AMD EPYC 7763",
        cores=2,
        memory_bytes=4 * 2**30,
        disk_free_bytes=80 * 10**9,
        gpus=[],
        devices=[device],
        checks=checks,
        connection=api.Connection(
            download_mbit_s=612.4,
            upload_mbit_s=404.9,
            bandwidth_at=NOW,
            relay="relay-1",
            rtt_ms=41.3,
            jitter_ms=0.7,
            loss_percent=0,
            measured_at=NOW,
            tier="medium",
            is_recommended=False,
        ),
    )


class Serving:
    """An ASGI application on a loopback port, in a thread."""

    def __init__(self, app: Any, **options: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1, **options)
        self._server = uvicorn.Server(config)
        # The socket listens already: a client's first connection waits in its queue until the thread takes it.
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the server and its thread."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()


def _json(value: BaseModel) -> Any:
    return value.model_dump(mode="json")
