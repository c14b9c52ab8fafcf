"""Coordinates that guess round trips: they find a geometry again, and one liar hardly moves the others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.core.ids import HostId
from corral.devices.coordinates import Floats, Ints, fit, guessed_ms, relative_errors
from corral.devices.places import RoundTrip, placed

seeds = st.integers(0, 10_000)


def a_world(seed: int, count: int) -> Floats:
    """Points in a space of three dimensions some 100 ms wide, with heights of some milliseconds."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.uniform(-50, 50, (count, 3)), random.exponential(3, (count, 1))], 1)


def some_pairs(seed: int, count: int, each: int) -> Ints:
    """Each with so many others."""
    random = np.random.default_rng(seed)
    found = {
        (min(one, int(other)), max(one, int(other)))
        for one in range(count)
        for other in random.choice(count, each + 1, replace=False)
        if one != other
    }
    return np.array(sorted(found), dtype=np.int64)


def all_pairs(count: int) -> Ints:
    return np.array(np.triu_indices(count, 1), dtype=np.int64).T


@settings(max_examples=12)
@given(seeds)
def test_a_geometry_is_found_again_from_a_part_of_its_pairs(seed: int) -> None:
    """Guesses for pairs that nobody measured are right to some per cent."""
    world, pairs = a_world(seed, 80), some_pairs(seed, 80, 16)
    at = fit(pairs, guessed_ms(world, pairs), 80, seed=1)
    every = all_pairs(80)
    errors = relative_errors(guessed_ms(at, every), guessed_ms(world, every))
    assert np.median(errors) < 0.03
    assert np.quantile(errors, 0.9) < 0.12
    assert (at[:, 3] >= 0).all()


@settings(max_examples=12)
@given(seeds)
def test_round_trips_to_sixteen_relays_are_enough_to_guess_those_between_hosts(seed: int) -> None:
    """Hosts never measure each other."""
    world, relays = a_world(seed, 80), range(16)
    pairs = np.array([(host, relay) for host in range(16, 80) for relay in relays], dtype=np.int64)
    random = np.random.default_rng(seed)
    noisy = guessed_ms(world, pairs) * random.uniform(0.95, 1.05, len(pairs))
    at = fit(pairs, noisy, 80, seed=1)
    between = all_pairs(64) + 16
    errors = relative_errors(guessed_ms(at, between), guessed_ms(world, between))
    assert np.median(errors) < 0.06
    assert np.quantile(errors, 0.9) < 0.2


@settings(max_examples=12)
@given(seeds, st.sampled_from([0.1, 5.0, 50.0]))
def test_one_liar_among_many_moves_the_others_little(seed: int, factor: float) -> None:
    """Whether it says that it is nearer or farther than it is; what others are to each other stays."""
    world, pairs = a_world(seed, 80), some_pairs(seed, 80, 16)
    true = guessed_ms(world, pairs)
    lied = np.where((pairs == 7).any(1), true * factor, true)
    at = fit(pairs, lied, 80, seed=1)
    others = np.array([pair for pair in all_pairs(80).tolist() if 7 not in pair], dtype=np.int64)
    errors = relative_errors(guessed_ms(at, others), guessed_ms(world, others))
    assert np.median(errors) < 0.05
    assert np.quantile(errors, 0.9) < 0.2


def test_a_fit_goes_on_from_the_one_before_and_takes_newcomers_in() -> None:
    """Places do not turn and jump from one fit to the next."""
    world, pairs = a_world(3, 60), some_pairs(3, 60, 16)
    rtts_ms = guessed_ms(world, pairs)
    first = fit(pairs, rtts_ms, 60, seed=1)
    start = first.copy()
    start[58:] = np.nan
    second = fit(pairs, rtts_ms, 60, seed=2, start=start)
    moved = np.sqrt(((second - first)[:58, :3] ** 2).sum(1))
    assert np.median(moved) < 2
    errors = relative_errors(guessed_ms(second, pairs), rtts_ms)
    assert np.median(errors) < 0.05


def test_nothing_measured_is_no_error_and_who_is_in_no_pair_is_in_the_middle() -> None:
    """A network begins with one host."""
    assert fit(np.empty((0, 2), dtype=np.int64), np.empty(0), 3, seed=1).tolist() == [[0.0] * 4] * 3
    at = fit(np.array([[0, 1]]), np.array([20.0]), 3, seed=1)
    assert at[2].tolist() == [0.0] * 4
    assert guessed_ms(at, np.array([[0, 1]]))[0] == pytest.approx(20, rel=0.02)
    assert placed([]) == []


def test_places_tell_their_error_and_how_many_pairs_they_follow_from() -> None:
    """So that a matcher knows which to trust."""
    ids = [HostId(f"hst_{number:02d}") for number in range(30)]
    world, pairs = a_world(5, 30), some_pairs(5, 30, 10)
    trips = [
        RoundTrip(ids[one], ids[other], rtt)
        for (one, other), rtt in zip(pairs.tolist(), guessed_ms(world, pairs).tolist(), strict=True)
    ]
    found = placed(trips)
    assert [one.host_id for one in found] == ids
    assert sum(one.pairs for one in found) == 2 * len(trips)
    assert all(one.error < 0.1 for one in found)
    assert found[0].rtt_ms(found[1]) == pytest.approx(found[1].rtt_ms(found[0]))
    again = placed(trips, found)
    assert (
        max(
            abs(one.rtt_ms(again[0]) - before.rtt_ms(found[0]))
            for one, before in zip(again[1:], found[1:], strict=True)
        )
        < 10
    )
