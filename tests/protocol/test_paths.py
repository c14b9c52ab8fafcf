"""The path choice: which plane carries the traffic to a peer, on a simulated pair of planes and a fake clock."""

import ast
import heapq
import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import corral.protocol.paths as paths_module
import corral.protocol.relays as relays_module
from corral.protocol.paths import BOTH, DIRECT, RELAYED, Paths, PeerPlan, Plane, Planes, Policy, Probe, UnknownPeer

POLICY = Policy()
PLANES: tuple[Plane, ...] = get_args(Plane)
PEER = "nd_peer"
GAP_S = 0.7
TWO = PeerPlan("d1", "r1")
FORCED = ("direct is dead", "relayed is dead", "direct answered first", "relayed answered first")

Cuts = list[tuple[float, float]]


@dataclass
class Line:
    """One simulated plane: its round trip, its losses, and the intervals in which it is cut."""

    rtt_s: float | Callable[[float], float] = 0.005
    loss: float | Callable[[float], float] = 0.0
    cuts: Cuts = field(default_factory=list)
    capacity: float = 1e12
    """Bytes per second; more than that fills a queue of up to `queue_s`."""
    queue_s: float = 0.1
    queued_s: float = 0.0
    total_bytes: int = 0

    def is_cut(self, now: float) -> bool:
        return any(start <= now < end for start, end in self.cuts)

    def round_trip(self, now: float) -> float:
        return (self.rtt_s(now) if callable(self.rtt_s) else self.rtt_s) + self.queued_s

    def load(self, offered: float, elapsed_s: float) -> None:
        self.total_bytes += int(min(offered, self.capacity) * elapsed_s)
        self.queued_s += (offered / self.capacity - 1) * elapsed_s
        self.queued_s = min(max(self.queued_s, 0.0), self.queue_s)


class Pair:
    """A peer behind two lines, and the member's `Paths` driven as its process drives it."""

    def __init__(
        self,
        direct: Line | None = None,
        relayed: Line | None = None,
        *,
        offered: float | Callable[[float], float] = 0.0,
        plan: PeerPlan = TWO,
        seed: int = 0,
        start: float = 0.0,
        forge: Callable[[Paths, float], None] | None = None,
    ) -> None:
        self.lines: dict[Plane, Line] = {"direct": direct or Line(), "relayed": relayed or Line()}
        self.paths = Paths()
        self.now = start
        self.offered = offered
        self.random = random.Random(seed)
        self.probes: list[tuple[float, Probe]] = []
        self.moves: list[tuple[float, Planes, str]] = []
        self.route: Planes = ()
        self._forge = forge
        self._answers: list[tuple[float, int, Probe]] = []
        self._load_at = start
        self.paths.set_peers({PEER: plan}, start)

    def run(self, until: float) -> "Pair":
        while self.now < until:
            while self._answers and self._answers[0][0] <= self.now:
                _, _, probe = heapq.heappop(self._answers)
                self.paths.answered(probe.peer, probe.plane, probe.sequence, self.now)
            self._carry()
            if self.paths.next_at() <= self.now:
                self._pass()
            coming = [self.paths.next_at(), self._load_at + 0.5]
            if self._answers:
                coming.append(self._answers[0][0])
            self.now = max(min(coming), self.now)
        return self

    def _pass(self) -> None:
        if self._forge is not None:
            self._forge(self.paths, self.now)
        for probe in self.paths.due(self.now):
            self.probes.append((self.now, probe))
            line = self.lines[probe.plane]
            loss = line.loss(self.now) if callable(line.loss) else line.loss
            back_at = self.now + line.round_trip(self.now)
            if not line.is_cut(self.now) and not line.is_cut(back_at) and self.random.random() >= loss:
                heapq.heappush(self._answers, (back_at, len(self.probes), probe))
        for route in self.paths.decide(self.now):
            self.route = route.planes
            self.moves.append((self.now, route.planes, route.reason))
        self._check_no_dead_route()

    def _check_no_dead_route(self) -> None:
        state = self.paths.state(PEER, self.now)
        status = {"direct": state.direct.status, "relayed": state.relayed.status if state.relayed else "unknown"}
        assert self.route == state.planes != ()
        assert "alive" not in status.values() or all(status[plane] != "dead" for plane in self.route)

    def _carry(self) -> None:
        if self.now < self._load_at + 0.5:
            return
        offered = self.offered(self.now) if callable(self.offered) else self.offered
        elapsed_s, self._load_at = self.now - self._load_at, self.now
        for plane, line in self.lines.items():
            line.load(offered / len(self.route) if plane in self.route else 0.0, elapsed_s)
            self.paths.moved(PEER, plane, line.total_bytes, self.now)

    def routes(self) -> list[Planes]:
        return [planes for _, planes, _ in self.moves]

    def voluntary(self) -> list[tuple[float, Planes, str]]:
        return [move for move in self.moves[1:] if move[2] not in FORCED]

    def sent(self, plane: Plane, start: float, end: float) -> int:
        return sum(1 for at, probe in self.probes if probe.plane == plane and start <= at < end)


