"""
Which devices fulfil a wish: a plain, repeatable search over what can be rented now.

The rules, in their order: all GPUs of a cluster are of one model; the cheapest placement wins; like ones are told apart
by a digest of the seed and the host, so that two renters who ask at once are rarely shown the same hosts. The head is
the node with the most memory, then the most cores, then the smallest host id: Ray's control processes live there.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, Protocol

from corral.core.errors import invariant
from corral.core.ids import DeviceId, HostId, PersonId
from corral.market.prices import Prices, same_words
from corral.market.wish import Wish
from corral.protocol.tiers import TierName


class Rentable(Protocol):
    """A device that can be rented now."""

    @property
    def device_id(self) -> DeviceId: ...
    @property
    def host_id(self) -> HostId: ...
    @property
    def host_name(self) -> str: ...
    @property
    def provider_id(self) -> PersonId: ...
    @property
    def provider_name(self) -> str: ...
    @property
    def kind(self) -> Literal["gpu", "cpu"]: ...
    @property
    def model(self) -> str: ...
    @property
    def cores(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def disk_bytes(self) -> int: ...
    @property
    def gpu_memory_bytes(self) -> int: ...
    @property
    def development(self) -> bool: ...
    @property
    def traffic_cap_bytes(self) -> int | None: ...
    @property
    def tier(self) -> TierName: ...


class Counted(Protocol):
    """How many devices of one model are in one status, whether or not they can be rented."""

    @property
    def kind(self) -> Literal["gpu", "cpu"]: ...
    @property
    def model(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def count(self) -> int: ...


class LikeLine(Protocol):
    """What a replacement has to match."""

    @property
    def provider_id(self) -> PersonId: ...
    @property
    def kind(self) -> Literal["gpu", "cpu"]: ...
    @property
    def model(self) -> str: ...
    @property
    def cores(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def rate_uc_per_hour(self) -> int: ...
    @property
    def is_head(self) -> bool: ...
    @property
    def traffic_cap_bytes(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class QuotedLine:
    """One device in a placement, with its rate. `model` is the price file's word for a GPU, the found one for a CPU."""

    device_id: DeviceId
    host_id: HostId
    host_name: str
    provider_id: PersonId
    provider_name: str
    kind: Literal["gpu", "cpu"]
    model: str
    cores: float
    memory_bytes: int
    disk_bytes: int
    gpu_memory_bytes: int
    rate_uc_per_hour: int
    development: bool
    """A shared machine: that the device is exclusively the renter's is not proven."""
    traffic_cap_bytes: int | None
    """What it may have with the internet in an hour, by its provider's will; None is no cap."""
    is_head: bool = False
    """True for every line of the head's host."""
    tier: TierName = ""
    """Of the host's connection; empty: not measured."""


@dataclass(frozen=True)
class Placement:
    """Devices that fulfil a wish, the head's host first."""

    lines: tuple[QuotedLine, ...]

    @property
    def rate_uc_per_hour(self) -> int:
        """Of all lines together."""
        return sum(line.rate_uc_per_hour for line in self.lines)


@dataclass(frozen=True)
class NoPlacement:
    """Why nothing fits: how many devices exist, and what removed how many of them."""

    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Host:
    """What one host could lend to a wish, cheapest first."""

    id: HostId
    provider_id: PersonId
    gpus: tuple[QuotedLine, ...]
    cpus: tuple[QuotedLine, ...]
    tie: bytes

    def gpu_rate(self, count: int) -> int:
        return sum(line.rate_uc_per_hour for line in self.gpus[:count])

    def cpu_rate(self, count: int) -> int:
        return sum(line.rate_uc_per_hour for line in self.cpus[:count])


_Shares = list[tuple[_Host, int]]
"""Chosen hosts, each with its number of GPUs."""


