"""
Which plane carries the traffic to each peer of a mesh.

A member reaches each peer over two planes, `direct` and `relayed`. It probes both, and decides alone, peer by peer,
which of them its routes use; the other end may decide otherwise. `Paths` is that decision as a state machine without
clock, socket or dependency (standard library only: it also runs where nothing is installed). Whoever drives it sleeps
until `next_at`, hands in what arrived (`answered`, `heard`, `moved`), calls `due`, sends those probes, calls `decide`
and sets those routes. Every `now` is monotonic, in seconds, and never goes back.

Sources: docs/mesh.md; the numbers are those of `Policy`.
"""

import heapq
import math
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Plane = Literal["direct", "relayed"]
Planes = tuple[Plane, ...]
Status = Literal["unknown", "alive", "dead"]

DIRECT: Planes = ("direct",)
RELAYED: Planes = ("relayed",)
BOTH: Planes = ("direct", "relayed")


class UnknownPeer(LookupError):
    """A peer was asked for that `set_peers` did not name."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Every number of the path choice."""

    hot_interval_s: float = 0.2
    """Between two probes of a plane while its peer is hot, while the plane is being measured, or newly not alive."""
    cold_interval_s: float = 10.0
    """Between two probes otherwise, at a phase of its own for each peer and plane."""
    dead_interval_s: float = 1.0
    """Between two probes of a plane that stays silent; up to twice this, by its phase."""
    eager_for_s: float = 5.0
    """For this long a plane that is not alive is probed at the hot pace, whatever its peer moves."""
    hot_for_s: float = 30.0
    """A peer stays hot for this long after bytes moved."""
    hot_bytes_min: int = 1024
    """Bytes between two readings of a counter that are no traffic: handshakes and keepalives."""
    probe_bytes: int = 256
    """What one probe and its answer add to the counters of WireGuard at most. The peer's own probes are allowed for at
    the hot pace, else two idle members would keep each other hot for ever."""

    dead_after: int = 3
    """Probes missed in a row that make a plane dead; probe intervals of silence that make a passive peer's dead."""
    timeout_floor_s: float = 0.2
    """A probe is missed after this, or after `timeout_rtts` round trips if that is longer."""
    timeout_rtts: float = 3.0
    patience_s: float = 2.0
    """No timeout is longer, and no answer older than this counts. A plane that is not alive has this timeout."""
    confirm_interval_s: float = 0.05
    """After a miss the next probes follow each other this closely, until enough are under way to call the plane dead:
    it is dead hot_interval_s + 2 timeouts + this (+ some batch_s) after a cut, 0.7 s at round trips up to 66 ms."""
    head_start_s: float = 0.3
    """A plane in use of which nothing is known yet keeps the route for this long when the other answers first."""
    batch_s: float = 0.01
    """`next_at` is never closer than this to the last `due`, so that many peers share a pass: at 512 hot planes that is
    three times cheaper than one pass for each probe."""
    stall_s: float = 0.25
    """A call of `due` this late shows that this process stood still: what it waited for then is not called missed."""
    stall_every_s: float = 5.0
    """Standing still is forgiven once in this time, so that a process that is always late still finds dead planes."""
    silent_after_s: float = 2.0
    """A plane that never answered is reported as silent after this."""

    consider_every_s: float = 0.5
    """The voluntary rules are looked at this often per peer; dead and alive again at once."""
    settling_samples: int = 3
    """First samples of a plane new or back: a handshake is in them. Only the lowest is kept."""
    samples_min: int = 8
    """Samples after those, on both planes, before round trips are compared."""
    smoothing: float = 0.3
    """Weight of the newest sample in the smoothed round trip."""
    slow_ratio: float = 0.7
    slow_margin_s: float = 0.002
    """Direct is left when relayed < slow_ratio x direct - slow_margin_s."""
    loss_window_s: float = 5.0
    loss_max: float = 0.02
    losses_min: int = 2
    """Direct is left when over loss_window_s more than loss_max, and at least losses_min, probes were missed on it and
    none on the relayed plane: at 25 probes in a window a single one is 4 % and no evidence."""
    back_probes: int = 5
    back_ratio: float = 1.2
    back_margin_s: float = 0.001
    """Direct is taken again after back_probes answers in a row, with direct < back_ratio x relayed + back_margin_s."""

    hold_down_s: float = 2.0
    hold_down_max_s: float = 60.0
    """Before a voluntary move of a peer, since its last move; doubled by each flap: a voluntary move back to a route
    that was left less than calm_s ago."""
    calm_s: float = 120.0
    """The hold-down halves for each such time without a move."""

    saturated_ratio: float = 3.0
    saturated_margin_s: float = 0.002
    saturated_bytes_per_s_min: int = 1_000_000
    """A plane is saturated when its hot peer moves at least so much over it and its round trip exceeds
    saturated_ratio x the lowest of the last minutes + saturated_margin_s."""
    similar_ratio: float = 0.25
    similar_margin_s: float = 0.001
    """Two planes are alike when their lowest round trips differ by at most this share of the larger + this margin."""
    base_for_s: float = 120.0
    """The lowest round trip is remembered for once to twice this."""
    worse_for_s: float = 3.0
    """Of both planes one is given up when for so long it was slow or lossy beside the other and that one not strained:
    a queue that filled before the load was shared needs this time to drain."""
    relaxed_for_s: float = 5.0
    relaxed_ratio: float = 0.7
    """Both planes become one again when for relaxed_for_s direct was not saturated and the peer moved less than
    relaxed_ratio x what had saturated it."""
    full_for_s: float = 300.0
    full_ratio: float = 0.8
    """For full_for_s after direct was found saturated it is not taken back for more than full_ratio x that rate."""