def hot(*args: Line, **kwargs: object) -> Pair:
    """A pair that always moves 100 kB/s."""
    return Pair(*args, offered=100_000.0, **kwargs)  # type: ignore[arg-type]


def always(value: float) -> Callable[[float], float]:
    return lambda _: value


# Laws.


cut_lists = st.lists(st.tuples(st.floats(0, 30), st.floats(0.05, 12)), max_size=4).map(
    lambda cuts: [(start, start + length) for start, length in cuts]
)
round_trips = st.floats(0.0001, 0.06)


@settings(deadline=None, max_examples=60)
@given(cut_lists, cut_lists, round_trips, round_trips, st.floats(0, 1000))
def test_hot_pair_leaves_a_cut_plane_within_the_gap(
    direct_cuts: Cuts, relayed_cuts: Cuts, direct_s: float, relayed_s: float, start: float
) -> None:
    """Whatever is cut when: a plane silent for the gap carries nothing while the other one works."""
    shifted = [[(start + 3 + a, start + 3 + b) for a, b in cuts] for cuts in (direct_cuts, relayed_cuts)]
    pair = hot(Line(direct_s, cuts=shifted[0]), Line(relayed_s, cuts=shifted[1]), start=start)
    pair.run(start + 3)
    while pair.now < start + 40:
        pair.run(pair.now + 0.05)
        for plane, other in (PLANES, PLANES[::-1]):
            long_cut = any(a <= pair.now - GAP_S and pair.now < b for a, b in pair.lines[plane].cuts)
            works = not any(a <= pair.now and pair.now - 1.0 < b for a, b in pair.lines[other].cuts)
            assert not (long_cut and works and plane in pair.route), (pair.now - start, pair.moves)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 0.19), st.floats(0, 0.19)), min_size=10, max_size=10))
def test_fresh_peer_never_moves_on_fewer_samples(samples: list[tuple[float, float]]) -> None:
    """Whatever the first round trips are, and a handshake makes them wild, none is compared: the plane that answers is
    used, and direct as soon as it has answered five times in a row.
    """
    paths = Paths()
    paths.set_peers({PEER: TWO}, 0.0)
    given_to = {"direct": iter([one for one, _ in samples]), "relayed": iter([other for _, other in samples])}
    now = 0.0
    waiting: list[tuple[float, Probe]] = []
    while now < 3.0:
        for probe in paths.due(now):
            rtt_s = next(given_to[probe.plane], None)
            if rtt_s is not None:
                waiting.append((now + rtt_s, probe))
        for at, probe in [entry for entry in waiting if entry[0] <= now]:
            waiting.remove((at, probe))
            paths.answered(probe.peer, probe.plane, probe.sequence, now)
        for route in paths.decide(now):
            is_return = route.reason == "direct is back"
            assert is_return or route.reason in (*FORCED, "nothing is known yet"), route
            assert not is_return or paths.state(PEER, now).direct.answered >= POLICY.back_probes
        state = paths.state(PEER, now)
        if state.direct.answered + (state.relayed.answered if state.relayed else 0) >= 20:
            return
        now += 0.005


