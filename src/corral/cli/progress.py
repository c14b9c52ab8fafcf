"""A cluster's start, phase by phase with its seconds: a live table on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import typer

from corral.cli.output import EXIT_INTERRUPTED, is_colourful, is_json, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from corral.sdk.client import Client
    from corral.wire.api import Cluster, Phase


def follow_start(corral: "Client", cluster: "Cluster", *, signs_for: "Collection[str]" = ()) -> "Cluster":
    """
    Shows the phases until the cluster is ready, and returns it as it is then.

    An interruption ends the showing alone: it says how to go on, and how to cancel.

    Args:
        corral: asks.
        cluster: the one that starts.
        signs_for: hosts; proposed members are signed as long as all nodes are on these. Empty: none are signed here.

    Raises:
        StartFailed: it will not become ready.
        ProposalRefused: a node is on another host, or what is proposed is not what this client signs.
    """
    changes = _until_ready(corral, cluster, signs_for)
    try:
        if not is_json() and is_colourful(sys.stderr):
            return _follow_live(changes, cluster)
        return _follow_lines(changes, cluster)
    except KeyboardInterrupt:
        say()
        say(f"cluster {cluster.name} goes on starting, and is charged for from when it is ready")
        say(f"hint: `corral show {cluster.name} --follow` to go on, `corral down {cluster.name}` to cancel")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def phase_rows(cluster: "Cluster") -> list[list[str]]:
    """Name, seconds and detail of each phase; the first that is not over is the one that runs."""
    return [[phase.name, _seconds(phase), phase.detail] for phase in cluster.phases]


def _until_ready(corral: "Client", cluster: "Cluster", signs_for: "Collection[str]") -> "Iterator[Cluster]":
    from corral.sdk.clusters import is_started

    yield cluster
    if is_started(cluster):
        return
    for newer in corral.watch(cluster.id, newer_than=cluster.version):
        yield newer
        if newer.awaits_signature and signs_for and newer.state in {"booked", "starting"}:
            _sign(corral, newer, signs_for)
        if is_started(newer):
            return


def _sign(corral: "Client", cluster: "Cluster", hosts: "Collection[str]") -> None:
    """Signs what is proposed, unless a node is on a host that was not agreed to."""
    from corral.sdk.errors import ApiError, ProposalRefused

    if others := sorted({node.host for node in cluster.nodes if node.state not in _GONE} - set(hosts)):
        raise ProposalRefused(
            f"cluster {cluster.name} is to be on {', '.join(others)}, which the plan did not name; nothing was signed",
            hint=f"`corral members {cluster.name} --approve` to agree, `corral down {cluster.name}` to cancel",
            cluster=cluster.name,
        )
    try:
        corral.sign(corral.proposal(cluster.id))
    except ApiError as error:
        if error.code not in {"nothing_proposed", "proposal_outdated"}:
            raise  # What has changed meanwhile shows with the next look.


_GONE = frozenset({"replaced", "lost", "ended"})
"""States of nodes that are no longer wanted."""


def _follow_lines(changes: "Iterator[Cluster]", first: "Cluster") -> "Cluster":
    shown: set[str] = set()
    last = first
    for last in changes:
        for phase in last.phases:
            if phase.at is not None and phase.name not in shown:
                shown.add(phase.name)
                say(f"{phase.name:<11} {_seconds(phase):>9}  {phase.detail}".rstrip())
    return last


def _follow_live(changes: "Iterator[Cluster]", first: "Cluster") -> "Cluster":
    from rich.console import Console
    from rich.live import Live

    last = first
    with Live(_picture(first), console=Console(stderr=True), refresh_per_second=8) as live:
        for last in changes:
            live.update(_picture(last))
    return last


def _picture(cluster: "Cluster") -> "RenderableType":
    from rich.spinner import Spinner
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    is_next = True
    for phase in cluster.phases:
        if phase.at is not None:
            grid.add_row("✓", phase.name, _seconds(phase), phase.detail)
        elif is_next and cluster.state not in {"failed", "ended"}:
            grid.add_row(Spinner("dots"), phase.name, "", phase.detail)
            is_next = False
        else:
            grid.add_row(" ", phase.name, "", "")
    return grid


def _seconds(phase: "Phase") -> str:
    return "" if phase.seconds is None else f"{phase.seconds:.1f} s"
