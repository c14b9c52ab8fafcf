"""Who a packet is for, and whose address is believed: the rules, without a socket."""

import secrets
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import cookie, data, initiation, mac1_by_definition, response

from corral.relay import Address, Limits, Mailbox, MailboxesRefused, Reason
from corral.relay.forwarding import OBSERVED_S, PROOF_S, SESSIONS_PER_PAIR, Drop, Forward, Switchboard
from corral.relay.packets import Mac1

A, B, C, FAR = (
    Mailbox(node_id=f"node_{name}", cluster_id=cluster, port=port, public_key=bytes([port % 256]) * 32)
    for name, cluster, port in (("a", "one", 5001), ("b", "one", 5002), ("c", "one", 5003), ("far", "two", 5004))
)
HOME: dict[int, Address] = {box.port: (f"192.0.2.{box.port % 256}", 51821) for box in (A, B, C, FAR)}
AWAY: Address = ("198.51.100.7", 4242)
STRANGER: Address = ("203.0.113.66", 666)
OBSERVER = b"\xee" * 32

RECORDED_KEYS = {
    "caller": "67efbb0491bd539ed40887c0a14776b1509728a21e138432ab9c6b1f81ec4a79",
    "callee": "9e66094589924ddce60bf8c2f7d4273161ff8d9ff429fd06b09efa82ec639f57",
}
RECORDED_CALL = bytes.fromhex(
    "010000008b5e006c39e8c349b5cd7a121b76fde21f51311c9abd38841d3beda2ddb70a5113c1094c6ae845b8309a0cf1"
    "daa3bfd967a1d92e8bb1bcbef61beec7b57bddab10fc319560d400ba7fee73895f3859903a206d5accfac9481cab49a4"
    "f400b33c508559e591e59cf5c5e01bc7861790b89b9838ef45f26039efc53c0496f196e5000000000000000000000000"
    "00000000"
)
RECORDED_RESPONSE = bytes.fromhex(
    "02000000d112d5618b5e006cd17db69d2c3a40c11a9c9a85c9b4c6c9aa6638e291798ade2a5740971e485e6bb71318a2"
    "c9e8d396f194cdccd05f0a3a99a0bffe6134473e18a52869a79a135b00000000000000000000000000000000"
)


class World:
    """A switchboard, its members, and a clock."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = 100.0
        self.seen: list[tuple[str, Address | None]] = []
        self.switchboard = Switchboard(
            OBSERVER, limits=limits, now=self.now, on_observed=lambda node, address: self.seen.append((node, address))
        )
        self.switchboard.set_mailboxes([A, B, C, FAR])
        self._index = 1000

    def send(self, box: Mailbox, packet: bytes, source: Address | None = None) -> Forward | Reason:
        """What happens to a packet that comes to a mailbox, from its member's home unless said."""
        outcome = self.switchboard.on_packet(box.port, source or HOME[box.port], packet, self.now)
        return outcome.reason if isinstance(outcome, Drop) else outcome

    def index(self) -> int:
        """A fresh index."""
        self._index += 1
        return self._index

    def meet(
        self, caller: Mailbox, callee: Mailbox, at: Address | None = None, callee_at: Address | None = None
    ) -> tuple[int, int]:
        """A whole handshake: call, response, first data. Returns the caller's index and the callee's."""
        mine, theirs = self.index(), self.index()
        self.send(caller, initiation(callee.public_key, mine), at)
        self.send(callee, response(caller.public_key, theirs, mine), callee_at)
        self.send(caller, data(theirs), at)
        return mine, theirs

    def introduce(self, *boxes: Mailbox) -> None:
        """Makes the relay know where to send calls to each of them, as their own first calls do."""
        for box in boxes:
            peer = B if box is not B else A
            self.send(box, initiation(peer.public_key, self.index()))


@pytest.fixture
def world() -> World:
    """A and B have met and are at home."""
    world = World()
    world.introduce(A, B, C)
    world.meet(A, B)
    return world


def forward(to: Mailbox, *addresses: Address) -> Forward:
    """Out of the receiver's own mailbox."""
    return Forward(to.port, addresses or (HOME[to.port],))