def noise(seed: int, low: float, high: float, period_s: float) -> Callable[[float], float]:
    """A value between `low` and `high` that is another one every `period_s`."""
    return lambda now: low + (high - low) * random.Random(f"{seed}/{int(now / period_s)}").random()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32),
    st.floats(0.0, 0.4),
    st.floats(0.0, 0.4),
    st.floats(0.001, 0.15),
    st.sampled_from([0.2, 1.0, 3.0, 8.0, 15.0]),
    st.sampled_from([0.0, 100_000.0, 5e6, 5e7]),
)
def test_noise_never_makes_a_pair_flap(
    seed: int, direct_loss: float, relayed_loss: float, rtt_s: float, period_s: float, offered: float
) -> None:
    """In 120 s of any loss and jitter the hold-down allows two first moves, then 2, 4, ... 60 s: no more than 9."""
    pair = Pair(
        Line(noise(seed, 0.0005, rtt_s, period_s), noise(seed + 1, 0, direct_loss, period_s), capacity=2e6),
        Line(noise(seed + 2, 0.0005, rtt_s, period_s), noise(seed + 3, 0, relayed_loss, period_s), capacity=2e6),
        offered=offered,
        seed=seed,
    ).run(120)
    assert len(pair.voluntary()) <= 9, pair.moves
    forced = len(pair.moves) - 1 - len(pair.voluntary())
    assert forced <= 120 / (POLICY.timeout_floor_s + POLICY.confirm_interval_s)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.floats(0.0, 1.0), st.floats(0.001, 0.5), st.booleans(), cut_lists)
def test_probes_never_exceed_their_budget(seed: int, loss: float, rtt_s: float, busy: bool, cuts: Cuts) -> None:
    """In no window does a plane get more than twice the hot pace, however its answers come; a healthy one never."""
    pair = Pair(Line(rtt_s, loss, cuts), Line(0.01), offered=100_000.0 if busy else 0.0, seed=seed).run(40)
    for window_s in (1.0, 5.0, 20.0):
        for start in range(40 - int(window_s)):
            pace = window_s / POLICY.hot_interval_s
            assert pair.sent("direct", start, start + window_s) <= 2 * pace + POLICY.dead_after
            assert pair.sent("relayed", start, start + window_s) <= pace + 2


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from([PEER, "nd_other"]), st.sampled_from(PLANES), st.integers(-5, 10_000)),
        min_size=1,
        max_size=20,
    ),
    cut_lists,
)
def test_forged_answers_change_nothing(forged: list[tuple[str, Plane, int]], cuts: Cuts) -> None:
    """An answer that was never asked for, or that came already, leaves every decision and number as it was."""

    def forge(paths: Paths, now: float) -> None:
        state = paths.state(PEER, now)
        sent = {"direct": state.direct.sent, "relayed": state.relayed.sent if state.relayed else 0}
        for peer, plane, offset in forged:
            sequence = sent[plane] + offset if offset > 0 else offset
            paths.answered(peer, plane, sequence, now)

    honest, attacked = (hot(Line(cuts=cuts), Line(0.02), forge=each).run(20) for each in (None, forge))
    assert attacked.moves == honest.moves
    assert attacked.probes == honest.probes
    assert attacked.paths.state(PEER, 20) == honest.paths.state(PEER, 20)


def test_answer_counts_once_and_not_when_stale() -> None:
    """A repeated answer, one older than the patience, and one from the future are no answers."""
    paths = Paths()
    paths.set_peers({PEER: PeerPlan()}, 0.0)
    [probe] = paths.due(0.2)
    paths.answered(PEER, "direct", probe.sequence, 0.1)
    assert paths.state(PEER, 0.2).direct.answered == 0
    paths.answered(PEER, "direct", probe.sequence, 0.21)
    paths.answered(PEER, "direct", probe.sequence, 0.22)
    assert paths.state(PEER, 0.3).direct.answered == 1
    [late] = paths.due(0.4)
    paths.answered(PEER, "direct", late.sequence, 0.4 + POLICY.patience_s + 0.01)
    assert paths.state(PEER, 3).direct.answered == 1


