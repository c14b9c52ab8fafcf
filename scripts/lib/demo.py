"""
The main job from end to end on this machine, with nothing simulated.

A control plane on PostgreSQL, three providers' hosts and a gateway (slices of this machine, each with an agent of its
own), a renter who books a cluster, runs a search on it, leaves, and is billed. Every command shown is really typed.

What exists is noted in `.cache/demo.json` before it is made, so that `--end` ends all of it, however the demo went.
"""

import argparse
import fcntl
import json
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from corral.core.money import format_credits
from corral.testing.local_network import LocalNetwork, LocalNetworkFailed, PersonHome, corral_program, slice_size

ROOT = Path(__file__).parents[2]
PROVIDERS = {"ada": "ada-attic", "ben": "ben-garage", "cleo": "cleo-lab"}
RENTER = "rae"
CLUSTER = "digits"
CONTROL_PLANE_PORT, GATEWAY_PORT = 8470, 8471
STATE_FILE = ROOT / ".cache/demo.json"
END = "scripts/demo --end"


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
            network.expect(host)
            self.type(providers[name], *network.join_arguments(host, cores=cores, memory_gib=memory_gib))
        network.expect("gate")
        self.type(operator, *network.join_arguments("gate", cores=0.1, memory_gib=0.5, role="gateway"))
        network.note()
        network.wait_until_bookable(renter, devices=len(PROVIDERS))

        self.step("book", "The renter looks at the offers, asks for three nodes, accepts the plan, gets a cluster")
        self.type(renter, "offers")
        self.type(renter, "up", "--cpu", "1", "--nodes", "3", "--for", "1h", "--name", CLUSTER, "-y")
        network.note()
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
        typed = f"corral {' '.join(arguments)}"
        self.console.print(f"[cyan]{person.name} $[/cyan] {escape(typed)}", highlight=False, soft_wrap=True)
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
        try:
            for line in process.stdout:
                printed.append(line)
                self.console.file.write(line)
                self.console.file.flush()
            status = process.wait()
        finally:
            # Nobody goes on joining or booking behind our back.
            process.kill()
            process.wait()
        if status != 0:
            raise LocalNetworkFailed(f"`{typed}` ended with {status}")
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
    """Says how to go on with what was left running, and how to end it."""
    console.print("\n[bold]What was started goes on running.[/bold]")
    if (renter := network.people.get(RENTER)) is not None:
        console.print("To go on as the renter:")
        console.print(f"  export XDG_CONFIG_HOME={renter.folder} PATH={corral_program().parent}:$PATH", soft_wrap=True)
        console.print("  corral up --cpu 1 --nodes 3 --for 1h --name digits2 && corral dashboard digits2")
        console.print(f"Persons: {', '.join(network.people)}; each has a folder beside {renter.folder}", soft_wrap=True)
    console.print(f"To end all of it, clusters, agents, data and keys: [bold]{END}[/bold]")


def play(demo: Demo) -> str | None:
    """Plays the demo; returns why it failed, or None."""
    try:
        demo.run()
        demo.close()
    except LocalNetworkFailed as error:
        return str(error)
    except KeyboardInterrupt:
        return "it was interrupted"
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def take_down(network: LocalNetwork) -> str | None:
    """Ends the network and looks whether it is gone; returns what went wrong, or None."""
    try:
        network.stop()
        left = network.left_behind()
    except KeyboardInterrupt:
        return f"the end was interrupted; `{END}` goes on with it"
    except Exception as error:
        traceback.print_exc()
        return f"it could not be ended: {type(error).__name__}: {error}; `{END}` tries again"
    if left:
        return f"left behind: {', '.join(left)}; `{END}` tries again"
    STATE_FILE.unlink(missing_ok=True)
    return None


def begin_and_end(console: Console, *, is_kept: bool) -> tuple[dict[str, Any], str | None]:
    """Plays on a new network, and takes it down unless it is to be kept; returns the figures, and why it failed."""
    if STATE_FILE.exists():
        failure = f"the network of an earlier demo is still there; nothing was started. `{END}` ends it"
        tell_failure(console, failure)
        return {}, failure
    images = json.loads((ROOT / ".cache/images.json").read_text())
    network = LocalNetwork(
        images=images, port=CONTROL_PLANE_PORT, gateway_port=GATEWAY_PORT, prefix="demo", state_file=STATE_FILE
    )
    demo = Demo(network, console)
    failure = play(demo)
    if failure is not None:
        tell_failure(console, failure)
        console.print(network.log_end(), soft_wrap=True, markup=False, highlight=False)
    if is_kept and network.server is not None:
        keep(console, network)
    elif (remains := take_down(network)) is not None:
        tell_failure(console, remains)
        failure = f"{failure}; {remains}" if failure else remains
    return demo.figures, failure


def end_kept(console: Console) -> tuple[dict[str, Any], str | None]:
    """Ends the network that an earlier demo kept or could not end; returns what was done, and why it failed."""
    try:
        network = LocalNetwork.load(STATE_FILE)
    except LocalNetworkFailed as error:
        tell_failure(console, str(error))
        return {"ended": False}, str(error)
    if network is None:
        console.print("No demo was kept: there is nothing to end.")
        return {"ended": False}, None
    for line in network.end_clusters():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"ending {len(network.hosts)} agents, their nodes, and the control plane", highlight=False)
    failure = take_down(network)
    if failure is None:
        console.print("All of it is gone.")
    else:
        tell_failure(console, failure)
    return {"ended": failure is None}, failure


def tell_failure(console: Console, failure: str) -> None:
    """Prints why it failed."""
    console.print(f"[red]error:[/red] {escape(failure)}", soft_wrap=True, highlight=False)


@contextmanager
def alone() -> Iterator[bool]:
    """Whether no other demo of this checkout is playing; none begins inside the block."""
    with STATE_FILE.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def act(console: Console, *, is_end: bool, is_kept: bool) -> tuple[dict[str, Any], str | None]:
    """Does what was asked for; returns what is to tell of it, and why it failed."""
    with alone() as is_alone:
        if not is_alone:
            failure = "another demo of this checkout is playing; nothing was done. Wait for it, or stop it"
            tell_failure(console, failure)
            return {}, failure
        return end_kept(console) if is_end else begin_and_end(console, is_kept=is_kept)


def main(arguments: list[str] | None = None) -> int:
    """Plays the demo; 0 if all of it succeeded and nothing was left behind."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="the main job of Corral, on this machine")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--keep", action="store_true", help="leave everything running, and say how to go on and end it")
    what.add_argument("--end", action="store_true", help="end all that a demo has left running, and nothing else")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line on stdout")
    parser.add_argument("--set-up-since", type=float, default=time.time(), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(file=sys.stderr if options.json else sys.stdout, width=110)
    setup_s = round(time.time() - options.set_up_since, 1)
    try:
        figures, failure = act(console, is_end=options.end, is_kept=options.keep)
    except Exception as error:
        traceback.print_exc()
        figures, failure = {}, f"{type(error).__name__}: {error}"
    if not options.end:
        figures |= {"setup_s": setup_s}
    if options.json:
        print(json.dumps(figures | ({"error": failure} if failure else {})))
    elif "phases" in figures:
        word, total = "failed" if failure else "done", sum(figures["phases"].values())
        console.print(f"\n[bold]{word}[/bold] in {total:.0f} s after {setup_s:.0f} s of set-up")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
