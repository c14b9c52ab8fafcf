"""
The requirement table: what a host must be able to do, what was found, and what to do about it.

Pure: the facts come in, rows come out. In development a failing row is shown as `relaxed` and the host may join, except
for what nothing would work without (the engine, the tunnel device, the images).
"""

from dataclasses import dataclass

import msgspec

from corral.agent.hardware.engine import EngineFacts
from corral.core.units import GB
from corral.protocol.tiers import (
    DOWNLOAD_MBIT_S_MIN,
    DOWNLOAD_MBIT_S_RECOMMENDED,
    RTT_MS_RECOMMENDED,
    UPLOAD_MBIT_S_MIN,
    UPLOAD_MBIT_S_RECOMMENDED,
)
from corral.wire.agent import Check

MEMORY_MIN = 12 * GB
DISK_FREE_MIN = 500 * GB
ENGINE_API_MIN = (1, 41)
CLOCK_SKEW_S_MAX = 60.0


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A host's connection as relays have measured it. Zero where it was not measured."""

    download_mbit_s: float = 0.0
    upload_mbit_s: float = 0.0
    rtt_ms: float = 0.0
    """To the nearest relay."""


@dataclass(frozen=True, kw_only=True)
class RequirementFacts:
    """What the rules are asked about. None stands for "could not be found out"."""

    memory_bytes: int
    disk_free_bytes: int
    engine: EngineFacts | None
    engine_error: str = ""
    tun_error: str | None = None
    """Empty: a container could make and remove a tunnel interface; else why not; None: not tried."""
    clock_skew_s: float | None = None
    """The host's wall clock less the control plane's, seconds."""
    missing_images: tuple[str, ...] | None = None
    """Images that nodes need and this host lacks; None: not looked for, because nobody has named them yet."""
    link: Link | None = None
    """None: not measured, because there was no relay to measure at."""


def check_requirements(facts: RequirementFacts, *, development: bool) -> tuple[Check, ...]:
    """One row per rule, in the order in which people read them."""
    rows = (
        _memory(facts),
        _disk(facts),
        _engine(facts),
        _tun(facts),
        _limits(facts),
        _images(facts),
        _clock(facts),
        _bandwidth(
            "download",
            facts.link.download_mbit_s if facts.link else 0,
            least=DOWNLOAD_MBIT_S_MIN,
            recommended=DOWNLOAD_MBIT_S_RECOMMENDED,
        ),
        _bandwidth(
            "upload",
            facts.link.upload_mbit_s if facts.link else 0,
            least=UPLOAD_MBIT_S_MIN,
            recommended=UPLOAD_MBIT_S_RECOMMENDED,
        ),
        _ping(facts.link.rtt_ms if facts.link else 0),
    )
    return tuple(_relaxed(row) if development and row.rule not in _NEVER_RELAXED else row for row in rows)