def test_ends_decide_alone_and_may_differ() -> None:
    """One end that hears nothing on direct uses relayed, while the other stays: neither waits for the other."""
    here = hot(Line(cuts=[(5, 30)]), Line(0.01)).run(20)
    there = hot(Line(), Line(0.01)).run(20)
    assert (here.route, there.route) == (RELAYED, DIRECT)


# The first route.


def test_first_decision_names_every_peer_and_a_healthy_pair_stays() -> None:
    """A new peer has a route at once; two good planes and a slow handshake move nothing afterwards."""
    slow_start = Line(lambda now: 0.15 if now < 0.5 else 0.002)
    pair = hot(slow_start, Line(0.004)).run(60)
    assert pair.moves == [(0.0, DIRECT, "nothing is known yet")]


def test_peer_without_a_direct_path_starts_on_its_relay_quickly() -> None:
    """Direct has a head start; after it the plane that answers carries the traffic."""
    pair = Pair(Line(cuts=[(0, 1e9)]), Line(0.03)).run(60)
    assert pair.routes() == [DIRECT, RELAYED]
    assert pair.moves[1][0] <= POLICY.head_start_s + 2 * POLICY.batch_s
    assert pair.paths.silent(60) == [(PEER, "direct")]


def test_direct_that_answers_after_the_relay_is_taken_without_hold_down() -> None:
    """The first relay route is no flap: direct comes within five probes of its first answer."""
    pair = hot(Line(cuts=[(0, 2)]), Line(0.03)).run(20)
    assert pair.routes() == [DIRECT, RELAYED, DIRECT]
    assert pair.moves[2][0] <= 2 + (POLICY.back_probes + 1) * POLICY.hot_interval_s + POLICY.consider_every_s
    assert pair.paths.state(PEER, 20).flaps == 0


def test_peer_without_a_relayed_plane_is_direct_only() -> None:
    """There is one route, whatever happens to it."""
    pair = hot(Line(cuts=[(5, 10)]), plan=PeerPlan("d1")).run(20)
    assert pair.routes() == [DIRECT]
    assert pair.paths.state(PEER, 20).relayed is None
    assert all(probe.plane == "direct" for _, probe in pair.probes)


def test_relayed_plane_that_is_taken_away_gives_its_traffic_back() -> None:
    """Without the plane there is no route over it, even to a direct plane that is silent."""
    pair = hot(Line(cuts=[(5, 60)]), Line(0.01)).run(10)
    assert pair.route == RELAYED
    pair.paths.set_peers({PEER: PeerPlan("d1")}, 10)
    pair.run(12)
    assert pair.moves[-1][1:] == (DIRECT, "there is no relayed plane")


# Dead, back, both dead.


@pytest.mark.parametrize("phase", [step / 20 for step in range(20)])
@pytest.mark.parametrize("rtt_s", [0.0003, 0.02, 0.06])
def test_cut_moves_the_route_within_the_gap_and_back_after(phase: float, rtt_s: float) -> None:
    """A hot pair: gap at most 0.7 s at any phase of the probes; direct again well below 10 s after it returned."""
    cut_at = 10 + phase * POLICY.hot_interval_s
    pair = hot(Line(rtt_s, cuts=[(cut_at, 20)]), Line(rtt_s + 0.01)).run(40)
    assert pair.routes() == [DIRECT, RELAYED, DIRECT]
    assert pair.moves[1][0] - cut_at <= GAP_S
    assert pair.moves[1][2] == "direct is dead"
    assert 20 + (POLICY.back_probes - 1) * POLICY.hot_interval_s <= pair.moves[2][0] <= 22.5


def test_cold_pair_finds_the_cut_with_its_next_probe() -> None:
    """A cold probe that is missed is confirmed at once, not 10 s later."""
    pair = Pair(Line(cuts=[(60, 90)]), Line(0.02)).run(150)
    assert pair.routes() == [DIRECT, RELAYED, DIRECT]
    assert 60 <= pair.moves[1][0] <= 60 + POLICY.cold_interval_s + GAP_S
    assert pair.moves[2][0] <= 100


def test_two_missed_probes_are_not_dead() -> None:
    """Silence shorter than three probes moves nothing."""
    pair = hot(Line(cuts=[(10.0, 10.3)]), Line(0.02)).run(14)
    assert pair.routes() == [DIRECT]
    assert 0 < pair.paths.state(PEER, 14).direct.loss < 0.2


