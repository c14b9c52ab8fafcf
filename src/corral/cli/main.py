"""
The program `corral`.

Only Typer and the names of the commands are loaded to show help; the SDK, and the server's code for `corral serve`, are
loaded by the commands that use them.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import corral
from corral.cli import account, clusters, connect, credit, hosts, jobs, keys, market, relay, serve
from corral.cli.output import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_USAGE,
    UsageProblem,
    report_error,
    set_json,
)
from corral.core.errors import CorralError

# Rich's help pages cost a fifth of a second that every completion would pay too.
app = typer.Typer(
    name="corral",
    help="Idle GPUs and CPUs of many owners, lent by the hour as ready Ray clusters.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command()(account.signup)
app.command()(account.login)
app.command()(account.whoami)
app.add_typer(keys.app, name="keys")
app.command()(market.offers)
app.command()(market.up)
app.command()(clusters.ps)
app.command()(clusters.show)
app.command()(clusters.members)
app.add_typer(jobs.app, name="job")
app.command()(connect.connect)
app.command()(clusters.dashboard)
app.command()(clusters.extend)
app.command()(clusters.down)
app.command()(clusters.cost)
app.add_typer(hosts.app, name="host")
app.add_typer(hosts.fleet_app, name="fleet")
app.command()(clusters.earnings)
app.add_typer(credit.app, name="credit")
app.add_typer(serve.serve_app, name="serve")
app.command()(relay.relay)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    pass


def main() -> None:
    """The entry point of the installed program."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    raise SystemExit(code)


def run(arguments: Sequence[str]) -> int:
    """
    Runs one command line and returns its exit code.

    0 done, 1 refused, 2 wrong usage, 3 unreachable; 130 interrupted.
    """
    words = list(arguments)
    if words == ["--version"]:
        typer.echo(f"corral {corral.__version__}")
        return EXIT_DONE
    # A command line that cannot be read is reported in the form that it asks for, too.
    set_json("--json" in (words[: words.index("--")] if "--" in words else words))
    try:
        code: Any = app(args=words, prog_name="corral", standalone_mode=False)
    except CorralError as error:
        return report_error(error)
    except typer.TyperException as error:
        return _report_usage(error)
    except typer.Abort:
        typer.echo("nothing was done", err=True)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_REFUSED
    return code if isinstance(code, int) else EXIT_DONE


def _report_usage(error: typer.TyperException) -> int:
    message = error.format_message()
    if message.startswith("Usage:"):  # a group without a command: the message is its help page
        typer.echo(message, err=True)
        return EXIT_USAGE
    message = (message[0].lower() + message[1:]).rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "corral"
    return report_error(UsageProblem(message, hint=f"`{path} --help`"))


def _forget_stdout() -> None:
    """The reader has gone: what is left must not fail again when Python flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
