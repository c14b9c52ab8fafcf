"""Laws of the lab's NAT, on packets whose checksums are computed in full by other code than the one under test."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.testing.lab.nat import IDLE_S, Nat, NatKind

from .builders import (
    ICMP,
    TCP,
    UDP,
    a_datagram,
    a_packet,
    a_segment,
    an_address,
    an_echo,
    an_error,
    is_sound,
    ports,
)

INNER, OUTER = an_address("192.168.3.2"), an_address("203.0.113.3")
REMOTE, OTHER = an_address("203.0.113.9"), an_address("198.51.100.77")

kinds = st.sampled_from([NatKind.cone, NatKind.symmetric])
port_numbers = st.integers(1, 65535)
addresses = st.binary(min_size=4, max_size=4).filter(lambda found: found not in (INNER, OUTER))
contents = st.binary(max_size=64)


def a_nat(kind: NatKind, seed: int = 1) -> Nat:
    """The router in front of INNER."""
    return Nat(kind, inner=INNER, outer=OUTER, randomness=Random(seed))


def sent(nat: Nat, port: int, target: bytes = REMOTE, target_port: int = 53, at_s: float = 0.0) -> int | None:
    """The outer port of a datagram that the host sends; None where it was dropped."""
    packet = a_datagram(INNER, port, target, target_port)
    return ports(packet)[0] if nat.outbound(packet, at_s) else None


def lets_in(nat: Nat, outer_port: int, source: bytes = REMOTE, source_port: int = 53, at_s: float = 0.0) -> bool:
    """Whether a datagram from there reaches the host."""
    return nat.inbound(a_datagram(source, source_port, OUTER, outer_port), at_s)


@given(kinds, st.sampled_from([a_datagram, a_segment]), port_numbers, addresses, port_numbers, contents)
def test_answer_to_a_translated_packet_comes_back_to_its_sender(kind, build, port, remote, remote_port, content):
    """Reverse translation is the inverse, and every packet on the way has right checksums."""
    nat = a_nat(kind)
    packet = build(INNER, port, remote, remote_port, content)
    assert nat.outbound(packet, 0.0)
    assert (bytes(packet[12:16]), bytes(packet[16:20])) == (OUTER, remote)
    assert ports(packet)[1] == remote_port
    assert is_sound(packet)
    answer = build(remote, remote_port, OUTER, ports(packet)[0], content)
    assert nat.inbound(answer, 0.0)
    assert is_sound(answer)
    assert (bytes(answer[12:16]), bytes(answer[16:20]), ports(answer)) == (remote, INNER, (remote_port, port))


@given(kinds, addresses, st.integers(0, 65535))
def test_echo_is_answered_under_its_own_number(kind, remote, number):
    """An echo's id takes the part of a port."""
    nat = a_nat(kind)
    packet = an_echo(INNER, remote, number)
    assert nat.outbound(packet, 0.0)
    assert is_sound(packet)
    answer = an_echo(remote, OUTER, int.from_bytes(packet[24:26]), is_reply=True)
    assert nat.inbound(answer, 0.0)
    assert answer == an_echo(remote, INNER, number, is_reply=True)
    assert not nat.inbound(an_echo(remote, OUTER, int.from_bytes(packet[24:26])), 0.0)


@given(st.lists(st.tuples(addresses, port_numbers), min_size=2, max_size=20, unique=True), port_numbers)
def test_cone_shows_one_port_to_everybody_and_keeps_its_number(remotes, port):
    """Endpoint-independent mapping, port-preserving."""
    nat = a_nat(NatKind.cone)
    assert {sent(nat, port, *remote) for remote in remotes} == {port}


@given(st.lists(st.tuples(addresses, port_numbers), min_size=2, max_size=20, unique=True), port_numbers)
def test_symmetric_shows_another_port_to_each_and_keeps_to_it(remotes, port):
    """Address-and-port-dependent mapping, stable for each remote."""
    nat = a_nat(NatKind.symmetric)
    first = [sent(nat, port, *remote) for remote in remotes]
    assert len(set(first)) == len(remotes)
    assert [sent(nat, port, *remote) for remote in remotes] == first


@given(st.lists(st.tuples(port_numbers, addresses, port_numbers), max_size=30), kinds)
def test_no_two_inner_ports_share_an_outer_one(flows, kind):
    """Otherwise an answer would have two receivers."""
    nat = a_nat(kind)
    seen: dict[tuple[int | None, bytes, int], int] = {}
    for port, remote, remote_port in flows:
        outer = sent(nat, port, remote, remote_port)
        assert seen.setdefault((outer, remote, remote_port), port) == port