class PeerPlan(NamedTuple):
    """
    What is known of a peer.

    `direct` and `relayed` are generations: opaque, changed with the plane's key or endpoint, so that what was measured
    before is forgotten. A peer without a relayed plane has None there. A `passive` peer accepts nothing that it did not
    ask for: it is never probed, and judged by its own probes (`Paths.heard`).
    """

    direct: str = ""
    relayed: str | None = None
    passive: bool = False


class Probe(NamedTuple):
    """A probe to be sent now; `interval_s` until the next one belongs into it, for a peer to whom we are passive."""

    peer: str
    plane: Plane
    sequence: int
    interval_s: float


class Route(NamedTuple):
    """The planes that carry the traffic to a peer from now on: one of them, or both; never none."""

    peer: str
    planes: Planes
    reason: str


class PlaneState(NamedTuple):
    """One plane to one peer, for reports; `loss` is the share of probes missed in the last seconds, 0 to 1."""

    status: Status
    rtt_s: float | None
    loss: float
    sent: int
    answered: int


class PeerState(NamedTuple):
    """One peer, for reports."""

    planes: Planes
    reason: str
    hot: bool
    flaps: int
    moves: int
    direct: PlaneState
    relayed: PlaneState | None


class Paths:
    """The path choice of one member for all its peers."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._peers: dict[str, _Peer] = {}
        self._planes: dict[tuple[str, Plane], _Plane] = {}
        self._wakes: list[tuple[float, int, _Plane]] = []
        self._rechecks: list[tuple[float, int, _Peer]] = []
        self._unsettled: dict[_Peer, None] = {}
        self._order = 0
        self._due_at = -math.inf
        self._stalled_at = math.inf
        self._forgiven_at = -math.inf

    def set_peers(self, peers: Mapping[str, PeerPlan], now: float) -> None:
        """Adds, keeps and removes peers until they are exactly `peers`; what is unchanged keeps all that it knows."""
        for name in [name for name in self._peers if name not in peers]:
            peer = self._peers.pop(name)
            peer.is_gone = True
            self._unsettled.pop(peer, None)
            self._remove_plane(peer.direct)
            if peer.relayed is not None:
                self._remove_plane(peer.relayed)
        for name, plan in peers.items():
            peer = self._peers.get(name)
            if peer is None:
                self._add_peer(name, plan, now)
            elif peer.plan != plan:
                self._change_peer(peer, plan, now)

    def due(self, now: float) -> list[Probe]:
        """The probes to send now; also notes which earlier ones were missed, so call it before `decide`."""
        if now > self._stalled_at and now >= self._forgiven_at + self._policy.stall_every_s:
            self._forgive(now)
        probes: list[Probe] = []
        wakes = self._wakes
        while wakes and wakes[0][0] <= now:
            at, order, plane = wakes[0]
            if at != plane.wake_at or plane.is_gone:
                heapq.heappop(wakes)
                continue
            if plane.peer.plan.passive:
                wake_at = self._listen(plane, now)
            else:
                if plane.waiting or plane.overdue:
                    self._judge(plane, now)
                if plane.send_at <= now:
                    probes.append(self._probe(plane, now))
                wake_at = plane.send_at
                if plane.waiting:
                    wake_at = min(wake_at, next(iter(plane.waiting.values())) + plane.timeout_s)
            plane.wake_at = wake_at
            if wake_at < math.inf:
                heapq.heapreplace(wakes, (wake_at, order, plane))
            else:
                heapq.heappop(wakes)
        self._due_at = now
        self._stalled_at = self._next_wake() + self._policy.stall_s
        return probes

    def answered(self, peer: str, plane: Plane, sequence: int, now: float) -> None:
        """
        A probe of ours came back: the plane lives, and this is a sample of its round trip.

        An answer slower than the probe's timeout still takes its miss back, so that a queue that fills up is slow and
        not dead. One older than `patience_s`, a second one, or one that was never asked for changes nothing.
        """
        found = self._planes.get((peer, plane))
        if found is None:
            return
        sent_at = found.waiting.get(sequence)
        is_overdue = sent_at is None
        if sent_at is None:
            sent_at = found.overdue.get(sequence)
        if sent_at is None or not 0 <= now - sent_at <= self._policy.patience_s:
            return
        if is_overdue:
            del found.overdue[sequence]
            found.missed -= 1
        else:
            del found.waiting[sequence]
        found.answered += 1
        self._lives(found, None if now > self._stalled_at else now - sent_at, now)

    def heard(self, peer: str, plane: Plane, rtt_s: float | None, now: float, interval_s: float | None = None) -> None:
        """
        A passive peer's own probe arrived, which says that it hears us on this plane.

        Args:
            peer: the passive peer; from any other a probe changes nothing, for our own tell more.
            plane: the plane it came by.
            rtt_s: the round trip that the peer measured; None while it has none.
            now: monotonic seconds.
            interval_s: `Probe.interval_s` of that probe, which the silence after it is measured by; kept between the
                hot and the cold interval, which is also what None means.
        """
        found = self._planes.get((peer, plane))
        if found is None or not found.peer.plan.passive:
            return
        policy = self._policy
        pace_s = policy.cold_interval_s if interval_s is None else interval_s
        pace_s = min(max(pace_s, policy.hot_interval_s), policy.cold_interval_s)
        found.answered += 1
        found.silent_at = now + policy.dead_after * pace_s + policy.hot_interval_s / 2
        self._schedule(found, found.silent_at)
        is_usable = rtt_s is not None and 0 <= rtt_s <= policy.patience_s
        self._lives(found, rtt_s if is_usable else None, now)

    def moved(self, peer: str, plane: Plane, total_bytes: int, now: float) -> None:
        """WireGuard's counter of a peer, received + sent, to be handed in every second or two: traffic makes it hot."""
        found = self._planes.get((peer, plane))
        if found is None:
            return
        policy = self._policy
        before, elapsed_s = found.total_bytes, now - found.total_at
        if before is not None and elapsed_s <= 0:
            return
        own = (found.sent - found.sent_before) * policy.probe_bytes
        found.total_bytes, found.total_at, found.sent_before = total_bytes, now, found.sent
        if before is None or total_bytes < before:
            return
        theirs = elapsed_s / policy.hot_interval_s * policy.probe_bytes
        beside_probes = total_bytes - before - own - theirs
        found.bytes_per_s += (max(beside_probes, 0.0) / elapsed_s - found.bytes_per_s) / 2
        if beside_probes <= policy.hot_bytes_min:
            return
        was_hot = now < found.peer.hot_until
        found.peer.hot_until = now + policy.hot_for_s
        if not was_hot:
            for each in found.peer.planes():
                self._hasten(each, now)

    def decide(self, now: float) -> list[Route]:
        """The routes that change now; a peer that is new is always among them."""
        while self._rechecks and self._rechecks[0][0] <= now:
            peer = heapq.heappop(self._rechecks)[2]
            if not peer.is_gone:
                self._unsettled[peer] = None
        changed = [peer for peer in self._unsettled if self._consider(peer, now)]
        self._unsettled.clear()
        return [Route(peer.name, peer.route, peer.reason) for peer in changed]

    def next_at(self) -> float:
        """When `due` and `decide` have something to do next; a past time means at once, inf never."""
        soonest = self._due_at + self._policy.batch_s
        if self._unsettled:
            return soonest
        recheck_at = self._rechecks[0][0] if self._rechecks else math.inf
        return max(min(self._next_wake(), recheck_at), soonest)

    def state(self, peer: str, now: float) -> PeerState:
        """
        What is known of a peer.

        Raises:
            UnknownPeer: `set_peers` did not name it.
        """
        found = self._peers.get(peer)
        if found is None:
            raise UnknownPeer(f"there is no peer {peer}: the {len(self._peers)} peers are those of the last set_peers")
        return PeerState(
            planes=found.route,
            reason=found.reason,
            hot=now < found.hot_until,
            flaps=found.flaps,
            moves=found.moves,
            direct=_report(found.direct),
            relayed=None if found.relayed is None else _report(found.relayed),
        )

    def is_hot(self, peer: str, now: float) -> bool:
        """Whether bytes moved to or from a peer lately; False of one that is not known."""
        found = self._peers.get(peer)
        return found is not None and now < found.hot_until

    def silent(self, now: float) -> list[tuple[str, Plane]]:
        """Planes that are dead or never answered: another endpoint may help. A passive peer's are not among them."""
        return [
            (plane.peer.name, plane.name)
            for plane in self._planes.values()
            if not plane.peer.plan.passive
            and (
                plane.status == "dead"
                or (plane.status == "unknown" and now >= plane.since + self._policy.silent_after_s)
            )
        ]

    # Peers and planes come and go.

    def _add_peer(self, name: str, plan: PeerPlan, now: float) -> None:
        peer = _Peer(name, plan, self._policy.hold_down_s)
        self._peers[name] = peer
        peer.direct = self._add_plane(peer, "direct", now)
        if plan.relayed is not None:
            peer.relayed = self._add_plane(peer, "relayed", now)
        self._unsettled[peer] = None

    def _change_peer(self, peer: "_Peer", plan: PeerPlan, now: float) -> None:
        before, peer.plan = peer.plan, plan
        turned = before.passive != plan.passive
        if turned or before.direct != plan.direct:
            self._forget(peer.direct, now)
        if peer.relayed is not None and plan.relayed is None:
            self._remove_plane(peer.relayed)
            peer.relayed = None
        elif peer.relayed is None and plan.relayed is not None:
            peer.relayed = self._add_plane(peer, "relayed", now)
        elif peer.relayed is not None and (turned or before.relayed != plan.relayed):
            self._forget(peer.relayed, now)
        self._unsettled[peer] = None

    def _add_plane(self, peer: "_Peer", name: Plane, now: float) -> "_Plane":
        self._order += 1
        phase = zlib.crc32(f"{peer.name}/{name}".encode()) / 2**32
        plane = _Plane(peer, name, phase, self._order, deque(maxlen=_marks_max(self._policy)))
        self._planes[peer.name, name] = plane
        self._forget(plane, now)
        return plane

    def _remove_plane(self, plane: "_Plane") -> None:
        plane.is_gone = True
        del self._planes[plane.peer.name, plane.name]

    def _forget(self, plane: "_Plane", now: float) -> None:
        """Nothing is known of this plane; its numbers and counters go on, so that no old answer fits a new probe."""
        plane.status, plane.since = "unknown", now
        plane.waiting.clear()
        plane.overdue.clear()
        plane.base_s = plane.base_before_s = math.inf
        plane.base_since = now
        plane.misses = 0
        self._unlearn(plane)
        plane.send_at = math.inf if plane.peer.plan.passive else now + plane.phase * self._policy.hot_interval_s
        plane.wake_at = plane.silent_at = math.inf
        self._schedule(plane, plane.send_at)

    def _unlearn(self, plane: "_Plane") -> None:
        plane.streak = plane.settled = plane.samples = 0
        plane.rtt_s = None
        plane.timeout_s = self._policy.patience_s
        plane.marks.clear()

    # Time passes: probes fall due, answers stay away.

    def _schedule(self, plane: "_Plane", at: float) -> None:
        if at < plane.wake_at:
            plane.wake_at = at
            heapq.heappush(self._wakes, (at, plane.order, plane))

    def _hasten(self, plane: "_Plane", now: float) -> None:
        if plane.peer.plan.passive:
            return
        plane.send_at = min(plane.send_at, max(now, plane.sent_at + self._policy.hot_interval_s))
        self._schedule(plane, plane.send_at)

    def _next_wake(self) -> float:
        wakes = self._wakes
        while wakes and (wakes[0][0] != wakes[0][2].wake_at or wakes[0][2].is_gone):
            heapq.heappop(wakes)
        return wakes[0][0] if wakes else math.inf

    def _forgive(self, now: float) -> None:
        self._forgiven_at = now
        for plane in self._planes.values():
            if plane.waiting:
                plane.waiting.clear()
                self._hasten(plane, now)
            if plane.silent_at < math.inf:
                plane.silent_at = max(plane.silent_at, now + self._policy.hot_interval_s)

    def _probe(self, plane: "_Plane", now: float) -> Probe:
        plane.sequence += 1
        plane.sent += 1
        plane.sent_at = now
        plane.waiting[plane.sequence] = now
        plane.send_at = self._next_send(plane, now)
        return Probe(plane.peer.name, plane.name, plane.sequence, plane.send_at - now)

    def _next_send(self, plane: "_Plane", now: float) -> float:
        policy = self._policy
        is_alive = plane.status == "alive"
        if plane.misses and is_alive and plane.misses + len(plane.waiting) < policy.dead_after:
            return now + policy.confirm_interval_s
        if now < plane.peer.hot_until:
            return now + policy.hot_interval_s
        if is_alive:
            if plane.samples < policy.samples_min or plane.misses:
                return now + policy.hot_interval_s
            rounds = math.floor(now / policy.cold_interval_s - plane.phase) + 1
            at = (rounds + plane.phase) * policy.cold_interval_s
            return at if at > now else at + policy.cold_interval_s
        if now < plane.since + policy.eager_for_s:
            return now + policy.hot_interval_s
        return now + policy.dead_interval_s * (1 + plane.phase)

    def _judge(self, plane: "_Plane", now: float) -> None:
        """Counts the probes whose time is up as missed; the plane may be dead then."""
        policy = self._policy
        while plane.waiting:
            sequence, sent_at = next(iter(plane.waiting.items()))
            if sent_at + plane.timeout_s > now:
                break
            del plane.waiting[sequence]
            plane.overdue[sequence] = sent_at
            plane.missed += 1
            plane.misses += 1
            plane.streak = 0
            if plane.status != "alive":
                continue
            if plane.misses >= policy.dead_after:
                self._dies(plane, now)
            elif plane.misses + len(plane.waiting) < policy.dead_after:
                plane.send_at = min(plane.send_at, max(now, plane.sent_at + policy.confirm_interval_s))
        while plane.overdue:
            sequence, sent_at = next(iter(plane.overdue.items()))
            if sent_at + policy.patience_s > now:
                break
            del plane.overdue[sequence]

    def _listen(self, plane: "_Plane", now: float) -> float:
        """The same for a passive peer's plane: when it has to be heard again."""
        if plane.silent_at > now:
            return plane.silent_at
        plane.silent_at = math.inf
        self._dies(plane, now)
        return math.inf

    def _dies(self, plane: "_Plane", now: float) -> None:
        plane.status, plane.since = "dead", now
        self._unlearn(plane)
        self._hasten(plane, now)
        if plane.name == "direct":
            plane.peer.full_bytes_per_s = 0.0
        self._unsettled[plane.peer] = None

    def _lives(self, plane: "_Plane", rtt_s: float | None, now: float) -> None:
        policy, peer = self._policy, plane.peer
        plane.misses = 0
        plane.streak += 1
        if rtt_s is not None:
            if rtt_s < plane.base_s:
                plane.base_s = rtt_s
            if plane.settled < policy.settling_samples:
                plane.settled += 1
                smooth_s = rtt_s if plane.rtt_s is None else min(plane.rtt_s, rtt_s)
            else:
                plane.samples += 1
                smooth_s = rtt_s if plane.rtt_s is None else plane.rtt_s + policy.smoothing * (rtt_s - plane.rtt_s)
            plane.rtt_s = smooth_s
            timeout_s = policy.timeout_rtts * smooth_s
            plane.timeout_s = min(max(timeout_s, policy.timeout_floor_s), policy.patience_s)
        if plane.status != "alive":
            plane.status, plane.since = "alive", now
            # What was sent before the first probe that came through says nothing about the plane that now lives.
            first_at = now - (rtt_s or 0.0)
            for sequence in [each for each, sent_at in plane.waiting.items() if sent_at < first_at]:
                del plane.waiting[sequence]
            plane.overdue.clear()
            plane.marks.clear()
            self._hasten(plane, now)
            self._unsettled[peer] = None
        elif now >= peer.consider_at:
            self._unsettled[peer] = None

    # The rules.

    def _consider(self, peer: "_Peer", now: float) -> bool:
        """Looks at one peer with every rule; True if its route is another one now, or its first."""
        peer.consider_at = now + self._policy.consider_every_s
        for plane in peer.planes():
            self._mark(plane, now)
        verdict = self._forced(peer, now)
        if verdict is not None:
            planes, reason = verdict
            self._move(peer, planes, reason, now, is_flap=False)
        elif _is_alive(peer.direct) and peer.relayed is not None and _is_alive(peer.relayed):
            self._consider_wish(peer, self._wish(peer, peer.direct, peer.relayed, now), now)
        changed = peer.announced != peer.route
        peer.announced = peer.route
        return changed

    def _forced(self, peer: "_Peer", now: float) -> tuple[Planes, str] | None:
        """The move that no hold-down may delay: away from a plane that is silent or no more, to one that is alive."""
        if peer.relayed is None:
            return None if peer.route == DIRECT else (DIRECT, "there is no relayed plane")
        for plane, other in ((peer.direct, peer.relayed), (peer.relayed, peer.direct)):
            if plane.name not in peer.route or _is_alive(plane) or not _is_alive(other):
                continue
            if plane.status == "dead":
                return (other.name,), f"{plane.name} is dead"
            head_start_until = plane.since + self._policy.head_start_s
            if now >= head_start_until:
                return (other.name,), f"{other.name} answered first"
            self._recheck(peer, head_start_until)
        return None

    def _consider_wish(self, peer: "_Peer", wish: tuple[Planes, str] | None, now: float) -> None:
        if wish is None:
            return
        planes, reason = wish
        held_until = peer.moved_at + self._hold_s(peer, now)
        if now < held_until:
            self._recheck(peer, held_until)
            return
        is_flap = now < peer.left_at.get(planes, -math.inf) + self._policy.calm_s
        self._move(peer, planes, reason, now, is_flap=is_flap)

    def _hold_s(self, peer: "_Peer", now: float) -> float:
        """The hold-down of a peer, after the calm since its last move."""
        calms = int(min((now - peer.moved_at) / self._policy.calm_s, 64))
        return max(self._policy.hold_down_s, peer.hold_s / 2**calms)

    def _move(self, peer: "_Peer", planes: Planes, reason: str, now: float, *, is_flap: bool) -> None:
        peer.hold_s = self._hold_s(peer, now)
        if is_flap:
            peer.flaps += 1
            peer.hold_s = min(self._policy.hold_down_max_s, peer.hold_s * 2)
        for plane in peer.planes() if planes == BOTH else ():
            plane.worse_since = math.inf
            plane.marks.clear()
        if planes == BOTH or (peer.route == DIRECT and self._is_saturated(peer.direct, now)):
            peer.full_bytes_per_s, peer.full_at = peer.direct.bytes_per_s, now
        left_unknown = any(plane.status == "unknown" and plane.name in peer.route for plane in peer.planes())
        if not left_unknown:
            peer.left_at[peer.route] = peer.moved_at = now
        peer.route, peer.reason = planes, reason
        peer.moves += 1
        peer.relaxed_since = None

    def _recheck(self, peer: "_Peer", at: float) -> None:
        if peer.recheck_at != at:
            peer.recheck_at = at
            self._order += 1
            heapq.heappush(self._rechecks, (at, self._order, peer))

    def _wish(self, peer: "_Peer", direct: "_Plane", relayed: "_Plane", now: float) -> tuple[Planes, str] | None:
        """What would be better than the present route while both planes are alive."""
        if peer.route == DIRECT:
            if self._is_saturated(direct, now) and not self._is_strained(relayed) and self._are_alike(direct, relayed):
                return BOTH, "direct is saturated"
            if self._is_slower(direct, relayed):
                return RELAYED, "direct is slow"
            if self._is_lossy(direct, relayed, now):
                return RELAYED, "direct loses packets"
            return None
        if peer.route == RELAYED:
            return (DIRECT, "direct is back") if self._is_back(direct, relayed, now) else None
        return self._wish_of_both(peer, direct, relayed, now)

    def _wish_of_both(
        self, peer: "_Peer", direct: "_Plane", relayed: "_Plane", now: float
    ) -> tuple[Planes, str] | None:
        """A half that is worse is given up, unless the other one is full by itself; without load one is enough."""
        policy = self._policy
        for worse, better in ((direct, relayed), (relayed, direct)):
            is_worse = self._is_slower(worse, better) or self._is_lossy(worse, better, now)
            if self._is_strained(better) or not is_worse:
                worse.worse_since = math.inf
                continue
            worse.worse_since = min(worse.worse_since, now)
            if now >= worse.worse_since + policy.worse_for_s:
                return (better.name,), f"{worse.name} is the worse half"
        moved = direct.bytes_per_s + relayed.bytes_per_s
        is_idle = now >= peer.hot_until or moved < policy.relaxed_ratio * peer.full_bytes_per_s
        if not is_idle or self._is_saturated(direct, now):
            peer.relaxed_since = None
        elif peer.relaxed_since is None:
            peer.relaxed_since = now
        elif now - peer.relaxed_since >= policy.relaxed_for_s:
            return DIRECT, "one plane is enough"
        return None

    def _is_slower(self, plane: "_Plane", other: "_Plane") -> bool:
        policy = self._policy
        if plane.rtt_s is None or other.rtt_s is None or min(plane.samples, other.samples) < policy.samples_min:
            return False
        return other.rtt_s < policy.slow_ratio * plane.rtt_s - policy.slow_margin_s

    def _is_lossy(self, plane: "_Plane", other: "_Plane", now: float) -> bool:
        policy = self._policy
        of_plane, of_other = self._recent(plane, now), self._recent(other, now)
        if of_plane is None or of_other is None:
            return False
        (answered, missed), (other_answered, other_missed) = of_plane, of_other
        if min(answered + missed, other_answered) < policy.samples_min or other_missed > 0:
            return False
        return missed >= policy.losses_min and missed > policy.loss_max * (answered + missed)

    def _is_back(self, direct: "_Plane", relayed: "_Plane", now: float) -> bool:
        policy, peer = self._policy, direct.peer
        if direct.streak < policy.back_probes:
            return False
        recent = self._recent(direct, now)
        if recent is not None and recent[1] > 0:
            return False
        was_full = now < peer.hot_until and now < peer.full_at + policy.full_for_s and peer.full_bytes_per_s > 0
        if was_full and relayed.bytes_per_s > policy.full_ratio * peer.full_bytes_per_s:
            return False
        if direct.rtt_s is None or relayed.rtt_s is None:
            return True
        return direct.rtt_s < policy.back_ratio * relayed.rtt_s + policy.back_margin_s

    def _is_saturated(self, plane: "_Plane", now: float) -> bool:
        is_loaded = now < plane.peer.hot_until and plane.bytes_per_s >= self._policy.saturated_bytes_per_s_min
        return is_loaded and plane.samples >= self._policy.samples_min and self._is_strained(plane)

    def _is_strained(self, plane: "_Plane") -> bool:
        limit_s = self._policy.saturated_ratio * plane.lowest_s() + self._policy.saturated_margin_s
        return plane.rtt_s is not None and plane.rtt_s > limit_s

    def _are_alike(self, direct: "_Plane", relayed: "_Plane") -> bool:
        policy = self._policy
        if min(direct.samples, relayed.samples) < policy.samples_min:
            return False
        one, other = direct.lowest_s(), relayed.lowest_s()
        return abs(one - other) <= policy.similar_ratio * max(one, other) + policy.similar_margin_s

    def _mark(self, plane: "_Plane", now: float) -> None:
        """Notes the counters of a plane, for its loss in the last seconds, and lets its lowest round trip age."""
        policy, marks = self._policy, plane.marks
        if not marks or now >= marks[-1][0] + policy.consider_every_s:
            marks.append((now, plane.answered, plane.missed))
        while len(marks) > 1 and marks[1][0] <= now - policy.loss_window_s:
            marks.popleft()
        if now >= plane.base_since + policy.base_for_s and plane.base_s < math.inf:
            plane.base_before_s, plane.base_s, plane.base_since = plane.base_s, math.inf, now

    def _recent(self, plane: "_Plane", now: float) -> tuple[int, int] | None:
        """Probes answered and missed over the window of loss; None while it is not full."""
        if not plane.marks or plane.marks[0][0] > now - self._policy.loss_window_s:
            return None
        _, answered, missed = plane.marks[0]
        return plane.answered - answered, plane.missed - missed