def test_both_dead_keeps_the_route_until_one_returns() -> None:
    """Nothing better is known: the route stays and is reported; whichever returns first is used."""
    pair = hot(Line(cuts=[(10, 40)]), Line(0.02, cuts=[(10.1, 30)])).run(29)
    state = pair.paths.state(PEER, 29)
    assert state.direct.status == "dead"
    assert state.relayed is not None
    assert state.relayed.status == "dead"
    assert sorted(pair.paths.silent(29)) == [(PEER, "direct"), (PEER, "relayed")]
    moves_before = len(pair.moves)
    pair.run(31)
    assert pair.route == RELAYED
    assert len(pair.moves) <= moves_before + 1
    assert pair.run(60).route == DIRECT


def test_dead_plane_is_probed_on_at_a_lower_pace_when_cold() -> None:
    """A silent plane of a cold peer costs a probe every one to two seconds after the first eager ones."""
    pair = Pair(Line(cuts=[(0, 1e9)]), Line()).run(60)
    assert 15 <= pair.sent("direct", 20, 50) <= 31
    assert pair.sent("direct", 0, 5) >= 20


def test_queue_that_fills_up_is_slow_and_not_dead() -> None:
    """Answers that come later than their timeout still take their miss back: the round trip grows, the plane lives."""
    pair = hot(Line(lambda now: 0.001 if now < 10 else 0.35), plan=PeerPlan("d1")).run(10)
    for tenth in range(101, 200):
        assert pair.run(tenth / 10).paths.state(PEER, tenth / 10).direct.status == "alive"
    pair.run(20)
    state = pair.paths.state(PEER, 20).direct
    assert state.status == "alive"
    assert state.rtt_s == pytest.approx(0.35, rel=0.05)
    assert state.loss == 0


def test_own_standstill_is_not_taken_for_dead_planes() -> None:
    """A process that was stopped for two seconds did not hear; it does not conclude that nobody spoke."""
    pair = hot(Line(0.65), Line(0.66)).run(10)
    pair._answers.clear()
    pair.now += 2
    pair.run(12.1)
    state = pair.paths.state(PEER, 12.1)
    assert state.relayed is not None
    assert (state.direct.status, state.relayed.status) == ("alive", "alive")
    assert (state.direct.loss, state.relayed.loss) == (0, 0)
    assert pair.run(20).routes() == [DIRECT]


def test_process_that_is_always_late_still_finds_the_dead_plane() -> None:
    """Standing still is forgiven now and then, not for ever."""
    paths = Paths()
    paths.set_peers({PEER: TWO}, 0.0)
    now, routes = 0.0, []
    while now < 30:
        for probe in paths.due(now):
            if probe.plane == "relayed" or now < 10:
                paths.answered(PEER, probe.plane, probe.sequence, now + 0.01)
        routes += paths.decide(now + 0.02)
        now += 0.6
    assert routes[-1].planes == RELAYED


# Slow, lossy, flapping.


def test_slow_direct_moves_to_the_relay_and_returns() -> None:
    """Relayed has to be clearly faster; direct comes back when it is about as fast again."""
    pair = hot(Line(lambda now: 0.08 if 10 <= now < 30 else 0.01), Line(0.015)).run(60)
    assert [(planes, reason) for _, planes, reason in pair.moves[1:]] == [
        (RELAYED, "direct is slow"),
        (DIRECT, "direct is back"),
    ]
    assert 10 < pair.moves[1][0] < 13
    assert 30 < pair.moves[2][0] < 35


@pytest.mark.parametrize(("direct_s", "relayed_s"), [(0.010, 0.0075), (0.0025, 0.0001), (0.1, 0.069)])
def test_slightly_slower_direct_stays(direct_s: float, relayed_s: float) -> None:
    """Within 0.7 x direct - 2 ms there is nothing to gain."""
    assert hot(Line(direct_s), Line(relayed_s)).run(60).routes() == [DIRECT]


