"""
Where a relay sends a packet that it cannot read. Pure: no socket, no clock.

Every member has one mailbox, a UDP port to which it sends all its relayed packets. So the port names the sender, and
the packet names the receiver: a handshake message by mac1, which is keyed by the receiver's public key, everything else
by the index that the receiver chose when the two shook hands.

What is believed, and when:

- An address is believed per *pair* of members, never for a member as a whole. Whoever holds a key of the cluster can
  forge "a member called, and I answered"; so what one member vouches for counts for its own traffic alone.
- A call (initiation) makes its source a *candidate*. A response is taken only from an address to which the relay itself
  sent the call. From the address that the pair already trusts, it proves the caller's address at once. From any other,
  it proves nothing until the caller's first data packet carries the index that the response gave: a caller sends that
  packet as soon as it has verified the response, and never after a forged one.
- A pair that trusts an address moves only if one of the two ends is where it was, or if both new addresses have been
  proved with other members. A pair that trusts none (the first meeting) takes the first handshake that is completed.
  Somebody who knows both public keys could complete one before the two have met; the pair is his until he has been
  silent for PROOF_S. What he gets is silence between the two, never plaintext.
- Data from an unknown address with a known index is dropped, but its source then gets a copy of the handshake messages
  for that member, so that whichever end calls next restores the pair. If the address was already proved with another
  member, the pair follows at once: one handshake moves all pairs of a member that roamed. That rests on an index that
  only the two ends know, so it does not hold for an index that went to more than one address.
"""

import base64
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from corral.relay import packets
from corral.relay.errors import MailboxesRefused
from corral.relay.limits import Gate, HandshakeLimiter, Limits, TokenBucket
from corral.relay.packets import Mac1

Address: TypeAlias = tuple[str, int]
"""IP and UDP port."""

PROOF_S = 300.0
"""How long an address is believed after a handshake proved it. WireGuard renews a session in use after 120 s and drops
it after 180 s, so whoever has not been proved for this long has no session left whose packets could be of use."""

SESSION_S = 240.0
"""180 s after which WireGuard refuses a session's packets, and a margin for a slow response."""

SESSIONS_PER_PAIR = 3
"""The present session, the one before, and one of calls that crossed."""

CALL_S = 10.0
"""How long a call may be answered: twice the 5 s after which WireGuard calls again with a new index."""

UNPROVED_S = 60.0
"""How long the caller's first data packet may prove a response: the keepalive after it may be lost, and its next
regular one comes within 25 s."""

CANDIDATE_S = 60.0
CANDIDATES_MAX = 3
"""Remembered per member, at most one per IP, so that one source with many ports does not push out the others."""

OWN_CALLS_MAX = 4096
STRANGE_CALLS_MAX = 256
CALLS_PER_INDEX_MAX = 4
UNPROVED_MAX = 256
ANSWERS_MAX = 3
PROVED_MAX = 4
SWEEP_S = 5.0
OBSERVED_S = 300.0


class Reason(StrEnum):
    """Why a packet was not forwarded."""

    NO_MAILBOX = "no_mailbox"
    MALFORMED = "malformed"
    RATE = "rate"
    WRONG_MAC = "wrong_mac"
    INDEX_TAKEN = "index_taken"
    REPLAYED = "replayed"
    UNKNOWN_INDEX = "unknown_index"
    UNKNOWN_ADDRESS = "unknown_address"
    NO_ADDRESS = "no_address"
    PAIR_RATE = "pair_rate"
    PAIR_QUOTA = "pair_quota"
    OBSERVED = "observed"
    NOT_SENT = "not_sent"


@dataclass(frozen=True, kw_only=True)
class Mailbox:
    """One member's place at the relay."""

    node_id: str
    cluster_id: str
    port: int
    public_key: bytes
    """WireGuard's X25519 public key of the member's relayed plane, 32 bytes."""

    @classmethod
    def from_base64(cls, *, node_id: str, cluster_id: str, port: int, public_key: str) -> "Mailbox":
        """
        A mailbox whose key is given as rosters and `wg` write it.

        Raises:
            MailboxesRefused: the key is not base 64.
        """
        try:
            key = base64.b64decode(public_key, validate=True)
        except ValueError as error:
            raise MailboxesRefused(f"node {node_id} has a key that is not base 64") from error
        return cls(node_id=node_id, cluster_id=cluster_id, port=port, public_key=key)


@dataclass(frozen=True, slots=True)
class Forward:
    """A packet goes out of the mailbox `port`, to each of `addresses`; more than one only for handshake messages."""

    port: int
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """A packet goes nowhere."""

    reason: Reason