@dataclass(slots=True, eq=False)
class _Plane:
    peer: "_Peer"
    name: Plane
    phase: float
    """0 <= phase < 1, from the names: spreads the probes of many peers over time."""
    order: int
    marks: deque[tuple[float, int, int]]
    status: Status = "unknown"
    since: float = 0.0
    is_gone: bool = False
    sequence: int = 0
    waiting: dict[int, float] = field(default_factory=dict[int, float])
    """When each probe was sent that may still be answered in time, oldest first."""
    overdue: dict[int, float] = field(default_factory=dict[int, float])
    """The same for those counted as missed whose answer would still be believed."""
    sent_at: float = -math.inf
    send_at: float = math.inf
    silent_at: float = math.inf
    wake_at: float = math.inf
    """The one entry among the wakes that counts; another is left over."""
    misses: int = 0
    streak: int = 0
    settled: int = 0
    samples: int = 0
    rtt_s: float | None = None
    timeout_s: float = 0.0
    base_s: float = math.inf
    base_before_s: float = math.inf
    base_since: float = 0.0
    worse_since: float = math.inf
    """While both planes carry the traffic: since when this one is the worse half."""
    sent: int = 0
    answered: int = 0
    missed: int = 0
    total_bytes: int | None = None
    total_at: float = 0.0
    sent_before: int = 0
    bytes_per_s: float = 0.0

    def lowest_s(self) -> float:
        return min(self.base_s, self.base_before_s)