def test_lossy_direct_moves_to_the_clean_relay_and_a_single_loss_does_not() -> None:
    """Losses move the route only with a clean relay beside them, and one lost probe is no evidence."""
    assert hot(Line(cuts=[(10.0, 10.15)]), Line(0.01)).run(30).routes() == [DIRECT]
    lossy = hot(Line(loss=always(0.2)), Line(0.01), seed=3).run(15)
    assert any(move[1:] == (RELAYED, "direct loses packets") for move in lossy.moves)
    alike = hot(Line(loss=always(0.05)), Line(0.01, loss=always(0.3)), seed=3).run(60)
    assert not any(reason == "direct loses packets" for _, _, reason in alike.moves)


def test_each_flap_doubles_the_hold_down_and_calm_forgets_it() -> None:
    """A direct plane that turns slow and fast in turn is moved ever less, and trusted again after calm."""
    turning = Line(lambda now: 0.08 if now < 300 and now % 6 < 3 else 0.01)
    pair = hot(turning, Line(0.02)).run(300)
    voluntary = [at for at, _, _ in pair.voluntary()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(voluntary)]
    assert 6 <= len(voluntary) <= 12, voluntary
    assert gaps[-1] >= POLICY.hold_down_max_s - 1e-6
    assert pair.paths.state(PEER, 300).flaps == len(voluntary) - 1
    pair.run(300 + 7 * POLICY.calm_s)
    assert pair.route == DIRECT
    start = pair.now
    turning.rtt_s = lambda now: 0.08 if start <= now < start + 3 else 0.01
    moves_before = len(pair.moves)
    pair.run(start + 15)
    assert [planes for _, planes, _ in pair.moves[moves_before:]] == [RELAYED, DIRECT]


# Both planes at once.


def test_saturated_direct_is_joined_by_the_relay_and_stays_so_under_load() -> None:
    """Two alike paths of 25 MB/s and 45 MB/s to carry: both, without flapping, until the load has gone."""
    pair = Pair(
        Line(0.003, capacity=25e6),
        Line(0.0035, capacity=25e6),
        offered=lambda now: 45e6 if 10 <= now < 200 else 100_000.0,
    ).run(199)
    assert [(planes, reason) for _, planes, reason in pair.moves[1:]] == [(BOTH, "direct is saturated")]
    pair.run(260)
    assert [(planes, reason) for _, planes, reason in pair.moves[2:]] == [(DIRECT, "one plane is enough")]


@pytest.mark.parametrize(("cut", "left"), [("direct", RELAYED), ("relayed", DIRECT)])
def test_half_that_dies_is_left_at_once(cut: Plane, left: Planes) -> None:
    """Balance never keeps traffic on a dead plane."""
    pair = Pair(Line(0.003, capacity=25e6), Line(0.0035, capacity=25e6), offered=45e6).run(30)
    assert pair.route == BOTH
    pair.lines[cut].cuts.append((30, 60))
    pair.run(30 + GAP_S)
    assert pair.route == left


def test_throttled_direct_ends_on_the_relay_and_stays_there_while_the_load_lasts() -> None:
    """A direct path of 2.5 MB/s beside a wide one: its half is given up, and not tried again under that load."""
    pair = Pair(Line(0.003, capacity=2.5e6), Line(0.0035, capacity=1e9), offered=100e6).run(120)
    assert pair.routes() == [DIRECT, BOTH, RELAYED]
    assert pair.moves[-1][0] < 10
    pair.offered = 100_000.0
    pair.run(130)
    assert pair.route == DIRECT


def test_small_traffic_or_unlike_planes_are_never_balanced() -> None:
    """A slow answer without load is no saturation, and planes of different length are not mixed."""
    light = hot(Line(lambda now: 0.003 if now < 10 else 0.03), Line(0.0035)).run(60)
    unlike = Pair(Line(0.003, capacity=25e6), Line(0.03, capacity=25e6), offered=45e6).run(60)
    assert BOTH not in light.routes()
    assert BOTH not in unlike.routes()


# Pace.


