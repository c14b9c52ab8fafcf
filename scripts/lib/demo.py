"""
The main job from end to end on this machine, with nothing simulated.

A control plane on PostgreSQL, three providers' hosts and a gateway (slices of this machine, each with an agent of its
own), a renter who books a cluster, runs a search on it, leaves, and is billed. Every command shown is really typed.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from corral.core.money import format_credits
from corral.testing.local_network import LocalNetwork, LocalNetworkFailed, PersonHome, corral_program, slice_size

ROOT = Path(__file__).parents[2]
PROVIDERS = {"ada": "ada-attic", "ben": "ben-garage", "cleo": "cleo-lab"}
RENTER = "rae"
CLUSTER = "digits"
CONTROL_PLANE_PORT, GATEWAY_PORT = 8470, 8471


class Demo:
    """The story, step by step; `figures` is what `--json` prints at the end."""

    def __init__(self, network: LocalNetwork, console: Console) -> None:
        self.network = network
        self.console = console
        self.figures: dict[str, Any] = {"phases": {}, "nodes": [], "job": {}, "charges": [], "ledger_sum_uc": None}

    def run(self) -> None:
        """Plays all steps in turn."""
        network = self.network
        self.step("control plane", "A control plane on PostgreSQL, its operator, three providers and a renter")
        operator = network.start()
        providers = {name: network.sign_up(name) for name in PROVIDERS}
        renter = network.sign_up(RENTER)
        self.type(operator, "credit", "add", RENTER, "20")

        self.step("join", "Three hosts and a gateway join, each with an agent of its own")
        cores, memory_gib = slice_size()
        for name, host in PROVIDERS.items():
            network.hosts[host] = f"{network.prefix}-{host}"
            self.type(providers[name], *network.join_arguments(host, cores=cores, memory_gib=memory_gib))
        network.hosts["gate"] = f"{network.prefix}-gate"
        self.type(operator, *network.join_arguments("gate", cores=0.1, memory_gib=0.5, role="gateway"))

        self.step("book", "The renter looks at the offers, asks for three nodes, accepts the plan, gets a cluster")
        self.type(renter, "offers")
        self.type(renter, "up", "--cpu", "1", "--nodes", "3", "--for", "1h", "--name", CLUSTER, "-y")
        self.type(renter, "show", CLUSTER)

        self.step("job", "A hyper-parameter search on scikit-learn's digits, through Ray's own job interface")
        started = time.monotonic()
        log = self.type(
            renter,
            "job",
            "submit",
            CLUSTER,
            "--working-dir",
            str(ROOT / "examples"),
            "--",
            "python",
            "digits_search.py",
        )
        self.figures["job"] = {"status": "SUCCEEDED", "seconds": round(time.monotonic() - started, 1)}
        self.count_tasks(log)

        self.step("end", "The renter leaves; the bill is exact")
        self.type(renter, "down", CLUSTER, "-y")
        for provider in providers.values():
            self.type(provider, "earnings")
        self.add_up(renter)

    def step(self, name: str, text: str) -> None:
        """Begins a step: closes the time of the one before."""
        self.close()
        self._running, self._since = name, time.monotonic()
        self.console.print(f"\n[bold]{text}[/bold]")

    def close(self) -> None:
        """Books the seconds of the running step."""
        if getattr(self, "_running", None):
            self.figures["phases"][self._running] = round(time.monotonic() - self._since, 1)
            self._running = None

    _running: str | None = None
    _since: float = 0.0

    def type(self, person: PersonHome, *arguments: str) -> str:
        """Types a command as this person, showing it and what it prints; returns its standard output."""
        self.console.print(
            f"[cyan]{person.name} $[/cyan] corral {' '.join(arguments)}", highlight=False, soft_wrap=True
        )
        process = subprocess.Popen(
            [str(corral_program()), *arguments],
            env=person.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.console.file,
            text=True,
        )
        assert process.stdout is not None
        printed: list[str] = []
        for line in process.stdout:
            printed.append(line)
            self.console.file.write(line)
            self.console.file.flush()
        if process.wait() != 0:
            raise LocalNetworkFailed(f"`corral {' '.join(arguments)}` ended with {process.returncode}")
        return "".join(printed)

    def count_tasks(self, log: str) -> None:
        """Reads from the job's log which hosts did its work; all three must appear."""
        found = re.search(r"^tasks by host: (\{.*\})$", log, re.MULTILINE)
        tasks: dict[str, int] = json.loads(found.group(1)) if found else {}
        self.figures["nodes"] = [{"host": host, "tasks": count} for host, count in sorted(tasks.items())]
        missing = set(PROVIDERS.values()) - set(tasks)
        if missing:
            raise LocalNetworkFailed(f"no task ran on {', '.join(sorted(missing))}")

    def add_up(self, renter: PersonHome) -> None:
        """Shows what each party paid or got, and that it adds up to zero."""
        bill = self.network.json(renter, "cost", CLUSTER)
        charges = [{"party": RENTER, "uc": -bill["amount_uc"]}]
        for provider in sorted({line["provider"] for line in bill["lines"]}):
            earned = sum(line["provider_uc"] for line in bill["lines"] if line["provider"] == provider)
            charges.append({"party": provider, "uc": earned})
        charges.append({"party": "network", "uc": bill["fee_uc"]})
        total = sum(charge["uc"] for charge in charges)
        if total != 0 or bill["ledger_sum_uc"] != 0 or not bill["final"]:
            raise LocalNetworkFailed(f"the bill does not add up: {charges}, ledger sum {bill['ledger_sum_uc']}")
        self.figures |= {"charges": charges, "ledger_sum_uc": bill["ledger_sum_uc"]}
        parts = ", ".join(f"{charge['party']} {format_credits(charge['uc'])}" for charge in charges)
        self.console.print(f"{parts}: together {format_credits(total)}", highlight=False)