def failing(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """The rows that keep a host out."""
    return tuple(check for check in checks if check.outcome == "fail")


_NEVER_RELAXED = frozenset({"engine", "tun", "images"})


def _relaxed(row: Check) -> Check:
    if row.outcome != "fail":
        return row
    return Check(rule=row.rule, outcome="relaxed", value=row.value, need=row.need, remedy=row.remedy)


def _row(rule: str, is_met: bool, *, value: str, need: str, remedy: str) -> Check:
    return Check(
        rule=rule, outcome="pass" if is_met else "fail", value=value[:512], need=need, remedy="" if is_met else remedy
    )


def _memory(facts: RequirementFacts) -> Check:
    return _row(
        "memory",
        facts.memory_bytes >= MEMORY_MIN,
        value=_gigabytes(facts.memory_bytes),
        need=f"{MEMORY_MIN // GB} GB",
        remedy="add memory, or lend another machine",
    )


def _disk(facts: RequirementFacts) -> Check:
    return _row(
        "disk",
        facts.disk_free_bytes >= DISK_FREE_MIN,
        value=f"{_gigabytes(facts.disk_free_bytes)} free",
        need=f"{DISK_FREE_MIN // GB} GB free",
        remedy="free space where the engine keeps its data (`docker info -f '{{.DockerRootDir}}'`), or move it to a "
        "greater disk",
    )


def _engine(facts: RequirementFacts) -> Check:
    need = f"Docker Engine API {_version(ENGINE_API_MIN)} or later, not rootless"
    if facts.engine is None:
        return _row(
            "engine",
            False,
            value=facts.engine_error or "does not answer",
            need=need,
            remedy="start Docker (`systemctl start docker`) and mount /var/run/docker.sock",
        )
    engine = facts.engine
    value = f"{engine.version}, API {_version(engine.api_version)}{', rootless' if engine.is_rootless else ''}"
    return _row(
        "engine",
        engine.api_version >= ENGINE_API_MIN and not engine.is_rootless,
        value=value,
        need=need,
        remedy="install Docker Engine 20.10 or later, run by root: https://docs.docker.com/engine/install/",
    )


def _tun(facts: RequirementFacts) -> Check:
    need = "a container with NET_ADMIN can make a tunnel interface"
    if facts.tun_error is None:
        return Check(rule="tun", outcome="not_measured", value="not tried", need=need)
    return _row(
        "tun",
        not facts.tun_error,
        value=facts.tun_error or "works",
        need=need,
        remedy="load the kernel's module (`modprobe tun`); in a virtual machine, ask its owner to allow it",
    )


def _limits(facts: RequirementFacts) -> Check:
    need = "limits on CPU, memory and processes"
    if facts.engine is None:
        return Check(rule="limits", outcome="not_measured", value="the engine does not answer", need=need)
    has = {
        "CPU": facts.engine.has_cpu_limit,
        "memory": facts.engine.has_memory_limit,
        "processes": facts.engine.has_pids_limit,
    }
    missing = [what for what, is_there in has.items() if not is_there]
    return _row(
        "limits",
        not missing,
        value=f"none on {', '.join(missing)}" if missing else "all supported",
        need=need,
        remedy="enable the cpu, memory and pids control groups (kernel options `cgroup_enable=memory swapaccount=1`)",
    )


def _images(facts: RequirementFacts) -> Check:
    need = "the images of nodes"
    if facts.missing_images is None:
        return Check(rule="images", outcome="not_measured", value="not looked for yet", need=need)
    return _row(
        "images",
        not facts.missing_images,
        value=f"missing: {', '.join(facts.missing_images)}" if facts.missing_images else "all here",
        need=need,
        remedy="wait while they are pulled; those that no registry has, load with `docker load`",
    )


def _clock(facts: RequirementFacts) -> Check:
    # A wrong clock keeps no host out: tokens are made with the control plane's time. It is shown, because it confuses
    # people who read this machine's logs.
    need = f"within {CLOCK_SKEW_S_MAX:.0f} s of the control plane's"
    if facts.clock_skew_s is None:
        return Check(rule="clock", outcome="not_measured", value="not compared yet", need=need)
    row = _row(
        "clock",
        abs(facts.clock_skew_s) <= CLOCK_SKEW_S_MAX,
        value=f"{facts.clock_skew_s:+.0f} s",
        need=need,
        remedy="synchronise the clock, for example with `timedatectl set-ntp true`",
    )
    return _relaxed(row)


def _bandwidth(rule: str, mbit_s: float, *, least: int, recommended: int) -> Check:
    need = f"{least} Mbit/s" + (f", recommended {recommended}" if recommended > least else "")
    if not mbit_s:
        return Check(rule=rule, outcome="not_measured", value="not measured yet", need=need)
    is_less = least <= mbit_s < recommended
    return _row(
        rule,
        mbit_s >= least,
        value=f"{int(mbit_s)} Mbit/s" + (", less than recommended" if is_less else ""),
        need=need,
        remedy="measure when nothing else uses the link, use a cable instead of Wi-Fi, or ask your provider for a "
        "faster one; it is measured again within 15 minutes",
    )


def _ping(rtt_ms: float) -> Check:
    # A far host works; it is shown, because near ones work together better.
    need = f"recommended under {RTT_MS_RECOMMENDED} ms to the nearest relay"
    if not rtt_ms:
        return Check(rule="ping", outcome="not_measured", value="not measured yet", need=need)
    told = "" if rtt_ms < RTT_MS_RECOMMENDED else ", more than recommended"
    return Check(rule="ping", outcome="pass", value=f"{rtt_ms:.1f} ms{told}", need=need)


def _gigabytes(size: int) -> str:
    return f"{size / GB:.1f} GB"


def _version(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