def priced(devices: Collection[Rentable], prices: Prices) -> list[QuotedLine]:
    """The devices that have a price, with it."""
    lines: list[QuotedLine] = []
    for device in devices:
        rate = prices.rate_uc_per_hour(kind=device.kind, model=device.model, cores=device.cores)
        if rate is None:
            continue
        model = prices.model_of(device.model) if device.kind == "gpu" else device.model
        lines.append(
            QuotedLine(
                device_id=device.device_id,
                host_id=device.host_id,
                host_name=device.host_name,
                provider_id=device.provider_id,
                provider_name=device.provider_name,
                kind=device.kind,
                model=model or device.model,
                cores=device.cores,
                memory_bytes=device.memory_bytes,
                disk_bytes=device.disk_bytes,
                gpu_memory_bytes=device.gpu_memory_bytes,
                rate_uc_per_hour=rate,
                development=device.development,
                traffic_cap_bytes=device.traffic_cap_bytes,
                tier=device.tier,
            )
        )
    return lines


def place(
    wish: Wish, devices: Collection[Rentable], prices: Prices, *, seed: str, census: Sequence[Counted] = ()
) -> Placement | NoPlacement:
    """
    Devices for a wish.

    Args:
        wish: what is asked for.
        devices: all that can be rented now.
        prices: what they cost.
        seed: tells like placements apart; the same seed gives the same answer.
        census: all devices by status, for the reasons of an empty answer.
    """
    lines = priced(devices, prices)
    models: tuple[str | None, ...] = prices.models_meant(wish.gpu_model) if wish.gpu_model else (None,)
    best: tuple[int, int, bytes, _Shares] | None = None
    for model in models:
        hosts = _hosts(lines, model, seed)
        for provider in sorted({host.provider_id for host in hosts}) if wish.single_provider else [None]:
            shares = _choose(wish, [host for host in hosts if provider in (None, host.provider_id)])
            if shares is None:
                continue
            rate = sum(host.gpu_rate(count) + host.cpu_rate(wish.cpu) for host, count in shares)
            found = (rate, len(shares), shares[0][0].tie, shares)
            best = found if best is None else min(best, found, key=lambda one: one[:3])
    if best is None:
        return NoPlacement(tuple(_reasons(wish, lines, devices, prices, census)))
    return _placement([line for host, count in best[3] for line in (*host.gpus[:count], *host.cpus[: wish.cpu])])


def place_replacement(
    needed: Sequence[LikeLine], devices: Collection[Rentable], prices: Prices, *, excluded_hosts: Collection[HostId]
) -> tuple[QuotedLine, ...] | None:
    """
    Devices of one other host for all lines of a lost node, each at no higher rate; in the order of `needed`.

    A GPU is replaced by the same model, a CPU slice by one with no fewer cores and no less memory, neither by one with
    a tighter cap on the internet. The cheapest host wins.
    """
    found: list[tuple[int, HostId, tuple[QuotedLine, ...]]] = []
    for host_id, lines in _by_host(priced(devices, prices)).items():
        if host_id in excluded_hosts:
            continue
        matched = _match(needed, lines)
        if matched is not None:
            found.append((sum(line.rate_uc_per_hour for line in matched), host_id, matched))
    return min(found, key=lambda one: one[:2])[2] if found else None


def _choose(wish: Wish, hosts: list[_Host]) -> _Shares | None:
    hosts = [host for host in hosts if len(host.cpus) >= wish.cpu]
    if wish.gpu_count == 0:
        count = wish.nodes or 1
        cheapest = sorted(hosts, key=lambda host: (host.cpu_rate(wish.cpu), host.tie))[:count]
        return [(host, 0) for host in cheapest] if len(cheapest) == count else None
    hosts = [host for host in hosts if host.gpus]
    return _fewest(wish.gpu_count, hosts) if wish.nodes is None else _even(wish, wish.nodes, hosts)


def _fewest(wanted: int, hosts: list[_Host]) -> _Shares | None:
    """As few hosts as possible: the largest ones first, and for what remains the cheapest that has it all."""
    shares: _Shares = []
    left = sorted(hosts, key=lambda host: (-min(len(host.gpus), wanted), host.gpu_rate(1), host.tie))
    while wanted and left:
        enough = [host for host in left if len(host.gpus) >= wanted]
        chosen = min(enough, key=lambda host: (host.gpu_rate(wanted), host.tie)) if enough else left[0]
        left.remove(chosen)
        count = min(wanted, len(chosen.gpus))
        shares.append((chosen, count))
        wanted -= count
    return None if wanted else shares