def test_mac1_is_the_white_papers() -> None:
    """Keyed BLAKE2s over what comes before it, under the hash of a label and the receiver's key."""
    for _ in range(20):
        key, covered = secrets.token_bytes(32), secrets.token_bytes(116)
        assert Mac1(key).of(covered) == mac1_by_definition(key, covered)


def test_mac1_is_what_real_wireguard_sends() -> None:
    """A call and its response, recorded from two wireguard-go."""
    for packet, covered_bytes, receiver in ((RECORDED_CALL, 116, "callee"), (RECORDED_RESPONSE, 60, "caller")):
        mac = packet[covered_bytes : covered_bytes + 16]
        assert Mac1(bytes.fromhex(RECORDED_KEYS[receiver])).of(packet[:covered_bytes]) == mac


def test_recorded_handshake_of_real_wireguard_is_forwarded() -> None:
    """The members have the recorded keys; lengths, indexes and mac1 are read where WireGuard puts them."""
    caller, callee = (
        replace(box, public_key=bytes.fromhex(RECORDED_KEYS[name])) for box, name in ((A, "caller"), (B, "callee"))
    )
    world = World()
    world.switchboard.set_mailboxes([caller, callee])
    world.send(callee, initiation(caller.public_key, 5))
    assert world.send(caller, RECORDED_CALL) == forward(callee)
    assert world.send(callee, RECORDED_RESPONSE) == forward(caller)
    assert world.send(caller, data(int.from_bytes(RECORDED_RESPONSE[4:8], "little"))) == forward(callee)
    assert world.send(callee, data(int.from_bytes(RECORDED_CALL[4:8], "little"))) == forward(caller)


def test_first_call_waits_for_the_other_to_show_up() -> None:
    """A relay cannot send to a member that it has never heard of."""
    world = World()
    assert world.send(A, initiation(B.public_key, 1)) is Reason.NO_ADDRESS
    assert world.send(B, initiation(A.public_key, 2)) == forward(A)


def test_two_that_never_met_are_joined_by_one_handshake() -> None:
    """The response goes back to the caller; its first data proves both ends; then data flows both ways."""
    world = World()
    world.introduce(B)
    assert world.send(A, initiation(B.public_key, 11)) == forward(B)
    assert world.send(B, data(11)) is Reason.UNKNOWN_INDEX
    assert world.send(B, response(A.public_key, 22, 11)) == forward(A)
    assert world.switchboard.address_of(A.node_id) is None
    assert world.send(A, data(22)) == forward(B)
    assert world.send(B, data(11)) == forward(A)
    assert world.switchboard.address_of(A.node_id) == HOME[A.port]


def test_crossing_first_calls_make_two_sessions() -> None:
    """Both call at once; both responses and both sessions' data pass."""
    world = World()
    world.introduce(A, B)
    assert world.send(A, initiation(B.public_key, 1)) == forward(B)
    assert world.send(B, initiation(A.public_key, 2)) == forward(A)
    assert world.send(A, response(B.public_key, 3, 2)) == forward(B)
    assert world.send(B, response(A.public_key, 4, 1)) == forward(A)
    assert world.send(A, data(4)) == forward(B)
    assert world.send(B, data(3)) == forward(A)
    assert world.send(B, data(1)) == forward(A)
    assert world.send(A, data(2)) == forward(B)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (initiation(B.public_key, 9) + b"\0", Reason.MALFORMED),
        (initiation(B.public_key, 9)[:-1], Reason.MALFORMED),
        (response(B.public_key, 9, 1)[:-1], Reason.MALFORMED),
        (cookie(1) + b"\0", Reason.MALFORMED),
        (data(1)[:31], Reason.MALFORMED),
        (b"\x04\0\0\x01" + data(1)[4:], Reason.MALFORMED),
        (b"", Reason.MALFORMED),
        (initiation(b"\x77" * 32, 9), Reason.WRONG_MAC),
        (initiation(A.public_key, 9), Reason.WRONG_MAC),
        (initiation(FAR.public_key, 9), Reason.WRONG_MAC),
        (response(A.public_key, 9, 7777), Reason.UNKNOWN_INDEX),
        (cookie(7777), Reason.UNKNOWN_INDEX),
        (data(7777), Reason.UNKNOWN_INDEX),
    ],
    ids=[
        *("long-call", "short-call", "short-response", "long-cookie", "short-data", "reserved-bits", "empty"),
        *("nobodys-key", "own-key", "other-cluster", "unasked-response", "unasked-cookie", "unknown-data"),
    ],
)
def test_what_is_not_a_members_packet_is_dropped(world: World, packet: bytes, reason: Reason) -> None:
    """Lengths are exact, keys are those of the same cluster, indexes were learnt from handshakes."""
    assert world.send(A, packet) is reason


