"""Laws of the packet size: a larger one is used only while it passes on every plane, and is given up in time."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.protocol.path_mtu import SIZES, PathMtus, Policy, wire_bytes
from corral.protocol.paths import Plane

BASE = 1280
BOTH: Mapping[Plane, str] = {"direct": "d1", "relayed": "r1"}
POLICY = Policy()
NOTICED_S = POLICY.hot_interval_s + (POLICY.misses_max + 1) * POLICY.timeout_s
"""Until a size that ceased to pass is used no more, while bytes move."""


@dataclass
class Way:
    """One peer behind two planes that carry so much, driven step by step."""

    carries: dict[Plane, int] = field(default_factory=lambda: {"direct": 9000, "relayed": 9000})
    mtus: PathMtus = field(default_factory=lambda: PathMtus(BASE, SIZES))
    now: float = 1000.0
    sent: int = 0

    def __post_init__(self) -> None:
        self.mtus.set_peers({"p": BOTH}, self.now)
        for plane in BOTH:
            self.mtus.lives("p", plane, self.now)
        self.mtus.set_hot("p", is_hot=True, now=self.now)

    def pass_s(self, seconds: float) -> None:
        """Time passes; each probe that fits is answered 10 ms later."""
        until = self.now + seconds
        while (at := max(self.mtus.next_at(), self.now)) <= until:
            self.now = at
            probes = self.mtus.due(at)
            self.sent += len(probes)
            for probe in probes:
                if probe.size <= self.carries[probe.plane]:
                    self.mtus.answered(probe.peer, probe.plane, probe.sequence, at + 0.01)
        self.now = until

    @property
    def mtu(self) -> int:
        return self.mtus.mtu("p")


def test_the_largest_size_that_every_plane_carries_is_used() -> None:
    """One that only one of the planes carries is not: the traffic may be on the other at any moment."""
    for relayed, found in ((9000, 8920), (1420, 1420), (1419, 1280)):
        way = Way({"direct": 9000, "relayed": relayed})
        way.pass_s(10)
        assert way.mtu == found


def test_nothing_is_raised_before_several_answers() -> None:
    """One padded probe that comes through may be luck."""
    way = Way(mtus=PathMtus(BASE, (1420,)))
    for _ in range(POLICY.answers_min - 1):
        way.now = way.mtus.next_at()
        for probe in way.mtus.due(way.now):
            way.mtus.answered(probe.peer, probe.plane, probe.sequence, way.now)
        assert way.mtu == BASE


def test_a_dead_plane_takes_the_size_back_at_once() -> None:
    """What comes back there may be another path: it has to show its size anew."""
    way = Way()
    way.pass_s(10)
    assert way.mtus.changed() == ["p"]
    way.mtus.dies("p", "relayed", way.now)
    assert (way.mtu, way.mtus.changed()) == (BASE, ["p"])
    way.mtus.lives("p", "relayed", way.now)
    way.pass_s(10)
    assert way.mtu == 8920


def test_a_size_that_this_machine_refuses_is_given_up_at_once() -> None:
    """It has learnt from an ICMP message, or sees at its own interface, that the way is too narrow."""
    way = Way()
    way.pass_s(10)
    probes = []
    while not probes:
        way.now = way.mtus.next_at()
        probes = way.mtus.due(way.now)
    way.mtus.refused("p", probes[0].plane, probes[0].sequence, way.now)
    assert way.mtu == BASE


def test_a_size_that_does_not_pass_is_tried_ever_more_rarely() -> None:
    """A narrow network is not asked the same for ever; quiet peers cost next to nothing."""
    way = Way({"direct": 1400, "relayed": 1400})
    way.pass_s(24 * 3600)
    assert way.mtu == BASE
    assert way.sent < 24 * 2 * 2 * POLICY.misses_max
    wide = Way()
    wide.mtus.set_hot("p", is_hot=False, now=wide.now)
    wide.pass_s(3600)
    assert wide.sent < 2 * 3600 / POLICY.cold_interval_s + 20


def test_peers_that_go_or_change_leave_nothing() -> None:
    """A new generation is a new path; late answers of the old one do not count; a gone peer has the first size."""
    way = Way()
    way.pass_s(10)
    assert way.mtus.changed() == ["p"]
    way.mtus.set_peers({"p": {"direct": "d2", "relayed": "r1"}}, way.now)
    assert (way.mtu, way.mtus.changed()) == (BASE, ["p"])
    way.mtus.set_peers({}, way.now)
    assert (way.mtu, way.mtus.changed()) == (BASE, [])
    assert way.mtus.due(way.now + 1e6) == []
    way.mtus.set_peers({"leaf": {}}, way.now)
    way.mtus.lives("leaf", "direct", way.now)
    assert (way.mtus.mtu("leaf"), way.mtus.next_at()) == (BASE, float("inf"))


@given(st.lists(st.tuples(st.sampled_from(["direct", "relayed"]), st.integers(1280, 9000), st.floats(0, 200))))
def test_no_size_is_used_for_long_after_it_ceased_to_pass(history: list[tuple[Plane, int, float]]) -> None:
    """Whatever the planes carry and whenever that changes: within seconds nothing larger is sent."""
    way = Way()
    for plane, carries, seconds in history:
        way.carries[plane] = carries
        way.pass_s(NOTICED_S)
        assert way.mtu <= max(BASE, min(way.carries.values()))
        way.pass_s(seconds)
        assert way.mtu <= max(BASE, min(way.carries.values()))


@pytest.mark.parametrize(("size", "outside"), [(1280, 1340), (1420, 1484), (8920, 8988)])
def test_sizes_fit_the_networks_that_they_are_for(size: int, outside: int) -> None:
    """With WireGuard's padding they still leave in one piece."""
    assert wire_bytes(size) == outside
