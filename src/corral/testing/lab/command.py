"""
The lab by hand: `scripts/lab up`, then cut, slow down, turn off and look, from any shell.

Data on stdout, all else on stderr; exit status 0 done, 1 refused or failed, 2 wrong usage.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corral.core.errors import CorralError
from corral.testing.lab.errors import LabRefused
from corral.testing.lab.lab import CONTROL, GATE, PROVIDERS, RENTER, Lab
from corral.testing.lab.links import Shape
from corral.testing.lab.nat import NatKind
from corral.testing.lab.remains import STATE_NAME, demolish, holders
from corral.testing.local_network import LocalNetworkFailed

SHAPE = {
    "delay": ("delay_ms", "MS", "one way; a round trip passes two links twice"),
    "jitter": ("jitter_ms", "MS", "added to the delay, up to this"),
    "loss": ("loss", "SHARE", "share of packets lost, 0 to 1"),
    "rate": ("rate_mbit", "MBIT", "Mbit/s in each direction, 0 for no limit"),
}


def main(arguments: Sequence[str]) -> int:
    """Does what was typed; the exit status."""
    options = _parser().parse_args(arguments)
    folder = Path(options.folder).resolve()
    try:
        if options.command == "up":
            _up(options, folder)
        elif options.command == "down":
            _down(folder)
        elif options.command == "exec":
            _exec(Lab.open(folder), options.name, options.argv)
        elif options.command == "status":
            _status(Lab.open(folder), is_json=options.json)
        else:
            _act(Lab.open(folder), options)
    except CorralError as error:
        _say(f"error: {error.message}")
        if error.hint:
            _say(f"hint: {error.hint}")
        return 1
    except LocalNetworkFailed as error:
        _say(f"error: {error}")
        return 1
    return 0


def default_folder() -> Path:
    """Where the lab is unless it is told otherwise: never in the project."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / "corral-lab"  # noqa: S108


def _up(options: argparse.Namespace, folder: Path) -> None:
    began_at_s = time.monotonic()
    root = Path(options.root).resolve()
    images_file = root / ".cache/images.json"
    if not images_file.exists():
        raise LabRefused(f"{images_file} is missing; nothing was started", hint="scripts/setup")
    shape = Shape(**_shape(options))
    kinds = _kinds(options.nat, options.hosts)
    lab = Lab(images=json.loads(images_file.read_text()), cache=root / ".cache/lab", folder=folder, seed=options.seed)
    lab.start()
    try:
        lab.furnish(hosts=options.hosts, nat=kinds, shape=shape)
    except BaseException:
        lab.stop()
        raise
    _say(f"the lab is up after {time.monotonic() - began_at_s:.0f} s")
    _status(lab, is_json=False)
    one, two = PROVIDERS[0], PROVIDERS[1] if options.hosts > 1 else GATE
    _say("to go on:")
    for line in (
        f"exec {RENTER} corral up --cpu 1 --nodes {options.hosts} --for 1h --name one",
        f"exec {RENTER} corral job submit one -- python -c 'print(1)'",
        f"cut {one} {two}          # and: restore {one} {two}",
        f"link {one} --delay 40 --loss 0.01 --rate 50",
        f"exec {one} docker ps",
        "down",
    ):
        _say(f"  scripts/lab {line}")


def _down(folder: Path) -> None:
    if not (folder / STATE_NAME).exists() and not list(holders(folder)):
        _say(f"there is no lab in {folder}")
        return
    demolish(folder)
    _say("the lab is gone")


def _exec(lab: Lab, name: str, argv: list[str]) -> None:
    """Becomes the program: as the person who sits at the machine, where somebody does."""
    machine = lab.people.get(name, name)
    lab.machine(machine)
    person = name if name in lab.people else lab.places[machine].owner
    environment = lab.environment(person) if person else {**os.environ}
    words = argv[1:] if argv[:1] == ["--"] else argv
    command = lab.machine(machine).command(words or [os.environ.get("SHELL", "/bin/sh")])
    os.execvpe(command[0], command, environment)  # noqa: S606


def _status(lab: Lab, *, is_json: bool) -> None:
    internet = lab.internet()
    machines = [
        {
            "name": place.name,
            "on": lab.machine(place.name).is_on,
            "pid": lab.machine(place.name).pid if lab.machine(place.name).is_on else None,
            "engine": ("on" if lab.engine(place.name).answers() else "off") if place.has_engine else None,
            "owner": place.owner,
            **internet["machines"].get(place.name, {}),
        }
        for place in lab.places.values()
    ]
    if is_json:
        print(json.dumps({"folder": str(lab.folder), "machines": machines, "ways": internet["ways"]}, indent=1))
        return
    print(f"lab in {lab.folder}; control plane {lab.url if CONTROL in lab.places else '-'}")
    row = "{:<9} {:<6} {:<8} {:<15} {:<15} {:<10} {}"
    print(row.format("MACHINE", "STATE", "ENGINE", "ADDRESS", "SEEN AS", "NAT", "LINK"))
    for found in machines:
        state = "on" if found["on"] else "off"
        link = _told(found.get("link", {}))
        words = (found.get(name) or "-" for name in ("engine", "inner", "outer", "nat"))
        print(row.format(found["name"], state, *words, link))
    for way in internet["ways"]:
        print(f"{way['from']} -> {way['to']}: {'cut' if way['cut'] else _told(way['link'])}")
    counts = ", ".join(f"{name} {count}" for name, count in internet["counts"].items())
    print(f"packets: {counts}, on their way {internet['waiting']}")