def test_member_of_another_cluster_cannot_use_an_index_of_this_one(world: World) -> None:
    """Indexes count only at the mailbox for which they were learnt."""
    _, theirs = world.meet(A, B)
    assert world.send(FAR, data(theirs)) is Reason.UNKNOWN_INDEX
    assert world.send(C, data(theirs)) is Reason.UNKNOWN_INDEX


def test_replayed_call_from_elsewhere_moves_nothing(world: World) -> None:
    """Whether it had been answered or still waits for its answer."""
    index = world.index()
    call = initiation(B.public_key, index)
    assert world.send(A, call) == forward(B)
    assert world.send(A, call, STRANGER) is Reason.REPLAYED
    assert world.send(B, response(A.public_key, world.index(), index)) == forward(A)
    assert world.send(A, call, STRANGER) is Reason.REPLAYED
    assert world.switchboard.address_of(A.node_id) == HOME[A.port]


def test_old_call_replayed_after_its_session_moves_nothing(world: World) -> None:
    """The relay has forgotten the index; the callee has not forgotten the time stamp, and stays silent."""
    mine, theirs = world.meet(A, B)
    old = initiation(B.public_key, world.index())
    assert world.send(A, old, STRANGER) == forward(B)
    assert world.send(B, data(mine)) == forward(A)
    assert world.send(A, data(theirs), STRANGER) is Reason.UNKNOWN_ADDRESS
    assert world.send(A, data(theirs)) == forward(B)


def test_stranger_with_both_keys_cannot_take_a_pair_that_has_met(world: World) -> None:
    """He calls and answers himself; his answer comes from where no call was sent."""
    mine, _ = world.meet(A, B)
    call, answer = world.index(), world.index()
    world.send(A, initiation(B.public_key, call), STRANGER)
    assert world.send(B, response(A.public_key, answer, call), STRANGER) is Reason.UNKNOWN_ADDRESS
    assert world.send(A, data(answer), STRANGER) is Reason.UNKNOWN_INDEX
    assert world.send(B, data(mine)) == forward(A)


def test_stranger_who_comes_first_does_not_keep_a_late_member_out(world: World) -> None:
    """Both candidates get the call; only the real one's answer is followed by the caller's data."""
    world.send(C, initiation(A.public_key, world.index()), STRANGER)
    call = world.index()
    outcome = world.send(A, initiation(C.public_key, call))
    assert isinstance(outcome, Forward)
    assert set(outcome.addresses) == {STRANGER, HOME[C.port]}
    assert world.send(C, response(A.public_key, 700, call), STRANGER) == forward(A)
    assert world.send(C, response(A.public_key, 701, call)) == forward(A)
    assert world.send(A, data(701)) == forward(C)
    assert world.send(C, data(call), STRANGER) is Reason.UNKNOWN_ADDRESS
    assert world.send(C, data(call)) == forward(A)


def test_member_that_forges_for_another_moves_only_its_own_pair(world: World) -> None:
    """C can call itself in A's name and answer; what B sends to A still reaches A."""
    mine, theirs = world.meet(A, B)
    world.meet(A, C)
    call = world.index()
    world.send(A, initiation(C.public_key, call), STRANGER)
    world.send(C, response(A.public_key, 800, call))
    assert world.send(A, data(800), STRANGER) == forward(C)
    assert world.send(B, data(mine)) == forward(A)
    assert world.send(A, data(theirs)) == forward(B)
    assert world.send(B, initiation(A.public_key, world.index())) == forward(A)
    # B still vouches for A's home, although C did so last and then for another place.
    assert world.send(A, initiation(OBSERVER, 1), (HOME[A.port][0], 4)) is Reason.OBSERVED


