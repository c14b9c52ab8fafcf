"""
What a command writes: data on stdout, all else on stderr.

`--json` turns data into one JSON document and errors into one problem document; without it both are for people, and
readable without colour.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.core.errors import CorralError
from corral.core.money import format_credits

if TYPE_CHECKING:
    from pydantic import BaseModel

EXIT_DONE, EXIT_REFUSED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

_USAGE_CODES = frozenset(
    {
        "address_refused",
        "amount_malformed",
        "api_key_malformed",
        "config_malformed",
        "entrypoint_missing",
        "job_id_malformed",
        "not_configured",
        "request_invalid",
        "runtime_env_refused",
        "usage",
        "working_dir_missing",
    }
)
_UNREACHABLE_CODES = frozenset({"unreachable", "certificate_untrusted"})
_TRAFFIC_STEP = 1000.0


@dataclass
class _Mode:
    """How this process writes; set while the command line is read."""

    is_json: bool = False


_mode = _Mode()


class UsageProblem(CorralError):
    """The command line asks for something that makes no sense."""

    code = "usage"


def set_json(is_json: bool) -> bool:
    """Chooses between JSON and text for this process."""
    _mode.is_json = is_json
    return is_json


def is_json() -> bool:
    """Whether `--json` was given."""
    return _mode.is_json


def _remember(value: bool) -> bool:
    return set_json(True) if value else value


JsonOption = Annotated[
    bool, typer.Option("--json", callback=_remember, is_eager=True, help="Write the result as JSON on stdout.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def say(text: str = "") -> None:
    """A remark for people, on stderr; nothing with `--json`."""
    if not is_json():
        typer.echo(text, err=True)


def put(text: str) -> None:
    """Data for people, on stdout."""
    typer.echo(text)


def put_json(value: "BaseModel | Sequence[BaseModel] | dict[str, Any]") -> None:
    """Data for programs, on stdout: money in micro-credits, times in UTC."""
    typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=2))


def plain(value: Any) -> Any:
    """Messages as plain JSON values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def report_error(error: CorralError) -> int:
    """Writes an error on stderr and returns the exit code for it."""
    if is_json():
        problem = {"code": error.code, "detail": error.message, "hint": error.hint, "facts": error.facts}
        if (status := getattr(error, "status", None)) is not None:
            problem["status"] = status
        typer.echo(json.dumps(problem, ensure_ascii=False, default=str), err=True)
    else:
        typer.echo(f"{_styled('error:', typer.colors.RED)} {error.message}", err=True)
        if error.hint:
            typer.echo(f"{_styled('hint:', typer.colors.CYAN)} {error.hint}", err=True)
    return exit_code_of(error)


def exit_code_of(error: CorralError) -> int:
    """1 refused, 2 wrong usage, 3 unreachable."""
    if error.code in _USAGE_CODES:
        return EXIT_USAGE
    if error.code in _UNREACHABLE_CODES or getattr(error, "is_unavailable", False):
        return EXIT_UNREACHABLE
    return EXIT_REFUSED


def confirm(question: str, *, yes: bool) -> None:
    """
    Asks before something that costs or ends; ends the command if the answer is no.

    Raises:
        UsageProblem: there is nobody to ask and `-y` was not given.
    """
    if yes:
        return
    require_somebody(question)
    # Not typer.confirm: it lets input() write a part of the question to stdout, where the data goes.
    typer.echo(f"{question} [y/N] ", err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        typer.echo("nothing was done", err=True)
        raise typer.Exit(EXIT_REFUSED)


def require_somebody(what: str, *, yes: bool = False) -> None:
    """
    Makes sure that a question can be answered, before anything is asked of the control plane.

    Raises:
        UsageProblem: stdin is no terminal, or `--json` was given, and `-y` was not.
    """
    if not yes and (is_json() or not sys.stdin.isatty()):
        raise UsageProblem(f"nobody is there to answer “{what}”; nothing was done", hint="add `-y` to go on unasked")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Aligned columns; those named in `right` are aligned to the right. As wide as needed, never cut."""
    widths = [max(len(header), *(len(row[i]) for row in rows), 0) for i, header in enumerate(headers)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, cells, widths, strict=True)
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([_styled(line(headers), None), *(line(row) for row in rows)])


def is_colourful(stream: Any) -> bool:
    """Whether `stream` is a terminal that may be coloured (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def usd(amount_uc: int) -> str:
    """An amount for people, exact: `1.25 USD`."""
    return f"{format_credits(amount_uc)} USD"


def memory(count: int) -> str:
    """Bytes for people: `15.5 GiB`."""
    return f"{count / 1024**3:.1f} GiB" if count < 100 * 1024**3 else f"{count / 1024**3:.0f} GiB"


def traffic(count: int) -> str:
    """Bytes on a network for people, decimal as networks are measured: `1.5 MB`, `5 GB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < _TRAFFIC_STEP:
            return f"{round(size, 1):g} {unit}"
        size /= _TRAFFIC_STEP
    return f"{round(size, 1):g} TB"


def traffic_cap(cap_bytes: int | None) -> str:
    """What may pass to and from the internet: `5 GB/h`, or `no cap`."""
    return "no cap" if cap_bytes is None else f"{traffic(cap_bytes)}/h"


def number(value: float) -> str:
    """A count of cores, without needless digits: `0.4`, `8`."""
    return f"{value:g}"


def instant(at: datetime | None) -> str:
    """A time for people, UTC, to the second; `-` if there is none."""
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def plural(count: int, noun: str) -> str:
    """`1 host`, `3 hosts`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _styled(text: str, colour: str | None) -> str:
    return typer.style(text, fg=colour, bold=True) if is_colourful(sys.stderr if colour else sys.stdout) else text
