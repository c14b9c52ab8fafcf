"""
Where hosts and relays are among each other, as points between which round trips can be guessed. Pure.

Each has three coordinates and a height, all in milliseconds: the guess for two of them is the distance of their points
plus both heights. The height is what a packet spends before it is under way at all, on an access link or in a queue.
"""

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 3
FLOOR_MS = 5.0
"""Errors are relative to the round trip, but to no shorter one than this: nobody needs 0.2 ms told from 0.4."""
STEPS = 600
STEPS_WARM = 200
RATE_FIRST, RATE_LAST = 0.1, 0.002
"""Of a step, as a share of the median round trip; falls steadily in between."""
PACE_OF_KNOWN = 0.02
"""Of whoever was in the fit before: newcomers find their place among the others, not the other way round."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def fit(pairs: Ints, rtts_ms: Floats, count: int, *, seed: int, start: Floats | None = None) -> Floats:
    """
    Coordinates that fit measured round trips.

    Adam on the relative errors, whose gradient goes through tanh: beyond some tens of per cent a worse error pulls no
    harder, so that a few wrong round trips, whether by accident or on purpose, move the others little.

    Args:
        pairs: shape (n_pairs, 2), indices below `count`; no pair with itself.
        rtts_ms: shape (n_pairs,), milliseconds, > 0.
        count: how many there are.
        seed: of the first guess and the directions that break ties.
        start: shape (count, 4), an earlier fit to go on from, with NaN in the rows of those who were not in it.

    Returns:
        Shape (count, 4), float64: three coordinates and the height, which is not negative. Whoever is in no pair is
        in the middle.
    """
    random = np.random.default_rng(seed)
    if not len(pairs) or not count:
        return np.zeros((count, DIMENSIONS + 1))
    scale_ms = float(np.median(rtts_ms))
    at = np.concatenate([random.normal(0, scale_ms / 2, (count, DIMENSIONS)), np.full((count, 1), scale_ms / 20)], 1)
    steps, pace = STEPS, np.ones((count, 1))
    if start is not None:
        known = ~np.isnan(start).any(1)
        at[known] = start[known]
        if known.mean() > 0.5:
            steps = STEPS_WARM
            pace[known] = PACE_OF_KNOWN
    ones, others = pairs[:, 0], pairs[:, 1]
    weight = 1.0 / np.maximum(rtts_ms, FLOOR_MS)
    # Each point's steps are of its own mean error, so that a relay with a thousand pairs does not race.
    degree = np.maximum(np.bincount(pairs.ravel(), minlength=count), 1)[:, None]
    mean, square = np.zeros_like(at), np.zeros_like(at)
    for step in range(1, steps + 1):
        apart = at[ones, :DIMENSIONS] - at[others, :DIMENSIONS]
        distance = np.sqrt((apart**2).sum(1)) + 1e-9
        guess = distance + at[ones, DIMENSIONS] + at[others, DIMENSIONS]
        pull = np.tanh((guess - rtts_ms) * weight)
        gradient = np.empty_like(at)
        along = apart * (pull / distance)[:, None]
        for dimension in range(DIMENSIONS):
            column = along[:, dimension]
            gradient[:, dimension] = np.bincount(ones, column, count) - np.bincount(others, column, count)
        gradient[:, DIMENSIONS] = np.bincount(ones, pull, count) + np.bincount(others, pull, count)
        gradient /= degree
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        rate = scale_ms * RATE_FIRST * (RATE_LAST / RATE_FIRST) ** (step / steps)
        at -= rate * pace * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
        at[:, DIMENSIONS] = np.maximum(at[:, DIMENSIONS], 0.0)
    at[np.bincount(pairs.ravel(), minlength=count) == 0] = 0.0
    return at


def guessed_ms(at: Floats, pairs: Ints) -> Floats:
    """
    Round trips as coordinates tell them.

    Args:
        at: shape (count, 4), of `fit`.
        pairs: shape (n_pairs, 2).

    Returns:
        Shape (n_pairs,), milliseconds.
    """
    ones, others = at[pairs[:, 0]], at[pairs[:, 1]]
    distance = np.sqrt(((ones[:, :DIMENSIONS] - others[:, :DIMENSIONS]) ** 2).sum(1))
    return distance + ones[:, DIMENSIONS] + others[:, DIMENSIONS]


def relative_errors(guesses_ms: Floats, rtts_ms: Floats) -> Floats:
    """How far guesses are off, as a share of the round trip, but of no shorter one than FLOOR_MS."""
    return np.abs(guesses_ms - rtts_ms) / np.maximum(rtts_ms, FLOOR_MS)