def test_response_from_where_the_pair_trusts_proves_the_callers_new_address(world: World) -> None:
    """From then on data goes there, and none is taken from the old place."""
    mine, theirs = world.meet(A, B)
    call = world.index()
    assert world.send(A, initiation(B.public_key, call), AWAY) == forward(B)
    assert world.send(B, data(mine)) == forward(A)
    assert world.send(B, response(A.public_key, 900, call)) == forward(A, AWAY)
    assert world.send(B, data(mine)) == forward(A, AWAY)
    assert world.send(A, data(theirs)) is Reason.UNKNOWN_ADDRESS
    assert world.send(A, data(900), AWAY) == forward(B)


def test_callee_that_roamed_is_called_at_both_places(world: World) -> None:
    """Its data from the new place is dropped, but tells where it may be; the next handshake proves it."""
    mine, theirs = world.meet(A, B)
    assert world.send(B, data(mine), AWAY) is Reason.UNKNOWN_ADDRESS
    assert world.send(A, data(theirs)) == forward(B)
    call = world.index()
    assert world.send(A, initiation(B.public_key, call)) == forward(B, HOME[B.port], AWAY)
    assert world.send(B, response(A.public_key, 901, call), AWAY) == forward(A)
    assert world.send(A, data(theirs)) == forward(B)
    assert world.send(A, data(901)) == forward(B, AWAY)
    assert world.send(B, data(call), AWAY) == forward(A)


def test_one_handshake_moves_all_pairs_of_a_member_that_roamed(world: World) -> None:
    """A proved its new address with B; its data for C then comes from there, with an index that only they know."""
    world.meet(C, A)
    mine, theirs = world.meet(A, C)
    assert world.send(A, data(theirs), AWAY) is Reason.UNKNOWN_ADDRESS
    world.meet(A, B, at=AWAY)
    assert world.send(C, data(mine)) == forward(A)
    assert world.send(A, data(theirs), AWAY) == forward(C)
    assert world.send(C, data(mine)) == forward(A, AWAY)


def test_index_that_went_to_several_addresses_moves_nobody(world: World) -> None:
    """C plants an address for A, is sent a copy of B's call to it, and so knows an index that it should not."""
    world.switchboard.set_mailboxes([A, C, FAR])
    world.switchboard.set_mailboxes([A, B, C, FAR])
    world.meet(A, C)
    world.meet(A, C, at=STRANGER)
    world.introduce(B)
    world.send(A, initiation(C.public_key, world.index()))
    call = world.index()
    outcome = world.send(B, initiation(A.public_key, call))
    assert isinstance(outcome, Forward)
    assert set(outcome.addresses) == {STRANGER, HOME[A.port]}
    assert world.send(A, response(B.public_key, 950, call)) == forward(B)
    assert world.send(B, data(950)) == forward(A)
    assert world.send(A, data(call), STRANGER) is Reason.UNKNOWN_ADDRESS
    assert world.send(B, data(950)) == forward(A)


def test_pair_whose_two_ends_moved_at_once_needs_others_to_vouch(world: World) -> None:
    """Neither end is where it was, so the pair moves only to addresses that have been proved with other members."""
    other = ("198.51.100.8", 4343)
    for box in (A, B):
        world.meet(box, C)
    mine, theirs = world.meet(A, B)
    call, answer = world.index(), world.index()
    assert world.send(B, data(mine), other) is Reason.UNKNOWN_ADDRESS
    assert world.send(A, initiation(B.public_key, call), AWAY) == forward(B, HOME[B.port], other)
    assert world.send(B, response(A.public_key, answer, call), other) == forward(A, AWAY)
    assert world.send(A, data(answer), AWAY) is Reason.UNKNOWN_ADDRESS
    assert world.send(A, data(theirs)) == forward(B)
    assert world.send(B, data(mine)) == forward(A)
    world.meet(A, C, at=AWAY)
    assert world.send(A, data(answer), AWAY) is Reason.UNKNOWN_ADDRESS
    world.meet(B, C, at=other)
    assert world.send(A, data(answer), AWAY) == forward(B, other)
    assert world.send(B, data(call), other) == forward(A, AWAY)


