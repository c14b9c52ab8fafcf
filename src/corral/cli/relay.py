"""`corral relay`: the blind forwarder of an operator. The one module that uses its code, when called."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from corral.cli.output import UsageProblem, say

TOKEN_BYTES_MAX = 1024


def relay(
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Folder of this relay's key and settings.")] = Path(
        "~/.local/share/corral/relay"
    ),
    url: Annotated[str, typer.Option("--url", help="Enrol first: the control plane; the token comes on stdin.")] = "",
    ca_sha256: Annotated[str, typer.Option("--ca-sha256", help="SHA-256 of its CA certificate, hex.")] = "",
    name: Annotated[str, typer.Option("--name", help="Wished name. [relay-1]")] = "",
    bind: Annotated[str, typer.Option("--bind", help="IPv4 address of the mailboxes.")] = "0.0.0.0",  # noqa: S104
    address: Annotated[
        str, typer.Option("--address", help="IPv4 address at which hosts reach it. [that of its exchanges]")
    ] = "",
    port_first: Annotated[int, typer.Option("--port-first", help="First UDP port of the mailboxes.")] = 41000,
    port_count: Annotated[int, typer.Option("--port-count", help="How many there are: one a cluster's member.")] = 4096,
    gauge_port: Annotated[
        int, typer.Option("--gauge-port", help="TCP and UDP port at which hosts measure their connection.")
    ] = 40999,
    metrics: Annotated[str, typer.Option("--metrics", help="Serve Prometheus at this address and port.")] = "",
) -> None:
    """Run a relay until it is told to stop (SIGTERM, Ctrl-C); with --url, enrol it first."""
    try:
        from corral.relay import service
    except ModuleNotFoundError as error:
        raise UsageProblem(
            f"running a relay needs {error.name}, which is not installed", hint="pip install 'corral[agent]'"
        ) from error
    from corral.relay.errors import RelayNotEnrolled

    folder = data_dir.expanduser()
    if url:
        token = sys.stdin.read(TOKEN_BYTES_MAX + 1).strip()
        settings = asyncio.run(service.enrol(folder, url=url, ca_sha256=ca_sha256, name=name, token=token))
        say(f"Relay {settings.name} ({settings.host_id}) is enrolled; its key is in {folder}.")
    else:
        found = service.load(folder)
        if found is None:
            raise RelayNotEnrolled(
                f"there is no relay in {folder}; nothing was started", hint="corral host join --role relay"
            )
        settings = found
    options = service.RelayOptions(
        data_dir=folder,
        bind=bind,
        address=address,
        port_first=port_first,
        port_count=port_count,
        gauge_port=gauge_port,
        metrics=metrics,
    )
    asyncio.run(_until_told_to_stop(service.run(settings, options)))


async def _until_told_to_stop(work: "Coroutine[Any, Any, None]") -> None:
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
