"""
The internet between the machines of a lab: who is where, what each way does to a packet, and when it arrives.

Pure: packets and times go in and come out; the `forwarder` does the reading and writing. A packet passes its sender's
NAT and line, the way between the two, the receiver's line, and the receiver's NAT; between two machines behind one
router it passes no NAT.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

from corral.testing.lab.errors import LabRefused
from corral.testing.lab.links import PLAIN, Line, Shape
from corral.testing.lab.nat import Nat, NatKind
from corral.testing.lab.packets import header_bytes

PUBLIC = IPv4Network("203.0.113.0/24")
"""Documentation addresses (RFC 5737): no packet to them leaves for the real internet by mistake."""
PRIVATE = IPv4Network("192.168.0.0/16")
WAITING_MAX = 200_000
"""Packets on their way at one time; 200,000 of full size are the 300 ms of a 8 Gbit/s line."""

_ARRIVED, _DELIVERED = 0, 1


@dataclass
class Site:
    """One machine's connection."""

    name: str
    handle: int
    """What the caller reads and writes it by."""
    inner: bytes
    outer: bytes
    nat: Nat | None
    shape: Shape = PLAIN
    up: Line = field(default_factory=Line)
    down: Line = field(default_factory=Line)
    ways: dict[bytes, "Way"] = field(default_factory=dict["bytes", "Way"])
    """From here, by destination address; filled when first needed."""


@dataclass
class Way:
    """From one site to another, in this direction."""

    source: Site
    target: Site
    shape: Shape
    is_cut: bool
    line: Line
    is_local: bool = False
    """Between two machines behind one router, which such a packet does not pass."""
    is_express: bool = False
    """Nothing to do but to hand the packet over: no NAT, no shape, no cut."""
    handle: int = -1
    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    last_at_s: float = 0.0


@dataclass
class _Pair:
    shape: Shape = PLAIN
    is_cut: bool = False
    line: Line = field(default_factory=Line)
    last_at_s: float = 0.0


@dataclass
class Counts:
    """Packets since the start."""

    carried: int = 0
    lost: int = 0
    cut: int = 0
    overflowed: int = 0
    filtered: int = 0
    """Refused by a NAT, in either direction."""
    unrouted: int = 0
    """To nobody, or from an address that is not the sender's."""


