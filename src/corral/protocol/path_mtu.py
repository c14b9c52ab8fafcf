"""
How large a packet may be on its way to each peer of a mesh.

Everything starts at the size that fits nearly every network. A larger one is used towards a peer only while probes
padded to it are answered, at the same size, on every plane to that peer: the traffic may change planes at any moment,
and a packet that is too large is lost without a word. `PathMtus` is that decision as a state machine without clock or
socket, driven like `paths.Paths`; standard library only. Every `now` is monotonic, in seconds, and never goes back.

Source: docs/mesh.md, "Packet size".
"""

import heapq
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from corral.protocol.paths import Plane

SIZES = (1420, 8920)
"""What is tried beside the first size: for networks of 1500 and of 9000 bytes."""
_OVERHEAD_BYTES = 60
"""IPv4 20, UDP 8, WireGuard 32."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Every number of the choice of packet sizes."""

    answers_min: int = 3
    """Answers in a row that make a size usable."""
    misses_max: int = 3
    """Padded probes missed in a row that take a size back, or end the trial of one."""
    timeout_s: float = 1.0
    trial_interval_s: float = 0.25
    """Between an answer and the next probe while a size is tried."""
    hot_interval_s: float = 1.0
    """The same for a size in use, while bytes move; it is found out 4 s after it ceased to pass."""
    cold_interval_s: float = 30.0
    """The same while none do."""
    again_s: float = 60.0
    """Until a size that did not pass is tried again; doubled each time, up to `again_max_s`."""
    again_max_s: float = 3600.0
    spread_s: float = 2.0
    """Over this the first probes of many peers are spread."""


class SizedProbe(NamedTuple):
    """A probe to be sent now, as an IPv4 packet of `size` bytes inside the tunnel; its answer is as large."""

    peer: str
    plane: Plane
    sequence: int
    size: int