_DROPS = {reason: Drop(reason) for reason in Reason}

ObservedCallback: TypeAlias = Callable[[str, Address | None], None]


@dataclass(slots=True, eq=False)
class _Member:
    mailbox: Mailbox
    mac1: Mac1
    gate: Gate
    pairs: "dict[str, _Pair]" = field(default_factory=dict)
    candidates: "OrderedDict[str, tuple[Address, float]]" = field(default_factory=OrderedDict)
    """By IP, the newest last: where a call with a valid mac1 came from, and when."""
    proved: "OrderedDict[Address, tuple[str, float]]" = field(default_factory=OrderedDict)
    """The newest last: with which member it was last proved, and when."""
    own_calls: "OrderedDict[tuple[int, str], _Call]" = field(default_factory=OrderedDict)
    strange_calls: "OrderedDict[tuple[int, str], _Call]" = field(default_factory=OrderedDict)
    """Calls from this mailbox that may still be answered, by index and callee; those from an address that is not proved
    have a small table of their own, so that junk cannot push out a member's."""
    awaited: "dict[int, list[_Call]]" = field(default_factory=dict)
    """Calls to this member, by the index that its response will name."""
    unproved: "OrderedDict[int, _Session]" = field(default_factory=OrderedDict)
    """Answered calls of this member, by the index that its data will name."""
    routes: "dict[int, _Session]" = field(default_factory=dict)
    """By the index that this member's packets name."""
    observed: "tuple[Address, float] | None" = None

    @property
    def node_id(self) -> str:
        return self.mailbox.node_id


@dataclass(slots=True, eq=False)
class _Call:
    caller: _Member
    address: Address
    callee: _Member
    sent_to: tuple[Address, ...]
    index: int
    at: float
    answers: int = 0


@dataclass(slots=True, eq=False)
class _Session:
    caller: _Member
    caller_address: Address
    callee: _Member
    callee_address: Address
    caller_index: int
    """Chosen by the caller: what the callee's packets name."""
    callee_index: int
    at: float
    is_private: bool
    """Whether the call, and so `caller_index`, went to one address only."""
    pair: "_Pair | None" = None

    def peer_of(self, member: _Member) -> _Member:
        return self.callee if member is self.caller else self.caller

    def address_of(self, member: _Member) -> Address:
        return self.caller_address if member is self.caller else self.callee_address


@dataclass(slots=True, eq=False)
class _Pair:
    """Two members that have met."""

    bucket: TokenBucket
    addresses: dict[str, Address] = field(default_factory=dict)
    """Both or none, by node id."""
    forwards: dict[str, Forward] = field(default_factory=dict)
    """To each of these addresses: made once, because every run of packets needs one."""
    proved_at: float = 0.0
    sessions: list[_Session] = field(default_factory=list)
    hints: dict[str, tuple[Address, float]] = field(default_factory=dict)
    """Where data with a known index came from that is not where the member was."""
    used_bytes: int = 0

    def place(self, member: _Member, address: Address) -> None:
        """From now on believes `member` to be at `address`."""
        self.addresses[member.node_id] = address
        self.forwards[member.node_id] = Forward(member.mailbox.port, (address,))

    def forget_places(self) -> None:
        """Believes nothing of where the two are."""
        self.addresses.clear()
        self.forwards.clear()