def test_cold_peer_is_probed_rarely_and_traffic_makes_it_hot_for_a_while() -> None:
    """Six probes a minute; five a second while bytes move and for 30 s after."""
    pair = Pair(offered=lambda now: 50_000.0 if 100 <= now < 110 else 0.0).run(200)
    assert 5 <= pair.sent("direct", 30, 90) <= 7
    assert pair.sent("direct", 102, 112) >= 45
    assert pair.sent("relayed", 102, 112) >= 45
    assert pair.sent("direct", 150, 200) <= 6


def test_probes_of_idle_members_never_keep_each_other_hot() -> None:
    """The counters also grow by the probes of both ends, at the fastest pace of the other, and by keepalives."""
    paths = Paths()
    paths.set_peers({PEER: TWO}, 0.0)
    now, total, sent = 0.0, 0, 0
    while now < 60:
        for probe in paths.due(now):
            paths.answered(PEER, probe.plane, probe.sequence, now + 0.001)
            sent += 224 if probe.plane == "direct" else 0
        paths.decide(now + 0.001)
        if round(now * 10) % 10 == 0:
            total += sent + 5 * 224 + 272
            sent = 0
            paths.moved(PEER, "direct", total, now)
            assert not paths.state(PEER, now).hot
        now += 0.1


def test_restarted_counter_is_no_traffic() -> None:
    """A device that was made again counts from zero; a reading in the same instant is no rate."""
    paths = Paths()
    paths.set_peers({PEER: TWO}, 0.0)
    for total, at in ((10**9, 1.0), (0, 2.0), (500, 3.0), (10**6, 3.0)):
        paths.moved(PEER, "direct", total, at)
        assert not paths.state(PEER, at).hot
    paths.moved(PEER, "direct", 10**6, 4.0)
    assert paths.state(PEER, 4.0).hot


def test_many_cold_peers_do_not_fall_together() -> None:
    """Of 500 cold planes no half second gets much more than its share, and it is the same on every run."""
    peers = {f"nd_{number}": PeerPlan("d") for number in range(500)}

    def sent_per_half_second() -> dict[int, int]:
        paths, now, counts = Paths(), 0.0, dict[int, int]()
        paths.set_peers(peers, now)
        while now < 40:
            for probe in paths.due(now):
                paths.answered(probe.peer, probe.plane, probe.sequence, now + 0.001)
                counts[int(now * 2)] = counts.get(int(now * 2), 0) + 1
            paths.decide(now + 0.002)
            now = max(paths.next_at(), now + 0.01)
        return counts

    counts = sent_per_half_second()
    cold = [counts.get(slot, 0) for slot in range(40, 80)]
    assert sum(cold) == pytest.approx(1000, abs=10)
    assert max(cold) <= 50
    assert counts == sent_per_half_second()


def test_next_at_sleeps_through_idle_time_and_batches_passes() -> None:
    """Nothing to do is never; peers share a pass; waking at next_at always finds something or comes nearer."""
    paths = Paths()
    assert paths.due(0.0) == []
    assert paths.next_at() == float("inf")
    paths.set_peers({f"nd_{number}": TWO for number in range(50)}, 1.0)
    passes, now = 0, 1.0
    while now < 3.0:
        paths.due(now)
        paths.decide(now)
        assert paths.next_at() >= now + POLICY.batch_s - 1e-9
        now = paths.next_at()
        passes += 1
    assert passes <= 2.0 / POLICY.batch_s + 1


# Passive peers, changes.


def leaf(paths: Paths, start: float, end: float, interval_s: float, *planes: Plane, rtt_s: float | None = 0.01) -> None:
    """A passive peer that is heard on `planes` every `interval_s`; nothing may be sent to it."""
    now = start
    while now < end:
        for plane in planes:
            paths.heard(PEER, plane, rtt_s, now, interval_s)
        step = min(now + interval_s, end)
        while now < step:
            now = min(now + 0.05, step)
            assert paths.due(now) == []
            paths.decide(now)