def wire_bytes(size: int) -> int:
    """What a packet of `size` bytes becomes outside of the tunnel: WireGuard pads it to 16 and adds its headers."""
    return -(-size // 16) * 16 + _OVERHEAD_BYTES


class PathMtus:
    """
    The packet sizes of one member towards all its peers.

    Args:
        base: size that is used without asking, bytes.
        sizes: larger ones to try, ascending; empty: none ever.
        policy: the numbers.
    """

    def __init__(self, base: int, sizes: Iterable[int], policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._sizes = (base, *(size for size in sorted(sizes) if size > base))
        self._peers: dict[str, dict[Plane, _Plane]] = {}
        self._told: dict[str, int] = {}
        self._wakes: list[tuple[float, int, _Plane]] = []
        self._changed: dict[str, None] = {}
        self._order = self._sequence = 0

    def set_peers(self, peers: Mapping[str, Mapping[Plane, str]], now: float) -> None:
        """
        Adds, keeps and removes peers until they are exactly `peers`.

        Args:
            peers: by name: the planes that may carry traffic to it, each with a generation; where that changes, what
                was measured is forgotten. A peer without planes is never probed and keeps the first size.
            now: monotonic seconds.
        """
        for name in [name for name in self._peers if name not in peers]:
            for plane in self._peers.pop(name).values():
                plane.is_gone = True
            self._told.pop(name, None)
            self._changed.pop(name, None)
        for name, generations in peers.items():
            planes = self._peers.setdefault(name, {})
            for plane in [each for each in planes.values() if each.generation != generations.get(each.name)]:
                plane.is_gone = True
                del planes[plane.name]
            for plane_name, generation in generations.items():
                if plane_name not in planes:
                    planes[plane_name] = _Plane(name, plane_name, generation)
            self._settle(name)

    def mtu(self, peer: str) -> int:
        """The largest packet that passes on every plane to a peer, bytes; the first size where nothing is known."""
        planes = self._peers.get(peer)
        return self._sizes[min(plane.carried for plane in planes.values())] if planes else self._sizes[0]

    def changed(self) -> list[str]:
        """Peers whose size is another one than when this was last asked."""
        found = list(self._changed)
        self._changed.clear()
        for name in found:
            self._told[name] = self.mtu(name)
        return found

    def lives(self, peer: str, plane: Plane, now: float) -> None:
        """Small probes are answered on this plane: larger ones are worth trying."""
        found = self._find(peer, plane)
        if found is None or found.is_alive or len(self._sizes) == 1:
            return
        found.is_alive = True
        spread = zlib.crc32(f"{peer}/{plane}".encode()) / 2**32
        self._send_at(found, now + spread * self._policy.spread_s)

    def dies(self, peer: str, plane: Plane, now: float) -> None:
        """Nothing is answered on this plane: whatever comes back there may be another path."""
        found = self._find(peer, plane)
        if found is not None and found.is_alive:
            found.is_alive, found.waiting = False, None
            self._fall(found, now, again_s=0.0)
            found.send_at = found.wake_at = math.inf

    def set_hot(self, peer: str, *, is_hot: bool, now: float) -> None:
        """Whether bytes move to and from a peer: what it uses is then looked at more often."""
        for plane in self._peers.get(peer, {}).values():
            if is_hot and not plane.is_hot and plane.is_alive and plane.waiting is None:
                self._send_at(plane, min(plane.send_at, now))
            plane.is_hot = is_hot

    def due(self, now: float) -> list[SizedProbe]:
        """The probes to send now; also notes which earlier ones were missed."""
        probes: list[SizedProbe] = []
        while self._wakes and self._wakes[0][0] <= now:
            at, _, plane = heapq.heappop(self._wakes)
            if plane.is_gone or at != plane.wake_at:
                continue
            plane.wake_at = math.inf
            if plane.waiting is not None:
                self._miss(plane, now)
            if plane.waiting is None and plane.send_at <= now and (probe := self._probe(plane, now)) is not None:
                probes.append(probe)
        return probes

    def answered(self, peer: str, plane: Plane, sequence: int, now: float) -> None:
        """A padded probe came back at its full size; one that is too late, or was never asked for, changes nothing."""
        found = self._find(peer, plane)
        if found is None or found.waiting is None or found.waiting[0] != sequence:
            return
        size, found.waiting, found.misses = found.waiting[1], None, 0
        if size > found.carried:
            found.answers += 1
            if found.answers >= self._policy.answers_min:
                found.carried, found.answers, found.again_s = size, 0, 0.0
                self._settle(peer)
            self._send_at(found, now + self._policy.trial_interval_s)
        else:
            self._rest(found, now)

    def refused(self, peer: str, plane: Plane, sequence: int, now: float) -> None:
        """The probe could not be sent: this machine knows already that the way is too narrow for it."""
        found = self._find(peer, plane)
        if found is not None and found.waiting is not None and found.waiting[0] == sequence:
            found.misses = self._policy.misses_max - 1
            self._miss(found, now)

    def next_at(self) -> float:
        """When `due` has something to do next; inf for never."""
        while self._wakes and (self._wakes[0][2].is_gone or self._wakes[0][0] != self._wakes[0][2].wake_at):
            heapq.heappop(self._wakes)
        return self._wakes[0][0] if self._wakes else math.inf

    def _find(self, peer: str, plane: Plane) -> "_Plane | None":
        return self._peers.get(peer, {}).get(plane)

    def _probe(self, plane: "_Plane", now: float) -> SizedProbe | None:
        """The next larger size if its time has come, else the one in use; nothing is asked of the first."""
        is_trial = plane.carried + 1 < len(self._sizes) and now >= plane.try_at
        if plane.misses:
            is_trial = plane.is_trial  # What was missed is asked again, until it is answered or given up.
        size = plane.carried + 1 if is_trial else plane.carried
        if size == 0:
            self._send_at(plane, plane.try_at)
            return None
        self._sequence += 1
        plane.waiting, plane.is_trial = (self._sequence, size), is_trial
        self._wake(plane, now + self._policy.timeout_s)
        return SizedProbe(plane.peer, plane.name, self._sequence, self._sizes[size])

    def _miss(self, plane: "_Plane", now: float) -> None:
        size = plane.waiting[1] if plane.waiting is not None else 0
        plane.waiting, plane.answers = None, 0
        plane.misses += 1
        self._send_at(plane, now)
        if plane.misses < self._policy.misses_max:
            return
        policy = self._policy
        again_s = min(max(2 * plane.again_s, policy.again_s), policy.again_max_s)
        if size > plane.carried:
            plane.misses, plane.again_s, plane.try_at = 0, again_s, now + again_s
            self._rest(plane, now)
        else:
            self._fall(plane, now, again_s=again_s)
            self._send_at(plane, plane.try_at)

    def _fall(self, plane: "_Plane", now: float, *, again_s: float) -> None:
        """Back to the first size, which needs no proof."""
        plane.carried = plane.answers = plane.misses = 0
        plane.again_s = again_s
        plane.try_at = now + again_s
        self._settle(plane.peer)

    def _rest(self, plane: "_Plane", now: float) -> None:
        """Until the size in use is looked at again, or the next one is tried."""
        policy = self._policy
        pause_s = policy.hot_interval_s if plane.is_hot else policy.cold_interval_s
        at = now + pause_s if plane.carried else math.inf
        if plane.carried + 1 < len(self._sizes):
            at = min(at, max(plane.try_at, now + policy.trial_interval_s))
        self._send_at(plane, at)

    def _settle(self, peer: str) -> None:
        if self.mtu(peer) != self._told.get(peer, self._sizes[0]):
            self._changed[peer] = None
        else:
            self._changed.pop(peer, None)

    def _send_at(self, plane: "_Plane", at: float) -> None:
        plane.send_at = at
        self._wake(plane, at)

    def _wake(self, plane: "_Plane", at: float) -> None:
        plane.wake_at = at
        if at < math.inf:
            self._order += 1
            heapq.heappush(self._wakes, (at, self._order, plane))


@dataclass(slots=True, eq=False)
class _Plane:
    peer: str
    name: Plane
    generation: str
    carried: int = 0
    """Which of the sizes is in use here."""
    answers: int = 0
    misses: int = 0
    again_s: float = 0.0
    try_at: float = -math.inf
    """When the next larger size is tried again."""
    send_at: float = math.inf
    wake_at: float = math.inf
    """The one entry among the wakes that counts; others are left over."""
    waiting: tuple[int, int] | None = None
    """Sequence and size of the probe that is under way; at most one is."""
    is_trial: bool = False
    """Whether the last probe was of a size that is not in use."""
    is_alive: bool = False
    is_hot: bool = False
    is_gone: bool = False