class Switchboard:
    """The state of all mailboxes. Not safe for use from two threads."""

    def __init__(
        self,
        observer_key: bytes,
        *,
        limits: Limits | None = None,
        now: float = 0.0,
        on_observed: ObservedCallback | None = None,
    ) -> None:
        """
        Begins without a mailbox.

        Args:
            observer_key: the relay's own X25519 public key, 32 bytes.
            limits: what is granted.
            now: monotonic seconds.
            on_observed: told of a node's new observed address, or of None when it lapsed.
        """
        self._limits = limits or Limits()
        self._observer = Mac1(observer_key)
        self._on_observed = on_observed or (lambda node_id, address: None)
        self._limiter = HandshakeLimiter(self._limits, now)
        self._by_port: dict[int, _Member] = {}
        self._by_node: dict[str, _Member] = {}
        self._clusters: dict[str, list[_Member]] = {}
        self._now = now
        self._sweep_at = now + SWEEP_S

    @property
    def mailboxes(self) -> list[Mailbox]:
        """The list in force."""
        return [member.mailbox for member in self._by_port.values()]

    @property
    def proved_members(self) -> int:
        """Members with an address that a handshake has proved."""
        return sum(1 for member in self._by_port.values() if member.proved)

    def set_mailboxes(self, mailboxes: Iterable[Mailbox]) -> None:
        """
        Makes this the whole list. An unchanged mailbox keeps its state; a changed one begins anew.

        Raises:
            MailboxesRefused: the list contradicts itself; nothing was changed.
        """
        wanted = check_mailboxes(mailboxes)
        for port, member in list(self._by_port.items()):
            if wanted.get(port) != member.mailbox:
                self._remove(member)
        for port, mailbox in wanted.items():
            if port not in self._by_port:
                member = _Member(mailbox, Mac1(mailbox.public_key), Gate(self._limits, self._now))
                self._by_port[port] = self._by_node[mailbox.node_id] = member
                self._clusters.setdefault(mailbox.cluster_id, []).append(member)

    def on_packet(self, port: int, source: Address, packet: bytes | memoryview, now: float) -> Forward | Drop:
        """
        What happens to one packet.

        Args:
            port: the mailbox that it came to.
            source: where it came from.
            packet: the UDP payload.
            now: monotonic seconds.
        """
        kind = packet[:4]
        if kind == packets.DATA and len(packet) >= packets.DATA_BYTES_MIN:
            return self.on_data(port, source, packets.receiver_index(packet), len(packet), now)
        if now >= self._sweep_at:
            self.expire(now)
        self._now = now
        member = self._by_port.get(port)
        if member is None:
            return _DROPS[Reason.NO_MAILBOX]
        if kind == packets.INITIATION and len(packet) == packets.INITIATION_BYTES:
            handle = self._on_initiation
        elif kind == packets.RESPONSE and len(packet) == packets.RESPONSE_BYTES:
            handle = self._on_response
        elif kind == packets.COOKIE and len(packet) == packets.COOKIE_BYTES:
            handle = self._on_cookie
        else:
            return _DROPS[Reason.MALFORMED]
        payers = self._limiter.admit(member.gate, source[0], is_proved=source in member.proved, now=now)
        if payers is None:
            return _DROPS[Reason.RATE]
        outcome, trials = handle(member, source, bytes(packet), now)
        for payer in payers:
            payer.charge(trials)
        return outcome if isinstance(outcome, Forward) else _DROPS[outcome]

    def on_data(self, port: int, source: Address, index: int, size_bytes: int, now: float) -> Forward | Drop:
        """
        What happens to a data packet, or to a run of them with the same receiver index.

        Args:
            port: the mailbox that they came to.
            source: where they came from.
            index: the receiver index that they name.
            size_bytes: their UDP payloads together.
            now: monotonic seconds.
        """
        if now >= self._sweep_at:
            self.expire(now)
        self._now = now
        member = self._by_port.get(port)
        if member is None:
            return _DROPS[Reason.NO_MAILBOX]
        session = member.routes.get(index)
        if session is None or (pair := session.pair) is None:
            session = member.unproved.get(index)
            if session is None:
                return _DROPS[Reason.UNKNOWN_INDEX]
            if source != session.caller_address or not self._prove(session, now):
                return _DROPS[Reason.UNKNOWN_ADDRESS]
            pair = session.pair
            assert pair is not None
        peer = session.callee if member is session.caller else session.caller
        if source != pair.addresses[member.mailbox.node_id]:
            if source not in member.proved or not (session.is_private or member is session.caller):
                pair.hints[member.mailbox.node_id] = (source, now)
                return _DROPS[Reason.UNKNOWN_ADDRESS]
            pair.place(member, source)
        quota = self._limits.pair_quota_bytes
        if quota is not None and pair.used_bytes + size_bytes > quota:
            return _DROPS[Reason.PAIR_QUOTA]
        if not pair.bucket.take(size_bytes, now):
            return _DROPS[Reason.PAIR_RATE]
        pair.used_bytes += size_bytes
        return pair.forwards[peer.mailbox.node_id]

    def expire(self, now: float) -> None:
        """Forgets what has lapsed; packets cause it too, every SWEEP_S."""
        self._sweep_at = now + SWEEP_S
        self._now = now
        for member in self._by_port.values():
            for calls in (member.own_calls, member.strange_calls):
                while calls and (call := next(iter(calls.values()))).at + CALL_S <= now:
                    calls.popitem(last=False)
                    _forget_awaited(call)
            while member.unproved and next(iter(member.unproved.values())).at + UNPROVED_S <= now:
                member.unproved.popitem(last=False)
            while member.candidates and next(iter(member.candidates.values()))[1] + CANDIDATE_S <= now:
                member.candidates.popitem(last=False)
            for address in [address for address, (_, at) in member.proved.items() if at + PROOF_S <= now]:
                del member.proved[address]
            if member.observed is not None and member.observed[1] + OBSERVED_S <= now:
                member.observed = None
                self._on_observed(member.node_id, None)
            for pair in member.pairs.values():
                while pair.sessions and pair.sessions[0].at + SESSION_S <= now:
                    self._forget_session(pair.sessions[0])
                if pair.addresses and pair.proved_at + PROOF_S <= now:
                    while pair.sessions:
                        self._forget_session(pair.sessions[0])
                    pair.forget_places()
                    pair.hints.clear()

    def observed(self, node_id: str) -> Address | None:
        """Where the member's direct plane is seen from, if it called the observer within OBSERVED_S."""
        member = self._by_node.get(node_id)
        seen = member.observed if member else None
        return seen[0] if seen else None

    def address_of(self, node_id: str) -> Address | None:
        """The newest address that a handshake has proved, or None."""
        member = self._by_node.get(node_id)
        return next(reversed(member.proved)) if member and member.proved else None

    def remembered(self) -> int:
        """Entries that packets have made, all tables together: what must stay bounded under junk."""
        return self._limiter.sources + sum(
            len(member.candidates)
            + len(member.proved)
            + len(member.own_calls)
            + len(member.strange_calls)
            + sum(map(len, member.awaited.values()))
            + len(member.unproved)
            + len(member.routes)
            + len(member.pairs)
            for member in self._by_port.values()
        )

    def _on_initiation(
        self, caller: _Member, source: Address, packet: bytes, now: float
    ) -> tuple[Forward | Reason, int]:
        covered = packet[: packets.INITIATION_COVERED_BYTES]
        mac = packet[packets.INITIATION_COVERED_BYTES :][: packets.MAC1_BYTES]
        trials = 1
        if self._observer.of(covered) == mac:
            return self._observe(caller, source, now), trials
        callee = None
        for member in self._clusters[caller.mailbox.cluster_id]:
            if member is not caller:
                trials += 1
                if member.mac1.of(covered) == mac:
                    callee = member
                    break
        if callee is None:
            return Reason.WRONG_MAC, trials
        index = packets.sender_index(packet)
        known = callee.routes.get(index)
        if known is not None and known.peer_of(callee) is not caller:
            return Reason.INDEX_TAKEN, trials
        # WireGuard takes a new index for each call, so this one is old; from where it came then it may come again.
        if known is not None and source not in (known.address_of(caller), self._address(caller, callee)):
            return Reason.REPLAYED, trials
        waiting = callee.awaited.get(index, [])
        if any(call.caller is caller and call.address != source for call in waiting):
            return Reason.REPLAYED, trials
        if len(waiting) >= CALLS_PER_INDEX_MAX:
            return Reason.INDEX_TAKEN, trials
        if source not in caller.proved:
            _remember_candidate(caller, source, now)
        sent_to = self._handshake_addresses(callee, caller)
        if not sent_to:
            return Reason.NO_ADDRESS, trials
        self._remember_call(_Call(caller, source, callee, sent_to, index, now))
        return Forward(callee.mailbox.port, sent_to), trials

    def _on_response(self, callee: _Member, source: Address, packet: bytes, now: float) -> tuple[Forward | Reason, int]:
        index, new_index = packets.receiver_index(packet), packets.sender_index(packet)
        waiting = [call for call in callee.awaited.get(index, ()) if call.at + CALL_S > now]
        if not waiting:
            return Reason.UNKNOWN_INDEX, 1
        covered = packet[: packets.RESPONSE_COVERED_BYTES]
        mac = packet[packets.RESPONSE_COVERED_BYTES :][: packets.MAC1_BYTES]
        call = next((call for call in waiting if call.caller.mac1.of(covered) == mac), None)
        if call is None:
            return Reason.WRONG_MAC, len(waiting)
        if source not in call.sent_to:
            return Reason.UNKNOWN_ADDRESS, len(waiting)
        caller = call.caller
        known = caller.routes.get(new_index) or caller.unproved.get(new_index)
        if known is not None:
            is_same = known.peer_of(caller) is callee
            return (Reason.REPLAYED if is_same else Reason.INDEX_TAKEN), len(waiting)
        if call.answers >= ANSWERS_MAX:
            return Reason.REPLAYED, len(waiting)
        call.answers += 1
        session = _Session(caller, call.address, callee, source, index, new_index, now, len(call.sent_to) == 1)
        if self._address(callee, caller) != source or not self._prove(session, now):
            caller.unproved[new_index] = session
            if len(caller.unproved) > UNPROVED_MAX:
                caller.unproved.popitem(last=False)
        return Forward(caller.mailbox.port, (call.address,)), len(waiting)

    def _on_cookie(self, member: _Member, source: Address, packet: bytes, now: float) -> tuple[Forward | Reason, int]:
        index = packets.receiver_index(packet)
        waiting = [call for call in member.awaited.get(index, ()) if call.at + CALL_S > now]
        for call in waiting:
            if source in call.sent_to:
                return Forward(call.caller.mailbox.port, (call.address,)), 1
        session = member.routes.get(index) or member.unproved.get(index)
        if session is None:
            return (Reason.UNKNOWN_ADDRESS if waiting else Reason.UNKNOWN_INDEX), 1
        if source not in (session.address_of(member), self._address(member, session.peer_of(member))):
            return Reason.UNKNOWN_ADDRESS, 1
        peer = session.peer_of(member)
        return Forward(peer.mailbox.port, (self._address(peer, member) or session.address_of(peer),)), 1

    def _observe(self, member: _Member, source: Address, now: float) -> Reason:
        if all(address[0] != source[0] for address in member.proved):
            return Reason.UNKNOWN_ADDRESS
        before = member.observed
        member.observed = (source, now)
        if before is None or before[0] != source:
            self._on_observed(member.node_id, source)
        return Reason.OBSERVED

    def _prove(self, session: _Session, now: float) -> bool:
        """Believes the addresses of a completed handshake, unless the pair moved and nobody vouches for it."""
        caller, callee = session.caller, session.callee
        pair = caller.pairs.get(callee.node_id)
        if pair is not None and pair.addresses:
            is_anchored = (
                pair.addresses[caller.node_id] == session.caller_address
                or pair.addresses[callee.node_id] == session.callee_address
            )
            if not is_anchored and not (
                _is_proved_elsewhere(caller, session.caller_address, callee)
                and _is_proved_elsewhere(callee, session.callee_address, caller)
            ):
                return False
        for member, index in ((caller, session.callee_index), (callee, session.caller_index)):
            known = member.routes.get(index)
            if known is not None and known.peer_of(member) is not session.peer_of(member):
                return False
        if pair is None:
            pair = _Pair(TokenBucket(self._limits.pair_rate_bytes_s, self._limits.pair_burst_bytes, now))
            caller.pairs[callee.node_id] = callee.pairs[caller.node_id] = pair
        for member, index in ((caller, session.callee_index), (callee, session.caller_index)):
            known = member.routes.get(index)
            if known is not None:
                self._forget_session(known)
        caller.unproved.pop(session.callee_index, None)
        session.pair = pair
        pair.sessions.append(session)
        caller.routes[session.callee_index] = callee.routes[session.caller_index] = session
        while len(pair.sessions) > SESSIONS_PER_PAIR:
            self._forget_session(pair.sessions[0])
        pair.proved_at = now
        pair.hints.clear()
        for member, address, peer in (
            (caller, session.caller_address, callee),
            (callee, session.callee_address, caller),
        ):
            pair.place(member, address)
            _remember_proved(member, address, peer, now)
        return True

    @staticmethod
    def _address(member: _Member, peer: _Member) -> Address | None:
        """Where the pair of `member` and `peer` believes `member` to be."""
        pair = member.pairs.get(peer.node_id)
        return pair.addresses.get(member.node_id) if pair else None

    def _handshake_addresses(self, member: _Member, peer: _Member) -> tuple[Address, ...]:
        """Where handshake messages from `peer` to `member` go, the likeliest first."""
        found: dict[Address, None] = {}
        pair = member.pairs.get(peer.node_id)
        if pair is not None and pair.addresses:
            found[pair.addresses[member.node_id]] = None
            if (hint := pair.hints.get(member.node_id)) is not None and hint[1] + CANDIDATE_S > self._now:
                found[hint[0]] = None
        else:
            found.update(dict.fromkeys(reversed(member.proved)))
            found.update((address, None) for address, _ in reversed(member.candidates.values()))
        return tuple(found)

    def _remember_call(self, call: _Call) -> None:
        caller = call.caller
        calls = caller.own_calls if call.address in caller.proved else caller.strange_calls
        key = (call.index, call.callee.node_id)
        if (older := calls.pop(key, None)) is not None:
            _forget_awaited(older)
        calls[key] = call
        call.callee.awaited.setdefault(call.index, []).append(call)
        most = OWN_CALLS_MAX if calls is caller.own_calls else STRANGE_CALLS_MAX
        if len(calls) > most:
            _forget_awaited(calls.popitem(last=False)[1])

    @staticmethod
    def _forget_session(session: _Session) -> None:
        if session.pair is not None:
            session.pair.sessions.remove(session)
            session.pair = None
        for member, index in ((session.caller, session.callee_index), (session.callee, session.caller_index)):
            if member.routes.get(index) is session:
                del member.routes[index]

    def _remove(self, member: _Member) -> None:
        for calls in (member.own_calls, member.strange_calls):
            for call in calls.values():
                _forget_awaited(call)
        for calls in list(member.awaited.values()):
            for call in list(calls):
                for table in (call.caller.own_calls, call.caller.strange_calls):
                    if table.get((call.index, member.node_id)) is call:
                        del table[call.index, member.node_id]
        for peer_id, pair in member.pairs.items():
            for session in list(pair.sessions):
                self._forget_session(session)
            del self._by_node[peer_id].pairs[member.node_id]
        cluster = self._clusters[member.mailbox.cluster_id]
        cluster.remove(member)
        for peer in cluster:
            for index in [index for index, session in peer.unproved.items() if session.callee is member]:
                del peer.unproved[index]
        if not cluster:
            del self._clusters[member.mailbox.cluster_id]
        del self._by_port[member.mailbox.port]
        del self._by_node[member.node_id]
        if member.observed is not None:
            self._on_observed(member.node_id, None)