def test_cookie_reply_goes_to_whoever_called_or_answered(world: World) -> None:
    """A member under load answers a call, or a response, with a cookie."""
    call, answer = world.index(), world.index()
    world.send(A, initiation(B.public_key, call))
    assert world.send(B, cookie(call)) == forward(A)
    assert world.send(B, cookie(call), STRANGER) is Reason.UNKNOWN_ADDRESS
    world.send(B, response(A.public_key, answer, call))
    assert world.send(A, cookie(answer)) == forward(B)


def test_index_of_one_member_cannot_be_taken_by_another(world: World) -> None:
    """C calls B with the very index that B uses for A."""
    mine, _ = world.meet(A, B)
    assert world.send(C, initiation(B.public_key, mine)) is Reason.INDEX_TAKEN
    assert world.send(B, data(mine)) == forward(A)


def test_same_index_of_two_callers_is_told_apart_by_mac1(world: World) -> None:
    """Both wait for an answer; the response carries the mac1 of the one that it is for."""
    index = world.index()
    world.send(A, initiation(B.public_key, index))
    world.send(C, initiation(B.public_key, index))
    assert world.send(B, response(C.public_key, 400, index)) == forward(C)
    assert world.send(B, response(A.public_key, 401, index)) == forward(A)


def test_member_that_uses_an_index_again_is_understood(world: World) -> None:
    """After a restart a WireGuard may begin with the same index."""
    mine, theirs = world.meet(A, B)
    assert world.send(A, initiation(B.public_key, mine)) == forward(B)
    assert world.send(B, response(A.public_key, 402, mine)) == forward(A)
    assert world.send(A, data(402)) == forward(B)
    assert world.send(B, data(mine)) == forward(A)
    assert world.send(A, data(theirs)) is Reason.UNKNOWN_INDEX


def test_rekeyed_sessions_stay_valid_up_to_a_number(world: World) -> None:
    """WireGuard renews after 120 s and takes the old keys until 180 s."""
    sessions = []
    for _ in range(SESSIONS_PER_PAIR + 1):
        sessions.append(world.meet(A, B))
        world.now += 60
    assert world.send(B, data(sessions[0][0])) is Reason.UNKNOWN_INDEX
    for mine, theirs in sessions[1:]:
        assert world.send(B, data(mine)) == forward(A)
        assert world.send(A, data(theirs)) == forward(B)


def test_answer_that_comes_too_late_is_not_taken(world: World) -> None:
    """The caller has called again with another index by then."""
    call = world.index()
    world.send(A, initiation(B.public_key, call))
    world.now += 11
    assert world.send(B, response(A.public_key, 1, call)) is Reason.UNKNOWN_INDEX


def test_pair_without_a_handshake_for_long_is_forgotten(world: World) -> None:
    """Data alone keeps nothing alive: WireGuard itself would have shaken hands again."""
    mine, theirs = world.meet(A, B)
    began_at = world.now
    while world.now < began_at + PROOF_S - 10:
        world.now += 10
        world.send(A, data(theirs))
    world.now = began_at + PROOF_S + 10
    assert world.send(A, data(theirs)) is Reason.UNKNOWN_INDEX
    assert world.send(B, data(mine)) is Reason.UNKNOWN_INDEX
    assert world.switchboard.address_of(A.node_id) is None
    assert world.switchboard.proved_members == 0


def test_observer_sees_the_direct_plane_of_a_proved_member_alone(world: World) -> None:
    """Same IP as the relayed plane, another port; never answered, reported when it changes and when it lapses."""
    ip = HOME[A.port][0]
    call = initiation(OBSERVER, 5)
    assert world.send(A, call, STRANGER) is Reason.UNKNOWN_ADDRESS
    assert world.send(C, call) is Reason.UNKNOWN_ADDRESS
    assert world.switchboard.observed(A.node_id) is None
    for _ in range(2):
        assert world.send(A, call, (ip, 40000)) is Reason.OBSERVED
    assert world.send(A, call, (ip, 40001)) is Reason.OBSERVED
    assert world.switchboard.observed(A.node_id) == (ip, 40001)
    world.now += OBSERVED_S + 1
    world.switchboard.expire(world.now)
    assert world.switchboard.observed(A.node_id) is None
    assert world.seen == [(A.node_id, (ip, 40000)), (A.node_id, (ip, 40001)), (A.node_id, None)]