def test_passive_peer_is_never_probed_and_judged_by_its_own_probes() -> None:
    """It is alive while heard within three of its intervals; its silence on one plane moves the route."""
    paths = Paths()
    paths.set_peers({PEER: PeerPlan("d", "r", passive=True)}, 0.0)
    leaf(paths, 0.0, 10.0, 0.2, "direct", "relayed")
    assert paths.state(PEER, 10).planes == DIRECT
    leaf(paths, 10.0, 10.6, 0.2, "relayed")
    assert paths.state(PEER, 10.6).direct.status == "alive"
    leaf(paths, 10.6, 11.0, 0.2, "relayed")
    assert paths.state(PEER, 11).planes == RELAYED
    leaf(paths, 11.0, 15.0, 0.2, "direct", "relayed")
    assert paths.state(PEER, 15).planes == DIRECT
    leaf(paths, 15.0, 40.0, 10.0, "direct", "relayed", rtt_s=None)
    assert paths.state(PEER, 40).direct.status == "alive"
    assert paths.silent(40) == []


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_passive_peer_cannot_claim_an_absurd_pace_or_round_trip(interval_s: float, rtt_s: float) -> None:
    """What a peer says is bounded: three cold intervals of silence are dead, a round trip is credible."""
    paths = Paths()
    paths.set_peers({PEER: PeerPlan("d", "r", passive=True)}, 0.0)
    paths.heard(PEER, "direct", rtt_s, 1.0, interval_s)
    state = paths.state(PEER, 1.0).direct
    assert state.status == "alive"
    assert state.rtt_s is None or 0 <= state.rtt_s <= POLICY.patience_s
    paths.due(1.0 + POLICY.dead_after * POLICY.cold_interval_s + POLICY.hot_interval_s)
    paths.due(2.0 + POLICY.dead_after * POLICY.cold_interval_s + 2 * POLICY.hot_interval_s)
    assert paths.state(PEER, 40).direct.status == "dead"


def test_probe_of_an_active_peer_proves_nothing() -> None:
    """For a peer that we probe ourselves, being heard says nothing about the way there."""
    paths = Paths()
    paths.set_peers({PEER: TWO}, 0.0)
    paths.heard(PEER, "direct", 0.001, 1.0, 0.2)
    assert paths.state(PEER, 1.0).direct.status == "unknown"


def test_changed_generation_forgets_samples_and_keeps_the_route() -> None:
    """A new endpoint is measured afresh; the route leaves the unknown plane only for one that is known to live."""
    pair = hot(Line(), Line(0.01)).run(10)
    pair.paths.set_peers({PEER: PeerPlan("d2", "r1")}, 10)
    assert pair.paths.state(PEER, 10).direct.status == "unknown"
    assert pair.paths.state(PEER, 10).direct.rtt_s is None
    assert pair.paths.state(PEER, 10).planes == DIRECT
    assert pair.run(20).routes() == [DIRECT]
    assert pair.paths.state(PEER, 20).direct.status == "alive"
    pair.lines["direct"].cuts.append((20, 1e9))
    pair.paths.set_peers({PEER: PeerPlan("d3", "r1")}, 20)
    pair.run(20 + GAP_S)
    assert pair.moves[-1][1:] == (RELAYED, "relayed answered first")


def test_unchanged_peers_keep_what_they_know_and_removed_ones_are_gone() -> None:
    """Setting the same peers again changes nothing; a removed peer is probed no more and asked for in vain."""
    pair = hot(Line(), Line(0.01)).run(10)
    before = pair.paths.state(PEER, 10)
    pair.paths.set_peers({PEER: TWO, "nd_new": TWO}, 10)
    assert pair.paths.state(PEER, 10) == before
    assert [route.peer for route in pair.paths.decide(10)] == ["nd_new"]
    pair.paths.set_peers({"nd_new": TWO}, 10)
    assert {probe.peer for probe in pair.paths.due(11)} == {"nd_new"}
    pair.paths.answered(PEER, "direct", before.direct.sent, 11)
    with pytest.raises(UnknownPeer, match=PEER):
        pair.paths.state(PEER, 11)


@pytest.mark.parametrize("module", [paths_module, relays_module])
def test_module_needs_nothing_but_the_standard_library(module: object) -> None:
    """It runs where nothing is installed."""
    source = Path(str(getattr(module, "__file__", ""))).read_text()
    for node in ast.walk(ast.parse(source)):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        assert all(name.split(".")[0] in sys.stdlib_module_names for name in names), names