def check_mailboxes(mailboxes: Iterable[Mailbox]) -> dict[int, Mailbox]:
    """
    The list by port.

    Raises:
        MailboxesRefused: a port, node or key occurs twice, or cannot exist.
    """
    by_port: dict[int, Mailbox] = {}
    nodes: set[str] = set()
    keys: set[bytes] = set()
    for mailbox in mailboxes:
        if not 0 < mailbox.port < 65536:
            raise MailboxesRefused(f"node {mailbox.node_id} has port {mailbox.port}, which no socket can have")
        if len(mailbox.public_key) != packets.KEY_BYTES:
            size = len(mailbox.public_key)
            raise MailboxesRefused(f"node {mailbox.node_id} has a key of {size} bytes, not {packets.KEY_BYTES}")
        if (other := by_port.get(mailbox.port)) is not None:
            raise MailboxesRefused(f"nodes {other.node_id} and {mailbox.node_id} share port {mailbox.port}")
        if mailbox.node_id in nodes:
            raise MailboxesRefused(f"node {mailbox.node_id} has two mailboxes")
        if mailbox.public_key in keys:
            raise MailboxesRefused(f"node {mailbox.node_id} has the key of another one")
        by_port[mailbox.port] = mailbox
        nodes.add(mailbox.node_id)
        keys.add(mailbox.public_key)
    return by_port


