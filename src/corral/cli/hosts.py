"""Hosts of a provider: join, look at, pause, leave; and tokens for a fleet."""

import shlex
import shutil
import subprocess
import time
from enum import StrEnum
from pathlib import Path
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
    plural,
    put,
    put_json,
    say,
    table,
    traffic_cap,
)
from corral.cli.session import client
from corral.cli.wishes import (
    checked_address,
    checked_bind,
    checked_name,
    checked_number,
    parse_degrees,
    parse_life_s,
    parse_location,
    parse_traffic,
)
from corral.core.errors import CorralError
from corral.core.ids import is_id

if TYPE_CHECKING:
    from datetime import datetime

    from corral.sdk import Client
    from corral.wire.api import Host, JoinToken

app = typer.Typer(help="Machines that you lend.", no_args_is_help=True)
fleet_app = typer.Typer(help="Many machines at once.", no_args_is_help=True)


HEARD_OF_S_MAX = 60.0
HEARD_OF_POLL_S = 0.3
DOCKER_OUTPUT_CHARACTERS_MAX = 4000


class AgentImageMissing(CorralError):
    """A join line cannot be made: nobody said which image the agent is in."""

    code = "agent_image_missing"


class JoinFailed(CorralError):
    """This machine was not joined: the agent's installation ended with an error, or the agent is not there."""

    code = "join_failed"


HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="Name or id of the host.")]


class Role(StrEnum):
    """What a machine does."""

    host = "host"
    gateway = "gateway"
    relay = "relay"


