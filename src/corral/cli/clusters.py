"""Rented clusters: look at them, extend and end them, what they cost."""

from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli.output import (
    JsonOption,
    YesOption,
    confirm,
    instant,
    is_json,
    plain,
    plural,
    put,
    put_json,
    require_somebody,
    say,
    table,
    traffic,
    traffic_cap,
    usd,
)
from corral.cli.progress import follow_start, phase_rows
from corral.cli.session import client
from corral.cli.wishes import parse_hours

if TYPE_CHECKING:
    from corral.sdk.rosters import Members
    from corral.wire.api import Bill, Cluster

ClusterArgument = Annotated[str, typer.Argument(metavar="CLUSTER", help="Name or id of the cluster.")]
_KEY_CHARACTERS = 12
"""Of a key: enough to tell two apart at a glance; `--json` shows all of it."""


def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False, json: JsonOption = False
) -> None:
    """Show your clusters."""
    with client() as corral:
        clusters = corral.clusters(include_ended=every)
    if is_json():
        put_json(clusters)
        return
    rows = [
        [
            cluster.name,
            cluster.state,
            str(len(cluster.nodes)),
            usd(cluster.rate_uc_per_hour),
            usd(cluster.charged_uc),
            usd(cluster.held_uc),
            instant(cluster.ended_at or cluster.ends_at),
        ]
        for cluster in clusters
    ]
    headers = ["CLUSTER", "STATE", "NODES", "PER HOUR", "CHARGED", "HELD", "ENDS"]
    put(table(headers, rows, right=headers[2:6]))


