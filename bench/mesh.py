"""
How fast the mesh is, and what it costs: real mesh containers on this machine, in the image of this checkout.

Beside each transfer over our direct plane stands one over a bare tunnel of the same WireGuard between two containers
of the same image without any program of ours, and one over a relay; they alternate, so that the machine's drift meets
all alike. All ends share the machine's cores: read the ratios, and the CPU seconds per gigabyte, not the Gbit/s.
"""

import argparse
import base64
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

from bench._mesh_members import Bench, Flow, Keys, Node, Stream, roster
from bench._report import Figure, median_with_interval, print_report
from corral.protocol.addresses import node_address, pin_address

ROOT = Path(__file__).parents[1]
NETWORK = IPv4Network("10.128.0.0/18")
PAIRS, PAIRS_QUICK = 8, 2
FLOW_S = 2.0
STARTS, STARTS_QUICK = 8, 2
STARTED_NODES = 3
CUTS, CUTS_QUICK = 8, 2
NODES, NODES_QUICK = 32, 6
REST_S, REST_QUICK_S = 30.0, 5.0
SIMULATED = (256, 1000)
SETTLE_S = 3.0
"""What a pair is given to find both planes alive, and hot, before its path is cut."""
CUT_S = 2.0
IMPATIENT_S = 16.0
"""For 15 s after a roster a member looks for handshakes again and again; then it rests."""

GOAL_DIRECT, GOAL_RELAY, GOAL_FAILOVER_S, GOAL_READY_S = 0.95, 0.8, 0.7, 0.5


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="scripts/bench mesh", description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few rounds and members of each")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be repeated")
    options = parser.parse_args()
    # Who ends us, ends what we started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    images = json.loads((ROOT / ".cache/images.json").read_text())
    stolen, busy, began = *_machine_s(), time.monotonic()
    figures: dict[str, Figure] = {}
    for name in options.only or PARTS:
        with Bench(images) as bench:
            figures |= PARTS[name](bench, options.quick)
    wall_s, cores = time.monotonic() - began, os.cpu_count() or 1
    stolen_after, busy_after = _machine_s()
    figures["steal"] = _one((stolen_after - stolen) / wall_s / cores, "1")
    figures["machine_busy"] = _one((busy_after - busy) / wall_s / cores, "1")
    print_report("mesh", figures)
    return 0


def transfers(bench: Bench, is_quick: bool) -> dict[str, Figure]:
    """One TCP connection at a time over a bare tunnel, our direct plane, a relay, and the plane that we choose."""
    mesh = bench.mesh("flow", _addresses(2))
    bench.start_relay(mesh)
    mesh.tell()
    mesh.wait_met()
    ours, bare = bench.nodes(mesh), bench.bare_pair()
    pins = {plane: [str(pin_address(NETWORK, n, plane)) for n in (1, 2)] for plane in ("direct", "relayed")}
    ways: dict[str, tuple[list[Node], list[str]]] = {
        "bare": (bare, [node.address for node in bare]),
        "direct": (ours, pins["direct"]),
        "relayed": (ours, pins["relayed"]),
        "chosen": (ours, mesh.addresses),
    }
    time.sleep(SETTLE_S)
    flows: dict[str, list[Flow]] = {name: [] for name in ways}
    for pair in range(PAIRS_QUICK if is_quick else PAIRS):
        for name in ways if pair % 2 == 0 else reversed(ways):
            ends, (own, peer) = ways[name]
            flows[name].append(bench.flow(ends, own=own, peer=peer, seconds=FLOW_S))
        _say(f"pair {pair + 1}: " + ", ".join(f"{name} {flows[name][-1].gbit_s:.2f} Gbit/s" for name in ways))
    figures = {
        "direct_to_bare_wireguard": _median(_ratios(flows["direct"], flows["bare"]), "1", GOAL_DIRECT),
        "relay_to_direct": _median(_ratios(flows["relayed"], flows["direct"]), "1", GOAL_RELAY),
        "chosen_to_direct": _median(_ratios(flows["chosen"], flows["direct"]), "1"),
    }
    for name, measured in flows.items():
        figures[f"{name}_gbit_s"] = _median([flow.gbit_s for flow in measured], "Gbit/s")
        figures[f"{name}_cpu_s_per_gb"] = _median([sum(flow.cpu_s.values()) / flow.gb for flow in measured], "CPU s/GB")
    for who in flows["relayed"][0].cpu_s:
        shares = [flow.cpu_s[who] / sum(flow.cpu_s.values()) for flow in flows["relayed"]]
        figures[f"relayed_cpu_share_{who.replace(' ', '_')}"] = _median(shares, "1")
    figures["relay_cpu_s_per_gb"] = _median([flow.cpu_s["relay"] / flow.gb for flow in flows["relayed"]], "CPU s/GB")
    rss = [bench.container_rss_bytes(node.mesh_name) / 2**20 for node in ours]
    figures["mesh_container_rss_after"] = _one(max(rss), "MiB")
    return figures