@given(
    st.lists(st.tuples(port_numbers, addresses, port_numbers), max_size=10),
    kinds,
    addresses,
    port_numbers,
    port_numbers,
)
def test_stranger_is_let_in_by_neither_kind(flows, kind, stranger, stranger_port, outer_port):
    """Who was never sent anything reaches nobody, whatever port he guesses."""
    nat = a_nat(kind)
    for port, remote, remote_port in flows:
        sent(nat, port, remote, remote_port)
    known = {(remote, remote_port) for _, remote, remote_port in flows}
    if (stranger, stranger_port) not in known:
        assert not lets_in(nat, outer_port, stranger, stranger_port)


@pytest.mark.parametrize("kind", [NatKind.cone, NatKind.symmetric])
def test_filter_looks_at_address_and_port(kind):
    """Port-restricted: the same address with another port is a stranger."""
    nat = a_nat(kind)
    outer = sent(nat, 4000)
    assert outer is not None
    assert lets_in(nat, outer)
    assert not lets_in(nat, outer, REMOTE, 54)
    assert not lets_in(nat, outer, OTHER, 53)
    assert not lets_in(nat, outer + 1)


@pytest.mark.parametrize("kind", [NatKind.cone, NatKind.symmetric])
def test_mapping_lives_as_long_as_the_host_sends(kind):
    """An outgoing packet keeps a flow alive; an incoming one does not."""
    nat, idle_s = a_nat(kind), IDLE_S[UDP]
    outer = sent(nat, 4000)
    assert outer is not None
    assert sent(nat, 4000, at_s=idle_s) == outer
    assert lets_in(nat, outer, at_s=2 * idle_s)
    assert not lets_in(nat, outer, at_s=2 * idle_s + 1)


def test_forgotten_flows_are_freed_and_symmetric_ports_change():
    """What is over takes no memory, and who comes back has another port."""
    nat = a_nat(NatKind.symmetric)
    before = sent(nat, 4000)
    nat.forget_idle(IDLE_S[UDP] + 1)
    assert len(nat) == 0
    assert sent(nat, 4000, at_s=IDLE_S[UDP] + 1) != before


@pytest.mark.parametrize("kind", [NatKind.cone, NatKind.symmetric])
def test_error_about_a_packet_reaches_its_sender(kind):
    """Path MTU and closed ports are told through a NAT: the quoted packet is translated back, too."""
    nat = a_nat(kind)
    packet = a_datagram(INNER, 4000, REMOTE, 53)
    original = bytes(packet)
    assert nat.outbound(packet, 0.0)
    error = an_error(OTHER, OUTER, packet)
    assert nat.inbound(error, 0.0)
    assert is_sound(error)
    assert bytes(error[16:20]) == INNER
    assert error[28:56] == original[:28]
    assert not nat.inbound(an_error(OTHER, OUTER, a_datagram(OUTER, 1, REMOTE, 53)), 0.0)


@pytest.mark.parametrize("kind", [NatKind.cone, NatKind.symmetric])
def test_error_of_the_host_about_a_packet_names_the_outer_side(kind):
    """The remote sees its own packet quoted, as it sent it."""
    nat = a_nat(kind)
    outer = sent(nat, 4000)
    assert outer is not None
    incoming = a_datagram(REMOTE, 53, OUTER, outer)
    original = bytes(incoming)
    assert nat.inbound(incoming, 0.0)
    error = an_error(INNER, REMOTE, incoming)
    assert nat.outbound(error, 0.0)
    assert is_sound(error)
    assert bytes(error[12:16]) == OUTER
    assert error[28:56] == original[:28]


def test_datagram_without_a_checksum_stays_without():
    """0 means none in UDP; a translated 0 would be a wrong one."""
    packet = a_datagram(INNER, 4000, REMOTE, 53)
    packet[26:28] = b"\0\0"
    assert a_nat(NatKind.symmetric).outbound(packet, 0.0)
    assert packet[26:28] == b"\0\0"


@given(st.binary(max_size=80), st.booleans())
def test_garbage_is_dropped_or_translated_but_never_fails(content, is_outbound):
    """Programs in a machine can send anything."""
    nat = a_nat(NatKind.cone)
    (nat.outbound if is_outbound else nat.inbound)(bytearray(content), 0.0)


@given(st.sampled_from([UDP, TCP, ICMP]), st.binary(min_size=20, max_size=40), st.booleans())
def test_cut_short_packet_never_fails(protocol, body, is_outbound):
    """A whole header around half a transport header."""
    nat = a_nat(NatKind.cone)
    ends = (INNER, REMOTE) if is_outbound else (REMOTE, OUTER)
    packet = a_packet(protocol, *ends, body)
    for length in range(len(packet)):
        (nat.outbound if is_outbound else nat.inbound)(packet[:length], 0.0)


def test_fragments_and_foreign_senders_are_dropped():
    """A fragment has no ports; a sender with another address is not the host (a leaking bridge)."""
    nat = a_nat(NatKind.cone)
    fragment = a_datagram(INNER, 4000, REMOTE, 53)
    fragment[6] = 0x20
    assert not nat.outbound(fragment, 0.0)
    assert not nat.outbound(a_datagram(OTHER, 4000, REMOTE, 53), 0.0)