class Internet:
    """
    All sites and the ways between them.

    Args:
        seed: of everything random; the same packets at the same times have the same fate.
    """

    def __init__(self, seed: int) -> None:
        self.counts = Counts()
        self._seed = seed
        self._randomness = Random(seed)
        self._sites: dict[str, Site] = {}
        self._shapes: dict[str, Shape] = {}
        self._by_address: dict[bytes, list[Site]] = {}
        """Machines by the address that others see; several behind one router."""
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._waiting: list[tuple[float, int, int, Way, bytes]] = []
        self._sequence = 0

    def attach(
        self, name: str, *, handle: int, inner: str, outer: str, nat: NatKind, shape: Shape | None = None
    ) -> Site:
        """
        Connects a machine.

        Args:
            name: of the machine.
            handle: what the caller reads and writes it by.
            inner: its own address; without NAT the same as `outer`.
            outer: the address that others see; machines with the same one are behind one router and have a LAN.
            nat: which kind of router is between the two.
            shape: of its line, both directions; None: as it was when it was last connected.

        Raises:
            LabRefused: the name or the address is taken, or the addresses do not go with the kind of NAT.
        """
        inside, outside = IPv4Address(inner), IPv4Address(outer)
        others = self._by_address.get(outside.packed, [])
        is_taken = any(site.nat is None or site.nat.kind is not nat or site.inner == inside.packed for site in others)
        if name in self._sites or is_taken:
            raise LabRefused(f"{name} or its address {outer} is connected already; nothing was changed")
        if (nat is NatKind.none) != (inside == outside):
            raise LabRefused(f"{name} cannot have {inner} inside and {outer} outside with NAT {nat}")
        router: Nat | None = None
        if others and (router := others[0].nat) is not None:
            router.inners.add(inside.packed)
        elif nat is not NatKind.none:
            dice = Random(f"{self._seed}/{name}")
            router = Nat(nat, inner=inside.packed, outer=outside.packed, randomness=dice)
        site = Site(name, handle, inside.packed, outside.packed, router, shape or self._shapes.get(name, PLAIN))
        self._sites[name] = site
        self._by_address[outside.packed] = [*others, site]
        self._forget_ways()
        return site

    def detach(self, name: str) -> Site:
        """Disconnects a machine; what was on its way is lost. What was set for its line and ways stays."""
        site = self.site(name)
        del self._sites[name]
        if site.nat is not None:
            site.nat.inners.discard(site.inner)
        rest = [one for one in self._by_address.pop(site.outer) if one is not site]
        if rest:
            self._by_address[site.outer] = rest
        self._shapes[name] = site.shape
        self._waiting = [entry for entry in self._waiting if site not in (entry[3].source, entry[3].target)]
        heapq.heapify(self._waiting)
        self._forget_ways()
        return site

    def site(self, name: str) -> Site:
        """
        The site of this name.

        Raises:
            LabRefused: there is none.
        """
        found = self._sites.get(name)
        if found is None:
            raise LabRefused(f"no machine {name} is connected", hint=f"there are {', '.join(sorted(self._sites))}")
        return found

    def shape_link(self, name: str, changes: Mapping[str, Any]) -> Shape:
        """Changes what a machine's own line does, in both directions; the rest of its values stay."""
        site = self.site(name)
        site.shape = site.shape.changed(changes)
        self._forget_ways()
        return site.shape

    def shape_way(self, source: str, target: str, changes: Mapping[str, Any]) -> Shape:
        """Changes what happens between two machines, in this direction only."""
        pair = self._pair(source, target)
        pair.shape = pair.shape.changed(changes)
        self._forget_ways()
        return pair.shape

    def set_cut(self, source: str, target: str, *, is_cut: bool) -> None:
        """Whether packets from `source` to `target` vanish; those already on their way arrive."""
        self._pair(source, target).is_cut = is_cut
        self._forget_ways()

    def status(self) -> dict[str, Any]:
        """All of it, for people."""
        return {
            "machines": {
                name: {
                    "inner": str(IPv4Address(site.inner)),
                    "outer": str(IPv4Address(site.outer)),
                    "nat": site.nat.kind.value if site.nat is not None else NatKind.none.value,
                    "flows": len(site.nat) if site.nat is not None else 0,
                    "link": site.shape.as_dict(),
                }
                for name, site in self._sites.items()
            },
            "ways": [
                {"from": source, "to": target, "cut": pair.is_cut, "link": pair.shape.as_dict()}
                for (source, target), pair in self._pairs.items()
                if pair.is_cut or pair.shape != PLAIN
            ],
            "counts": dict(vars(self.counts)),
            "waiting": len(self._waiting),
        }

    def _way(self, source: Site, target: Site, *, is_local: bool) -> Way:
        # Only what is the one machine at an address is found by the address alone; the forwarder looks so, too.
        is_shared = is_local or len(self._by_address[target.outer]) > 1
        key = (b"local" if is_local else target.outer) + target.inner if is_shared else target.outer
        found = source.ways.get(key)
        if found is not None:
            return found
        pair = self._pairs.setdefault((source.name, target.name), _Pair())
        shapes = (source.shape, pair.shape, target.shape)
        kept = 1.0
        for shape in shapes:
            kept *= 1 - shape.loss
        way = Way(source, target, pair.shape, pair.is_cut, pair.line, is_local, handle=target.handle, loss=1 - kept)
        way.delay_s = sum(shape.delay_ms for shape in shapes) / 1000
        way.jitter_s = sum(shape.jitter_ms for shape in shapes) / 1000
        way.last_at_s = pair.last_at_s
        has_rate = any(shape.rate_mbit for shape in shapes)
        is_touched = way.loss or way.delay_s or way.jitter_s or has_rate or pair.is_cut
        way.is_express = not is_touched and source.nat is None and target.nat is None
        source.ways[key] = way
        return way

    def _neighbour(self, source: Site, packet: bytes) -> Site | None:
        """Whom a packet reaches without passing the router."""
        if source.nat is None or packet[12:16] != source.inner:
            return None
        for site in self._by_address[source.outer]:
            if site is not source and packet[16:20] == site.inner:
                return site
        return None

    def _target(self, source: Site, packet: bytes, now_s: float) -> Site | None:
        """Whose a public address is: behind a router with several machines, that of the one that asked for it."""
        sites = self._by_address.get(packet[16:20], [])
        if source in sites:
            return None  # No router here leads a packet back in (hairpin).
        if len(sites) > 1:
            router, answer = sites[0].nat, bytearray(packet)
            wanted = bytes(answer[16:20]) if router is not None and router.inbound(answer, now_s) else b""
            sites = [site for site in sites if site.inner == wanted]
        return sites[0] if sites else None

    def carry(self, source: Site, packet: bytes, now_s: float) -> tuple[int, bytes] | None:
        """
        Takes a packet from a machine.

        Returns:
            Handle and packet where it arrives at once; None where it is on its way (see `due`) or has vanished.
        """
        counts = self.counts
        if not header_bytes(packet):
            counts.unrouted += 1
            return None
        neighbour = self._neighbour(source, packet)
        if source.nat is not None and neighbour is None:
            translated = bytearray(packet)
            if not source.nat.outbound(translated, now_s):
                counts.filtered += 1
                return None
            packet = bytes(translated)
        elif packet[12:16] != source.inner:
            counts.unrouted += 1
            return None
        target = neighbour or self._target(source, packet, now_s)
        if target is None:
            counts.unrouted += 1
            return None
        way = self._way(source, target, is_local=neighbour is not None)
        if way.is_cut:
            counts.cut += 1
            return None
        if way.loss and self._randomness.random() < way.loss:
            counts.lost += 1
            return None
        size = len(packet)
        sent_at_s = source.up.send(size, now_s, source.shape)
        if sent_at_s is not None:
            sent_at_s = way.line.send(size, sent_at_s, way.shape)
        if sent_at_s is None or len(self._waiting) >= WAITING_MAX:
            counts.overflowed += 1
            return None
        at_s = sent_at_s + way.delay_s
        if way.jitter_s:
            at_s += self._randomness.random() * way.jitter_s
        at_s = max(at_s, way.last_at_s)
        way.last_at_s = self._pairs[source.name, way.target.name].last_at_s = at_s
        if at_s <= now_s:
            return self._arrive(way, packet, now_s)
        self._wait(at_s, _ARRIVED, way, packet)
        return None

    def due(self, now_s: float) -> Iterator[tuple[int, bytes]]:
        """Handle and packet of everything that arrives up to now, in order."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_s:
            at_s, _, stage, way, packet = heapq.heappop(waiting)
            arrived = self._arrive(way, packet, at_s) if stage == _ARRIVED else self._deliver(way, packet, at_s)
            if arrived is not None:
                yield arrived

    def next_at_s(self) -> float | None:
        """When the next packet arrives; None where none is on its way."""
        return self._waiting[0][0] if self._waiting else None

    def forget_idle(self, now_s: float) -> None:
        """Lets all NATs free what is long over; to be called now and then."""
        for site in self._sites.values():
            if site.nat is not None:
                site.nat.forget_idle(now_s)

    def _arrive(self, way: Way, packet: bytes, now_s: float) -> tuple[int, bytes] | None:
        """At the far end's line, which may be slower than all before it."""
        at_s = way.target.down.send(len(packet), now_s, way.target.shape)
        if at_s is None:
            self.counts.overflowed += 1
            return None
        if at_s <= now_s:
            return self._deliver(way, packet, now_s)
        self._wait(at_s, _DELIVERED, way, packet)
        return None

    def _deliver(self, way: Way, packet: bytes, now_s: float) -> tuple[int, bytes] | None:
        nat = way.target.nat
        if nat is not None and not way.is_local:
            translated = bytearray(packet)
            if not nat.inbound(translated, now_s):
                self.counts.filtered += 1
                return None
            packet = bytes(translated)
        self.counts.carried += 1
        return way.target.handle, packet

    def _wait(self, at_s: float, stage: int, way: Way, packet: bytes) -> None:
        self._sequence += 1
        heapq.heappush(self._waiting, (at_s, self._sequence, stage, way, packet))

    def _pair(self, source: str, target: str) -> _Pair:
        self.site(source)
        self.site(target)
        if source == target:
            raise LabRefused(f"{source} has no link to itself; nothing was changed")
        return self._pairs.setdefault((source, target), _Pair())

    def _forget_ways(self) -> None:
        for site in self._sites.values():
            site.ways.clear()