def test_pair_over_its_rate_waits_for_it_to_refill_and_others_pass() -> None:
    """The bound is one for both directions of a pair."""
    world = World(Limits(pair_rate_bytes_s=1000, pair_burst_bytes=3000))
    world.introduce(A, B, C)
    mine, theirs = world.meet(A, B)
    _, with_c = world.meet(A, C)
    assert world.send(A, data(theirs, size_bytes=1500)) == forward(B)
    assert world.send(B, data(mine, size_bytes=1408)) == forward(A)
    assert world.send(A, data(theirs, size_bytes=1000)) is Reason.PAIR_RATE
    assert world.send(A, data(with_c, size_bytes=1000)) == forward(C)
    world.now += 1
    assert world.send(A, data(theirs, size_bytes=1000)) == forward(B)


def test_pair_over_its_quota_stays_stopped() -> None:
    """Also after the pair has been forgotten and has met again, and after a list that leaves it as it is."""
    world = World(Limits(pair_quota_bytes=1000))
    world.introduce(A, B)
    _, theirs = world.meet(A, B)
    assert world.send(A, data(theirs, size_bytes=900)) == forward(B)
    assert world.send(A, data(theirs, size_bytes=900)) is Reason.PAIR_QUOTA
    world.now += PROOF_S + 10
    world.introduce(A, B)
    world.switchboard.set_mailboxes([A, B])
    _, theirs = world.meet(A, B)
    assert world.send(A, data(theirs, size_bytes=900)) is Reason.PAIR_QUOTA


def test_flood_of_calls_from_one_place_stops_neither_members_nor_other_newcomers(world: World) -> None:
    """Members have an allowance of their own; one IP has less than all strangers together."""
    junk = initiation(b"\x77" * 32, 1)
    outcomes = [world.send(A, junk, STRANGER) for _ in range(5000)]
    assert outcomes[0] is Reason.WRONG_MAC
    assert outcomes[-1] is Reason.RATE
    call = world.index()
    assert world.send(A, initiation(B.public_key, call), AWAY) == forward(B)
    assert world.send(A, initiation(B.public_key, world.index())) == forward(B)
    world.now += 10
    assert world.send(A, junk, STRANGER) is Reason.WRONG_MAC


def test_trials_are_bounded_however_many_ips_the_junk_comes_from() -> None:
    """A mailbox looks at so many mac1 a second, and the relay at so many in all."""
    world = World(Limits(mailbox_trials_s=10, mailbox_trials_burst=100, relay_trials_s=10, relay_trials_burst=150))
    junk = initiation(b"\x77" * 32, 1)

    def looked_at(box: Mailbox) -> int:
        sources = [(f"198.51.{n // 250}.{n % 250}", 1) for n in range(1000)]
        return sum(world.send(box, junk, source) is Reason.WRONG_MAC for source in sources)

    assert looked_at(A) == 34  # 3 trials each: the observer's key, and two members of the cluster
    assert looked_at(B) == 16


def test_unchanged_mailboxes_keep_their_state_and_changed_ones_begin_anew(world: World) -> None:
    """The list is whole: who is not on it is gone, from the others' tables too."""
    mine, theirs = world.meet(A, B)
    with_c, _ = world.meet(C, A)
    world.switchboard.set_mailboxes([FAR, B, A])
    assert world.send(A, data(theirs)) == forward(B)
    assert world.send(A, data(with_c)) is Reason.UNKNOWN_INDEX
    assert world.send(C, data(1)) is Reason.NO_MAILBOX
    world.switchboard.set_mailboxes([A, replace(B, public_key=b"\x55" * 32)])
    assert world.send(A, data(theirs)) is Reason.UNKNOWN_INDEX
    assert world.send(A, initiation(B.public_key, 1)) is Reason.WRONG_MAC
    assert world.send(B, data(mine)) is Reason.UNKNOWN_INDEX
    world.switchboard.set_mailboxes([])
    assert world.switchboard.remembered() == 3  # the source IPs of three members' first calls, which no list bounds