def show(
    cluster: ClusterArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait until it is ready, phase by phase.")] = False,
    members: Annotated[
        bool, typer.Option("--members", help="Its mesh instead: verify the signed rosters, show who is in it.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show one cluster: its nodes, and how long each phase of its start took."""
    with client() as corral:
        found = None if members and not follow else corral.cluster(cluster)
        if follow and found is not None:
            found = follow_start(corral, found)
        chain = corral.members(cluster if found is None else found.id) if members else None
    if chain is not None:
        _put_members(chain)
    elif found is not None:
        _put_cluster(found)


def members(
    cluster: ClusterArgument,
    approve: Annotated[bool, typer.Option("--approve", help="Sign the change that waits.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Show the change of a pinned cluster's members that waits for your signature, and sign it."""
    with client() as corral:
        proposal = corral.proposal(cluster)
        changes = {"joining": [member.name for member in proposal.joining], "leaving": list(proposal.leaving)}
        if not is_json():
            for word, names in changes.items():
                put(f"{word}  {', '.join(map(_printable, names)) or '-'}")
        if not any(changes.values()):
            say("the same members; where they answer, or their relays, have changed")
        if not approve:
            say(f"hint: `corral members {cluster} --approve` signs it")
        else:
            confirm(f"Sign roster {proposal.serial}?", yes=yes)
            corral.sign(proposal)
            say(f"roster {proposal.serial} is signed; its nodes are told now")
    if is_json():
        put_json({"serial": proposal.serial, **changes, "signed": approve})


def dashboard(
    cluster: ClusterArgument,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: JsonOption = False,
) -> None:
    """Show a way into a cluster's dashboard: an address that works once, for a minute."""
    with client() as corral:
        ticket = corral.create_ticket(cluster)
    if is_json():
        put_json(ticket)
    else:
        say(f"works once, until {instant(ticket.expires_at)}:")
        put(ticket.url)
    if open_browser:
        typer.launch(ticket.url)


def extend(
    cluster: ClusterArgument,
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="Like 3h or 2d; whole hours.")],
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Hire a running cluster for longer, at the booked rates."""
    from corral.sdk.clusters import check_living

    hours = parse_hours(duration)
    require_somebody("Extend it?", yes=yes)
    with client() as corral:
        found = corral.cluster(cluster)
        check_living(found)
        cost_uc = found.rate_uc_per_hour * hours.hours
        rounded = f" ({duration} rounded up: hire is by the whole hour)" if hours.is_rounded else ""
        now = (
            f"now until {instant(found.ends_at)}" if found.ends_at else f"now for {found.hours} h from when it is ready"
        )
        say(f"plan: {found.name} for {hours.hours} h more{rounded}, {now}")
        say(f"rate   {usd(found.rate_uc_per_hour)} an hour, as booked")
        say(f"total  at most {usd(cost_uc)} more; what is not used is given back")
        confirm("Extend it?", yes=yes)
        extended = corral.extend(found.id, hours.hours, total_uc_max=cost_uc)
    if is_json():
        put_json(extended)
        return
    say(f"{extended.name} is hired for {extended.hours} h in all, until {instant(extended.ends_at)}")


def down(cluster: ClusterArgument, yes: YesOption = False, json: JsonOption = False) -> None:
    """End a cluster, and show its final bill."""
    require_somebody(f"End {cluster}?", yes=yes)
    with client() as corral:
        found = corral.cluster(cluster)
        say(f"{found.name} is {found.state}; {usd(found.charged_uc)} charged so far, {usd(found.held_uc)} held")
        confirm(f"End {found.name}? Its containers, keys and data are deleted.", yes=yes)
        bill = corral.end(found.id)
    if is_json():
        put_json(bill)
        return
    _put_bill(bill)


def cost(
    cluster: Annotated[str | None, typer.Argument(metavar="[CLUSTER]", help="One cluster; else all.")] = None,
    json: JsonOption = False,
) -> None:
    """Show what a cluster cost, line by line, or what all of yours did."""
    with client() as corral:
        if cluster is not None:
            bill = corral.bill(cluster)
            if is_json():
                put_json(bill)
            else:
                _put_bill(bill)
            return
        clusters, who = corral.clusters(include_ended=True), corral.whoami()
    total_uc = sum(each.charged_uc for each in clusters)
    if is_json():
        put_json(
            {"clusters": plain(clusters), "charged_uc": total_uc, "balance_uc": who.balance_uc, "held_uc": who.held_uc}
        )
        return
    rows = [
        [each.name, each.state, f"{each.hours} h", usd(each.rate_uc_per_hour), usd(each.charged_uc), usd(each.held_uc)]
        for each in clusters
    ]
    headers = ["CLUSTER", "STATE", "HIRED", "PER HOUR", "CHARGED", "HELD"]
    put(table(headers, rows, right=headers[2:]))
    free = f"{usd(who.balance_uc)} free, {usd(who.held_uc)} held"
    put(f"\ncharged {usd(total_uc)} in all; {free}{_runway(clusters, who.balance_uc)}")


def earnings(json: JsonOption = False) -> None:
    """Show what your hosts earned."""
    with client() as corral:
        earned = corral.earnings()
    if is_json():
        put_json(earned)
        return
    rows = [
        [
            line.host,
            line.device,
            line.booking_id,
            f"{line.minutes} min",
            usd(line.rate_uc_per_hour),
            usd(line.gross_uc),
            usd(line.fee_uc),
            usd(line.net_uc),
            "settled" if line.settled else "running",
        ]
        for line in earned.lines
    ]
    headers = ["HOST", "DEVICE", "BOOKING", "TIME", "PER HOUR", "PAID", "FEE", "EARNED", "STATE"]
    put(table(headers, rows, right=headers[3:8]))
    put(f"\nearned {usd(earned.total_net_uc)} in all")


def _put_cluster(found: "Cluster") -> None:
    if is_json():
        put_json(found)
        return
    rows = [
        ["name", found.name],
        ["id", found.id],
        ["state", found.state + (f" ({found.reason})" if found.reason else "")],
        ["hired", f"{found.hours} h at {usd(found.rate_uc_per_hour)} an hour"],
        ["charged", f"{usd(found.charged_uc)}, held {usd(found.held_uc)}"],
        ["ready", instant(found.ready_at)],
        ["ended" if found.ended_at else "ends", instant(found.ended_at or found.ends_at)],
        ["providers", f"{', '.join(found.providers)}: as trustworthy as the least of them"],
        ["internet", "open" if found.internet else "closed: the nodes reach each other and nothing else"],
        ["jobs", found.jobs_url or "-"],
        *([["members", _pinned(found)]] if found.is_pinned else []),
    ]
    put(table(["", ""], rows).lstrip("\n"))
    nodes = [
        [
            node.name,
            node.role,
            node.host,
            node.provider,
            node.address,
            node.state + (f" ({node.reason})" if node.reason else ""),
        ]
        for node in found.nodes
    ]
    put("\n" + table(["NODE", "ROLE", "HOST", "PROVIDER", "ADDRESS", "STATE"], nodes))
    flows = [
        [
            node.name,
            f"{traffic(node.received_bytes)} in, {traffic(node.sent_bytes)} out",
            f"{traffic(node.internet_received_bytes)} in, {traffic(node.internet_sent_bytes)} out",
            traffic_cap(node.traffic_cap_bytes) + (", slowed" if node.is_slowed else "")
            if found.internet
            else "closed",
            ", ".join(node.relayed) or "-",
        ]
        for node in found.nodes
    ]
    put("\n" + table(["TRAFFIC OF", "MESH", "INTERNET", "CAP", "BY RELAY ALONE"], flows))
    put("\n" + table(["PHASE", "TOOK", "DETAIL"], phase_rows(found), right=["TOOK"]))


def _pinned(found: "Cluster") -> str:
    waits = f"; a change waits: `corral members {found.name} --approve`" if found.awaits_signature else ""
    return f"signed by you alone{waits}"


def _put_members(chain: "Members") -> None:
    if is_json():
        put_json(chain)
        return
    rows = [
        [
            _printable(member.name),
            member.kind,
            _printable(member.address),
            _printable(", ".join(member.endpoints)) or "-",
            _printable(", ".join(f"{box.address}:{box.port}" for box in member.mailboxes)) or "-",
            str(member.since_serial),
        ]
        for member in chain.members
    ]
    put(table(["MEMBER", "KIND", "ADDRESS", "ENDPOINTS", "RELAYS", "SINCE"], rows, right=["SINCE"]))
    if chain.former:
        former = [
            [_printable(one.name), one.kind, _printable(one.address), str(one.first_serial), str(one.last_serial)]
            for one in chain.former
        ]
        put("\nno longer, or no longer with the same keys:")
        put(table(["MEMBER", "KIND", "ADDRESS", "SINCE", "UNTIL"], former, right=["SINCE", "UNTIL"]))
    put(f"\n{_chain_line(chain)}")


def _chain_line(chain: "Members") -> str:
    known = "first seen now" if chain.is_first_look else f"known since {instant(chain.known_since)}"
    key = f"{_printable(chain.roster_key[:_KEY_CHARACTERS])}…"
    if chain.serial == 0:
        return f"no roster yet; {key} will sign; {known}"
    new = "" if chain.is_first_look else f", {chain.rosters_new} of them new"
    return f"roster {chain.serial}, signed by {key}; {plural(chain.rosters_verified, 'roster')} verified{new}; {known}"


def _printable(text: str) -> str:
    """Without what a terminal would obey: a signed name must not be able to hide a line."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def _put_bill(bill: "Bill") -> None:
    rows = [
        [
            line.host,
            line.provider,
            line.device,
            usd(line.rate_uc_per_hour),
            f"{line.minutes} min",
            f"{line.minutes_not_delivered} min",
            usd(line.amount_uc),
            line.state,
        ]
        for line in bill.lines
    ]
    headers = ["HOST", "PROVIDER", "DEVICE", "PER HOUR", "CHARGED", "NOT DELIVERED", "AMOUNT", "STATE"]
    put(f"{'final bill' if bill.final else 'bill so far'} of {bill.cluster}\n")
    put(table(headers, rows, right=headers[3:7]))
    providers_uc = sum(line.provider_uc for line in bill.lines)
    put(f"\npaid       {usd(bill.amount_uc)}")
    put(f"providers  {usd(providers_uc)}")
    put(f"network    {usd(bill.fee_uc)}")
    put(f"returned   {usd(bill.returned_uc)}" if bill.final else f"held       {usd(bill.held_uc)}")
    put(f"sum        {usd(bill.ledger_sum_uc)} over all accounts")


def _runway(clusters: "list[Cluster]", balance_uc: int) -> str:
    """How long the free credit lasts beyond what is held, at the rate of all that runs."""
    rate = sum(each.rate_uc_per_hour for each in clusters if each.state in {"booked", "starting", "ready"})
    return f", enough for {plural(balance_uc // rate, 'hour')} more of all that runs" if rate else ""