@app.command("join")
def join(
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the host; else like host-1 or host-SLICE.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Join this machine, now.")] = False,
    role: Annotated[
        Role, typer.Option("--role", help="`gateway`: serve dashboards; `relay`: forward between hosts (operators).")
    ] = Role.host,
    advertise: Annotated[
        str | None, typer.Option("--advertise", metavar="IP", help="Address at which other hosts reach this one.")
    ] = None,
    development: Annotated[
        bool, typer.Option("--development", help="Relax the requirements, and allow several slices on one machine.")
    ] = False,
    slice_name: Annotated[
        str | None, typer.Option("--slice", metavar="NAME", help="In development: this agent's slice of the machine.")
    ] = None,
    cores: Annotated[float | None, typer.Option("--cores", min=0.01, help="In development: cores to lend.")] = None,
    memory_gib: Annotated[
        float | None, typer.Option("--memory", metavar="GIB", min=0.1, help="In development: memory to lend.")
    ] = None,
    gateway_bind: Annotated[
        str | None, typer.Option("--gateway-bind", metavar="IP:PORT", help="Where a gateway listens.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the line that joins a machine; paste it there. The token in it works once, for 15 minutes."""
    if not development and (slice_name is not None or cores is not None or memory_gib is not None):
        raise UsageProblem(
            "--slice, --cores and --memory are for --development; nothing was asked for",
            hint="without --development the whole machine is lent",
        )
    if gateway_bind is not None and role is not Role.gateway:
        raise UsageProblem("--gateway-bind is for --role gateway; nothing was asked for")
    if role is Role.relay:
        _show_relay_line(None if name is None else checked_name(name), run=run)
        return
    options: list[str] = []
    for option, value in (
        ("--name", None if name is None else checked_name(name)),
        ("--role", role.value if role is Role.gateway else None),
        ("--advertise", None if advertise is None else checked_address(advertise, "--advertise")),
        ("--slice", None if slice_name is None else checked_name(slice_name)),
        ("--cores", None if cores is None else number(checked_number(cores, "--cores"))),
        ("--memory", None if memory_gib is None else number(checked_number(memory_gib, "--memory"))),
        ("--gateway-bind", None if gateway_bind is None else checked_bind(gateway_bind, "--gateway-bind")),
    ):
        if value is not None:
            options += [option, value]
    if development:
        options.append("--development")
    if run and shutil.which("docker") is None:
        raise UsageProblem(
            "there is no `docker` on this machine; the host was not joined",
            hint="install Docker Engine, or paste the line of `corral host join` on another machine",
        )
    with client() as corral:
        token = corral.create_join_token(role=role.value)
        if run:
            seen_before = {host.id: host.last_seen_at for host in corral.hosts()}
            _run_here(install_command(token, options, has_machine_id=Path("/etc/machine-id").is_file()), token)
            host_id = _agents_host_id(slice_name)
            _wait_heard_of(corral, host_id, seen_before.get(host_id))
            return
    command = install_command(token, options)
    line = f"printf %s {shlex.quote(token.token)} | {shlex.join(command)}"
    if is_json():
        put_json({"line": line, "expires_at": token.expires_at.isoformat(), "role": token.role})
        return
    say(f"paste this on the machine before {instant(token.expires_at)}:")
    put(line)


def _show_relay_line(name: str | None, *, run: bool) -> None:
    """A relay is no container on an engine but a process of its own: there is nothing to install."""
    if run:
        raise UsageProblem(
            "a relay is a process that you run; nothing was asked for", hint="corral host join --role relay"
        )
    with client() as corral:
        token, url = corral.create_join_token(role="relay"), corral.config.url or ""
    command = ["corral", "relay", "--url", url]
    command += ["--ca-sha256", token.ca_sha256] if token.ca_sha256 else []
    command += ["--name", name] if name is not None else []
    line = f"printf %s {shlex.quote(token.token)} | {shlex.join(command)}"
    if is_json():
        put_json({"line": line, "expires_at": token.expires_at.isoformat(), "role": token.role})
        return
    say(f"type this on the relay's machine before {instant(token.expires_at)}; later `corral relay` is enough:")
    put(line)


def install_command(token: "JoinToken", options: list[str], *, has_machine_id: bool = True) -> list[str]:
    """
    The command that installs the agent; it reads the token from stdin, so that no process list shows it.

    Raises:
        AgentImageMissing: the control plane does not know its agent's image.
    """
    if not token.agent_image:
        raise AgentImageMissing(
            "the control plane names no image of the agent; no host was joined",
            hint="its operator names one with `corral serve --images FILE`",
        )
    # A bare digest is an image of this machine that no registry knows.
    pull = "never" if token.agent_image.startswith("sha256:") else "missing"
    command = ["docker", "run", "-i", "--rm", "--pull", pull, "-v", "/var/run/docker.sock:/var/run/docker.sock"]
    if has_machine_id:
        command += ["-v", "/etc/machine-id:/etc/machine-id:ro"]
    command += ["--add-host", "host.docker.internal:host-gateway", token.agent_image, "install", "--url", token.url]
    if token.ca_sha256:
        command += ["--ca-sha256", token.ca_sha256]
    return command + options


@app.command("list")
def list_hosts(json: JsonOption = False) -> None:
    """Show your hosts."""
    with client() as corral:
        hosts = corral.hosts()
    if is_json():
        put_json(hosts)
        return
    rows = [
        [
            host.name,
            host.status,
            host.role,
            _hardware(host),
            _devices(host),
            _tier(host),
            instant(host.last_seen_at),
            host.reason,
        ]
        for host in hosts
    ]
    put(table(["HOST", "STATUS", "ROLE", "HARDWARE", "DEVICES", "TIER", "LAST SEEN", "REASON"], rows))


@app.command("show")
def show(host: HostArgument, json: JsonOption = False) -> None:
    """Show one host: its devices, and each requirement with value, need and remedy."""
    with client() as corral:
        found = corral.host(host)
    if is_json():
        put_json(found)
        return
    skew = "-" if found.clock_skew_s is None else f"{found.clock_skew_s:+.1f} s"
    rows = [
        ["name", found.name],
        ["id", found.id],
        ["status", found.status + (f" ({found.reason})" if found.reason else "")],
        ["intent", found.intent],
        ["hardware", _hardware(found)],
        ["free disk", memory(found.disk_free_bytes)],
        ["internet", f"{traffic_cap(found.traffic_cap_bytes)} per device"],
        ["agent", found.agent_version],
        ["last seen", instant(found.last_seen_at)],
        ["clock", f"{skew} from the control plane's"],
    ]
    rows += _connection_rows(found)
    if found.development:
        rows.append(["development", "shared machine, exclusivity not proven"])
    put(table(["", ""], rows).lstrip("\n"))
    devices = [
        [device.key, device.kind, device.model, number(device.cores), memory(device.memory_bytes), device.status]
        for device in found.devices
    ]
    put("\n" + table(["DEVICE", "KIND", "MODEL", "CORES", "MEMORY", "STATUS"], devices, right=["CORES", "MEMORY"]))
    checks = [
        [check.rule, check.outcome.replace("_", " "), check.value, check.need, check.remedy] for check in found.checks
    ]
    put("\n" + table(["RULE", "OUTCOME", "VALUE", "NEED", "REMEDY"], checks))


@app.command("set")
def set_host(
    host: HostArgument,
    cap: Annotated[
        str | None,
        typer.Option("--traffic-cap", metavar="SIZE", help="Internet traffic per device and hour, like 5GB; or none."),
    ] = None,
    location: Annotated[
        str | None,
        typer.Option("--location", metavar="COUNTRY/REGION/CITY", help="Where it is, like DE/Hesse/Frankfurt."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="LAT,LON", help="The same in degrees, like 50.11,8.68.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """
    Change what you say of a host: where it is, and a cap on the internet traffic of each device.

    A location that a relay's round trip contradicts is refused: light needs a millisecond for 100 km. A cap holds for
    bookings from now on.
    """
    if (location is None) != (at is None):
        raise UsageProblem("--location and --at go together; nothing was changed", hint="--location DE --at 50.11,8.68")
    place = (parse_location(location), parse_degrees(at)) if location is not None and at is not None else None
    if cap is None and place is None:
        raise UsageProblem("nothing is to be set; nothing was changed", hint="--traffic-cap, or --location with --at")
    cap_bytes = parse_traffic(cap) if cap is not None else None
    said: list[str] = []
    with client() as corral:
        found = corral.host(host)
        if place is not None:
            (country, region, city), (latitude, longitude) = place
            found = corral.claim_location(
                found.id, country=country, region=region, city=city, latitude=latitude, longitude=longitude
            )
            said.append(f"{found.name} is in {_place(found)}")
        if cap is not None:
            found = corral.set_traffic_cap(found.id, cap_bytes)
            shown = traffic_cap(found.traffic_cap_bytes)
            said.append(f"internet traffic of each device of {found.name}: {shown}; what is booked keeps its cap")
    _tell(found, "; ".join(said))


@app.command("pause")
def pause(host: HostArgument, json: JsonOption = False) -> None:
    """Take no new clusters on a host; what runs there goes on."""
    with client() as corral:
        found = corral.set_intent(host, "paused")
    _tell(found, f"{found.name} takes no new clusters; `corral host resume {found.name}` ends the pause")


@app.command("resume")
def resume(host: HostArgument, json: JsonOption = False) -> None:
    """Lend a paused host again."""
    with client() as corral:
        found = corral.set_intent(host, "active")
    _tell(found, f"{found.name} is lent again")


@app.command("leave")
def leave(host: HostArgument, yes: YesOption = False, json: JsonOption = False) -> None:
    """Take a host out of the network, once what runs on it has ended."""
    confirm(f"Take {host} out of the network for good?", yes=yes)
    with client() as corral:
        found = corral.set_intent(host, "left")
    over = (
        "has left" if found.status == "left" else "takes no new clusters, and leaves when the running ones have ended"
    )
    _tell(found, f"{found.name} {over}")
    if not is_json():
        say("its agent, volumes and images stay on the machine; once it has left, this takes all but the images away:")
        say(f"  {removal_line(found.id)}")


def removal_line(host_id: str) -> str:
    """The line that removes a host's agent with all that it made, to be typed on its machine."""
    agent = f"docker ps -aq --filter label=corral.part=agent --filter label=corral.host={host_id}"
    return (
        "docker run --rm --pull never -v /var/run/docker.sock:/var/run/docker.sock "
        f"$(docker inspect -f '{{{{.Image}}}}' $({agent})) remove --host {host_id}"
    )


@fleet_app.command("token")
def fleet_token(
    uses: Annotated[int, typer.Option("--uses", min=1, max=10_000, help="How many hosts may join with it.")] = 100,
    expires: Annotated[str, typer.Option("--expires", help="Life of the token, like 12h or 7d (at most 30d).")] = "1d",
    json: JsonOption = False,
) -> None:
    """Make a token with which many hosts may join, and show it this once."""
    with client() as corral:
        token = corral.create_join_token(uses_max=uses, expires_in_s=parse_life_s(expires, days_max=30))
    if is_json():
        put_json(token)
        return
    say(f"for {plural(token.uses_max, 'host')}, until {instant(token.expires_at)}; give it to this command on stdin:")
    say(f"  {shlex.join(install_command(token, []))}")
    put(token.token)


def _run_here(command: list[str], token: "JoinToken") -> None:
    """Runs docker; what it says is for people, so that with `--json` it is kept for the error."""
    try:
        done = subprocess.run(command, input=token.token.encode(), check=False, capture_output=is_json())
    except OSError as error:
        raise JoinFailed(f"docker cannot be run: {error.strerror}; the host was not joined") from error
    if done.returncode == 0:
        return
    if not is_json():
        raise JoinFailed(f"the agent was not installed: docker ended with {done.returncode}; the reason is above")
    output, errors = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    raise JoinFailed(
        f"the agent was not installed: docker ended with {done.returncode}: {_said(errors, 'error:', 'docker:')}",
        hint=_said(errors, "hint:") if "hint:" in errors else None,
        exit_status=done.returncode,
        stdout=output[-DOCKER_OUTPUT_CHARACTERS_MAX:],
        stderr=errors[-DOCKER_OUTPUT_CHARACTERS_MAX:],
    )


def _said(text: str, *marks: str) -> str:
    """The last line that begins with the first of `marks` that any begins with, without it; else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    for mark in marks:
        if told := [line.removeprefix(mark).strip() for line in lines if line.startswith(mark)]:
            return told[-1]
    return lines[-1]


def _agents_host_id(slice_name: str | None) -> str:
    """
    As which host the agent that was just installed runs.

    Raises:
        JoinFailed: its container is not there.
    """
    container = "corral-agent" if slice_name is None else f"corral-agent-{slice_name}"
    words = ["docker", "inspect", "--type", "container", "-f", '{{index .Config.Labels "corral.host"}}', container]
    done = subprocess.run(words, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    host_id = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0 or not is_id(host_id):
        raise JoinFailed(
            f"the agent was installed, but its container {container} is not there; nobody knows how the host stands",
            hint="`docker ps -a --filter label=corral.part=agent`",
            container=container,
        )
    return host_id


def _wait_heard_of(corral: "Client", host_id: str, seen_before: "datetime | None") -> None:
    """Waits until the host that was just joined has reported since, and says how it stands."""
    deadline = time.monotonic() + HEARD_OF_S_MAX
    while True:
        host = corral.host(host_id)
        is_heard_of = host.last_seen_at is not None and (seen_before is None or host.last_seen_at > seen_before)
        if is_heard_of and host.status != "checking":
            _tell(host, f"{host.name} is {host.status}" + (f": {host.reason}" if host.reason else ""))
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(HEARD_OF_POLL_S)
    _tell(host, "the agent runs, but has not reported yet; `corral host list` shows when it has")


def _tell(host: "Host", text: str) -> None:
    if is_json():
        put_json(host)
        return
    say(text)


def _tier(host: "Host") -> str:
    return (host.connection.tier if host.connection is not None else "") or "-"


def _place(host: "Host") -> str:
    place = host.location
    return "-" if place is None else "/".join(word for word in (place.country, place.region, place.city) if word)


def _connection_rows(host: "Host") -> list[list[str]]:
    rows: list[list[str]] = []
    if (found := host.connection) is not None:
        if found.download_mbit_s is not None and found.upload_mbit_s is not None:
            speed = f"{found.download_mbit_s:.0f} Mbit/s down, {found.upload_mbit_s:.0f} Mbit/s up"
            rows.append(["bandwidth", f"{speed}, measured {instant(found.bandwidth_at)}"])
        if found.rtt_ms is not None and found.jitter_ms is not None and found.loss_percent is not None:
            lost = f"jitter {found.jitter_ms:.1f} ms, {found.loss_percent:.1f} % lost"
            rows.append(["round trip", f"{found.rtt_ms:.1f} ms to {found.relay}, {lost}"])
        rows.append(["tier", _tier(host) + ("" if found.is_recommended else " (less than recommended)")])
    if host.location is not None:
        rows.append(["location", f"{_place(host)}, as its provider says"])
    elif host.location_note:
        rows.append(["location", host.location_note])
    return rows


def _hardware(host: "Host") -> str:
    gpus = f"{plural(len(host.gpus), 'GPU')} ({', '.join(sorted(set(host.gpus)))}), " if host.gpus else ""
    return f"{gpus}{number(host.cores)} cores, {memory(host.memory_bytes)}"


def _devices(host: "Host") -> str:
    hired = sum(device.status == "hired" for device in host.devices)
    return f"{hired} of {len(host.devices)} hired"
