"""What can be rented, and renting it."""

from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli.output import (
    JsonOption,
    UsageProblem,
    YesOption,
    confirm,
    instant,
    is_json,
    memory,
    number,
    plain,
    plural,
    put,
    put_json,
    require_somebody,
    say,
    table,
    traffic_cap,
    usd,
)
from corral.cli.progress import follow_start
from corral.cli.session import client
from corral.cli.wishes import WholeHours, checked_name, parse_gpu, parse_hours

if TYPE_CHECKING:
    from corral.wire.api import Cluster, Quote


def offers(json: JsonOption = False) -> None:
    """Show what can be rented at this moment."""
    with client() as corral:
        found = corral.offers()
    if is_json():
        put_json(found)
        return
    rows = [
        [
            offer.model,
            offer.kind,
            str(offer.devices),
            str(offer.hosts),
            str(offer.per_host_max),
            number(offer.cores),
            memory(offer.memory_bytes),
            memory(offer.gpu_memory_bytes) if offer.gpu_memory_bytes else "-",
            traffic_cap(offer.traffic_cap_bytes),
            offer.tier or "-",
            usd(offer.rate_uc_per_hour),
            offer.provider + (" (development)" if offer.development else ""),
        ]
        for offer in sorted(found.offers, key=lambda offer: (offer.kind != "gpu", offer.rate_uc_per_hour))
    ]
    counts = ["FREE", "HOSTS", "MOST/HOST", "CORES", "MEMORY", "GPU MEMORY", "INTERNET", "TIER", "PER HOUR"]
    put(table(["MODEL", "KIND", *counts, "PROVIDER"], rows, right=counts))
    say(f"as of {instant(found.as_of)}; memory, cores, internet and price are those of one device")


def up(
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="MODEL:N", help="GPUs in all, like H100:8.")] = None,
    cpu: Annotated[int, typer.Option("--cpu", min=0, max=4096, help="CPU slices on each node.")] = 0,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", min=1, max=4094, help="Nodes; each is on another host.  [as few as the GPUs need]"),
    ] = None,
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="Like 3h or 2d; whole hours.")] = "1h",
    name: Annotated[str | None, typer.Option("--name", help="Name of the cluster; else one is made.")] = None,
    single_provider: Annotated[
        bool, typer.Option("--single-provider", help="All machines of one provider, whom you then trust alone.")
    ] = False,
    pin_members: Annotated[
        bool, typer.Option("--pin-members", help="Sign who is a member with a key of your own; nobody is replaced.")
    ] = False,
    no_internet: Annotated[
        bool, typer.Option("--no-internet", help="Let the nodes reach each other and nothing else.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait until it is ready.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Rent a cluster: show the plan and its price, ask, book, and wait until it is ready."""
    if gpu is None and cpu == 0:
        raise UsageProblem(
            "nothing was wished for; nothing was booked",
            hint="`corral up --gpu H100:8`, or `corral up --cpu 1 --nodes 3`",
        )
    if name is not None:
        checked_name(name)
    model, count = parse_gpu(gpu) if gpu is not None else (None, 0)
    hours = parse_hours(duration)
    require_somebody("Book this?", yes=yes)
    with client() as corral:
        quote = corral.quote(
            name=name,
            nodes=nodes,
            cpu=cpu,
            gpu_model=model,
            gpu_count=count,
            hours=hours.hours,
            single_provider=single_provider,
            internet=not no_internet,
        )
        _show_plan(quote, hours, duration)
        confirm("Book this?", yes=yes)
        cluster = corral.book(quote.id, pin_members=pin_members)
        if not detach:
            agreed = {line.host for line in quote.lines} if pin_members else set[str]()
            cluster = follow_start(corral, cluster, signs_for=agreed)
    if is_json():
        put_json({"quote": plain(quote), "cluster": plain(cluster)})
        return
    _tell_next(cluster, is_ready=not detach)


def _show_plan(quote: "Quote", hours: WholeHours, duration: str) -> None:
    rows = [
        [
            line.host,
            line.provider,
            line.model,
            number(line.cores),
            memory(line.memory_bytes),
            traffic_cap(line.traffic_cap_bytes),
            usd(line.rate_uc_per_hour),
            "head" if line.is_head else "worker",
        ]
        for line in quote.lines
    ]
    headers = ["HOST", "PROVIDER", "DEVICE", "CORES", "MEMORY", "INTERNET", "PER HOUR", "ROLE"]
    rounded = f" ({duration} rounded up: hire is by the whole hour)" if hours.is_rounded else ""
    providers = sorted({line.provider for line in quote.lines})
    fee = f"{quote.fee_basis_points / 100:g} %"
    say(f"plan for cluster {quote.name}:")
    say()
    say(table(headers, rows, right=["CORES", "MEMORY", "INTERNET", "PER HOUR"]))
    say()
    say(f"rate       {usd(quote.rate_uc_per_hour)} an hour, {fee} of it the network's fee")
    say(f"total      at most {usd(quote.total_uc)} for {quote.hours} h{rounded}")
    say(f"held now   {usd(quote.hold_uc)}; what is not used is given back")
    say(f"minimum    {usd(quote.minimum_uc)}: the first hour, even if you leave early")
    say(f"providers  {', '.join(providers)}: each could read what runs on its machines")
    if not quote.internet:
        say("internet   closed: the nodes reach each other and nothing else")
    if shared := sorted({line.host for line in quote.lines if line.development}):
        say(f"shared     {', '.join(shared)}: development, shared machine, exclusivity not proven")
    say(f"expires    {instant(quote.expires_at)}")
    say()


def _tell_next(cluster: "Cluster", *, is_ready: bool) -> None:
    if is_ready:
        say(f"cluster {cluster.name} is ready, {plural(len(cluster.nodes), 'node')}, until {instant(cluster.ends_at)}")
        say(f"hint: `corral job submit {cluster.name} --working-dir . -- python main.py`")
    else:
        if cluster.is_pinned:
            say(f"its members wait for your signature: `corral members {cluster.name} --approve`, within 10 minutes")
        say(f"cluster {cluster.name} is starting; `corral show {cluster.name} --follow` waits for it")
    put(cluster.name)
