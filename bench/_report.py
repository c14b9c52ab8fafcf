"""What every benchmark prints: a table for people, and one JSON object as the last line for programs."""

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured value; `spread` is an interval in the same unit, `goal` None where there is none."""

    value: float
    unit: str
    goal: float | None
    spread: tuple[float, float]


def median_with_interval(samples: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """
    The median, and a distribution-free interval for it at about 95 % confidence.

    The interval is between two order statistics (the sign test); below six samples it is the whole range.
    """
    ordered = sorted(samples)
    n = len(ordered)
    if n < 6:
        return statistics.median(ordered), (ordered[0], ordered[-1])
    below, probability = 0, 0.5**n
    while probability <= 0.025:
        below += 1
        probability += 0.5**n * math.comb(n, below)
    return statistics.median(ordered), (ordered[max(below - 1, 0)], ordered[n - max(below, 1)])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    with open("/proc/cpuinfo") as lines:
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1), "cpu": cpu}


def print_report(bench: str, figures: dict[str, Figure], *, console: Console | None = None) -> None:
    """Prints the table on standard error and the JSON line on standard output."""
    console = console or Console(stderr=True)
    table = Table("figure", "value", "unit", "goal", "interval", title=bench)
    for name, figure in figures.items():
        goal = "" if figure.goal is None else f"{figure.goal:g}"
        low, high = figure.spread
        table.add_row(name, f"{figure.value:.3g}", figure.unit, goal, f"{low:.3g} to {high:.3g}")
    console.print(table)
    print(json.dumps({"bench": bench, "machine": machine(), "figures": {k: asdict(v) for k, v in figures.items()}}))