def _even(wish: Wish, nodes: int, hosts: list[_Host]) -> _Shares | None:
    """
    Exactly `nodes` hosts, the GPUs spread as evenly as their sizes allow.

    Hosts that can take a full even share come first, by price; if they are too few, the largest of the others join.
    """
    share = -(-wish.gpu_count // nodes)

    def rank(host: _Host) -> tuple[int, int, bytes]:
        return (
            -min(len(host.gpus), share),
            host.gpu_rate(min(len(host.gpus), share)) + host.cpu_rate(wish.cpu),
            host.tie,
        )

    chosen = sorted(hosts, key=rank)[:nodes]
    if len(chosen) == nodes and sum(len(host.gpus) for host in chosen) < wish.gpu_count:
        # Even shares are out of reach on the preferred hosts: the largest ones together have the most there is.
        chosen = sorted(hosts, key=lambda host: (-len(host.gpus), host.gpu_rate(1), host.tie))[:nodes]
    if len(chosen) < nodes or sum(len(host.gpus) for host in chosen) < wish.gpu_count:
        return None
    counts = [0] * nodes
    left = wish.gpu_count
    while left:
        level = min(count for count, host in zip(counts, chosen, strict=True) if count < len(host.gpus))
        for index, host in enumerate(chosen):
            if left and counts[index] == level and level < len(host.gpus):
                counts[index] += 1
                left -= 1
    return list(zip(chosen, counts, strict=True))


def _placement(lines: list[QuotedLine]) -> Placement:
    by_host = _by_host(lines)

    def weight(host_id: HostId) -> tuple[int, float, HostId]:
        share = by_host[host_id]
        return (-sum(line.memory_bytes for line in share), -sum(line.cores for line in share), host_id)

    order = sorted(by_host, key=weight)
    invariant(order, "a placement without a host")
    return Placement(
        tuple(replace(line, is_head=host_id == order[0]) for host_id in order for line in by_host[host_id])
    )


def _hosts(lines: list[QuotedLine], model: str | None, seed: str) -> list[_Host]:
    hosts: list[_Host] = []
    for host_id, share in _by_host(lines).items():
        hosts.append(
            _Host(
                id=host_id,
                provider_id=share[0].provider_id,
                gpus=tuple(line for line in share if line.kind == "gpu" and line.model == model),
                cpus=tuple(line for line in share if line.kind == "cpu"),
                tie=hashlib.sha256(f"{seed}:{host_id}".encode()).digest(),
            )
        )
    return hosts


def _by_host(lines: Collection[QuotedLine]) -> dict[HostId, list[QuotedLine]]:
    """Each host's lines, cheapest first."""
    ordered = sorted(lines, key=lambda line: (line.host_id, line.rate_uc_per_hour, line.device_id))
    return {host_id: list(share) for host_id, share in groupby(ordered, key=lambda line: line.host_id)}


def _match(needed: Sequence[LikeLine], lines: list[QuotedLine]) -> tuple[QuotedLine, ...] | None:
    free = list(lines)
    matched: dict[int, QuotedLine] = {}
    # The most demanding slice chooses first; GPUs of one model are alike.
    for index, need in sorted(enumerate(needed), key=lambda pair: (-pair[1].cores, pair[1].rate_uc_per_hour)):
        for line in free:
            if _replaces(line, need):
                matched[index] = replace(line, is_head=need.is_head)
                free.remove(line)
                break
        else:
            return None
    return tuple(matched[index] for index in range(len(needed)))


def _replaces(line: QuotedLine, need: LikeLine) -> bool:
    if line.kind != need.kind or line.rate_uc_per_hour > need.rate_uc_per_hour:
        return False
    if line.traffic_cap_bytes is not None and line.traffic_cap_bytes < (need.traffic_cap_bytes or math.inf):
        return False
    if line.kind == "gpu":
        return line.model == need.model
    return line.cores >= need.cores and line.memory_bytes >= need.memory_bytes


_REMOVED = {"hired": "hired", "cleaning": "being cleaned after use", "unavailable": "offline or paused"}


def _reasons(
    wish: Wish, lines: list[QuotedLine], devices: Collection[Rentable], prices: Prices, census: Sequence[Counted]
) -> list[str]:
    reasons: list[str] = []
    if wish.gpu_model is not None:
        reasons += _funnel("gpu", wish.gpu_model, lines, devices, prices, census)
    if wish.cpu:
        reasons += _funnel("cpu", None, lines, devices, prices, census)
    hosts = _by_host([line for line in lines if _is_meant(line.kind, line.model, wish.gpu_model, prices)])
    gpus = {host_id: [line for line in share if line.kind == "gpu"] for host_id, share in hosts.items()}
    if wish.gpu_count:
        free = sum(map(len, gpus.values()))
        largest = max(Counter(line.model for share in gpus.values() for line in share).values(), default=0)
        on = sum(map(bool, gpus.values()))
        reasons.append(f"{free} {wish.gpu_model} {_are(free)} free" + (f" on {_counted(on, 'host')}" if on else ""))
        reasons.append(
            f"{wish.gpu_count} of one model {_are(wish.gpu_count)} wished"
            + (f", at most {largest} {_are(largest)} free" if largest < free else "")
        )
    if wish.nodes is not None and (wish.nodes > 1 or wish.cpu > 0):
        fit = [
            host_id
            for host_id, share in hosts.items()
            if sum(line.kind == "cpu" for line in share) >= wish.cpu and (gpus[host_id] or not wish.gpu_count)
        ]
        slices = [_counted(wish.cpu, "CPU slice")] if wish.cpu else []
        each = " and ".join(slices + (["a GPU"] if wish.gpu_count else []))
        have = f"{_counted(len(fit), 'host')} {'has' if len(fit) == 1 else 'have'}"
        reasons.append(f"{have} {each} free, {wish.nodes} {_are(wish.nodes)} wished")
    if wish.single_provider:
        providers = {line.provider_id for share in hosts.values() for line in share}
        reasons.append(f"all of one provider is wished; what is free belongs to {_counted(len(providers), 'provider')}")
    return reasons


def _funnel(
    kind: Literal["gpu", "cpu"],
    wished: str | None,
    lines: list[QuotedLine],
    devices: Collection[Rentable],
    prices: Prices,
    census: Sequence[Counted],
) -> list[str]:
    """How many exist, and what removed how many before any was compared with the wish."""
    counts: Counter[str] = Counter()
    for row in census:
        if row.kind == kind and _is_meant(kind, row.model, wished, prices):
            counts[row.status] += row.count
    idle = [device for device in devices if device.kind == kind and _is_meant(kind, device.model, wished, prices)]
    removed = {status: count for status, count in counts.items() if status in _REMOVED}
    offered = {line.device_id for line in lines}
    no_price = sum(device.device_id not in offered for device in idle)
    there = len(idle) + sum(removed.values())
    named = _counted(there, "CPU slice") if wished is None else f"{there} {wished}"
    reasons = [f"{named} {'exists' if there == 1 else 'exist'}"]
    for status, text in _REMOVED.items():
        if count := removed.get(status):
            reasons.append(f"{count} {_are(count)} {text}")
    if no_price:
        reasons.append(f"{no_price} {'has' if no_price == 1 else 'have'} no price and cannot be rented")
    return reasons


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _is_meant(kind: str, model: str, wished: str | None, prices: Prices) -> bool:
    if kind == "cpu":
        return True
    if wished is None:
        return False
    priced_model = prices.model_of(model) or model
    return priced_model in prices.models_meant(wished) or same_words(model, wished)


def counts_by_host(lines: Collection[QuotedLine]) -> Mapping[HostId, int]:
    """How many lines each host has."""
    return Counter(line.host_id for line in lines)