def start(bench: Bench, is_quick: bool) -> dict[str, Figure]:
    """From the start of the last container to all handshakes, for as many nodes as a small cluster has."""
    took: list[float] = []
    for n in range(STARTS_QUICK if is_quick else STARTS):
        mesh = bench.mesh(f"start{n}", _addresses(STARTED_NODES))
        mesh.tell()
        mesh.wait_met()
        took.append(time.time() - mesh.started_at())
        _say(f"start {n + 1}: {took[-1]:.2f} s")
        bench.remove(mesh)
    return {"mesh_ready_s": _median(took, "s", GOAL_READY_S)}


def failover(bench: Bench, is_quick: bool) -> dict[str, Figure]:
    """The longest gap in a stream of a packet each 10 ms, both ways at once, when the direct path is cut."""
    mesh = bench.mesh("cut", _addresses(2))
    bench.start_relay(mesh)
    nodes = bench.nodes(mesh)
    gaps: list[float] = []
    backs: list[float] = []
    for n in range(CUTS_QUICK if is_quick else CUTS):
        # Anew each time, so that no hold-down of the last return is in the way.
        mesh.tell(alone=True)
        since = mesh.marks()
        mesh.tell()
        mesh.wait_met(since, relayed=[])
        streams = [Stream(nodes[m], nodes[1 - m].address, SETTLE_S + CUT_S + 1) for m in range(2)]
        time.sleep(SETTLE_S)
        cut_at = time.monotonic()
        mesh.cut(0)
        time.sleep(CUT_S)
        since, mended_at = mesh.marks(), time.monotonic()
        mesh.mend(0)
        mesh.wait_met(since, relayed=[])
        backs.append(time.monotonic() - mended_at)
        gap_s = max(stream.gap_s(since=cut_at) for stream in streams)
        gaps.append(gap_s)
        _say(f"cut {n + 1}: {gap_s:.2f} s; direct again after {backs[-1]:.2f} s")
    return {
        "failover_gap_s": _median(gaps, "s", GOAL_FAILOVER_S),
        "failover_gap_max_s": _one(max(gaps), "s"),
        "direct_again_s": _median(backs, "s"),
    }


def full(bench: Bench, is_quick: bool) -> dict[str, Figure]:
    """Every pair of many real nodes, with a relay, and what a member costs when nothing moves."""
    count = NODES_QUICK if is_quick else NODES
    mesh = bench.mesh("full", _addresses(count))
    bench.start_relay(mesh)
    told_at = time.monotonic()
    mesh.tell()
    mesh.wait_met()
    met_s = time.monotonic() - told_at
    _say(f"{count} nodes: all {count * (count - 1) // 2} pairs after {met_s:.1f} s")
    time.sleep(SETTLE_S)
    names = [part.name for part in mesh.meshes]
    rss = [bench.container_rss_bytes(name) / 2**20 for name in names]
    return {
        f"full_mesh_{count}_s": _one(met_s, "s"),
        f"full_mesh_{count}_rss": _median(rss, "MiB per member"),
        f"full_mesh_{count}_cpu_at_rest": _rest(bench, names, REST_QUICK_S if is_quick else REST_S),
    }


