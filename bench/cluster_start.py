"""
How long a renter waits: from the accepted quote to "all 3 nodes alive and a job accepted", on warm hosts.

Beside each start by Corral stands one of the same nine containers by a bare script with stock `ray start` and no Corral
process (`bench/bare_cluster.py`), in turn, so that the machine's drift meets both alike. Both have the same images,
limits and firewall; only Corral also has a gateway, a control plane and agents, and they share the machine.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from bench import bare_cluster
from bench._report import Figure, median_with_interval, print_report
from corral.sdk import Client
from corral.testing.local_network import LocalNetwork, slice_size

ROOT = Path(__file__).parents[1]
NODES = 3
PAIRS, PAIRS_QUICK = 8, 1
GOAL_RATIO = 1.25


def corral_start(client: Client) -> tuple[float, float]:
    """One start: seconds from the acceptance until ready and a job accepted, and the machine's busy CPU seconds."""
    quote = client.quote(cpu=1, nodes=NODES, hours=1)
    busy, began = bare_cluster.busy_cpu_s(), time.monotonic()
    cluster = client.wait_ready(client.book(quote.id).id)
    client.jobs(cluster.name).submit("true")
    figures = time.monotonic() - began, bare_cluster.busy_cpu_s() - busy
    client.end(cluster.name)
    while sum(offer.devices for offer in client.offers().offers) < NODES:
        time.sleep(0.2)
    return figures


def bare_start(images: dict[str, str], cores: float) -> tuple[float, float]:
    """One start without Corral: seconds until ready, and the machine's busy CPU seconds."""
    result = bare_cluster.run_once(images, node_count=NODES, cpus=cores)
    return result["phases"]["ready"], result["busy_cpu_s"]


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="scripts/bench cluster_start")
    parser.add_argument("--quick", action="store_true", help="one pair")
    parser.add_argument("--pairs", type=int, default=0, help="how many pairs")
    options = parser.parse_args()
    pairs = options.pairs or (PAIRS_QUICK if options.quick else PAIRS)
    images = json.loads((ROOT / ".cache/images.json").read_text())
    cores, _ = slice_size()
    ours: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    with LocalNetwork(images=images) as network:
        renter = network.furnish()
        with network.client(renter) as client:
            for pair in range(pairs):
                ours.append(corral_start(client))
                bare.append(bare_start(images, cores))
                print(f"pair {pair + 1}: Corral {ours[-1][0]:.1f} s, bare {bare[-1][0]:.1f} s", file=sys.stderr)
    ratios = [a[0] / b[0] for a, b in zip(ours, bare, strict=True)]
    figures = {}
    for name, samples, unit, goal in [
        ("ratio_to_bare", ratios, "1", GOAL_RATIO),
        ("corral_s", [sample[0] for sample in ours], "s", None),
        ("bare_s", [sample[0] for sample in bare], "s", None),
        ("corral_cpu_s", [sample[1] for sample in ours], "CPU s", None),
        ("bare_cpu_s", [sample[1] for sample in bare], "CPU s", None),
    ]:
        value, spread = median_with_interval(samples)
        figures[name] = Figure(round(value, 3), unit, goal, (round(spread[0], 3), round(spread[1], 3)))
    print_report("cluster_start", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