@dataclass(slots=True, eq=False)
class _Peer:
    name: str
    plan: PeerPlan
    hold_s: float
    direct: _Plane = field(init=False)
    relayed: _Plane | None = None
    route: Planes = DIRECT
    reason: str = "nothing is known yet"
    announced: Planes = ()
    left_at: dict[Planes, float] = field(default_factory=dict[Planes, float])
    moved_at: float = -math.inf
    moves: int = 0
    flaps: int = 0
    hot_until: float = -math.inf
    consider_at: float = -math.inf
    recheck_at: float = -math.inf
    relaxed_since: float | None = None
    full_bytes_per_s: float = 0.0
    """What direct moved when it was last found saturated; 0 if it was not since it died."""
    full_at: float = -math.inf
    is_gone: bool = False

    def planes(self) -> list[_Plane]:
        return [self.direct] if self.relayed is None else [self.direct, self.relayed]


def _is_alive(plane: _Plane) -> bool:
    return plane.status == "alive"


def _marks_max(policy: Policy) -> int:
    return math.ceil(policy.loss_window_s / policy.consider_every_s) + 2


def _report(plane: _Plane) -> PlaneState:
    if plane.status == "alive" and plane.marks:
        _, answered, missed = plane.marks[0]
        answered, missed = plane.answered - answered, max(plane.missed - missed, 0)
        loss = missed / (answered + missed) if answered + missed > 0 else 0.0
    else:
        loss = 1.0 if plane.missed and plane.status != "alive" else 0.0
    return PlaneState(plane.status, plane.rtt_s, loss, plane.sent, plane.answered)