def simulated(bench: Bench, is_quick: bool) -> dict[str, Figure]:
    """One real member in a mesh of hundreds: to take a roster, to take the next one with one peer more, and to rest."""
    figures: dict[str, Figure] = {}
    for count in SIMULATED:
        mesh = bench.mesh(f"simulated{count}", _addresses(1))
        [part] = mesh.meshes
        part.keys()
        keys = {str(node_address(NETWORK, n + 2)): Keys(_key(), _key()) for n in range(count)}
        # Nobody answers for them: they are peers that call by themselves, and never do.
        message = {
            serial: roster(serial, known, dict.fromkeys(keys), own=mesh.addresses[0], passive=list(keys))
            for serial, known in ((1, dict(list(keys.items())[:-1])), (2, keys))
        }
        before = bench.container_cpu_s(part.name)
        began = time.monotonic()
        part.send(message[1])
        part.wait_type("configured", serial=1)
        first_s, began = time.monotonic() - began, time.monotonic()
        part.send(message[2])
        part.wait_type("configured", serial=2)
        next_s = time.monotonic() - began
        cpu_s = bench.container_cpu_s(part.name) - before
        _say(f"{count} peers: {first_s:.2f} s, one more {next_s:.2f} s")
        time.sleep(IMPATIENT_S)
        figures |= {
            f"roster_{count}_s": _one(first_s, "s"),
            f"roster_{count}_next_s": _one(next_s, "s"),
            f"roster_{count}_cpu_s": _one(cpu_s, "CPU s"),
            f"roster_{count}_rss": _one(bench.container_rss_bytes(part.name) / 2**20, "MiB"),
            f"roster_{count}_cpu_at_rest": _rest(bench, [part.name], REST_QUICK_S if is_quick else REST_S),
        }
        bench.remove(mesh)
    return figures


PARTS = {
    "transfers": transfers,
    "start": start,
    "failover": failover,
    "full": full,
    "simulated": simulated,
}


def _addresses(count: int) -> list[str]:
    return [str(node_address(NETWORK, n + 1)) for n in range(count)]


def _key() -> str:
    """A key that sorts before real ones: of a pair the member with the lower key calls."""
    return base64.b64encode(bytes(2) + secrets.token_bytes(30)).decode()


def _rest(bench: Bench, names: Sequence[str], seconds: float) -> Figure:
    """Cores that each of these containers keeps busy while nothing is asked of it."""
    before, began = [bench.container_cpu_s(name) for name in names], time.monotonic()
    time.sleep(seconds)
    spent = [bench.container_cpu_s(name) - was for name, was in zip(names, before, strict=True)]
    wall_s = time.monotonic() - began
    return _median([each / wall_s for each in spent], "cores per member")


def _ratios(ours: Sequence[Flow], theirs: Sequence[Flow]) -> list[float]:
    return [mine.gbit_s / other.gbit_s for mine, other in zip(ours, theirs, strict=True)]


def _median(samples: Sequence[float], unit: str, goal: float | None = None) -> Figure:
    value, (low, high) = median_with_interval(samples)
    return Figure(round(value, 4), unit, goal, (round(low, 4), round(high, 4)))


def _one(value: float, unit: str) -> Figure:
    return Figure(round(value, 4), unit, None, (round(value, 4), round(value, 4)))


def _machine_s() -> tuple[float, float]:
    """CPU seconds since boot that the hypervisor gave to others, and that this machine has worked."""
    user, nice, system, _idle, _iowait, irq, softirq, stolen = (
        int(value) / os.sysconf("SC_CLK_TCK") for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return stolen, user + nice + system + irq + softirq


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
