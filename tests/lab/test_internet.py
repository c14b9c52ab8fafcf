"""Laws of the lab's internet: times, order, loss, rates, cuts, who reaches whom; on a clock that is only a number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.testing.lab.errors import LabRefused
from corral.testing.lab.internet import Internet, Site
from corral.testing.lab.links import Line, Shape
from corral.testing.lab.nat import NatKind

from .builders import a_datagram, an_address

A, B = "203.0.113.1", "203.0.113.2"


def a_pair(seed: int = 1, *, of_a: Shape | None = None, of_b: Shape | None = None) -> tuple[Internet, Site, Site]:
    """Two machines without NAT."""
    internet = Internet(seed)
    site_a = internet.attach("a", handle=1, inner=A, outer=A, nat=NatKind.none, shape=of_a)
    site_b = internet.attach("b", handle=2, inner=B, outer=B, nat=NatKind.none, shape=of_b)
    return internet, site_a, site_b


def a_message(number: int = 0, *, size_bytes: int = 0) -> bytes:
    """From a to b, with a number in it."""
    return bytes(a_datagram(an_address(A), 1, an_address(B), 2, number.to_bytes(4).ljust(size_bytes, b"\0")))


def number_of(packet: bytes) -> int:
    """The number in a message."""
    return int.from_bytes(packet[28:32])


def arrivals(internet: Internet) -> list[tuple[float, int]]:
    """When each waiting message arrives, and its number."""
    found: list[tuple[float, int]] = []
    while (at_s := internet.next_at_s()) is not None:
        found += [(at_s, number_of(packet)) for _, packet in internet.due(at_s)]
    return found


def test_plain_way_delivers_at_once():
    """Without any shape nothing waits."""
    internet, site_a, _ = a_pair()
    assert internet.carry(site_a, a_message(), 5.0) == (2, a_message())
    assert internet.next_at_s() is None


def test_delays_of_both_lines_and_of_the_way_add_up():
    """One way is both lines and what is between them."""
    internet, site_a, _ = a_pair(of_a=Shape(delay_ms=10), of_b=Shape(delay_ms=20))
    internet.shape_way("a", "b", {"delay_ms": 30})
    assert internet.carry(site_a, a_message(), 1.0) is None
    assert list(internet.due(1.059)) == []
    assert [handle for handle, _ in internet.due(1.0601)] == [2]


@given(st.lists(st.floats(0, 0.05), max_size=40), st.floats(0, 100), st.integers(0, 9))
def test_jitter_never_reorders_and_stays_within_its_bound(gaps_s, jitter_ms, seed):
    """Packets of one way keep their order."""
    internet, site_a, _ = a_pair(seed, of_a=Shape(delay_ms=5, jitter_ms=jitter_ms))
    now_s, sent_s = 0.0, list[float]()
    for number, gap_s in enumerate(gaps_s):
        now_s += gap_s
        sent_s.append(now_s)
        internet.carry(site_a, a_message(number), now_s)
    found = arrivals(internet)
    assert [number for _, number in found] == list(range(len(gaps_s)))
    for at_s, number in found:
        assert sent_s[number] + 0.005 <= at_s + 1e-9
        assert at_s <= sent_s[number] + 0.005 + jitter_ms / 1000 + 1e-9


def test_loss_is_its_share_and_the_same_for_the_same_seed():
    """A failure found with a seed can be looked at again."""

    def fates(seed: int) -> list[bool]:
        internet, site_a, _ = a_pair(seed, of_b=Shape(loss=0.25))
        return [internet.carry(site_a, a_message(number), 0.0) is not None for number in range(4000)]

    assert fates(3) == fates(3)
    assert fates(3) != fates(4)
    assert 0.7 < sum(fates(3)) / 4000 < 0.8


@given(st.floats(0.5, 500), st.lists(st.integers(1, 1400), min_size=1, max_size=100))
def test_line_sends_no_faster_than_its_rate(rate_mbit, sizes):
    """Over any time, no more bits leave than the rate allows, and waiting stays within the queue."""
    line, shape = Line(), Shape(rate_mbit=rate_mbit, queue_ms=50)
    left = [(size, line.send(size, 0.0, shape)) for size in sizes]
    passed = [(size, at_s) for size, at_s in left if at_s is not None]
    bits = 0
    for size, at_s in passed:
        bits += size * 8
        assert at_s == pytest.approx(bits / (rate_mbit * 1e6))
        assert at_s <= 0.05 + size * 8 / (rate_mbit * 1e6) + 1e-9


def test_slowest_part_of_a_way_sets_the_pace():
    """A thin line at the far end holds up what a fat one sent."""
    internet, site_a, _ = a_pair(of_a=Shape(rate_mbit=100, queue_ms=1000), of_b=Shape(rate_mbit=1, queue_ms=1000))
    for number in range(20):
        internet.carry(site_a, a_message(number, size_bytes=1222), 0.0)
    found = arrivals(internet)
    assert [number for _, number in found] == list(range(20))
    assert found[-1][0] == pytest.approx(20 * 1250 * 8 / 1e6, rel=0.02)


def test_cut_works_in_the_direction_that_was_cut():
    """The other direction and other machines go on."""
    internet, site_a, site_b = a_pair()
    internet.set_cut("a", "b", is_cut=True)
    assert internet.carry(site_a, a_message(), 0.0) is None
    back = bytes(a_datagram(an_address(B), 2, an_address(A), 1))
    assert internet.carry(site_b, back, 0.0) == (1, back)
    internet.set_cut("a", "b", is_cut=False)
    assert internet.carry(site_a, a_message(), 0.0) is not None
    assert internet.counts.cut == 1


def test_machine_that_comes_back_finds_its_line_and_cuts_as_they_were():
    """What was set belongs to the place, not to the machine's power."""
    internet, site_a, _ = a_pair(of_b=Shape(delay_ms=7))
    internet.set_cut("a", "b", is_cut=True)
    internet.detach("b")
    assert internet.carry(site_a, a_message(), 0.0) is None
    assert internet.attach("b", handle=3, inner=B, outer=B, nat=NatKind.none).shape.delay_ms == 7
    assert internet.carry(site_a, a_message(), 0.0) is None
    assert (internet.counts.unrouted, internet.counts.cut) == (1, 1)


