"""The relays of a pair: both ends choose the same ones, the nearest, a backup elsewhere, and equal ones in turn."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.protocol.relays import GRAIN_US, UNKNOWN_US, Mailbox, MailboxesMixed, choose

RELAYS = [f"rl_{number}" for number in range(6)]

mailbox_facts = st.tuples(
    st.sampled_from(RELAYS),
    st.sampled_from(["", "s1", "s2", "s3"]),
    st.none() | st.integers(-(2**70), 2**70) | st.integers(0, 50_000),
    st.integers(-10, 2**70) | st.integers(0, 20_000),
)


def mailboxes_of(member: str) -> st.SearchStrategy[list[Mailbox]]:
    return st.lists(mailbox_facts.map(lambda facts: Mailbox(member, *facts)), max_size=8)


def a_mailbox(member: str, relay: str, rtt_us: int | None = None, *, site: str | None = None, load: int = 0) -> Mailbox:
    return Mailbox(member, relay, f"host of {relay}" if site is None else site, rtt_us, load)


@given(mailboxes_of("a"), mailboxes_of("b"), st.text(max_size=5), st.randoms())
def test_both_ends_choose_the_same_relays(one: list[Mailbox], other: list[Mailbox], salt: str, order: object) -> None:
    """Neither who asks nor the order of the mailboxes matters, whatever the members signed."""
    chosen = choose(one, other, salt=salt)
    assert chosen == choose(other, one, salt=salt)
    shuffled = sorted(one, key=lambda _: order.random())  # type: ignore[attr-defined]
    assert chosen == choose(shuffled, other[::-1], salt=salt)


@given(mailboxes_of("a"), mailboxes_of("b"))
def test_chosen_relays_are_common_and_on_two_sites(one: list[Mailbox], other: list[Mailbox]) -> None:
    """There is a primary whenever there is a common relay; a backup never shares a known site with it."""
    chosen = choose(one, other, salt="x")
    common = {mailbox.relay for mailbox in one} & {mailbox.relay for mailbox in other}
    assert set(chosen) <= common
    assert len(chosen) == len(set(chosen)) <= 2
    assert bool(chosen) == bool(common)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**5)), min_size=1, max_size=6))
def test_primary_costs_least_up_to_the_grain(costs: list[tuple[int, int, int]]) -> None:
    """Both round trips and the load decide."""
    one = [a_mailbox("a", relay, cost[0], load=cost[2]) for relay, cost in zip(RELAYS, costs, strict=False)]
    other = [a_mailbox("b", relay, cost[1], load=cost[2]) for relay, cost in zip(RELAYS, costs, strict=False)]
    total = {relay: sum(cost) for relay, cost in zip(RELAYS, costs, strict=False)}
    primary, *backup = choose(one, other, salt="x")
    assert total[primary] < min(total.values()) + GRAIN_US
    del total[primary]
    assert bool(backup) == bool(total)
    assert all(total[relay] < min(total.values()) + GRAIN_US for relay in backup)


def test_backup_is_on_another_site() -> None:
    """The second best on the primary's host is passed over; with one host there is no backup."""
    facts = [("rl_0", "s1", 1000), ("rl_1", "s1", 2000), ("rl_2", "s2", 90_000)]
    one, other = ([a_mailbox(who, relay, rtt, site=site) for relay, site, rtt in facts] for who in "ab")
    assert choose(one, other, salt="x") == ("rl_0", "rl_2")
    assert choose(one[:2], other, salt="x") == ("rl_0",)


def test_relays_of_unknown_site_are_sites_of_their_own() -> None:
    """An operator that names no site still gets a backup."""
    one, other = ([a_mailbox(who, relay, 1000, site="") for relay in RELAYS[:2]] for who in "ab")
    assert sorted(choose(one, other, salt="x")) == RELAYS[:2]


def test_nothing_in_common_is_no_relay() -> None:
    """Two members without a common relay have no relayed plane."""
    assert choose([], [], salt="x") == ()
    assert choose([a_mailbox("a", "rl_0")], [], salt="x") == ()
    assert choose([a_mailbox("a", "rl_0")], [a_mailbox("b", "rl_1")], salt="x") == ()


def test_unmeasured_relay_loses_to_a_measured_one_and_ties_with_its_like() -> None:
    """Not knowing is as good as very far; a member cannot win by claiming less than nothing."""
    one = [a_mailbox("a", "rl_0"), a_mailbox("a", "rl_1", 400_000)]
    other = [a_mailbox("b", "rl_0", 1), a_mailbox("b", "rl_1", 400_000)]
    assert choose(one, other, salt="x")[0] == "rl_1"
    liar = [a_mailbox("b", "rl_0", -(10**12)), a_mailbox("b", "rl_1", 400_000)]
    assert choose(one, liar, salt="x")[0] == "rl_1"
    assert choose([a_mailbox("a", "rl_0", 2 * UNKNOWN_US)], other, salt="x") == ("rl_0",)


@pytest.mark.parametrize("jitter_us", [0, GRAIN_US // 100])
def test_equal_relays_share_the_pairs_evenly(jitter_us: int) -> None:
    """4000 pairs over four relays: each gets a quarter, give or take a tenth of it, as primary and as backup."""
    relays, members = RELAYS[:4], [f"nd_{number}" for number in range(90)]
    primaries, backups = Counter[str](), Counter[str]()
    for i, a in enumerate(members):
        for b in members[:i]:
            one = [a_mailbox(a, relay, 300 + number * jitter_us) for number, relay in enumerate(relays)]
            other = [a_mailbox(b, relay, 300) for relay in relays]
            primary, backup = choose(one, other, salt="cl_1")
            primaries[primary] += 1
            backups[backup] += 1
    for counts in (primaries, backups):
        assert all(abs(counts[relay] - 4005 / 4) < 110 for relay in relays), counts


def test_salt_decides_ties_anew() -> None:
    """The same members fall on other relays in another cluster."""
    one, other = ([a_mailbox(who, relay, 300) for relay in RELAYS] for who in "ab")
    assert len({choose(one, other, salt=f"cl_{number}") for number in range(50)}) > 10


def test_mailboxes_of_two_members_are_refused() -> None:
    """One side is one member; anything else is said, not guessed."""
    mixed = [a_mailbox("a", "rl_0"), a_mailbox("b", "rl_0")]
    with pytest.raises(MailboxesMixed, match="2 members"):
        choose(mixed, [a_mailbox("c", "rl_0")], salt="x")
