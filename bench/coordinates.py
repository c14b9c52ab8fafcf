"""How well coordinates guess round trips that nobody measured: on a matrix of real ones, or on points in space.

`scripts/bench coordinates FILE` takes a square matrix of milliseconds as text, gzipped or not; zero or less is unknown.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from bench._report import Figure, print_report
from corral.devices.coordinates import Floats, Ints, fit, guessed_ms

NEIGHBOURS = 32
RELAYS = 16
COUNT = 490


def points(count: int, seed: int) -> Floats:
    """A matrix of round trips between points some 100 ms apart, with access links and 5 % noise."""
    random = np.random.default_rng(seed)
    at = np.concatenate([random.uniform(-60, 60, (count, 3)), random.exponential(4, (count, 1))], 1)
    every = np.array(np.meshgrid(range(count), range(count))).T.reshape(-1, 2)
    matrix = guessed_ms(at, every).reshape(count, count) * random.uniform(0.95, 1.05, (count, count))
    return np.triu(matrix, 1) + np.triu(matrix, 1).T


def known_pairs(matrix: Floats) -> Ints:
    """All pairs whose round trip is known."""
    pairs = np.array(np.triu_indices(len(matrix), 1)).T
    return pairs[matrix[pairs[:, 0], pairs[:, 1]] > 0]


def drawn_pairs(matrix: Floats, seed: int, *, relays: int | None) -> Ints:
    """What is measured: each with some others, or each with the same few."""
    random, count = np.random.default_rng(seed), len(matrix)
    few = random.choice(count, relays, replace=False) if relays else None
    found = {
        (min(one, int(other)), max(one, int(other)))
        for one in range(count)
        for other in (few if few is not None else random.choice(count, NEIGHBOURS, replace=False))
        if one != other and matrix[one, other] > 0
    }
    return np.array(sorted(found), dtype=np.int64)


def measured(matrix: Floats, name: str, *, relays: int | None, seeds: int) -> dict[str, Figure]:
    """Errors over all known pairs, relative to the round trip, and the CPU time of a fit."""
    medians, nineties, seconds = list[float](), list[float](), list[float]()
    every = known_pairs(matrix)
    true = matrix[every[:, 0], every[:, 1]]
    for seed in range(seeds):
        pairs = drawn_pairs(matrix, seed, relays=relays)
        began = time.process_time()
        at = fit(pairs, matrix[pairs[:, 0], pairs[:, 1]], len(matrix), seed=seed)
        seconds.append(time.process_time() - began)
        errors = np.abs(guessed_ms(at, every) - true) / true
        medians.append(float(np.median(errors)))
        nineties.append(float(np.quantile(errors, 0.9)))
    figures = {
        "median error": (medians, "", 0.08),
        "90th percentile": (nineties, "", 0.35),
        "fit": (seconds, "s of CPU", None),
    }
    return {
        f"{name}: {what}": Figure(float(np.median(values)), unit, goal, (min(values), max(values)))
        for what, (values, unit, goal) in figures.items()
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "matrix", nargs="?", type=Path, help="round trips in milliseconds; without one: points in space"
    )
    parser.add_argument("--quick", action="store_true", help="one draw instead of five")
    options = parser.parse_args()
    matrix = points(COUNT, 1) if options.matrix is None else np.loadtxt(options.matrix)
    seeds = 1 if options.quick else 5
    figures = measured(matrix, f"{NEIGHBOURS} neighbours", relays=None, seeds=seeds)
    figures |= measured(matrix, f"{RELAYS} relays", relays=RELAYS, seeds=seeds)
    print_report("coordinates", figures)


if __name__ == "__main__":
    main()