def test_packet_under_way_to_a_machine_that_left_is_lost():
    """Nothing is written to a device that is gone."""
    internet, site_a, _ = a_pair(of_b=Shape(delay_ms=50))
    internet.carry(site_a, a_message(), 0.0)
    internet.detach("b")
    assert list(internet.due(10.0)) == []


def test_forged_sender_and_unknown_receiver_reach_nobody():
    """A leaking bridge must not look like another machine."""
    internet, site_a, _ = a_pair()
    assert internet.carry(site_a, bytes(a_datagram(an_address("10.0.0.1"), 1, an_address(B), 2)), 0.0) is None
    assert internet.carry(site_a, bytes(a_datagram(an_address(A), 1, an_address("8.8.8.8"), 2)), 0.0) is None
    assert internet.carry(site_a, b"\x60" + bytes(60), 0.0) is None
    assert internet.counts.unrouted == 3


def test_private_address_is_reached_by_nobody():
    """Behind a NAT a machine has no address that others could use."""
    internet = Internet(1)
    site = internet.attach("a", handle=1, inner=A, outer=A, nat=NatKind.none)
    internet.attach("b", handle=2, inner="192.168.2.2", outer=B, nat=NatKind.cone)
    packet = bytes(a_datagram(an_address(A), 1, an_address("192.168.2.2"), 2))
    assert internet.carry(site, packet, 0.0) is None
    assert internet.counts.unrouted == 1


@pytest.mark.parametrize("changes", [{"loss": 1.5}, {"delay_ms": -1}, {"rate_mbit": "fast"}, {"colour": 1}])
def test_shape_out_of_range_is_refused_and_nothing_changes(changes):
    """A typing error must not look like a perfect line."""
    internet, _, site_b = a_pair(of_b=Shape(delay_ms=7))
    with pytest.raises(LabRefused):
        internet.shape_link("b", changes)
    assert site_b.shape == Shape(delay_ms=7)


def test_unknown_machine_is_refused_with_the_known_ones():
    """The hint names what there is."""
    internet, _, _ = a_pair()
    with pytest.raises(LabRefused) as refused:
        internet.set_cut("a", "zoe", is_cut=True)
    assert refused.value.hint == "there are a, b"


def behind_one_router(kind: NatKind) -> tuple[Internet, list[Site], Site]:
    """Two machines that share a router, and one outside."""
    internet = Internet(1)
    inside = [
        internet.attach(name, handle=n, inner=f"192.168.9.{n}", outer=B, nat=kind)
        for n, name in enumerate(("b1", "b2"), 1)
    ]
    return internet, inside, internet.attach("a", handle=9, inner=A, outer=A, nat=NatKind.none)


@pytest.mark.parametrize("kind", [NatKind.cone, NatKind.symmetric])
def test_machines_behind_one_router_meet_on_their_lan_and_not_at_its_outer_address(kind):
    """As with a home router: their own addresses work, the outer one does not lead back in."""
    internet, (one, other), _ = behind_one_router(kind)
    packet = bytes(a_datagram(one.inner, 4000, other.inner, 5000))
    assert internet.carry(one, packet, 0.0) == (2, packet)
    assert internet.carry(one, bytes(a_datagram(one.inner, 4000, other.outer, 5000)), 0.0) is None
    internet.set_cut("b1", "b2", is_cut=True)
    assert internet.carry(one, packet, 0.0) is None
    assert (internet.counts.unrouted, internet.counts.cut) == (1, 1)


@pytest.mark.parametrize("kind", [NatKind.cone, NatKind.symmetric])
def test_answers_reach_the_one_behind_a_router_who_asked(kind):
    """Both use one inner port; outside they are two, and each has its own answers; a machine that left has none."""
    internet, inside, outside = behind_one_router(kind)
    asked = {
        site.name: internet.carry(site, bytes(a_datagram(site.inner, 4000, outside.inner, 53)), 0.0) for site in inside
    }
    seen = {name: sent[1][20:22] for name, sent in asked.items() if sent is not None}
    assert len(set(seen.values())) == 2
    for site in inside:
        answer = bytes(a_datagram(outside.inner, 53, site.outer, int.from_bytes(seen[site.name])))
        assert internet.carry(outside, answer, 0.0) == (
            site.handle, bytes(a_datagram(outside.inner, 53, site.inner, 4000))
        )  # fmt: skip
    internet.detach("b1")
    answer = bytes(a_datagram(outside.inner, 53, inside[0].outer, int.from_bytes(seen["b1"])))
    assert internet.carry(outside, answer, 0.0) is None