def _remember_candidate(member: _Member, address: Address, now: float) -> None:
    member.candidates.pop(address[0], None)
    member.candidates[address[0]] = (address, now)
    if len(member.candidates) > CANDIDATES_MAX:
        member.candidates.popitem(last=False)


def _remember_proved(member: _Member, address: Address, peer: _Member, now: float) -> None:
    # One member vouches for one address of another, so that it cannot push out what the others vouch for.
    for older in [older for older, (prover, _) in member.proved.items() if prover == peer.node_id and older != address]:
        others = (
            (pair.proved_at, node_id)
            for node_id, pair in member.pairs.items()
            if node_id != peer.node_id and pair.addresses.get(member.node_id) == older
        )
        newest = max(others, default=None)
        if newest is None:
            del member.proved[older]
        else:
            member.proved[older] = (newest[1], newest[0])
    member.proved.pop(address, None)
    member.proved[address] = (peer.node_id, now)
    if len(member.proved) > PROVED_MAX:
        member.proved.popitem(last=False)
    member.candidates.pop(address[0], None)


def _is_proved_elsewhere(member: _Member, address: Address, peer: _Member) -> bool:
    proved = member.proved.get(address)
    return proved is not None and proved[0] != peer.node_id


def _forget_awaited(call: _Call) -> None:
    calls = call.callee.awaited.get(call.index)
    if calls is not None and call in calls:
        calls.remove(call)
        if not calls:
            del call.callee.awaited[call.index]
