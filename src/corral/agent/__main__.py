"""`python -m corral.agent`: installs, runs, checks or removes the agent of this machine."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import structlog

from corral.agent.install import TOKEN_BYTES_MAX, Wishes, check, install, remove
from corral.agent.settings import DEVELOPMENT_CORES, DEVELOPMENT_MEMORY_GIB
from corral.core.errors import CorralError


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 refused, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    _set_up_logging()
    status = 1
    try:
        status = asyncio.run(_until_told_to_stop(_command(options)))
    except* CorralError as group:
        print_reason(group)
    return status


def print_reason(error: BaseException) -> None:
    """Prints the first of the reasons why we end: the other loops were cancelled for it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    print(f"error: {error}", file=sys.stderr)
    if isinstance(error, CorralError) and error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def _command(options: argparse.Namespace) -> "Coroutine[Any, Any, int]":
    match options.command:
        case "install":
            wishes = Wishes(
                url=options.url,
                ca_sha256=options.ca_sha256,
                name=options.name,
                role=options.role,
                development=options.development,
                slice=options.slice,
                cores=options.cores,
                memory_gib=options.memory,
                advertise=options.advertise,
                gateway_bind=options.gateway_bind,
                gateway_address=options.gateway_address,
            )
            # One byte more than a token may have, so that a longer one is seen to be too long.
            return install(wishes, sys.stdin.read(TOKEN_BYTES_MAX + 1).strip())
        case "check":
            return check(development=options.development)
        case "remove":
            return remove(options.slice, options.host)
        case _:
            return _run()


async def _run() -> int:
    # Imported here: the installer needs none of it.
    from corral.agent.loop import run_agent

    await run_agent()
    return 0


async def _until_told_to_stop(command: "Coroutine[Any, Any, int]") -> int:
    """Runs a command; SIGTERM and SIGINT end it in order, and nodes go on as they are."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(command)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="corral-agent", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    join = commands.add_parser("install", help="enrol this machine (token on stdin) and start its agent")
    join.add_argument("--url", required=True, help="the control plane, for example https://host.docker.internal:8470")
    join.add_argument("--ca-sha256", default="", help="SHA-256 of its CA certificate, hex")
    join.add_argument("--name", default="", help="wished name of the host")
    join.add_argument("--role", choices=("host", "gateway"), default="host")
    join.add_argument("--development", action="store_true", help="relax the requirements; several agents may share")
    join.add_argument("--slice", default="", help="development: name of this share of the machine")
    join.add_argument("--cores", type=float, default=DEVELOPMENT_CORES, help="development: cores of this share")
    join.add_argument("--memory", type=float, default=DEVELOPMENT_MEMORY_GIB, help="development: GiB of this share")
    join.add_argument("--advertise", default="", help="address at which other hosts reach this one")
    join.add_argument("--gateway-bind", default="127.0.0.1:8471", help="gateway: address and port to publish")
    join.add_argument("--gateway-address", default="", help="gateway: origin at which people reach it")
    commands.add_parser("run", help="run an installed agent")
    table = commands.add_parser("check", help="print the requirement table")
    table.add_argument("--development", action="store_true")
    gone = commands.add_parser("remove", help="remove the agent and all that it made on this machine")
    which = gone.add_mutually_exclusive_group()
    which.add_argument("--slice", default="", help="development: name of the share of the machine")
    which.add_argument("--host", default="", help="id of the host, as `corral host list` shows it")
    return parser


def _set_up_logging() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