def _act(lab: Lab, options: argparse.Namespace) -> None:
    match options.command:
        case "cut":
            lab.cut(options.a, options.b, one_way=options.one_way)
        case "restore" if options.b:
            lab.restore(options.a, options.b, one_way=options.one_way)
        case "restore":
            lab.reconnect(options.a)
        case "isolate":
            lab.isolate(options.name)
        case "link":
            lab.shape_link(options.name, **_shape(options))
        case "slow":
            lab.slow(options.a, options.b, one_way=options.one_way, **_shape(options))
        case "off":
            lab.turn_off(options.name)
        case "on":
            lab.turn_on(options.name)
        case "kill-engine":
            lab.kill_engine(options.name)
        case "start-engine":
            lab.start_engine(options.name)
        case "kill":
            print("\n".join(lab.kill_container(options.name, options.pattern, signal.Signals[options.signal])))
        case "kill-control-plane":
            lab.kill_control_plane()
        case "start-control-plane":
            lab.start_control_plane()
        case _:
            raise LabRefused(f"the lab cannot {options.command}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/lab", description="several real hosts on this machine")
    parser.add_argument("--folder", default=str(default_folder()), help="of the lab [%(default)s]")
    parser.add_argument("--root", default=".", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="control plane, hosts, gateway and a renter")
    up.add_argument("--hosts", type=int, default=4)
    up.add_argument("--nat", default="none", metavar="KIND[,KIND…]", help="none, cone or symmetric; one, or one each")
    up.add_argument("--seed", type=int, default=1, help="of all that is random")
    _add_shape(up)
    commands.add_parser("down", help="end all of it, whatever state it is in")
    commands.add_parser("status", help="what exists").add_argument("--json", action="store_true")
    execute = commands.add_parser("exec", help="run a program in a machine, as the person who sits there")
    execute.add_argument("name", metavar="NAME", help="of a machine or a person")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD…")

    for name, text in (("cut", "nothing passes between two machines"), ("restore", "end a cut, or all of a machine")):
        between = commands.add_parser(name, help=text)
        between.add_argument("a", metavar="A")
        between.add_argument("b", metavar="B", nargs="?" if name == "restore" else None)
        between.add_argument("--one-way", action="store_true", help="only from A to B")
    link = commands.add_parser("link", help="change a machine's own line")
    link.add_argument("name", metavar="MACHINE")
    _add_shape(link)
    slow = commands.add_parser("slow", help="change the way between two machines")
    slow.add_argument("a", metavar="A")
    slow.add_argument("b", metavar="B")
    slow.add_argument("--one-way", action="store_true", help="only from A to B")
    _add_shape(slow)
    for name, text in (
        ("isolate", "cut a machine off from all others; `restore MACHINE` ends it"),
        ("off", "pull a machine's plug"),
        ("on", "turn a machine on again"),
        ("kill-engine", "kill a machine's Docker daemon"),
        ("start-engine", "start it again"),
    ):
        commands.add_parser(name, help=text).add_argument("name", metavar="MACHINE")
    kill = commands.add_parser("kill", help="signal containers of a machine")
    kill.add_argument("name", metavar="MACHINE")
    kill.add_argument("pattern", metavar="PATTERN", help="of their names, like '*-work'")
    kill.add_argument("--signal", default="SIGKILL", choices=[how.name for how in signal.Signals], metavar="NAME")
    commands.add_parser("kill-control-plane", help="pull its machine's plug, PostgreSQL's with it")
    commands.add_parser("start-control-plane", help="start it again on the same data")
    return parser


def _add_shape(parser: argparse.ArgumentParser) -> None:
    for name, (_, metavar, text) in SHAPE.items():
        parser.add_argument(f"--{name}", type=float, metavar=metavar, help=text)


def _shape(options: argparse.Namespace) -> dict[str, float]:
    given = {field: getattr(options, name) for name, (field, _, _) in SHAPE.items()}
    return {field: value for field, value in given.items() if value is not None}


def _kinds(text: str, hosts: int) -> list[NatKind]:
    words = text.split(",")
    try:
        kinds = [NatKind(word) for word in words]
    except ValueError:
        raise LabRefused(f"{text!r} is no kind of NAT; nothing was started", hint="none, cone or symmetric") from None
    return kinds * hosts if len(kinds) == 1 else kinds


def _told(link: dict[str, Any]) -> str:
    shown = [f"{name} {link[field]:g}" for name, (field, _, _) in SHAPE.items() if link.get(field)]
    return ", ".join(shown) or "-"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