def keep(console: Console, network: LocalNetwork) -> None:
    """Says how to go on with what was left running."""
    console.print("\n[bold]All of it goes on running.[/bold] To go on as the renter:")
    renter = network.people[RENTER]
    console.print(f"  export XDG_CONFIG_HOME={renter.folder} PATH={corral_program().parent}:$PATH", soft_wrap=True)
    console.print("  corral up --cpu 1 --nodes 3 --for 1h --name digits2 && corral dashboard digits2")
    console.print(f"Persons: {', '.join(network.people)}; each has a folder beside {renter.folder}")
    agents = " ".join(f"corral-agent-{name}" for name in network.hosts.values())
    assert network.server is not None
    console.print(f"To end it: docker rm -f {agents}; kill {network.server.pid}", soft_wrap=True)


def main() -> int:
    """Plays the demo; 0 if all of it succeeded and nothing was left behind."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="the main job of Corral, on this machine")
    parser.add_argument("--keep", action="store_true", help="leave everything running, and say how to go on")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line on stdout")
    parser.add_argument("--set-up-since", type=float, default=time.time(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    console = Console(file=sys.stderr if options.json else sys.stdout, width=110)
    setup_s = round(time.time() - options.set_up_since, 1)
    images = json.loads((ROOT / ".cache/images.json").read_text())
    network = LocalNetwork(images=images, port=CONTROL_PLANE_PORT, gateway_port=GATEWAY_PORT, prefix="demo")
    demo = Demo(network, console)
    failure: str | None = None
    try:
        demo.run()
        demo.close()
    except LocalNetworkFailed as error:
        failure = str(error)
        console.print(f"[red]error:[/red] {failure}", soft_wrap=True, markup=True, highlight=False)
        console.print(network.log_end(), soft_wrap=True, markup=False, highlight=False)
    finally:
        if not options.keep:
            network.stop()
    left = [] if options.keep else network.left_behind()
    if left:
        failure = failure or f"left behind: {', '.join(left)}"
        console.print(f"[red]error:[/red] left behind: {', '.join(left)}")
    if options.keep and failure is None:
        keep(console, network)
    if options.json:
        print(json.dumps(demo.figures | {"setup_s": setup_s} | ({"error": failure} if failure else {})))
    else:
        total = sum(demo.figures["phases"].values())
        console.print(
            f"\n[bold]{'failed' if failure else 'done'}[/bold] in {total:.0f} s after {setup_s:.0f} s of set-up"
        )
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