@pytest.mark.parametrize(
    "bad",
    [
        replace(B, port=A.port),
        replace(B, node_id=A.node_id),
        replace(B, public_key=A.public_key),
        replace(B, public_key=b"short"),
        replace(B, port=0),
        replace(B, port=65536),
    ],
    ids=["port", "node", "key", "short-key", "no-port", "high-port"],
)
def test_list_that_contradicts_itself_changes_nothing(world: World, bad: Mailbox) -> None:
    """The error names the node, and the list in force stays."""
    before = world.switchboard.mailboxes
    with pytest.raises(MailboxesRefused, match=f"{bad.node_id}.*no mailbox was changed"):
        world.switchboard.set_mailboxes([A, bad])
    assert world.switchboard.mailboxes == before


def test_key_is_read_as_rosters_write_it() -> None:
    """Base 64, or an error that names the node."""
    box = Mailbox.from_base64(
        node_id="n", cluster_id="c", port=1, public_key="//////////////////////////////////////////8="
    )
    assert box.public_key == b"\xff" * 32
    with pytest.raises(MailboxesRefused, match="node n has a key that is not base 64"):
        Mailbox.from_base64(node_id="n", cluster_id="c", port=1, public_key="no key!")


_INDEXES = st.integers(min_value=995, max_value=1015)
_KEYS = st.sampled_from([A.public_key, B.public_key, C.public_key, FAR.public_key, OBSERVER, b"\x77" * 32])
_PACKETS = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda kind, rest: bytes([kind, 0, 0, 0]) + rest, st.integers(0, 5), st.binary(max_size=150)),
    st.builds(initiation, _KEYS, _INDEXES),
    st.builds(response, _KEYS, _INDEXES, _INDEXES),
    st.builds(cookie, _INDEXES),
    st.builds(data, _INDEXES),
)
_HOSTILE = st.builds(lambda n, port: (f"203.0.113.{n}", port), st.integers(1, 50), st.integers(1, 3))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([A, B, C, FAR]), _HOSTILE, _PACKETS, st.floats(0, 1)), max_size=80))
def test_whatever_strangers_send_moves_no_pair_that_has_met(
    history: list[tuple[Mailbox, Address, bytes, float]],
) -> None:
    """They know every public key and guess well; data still goes only where it went, and from nobody else."""
    world = World()
    world.introduce(A, B, C)
    mine, theirs = world.meet(A, B)
    for box, source, packet, wait_s in history:
        world.now += wait_s
        outcome = world.send(box, packet, source)
        if packet[:4] == data(0)[:4]:
            # Two of C and of the other cluster may be met by anybody who knows their keys first.
            assert not (box in (A, B) and packet[4:8] in (data(mine)[4:8], data(theirs)[4:8])) or outcome in list(
                Reason
            )
    assert world.send(A, data(theirs)) == forward(B)
    assert world.send(B, data(mine)) == forward(A)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_state_stays_bounded_under_any_amount_of_well_made_junk(seed: int, ips: int) -> None:
    """Calls with valid mac1 and fresh indexes, from ever new ports and IPs, fill tables of a fixed size."""
    world = World(Limits(stranger_handshakes_s=1e9, stranger_handshakes_burst=10**9, sources_max=16))
    world.introduce(A, B, C)
    world.meet(A, B)
    for n in range(1500):
        source = (f"203.0.{(seed + n) % ips}.{n % 100}", 1 + n)
        world.send(A, initiation(B.public_key if n % 2 else C.public_key, (seed + n) % 2**32), source)
        world.send(B, response(A.public_key, n, (seed + n) % 2**32), source)
    # Per call one entry with the caller and one with the callee.
    assert world.switchboard.remembered() < 16 + 2 * (256 + 10) + 30
    world.now += PROOF_S + 10
    world.switchboard.expire(world.now)
    world.now += PROOF_S + 10
    world.switchboard.expire(world.now)
    assert world.switchboard.remembered() <= 16 + 2
