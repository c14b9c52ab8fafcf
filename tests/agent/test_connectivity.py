"""When and how much an agent measures, and what counts afterwards."""

import asyncio
import base64
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.agent.connectivity import (
    BANDWIDTH_PERIOD_S,
    BRIEF,
    FULL,
    RETRY_S,
    RTT_PERIOD_S,
    Connectivity,
    Measured,
    bandwidth_due_at,
    effort_for,
    link_after,
    may_be_called,
    rtt_due_at,
)
from corral.agent.gauging import Effort, GaugeBusy, GaugeFailed
from corral.agent.requirements import Link
from corral.protocol.gauge import Statement
from corral.protocol.tiers import MBIT
from corral.testing.clock import FakeClock
from corral.testing.ids import numbered_id
from corral.wire.agent import GaugeSpec, SignedStatement

NOW = datetime(2026, 1, 1, tzinfo=UTC)
mbits = st.floats(0.1, 100_000)


def measured(download: float = 600, upload: float = 400, *, at: float = 1000) -> Measured:
    return Measured(link=Link(download_mbit_s=download, upload_mbit_s=upload), rtt_at=at, bandwidth_at=at)


@given(mbits, mbits, st.floats(0, 10 * 86400), st.booleans())
def test_while_hired_never_more_than_a_thousandth_of_the_link_is_used(
    download: float, upload: float, since_s: float, development: bool
) -> None:
    """Each way, of what it could have carried since the last time, at all relays that may be asked together."""
    effort = effort_for(measured(download, upload), now=1000 + since_s, is_hired=True, is_development=development)
    if effort is not None:
        could_carry = min(download, upload) * MBIT / 8 * since_s
        assert 2 * effort.bytes_max <= 0.001 * could_carry
        assert effort.bytes_max >= BRIEF.bytes_max
        assert effort.seconds <= FULL.seconds


@given(mbits, mbits, st.booleans())
def test_when_measurements_are_due_is_sparse(download: float, upload: float, is_hired: bool) -> None:
    """At once when nothing is known; then every 6 hours, and after 15 minutes only while it keeps the host out."""
    assert bandwidth_due_at(Measured(), is_hired=is_hired) == rtt_due_at(Measured()) == 0
    pause_s = bandwidth_due_at(measured(download, upload), is_hired=is_hired) - 1000
    keeps_out = min(download, upload) < 250
    assert pause_s == (RETRY_S if keeps_out and not is_hired else BANDWIDTH_PERIOD_S)


def test_a_link_that_was_never_measured_is_left_alone_while_hired() -> None:
    """Nobody knows what a thousandth of it is."""
    assert effort_for(Measured(), now=1e9, is_hired=True, is_development=False) is None
    assert effort_for(Measured(), now=1e9, is_hired=False, is_development=False) == FULL
    assert effort_for(Measured(), now=1e9, is_hired=False, is_development=True) == BRIEF


def stated(download: float, upload: float, rtt_ms: float, relay_id: str = "hst_r") -> Statement:
    size = 1 if download else 0
    return Statement(
        relay_id=relay_id, host_id="hst_h", session=1, at=0, download_bit_s=int(download * MBIT),
        upload_bit_s=int(upload * MBIT), download_bytes=size, upload_bytes=size, rtt_us=int(rtt_ms * 1000),
        round_trips=20,
    )  # fmt: skip


def test_the_fastest_and_the_nearest_relay_count_and_a_hire_never_makes_it_worse() -> None:
    """A relay that is slow itself says nothing about the host, and neither does what a renter leaves over."""
    before = Link(download_mbit_s=700, upload_mbit_s=300, rtt_ms=9)
    found = [stated(400, 350, 20), stated(500, 100, 12)]
    assert link_after(before, found, is_hired=False) == Link(download_mbit_s=500, upload_mbit_s=350, rtt_ms=12)
    assert link_after(before, found, is_hired=True) == Link(download_mbit_s=700, upload_mbit_s=350, rtt_ms=12)
    only_rtt = link_after(before, [stated(0, 0, 15)], is_hired=False)
    assert only_rtt == Link(download_mbit_s=700, upload_mbit_s=300, rtt_ms=15)


@pytest.mark.parametrize("address", ["127.0.0.1", "224.0.0.1", "169.254.1.1", "255.255.255.255", "999.1.1.1"])
def test_what_cannot_be_a_relay_is_not_called(address: str) -> None:
    """Whoever owns the control plane gets no way to the host itself."""
    assert not may_be_called(spec(1, address))
    assert may_be_called(spec(1, "198.51.100.1")) or address == "198.51.100.1"


def spec(number: int, address: str = "") -> GaugeSpec:
    return GaugeSpec(
        relay_id=numbered_id("hst", number), address=address or f"198.51.100.{number}", port=40999,
        permit=base64.b64encode(b"p").decode(), permit_key="",
    )  # fmt: skip


class Gauge:
    """What one relay would find, and what was done there."""

    def __init__(self, download: float, upload: float, rtt_ms: float) -> None:
        self.found = (download, upload, rtt_ms)
        self.busy = 0
        self.is_down = False
        self.efforts: list[Effort] = []
        self.sessions = 0


class Client:
    """A session at such a relay."""

    def __init__(self, gauge: Gauge, relay_id: str) -> None:
        self._gauge, self._relay_id, self._has_moved = gauge, relay_id, False

    async def round_trips(self, count: int = 21) -> int:
        return count

    async def download(self, effort: Effort) -> int:
        if self._gauge.busy:
            self._gauge.busy -= 1
            raise GaugeBusy(self._relay_id, 5)
        self._gauge.efforts.append(effort)
        self._has_moved = True
        return 1

    async def upload(self, effort: Effort) -> int:
        return 1

    async def statement(self) -> SignedStatement:
        if self._gauge.is_down:
            raise GaugeFailed("nobody is there")
        self._gauge.sessions += 1
        download, upload, rtt_ms = self._gauge.found
        said = stated(download if self._has_moved else 0, upload, rtt_ms, self._relay_id)
        return SignedStatement(payload=msgspec.json.encode(said).decode(), signature="")


class World:
    """An agent's connectivity with relays around it."""

    def __init__(self, folder: Path, *gauges: Gauge, development: bool = False) -> None:
        self.clock, self.gauges = FakeClock(NOW), {spec(n).relay_id: one for n, one in enumerate(gauges, 1)}
        self.specs = [spec(n) for n in range(1, len(gauges) + 1)]
        self.is_hired, self.told, self.folder, self.development = False, 0, folder, development
        self.connectivity = self.new()

    def new(self) -> Connectivity:
        return Connectivity(
            self.folder, self.clock, is_hired=lambda: self.is_hired, is_development=self.development, told=self._told,
            client=cast(Any, lambda one: Client(self.gauges[one.relay_id], one.relay_id)), jitter=random.Random(1),
        )  # fmt: skip

    def _told(self) -> None:
        self.told += 1

    async def measure(self, specs: Sequence[GaugeSpec] | None = None) -> Link | None:
        self.connectivity.take(self.specs if specs is None else specs)
        await self.connectivity.measure()
        return self.connectivity.link


async def test_it_measures_at_the_nearest_relay_and_asks_a_second_one_where_that_finds_little(tmp_path: Path) -> None:
    """Round trips to all of them; the statements of all are passed on until they have arrived."""
    far, slow, good = Gauge(900, 900, 80), Gauge(300, 900, 5), Gauge(800, 700, 9)
    world = World(tmp_path, far, slow, good)
    assert await world.measure() == Link(download_mbit_s=800, upload_mbit_s=900, rtt_ms=5)
    assert (far.efforts, slow.efforts, good.efforts) == ([], [FULL], [FULL])
    said = world.connectivity.statements()
    assert len(said) == 5
    world.connectivity.sent(said[:2])
    assert world.connectivity.statements() == said[2:]


async def test_one_relay_that_finds_enough_is_enough(tmp_path: Path) -> None:
    """The other one's time is kept for others."""
    near, far = Gauge(600, 400, 5), Gauge(900, 900, 9)
    await World(tmp_path, near, far).measure()
    assert (near.efforts, far.efforts) == ([FULL], [])


async def test_it_waits_for_its_turn(tmp_path: Path) -> None:
    """One host is measured at a time."""
    gauge = Gauge(600, 400, 5)
    gauge.busy = 3
    world = World(tmp_path, gauge)
    world.connectivity.take(world.specs)
    measuring = asyncio.create_task(world.connectivity.measure())
    await world.clock.run_for(30)
    await measuring
    assert gauge.efforts == [FULL]


async def test_through_a_day_it_measures_sparsely(tmp_path: Path) -> None:
    """Four or five times the bandwidth, a hundred times round trips; one that is away brings no haste."""
    gauge, gone = Gauge(600, 400, 5), Gauge(600, 400, 1)
    gone.is_down = True
    world = World(tmp_path, gauge, gone)
    running = asyncio.create_task(world.connectivity.run())
    for _ in range(24 * 60):
        world.connectivity.take(world.specs)
        await world.clock.run_for(60)
    running.cancel()
    assert 4 <= len(gauge.efforts) <= 5
    assert 24 * 3600 / (1.1 * RTT_PERIOD_S + 60) <= gauge.sessions <= 24 * 3600 / RTT_PERIOD_S + 6
    assert world.told == gauge.sessions


async def test_a_renter_s_traffic_neither_lowers_the_link_nor_is_disturbed(tmp_path: Path) -> None:
    """Within a thousandth; what is found then is passed on only if it is more."""
    gauge = Gauge(600, 400, 5)
    world = World(tmp_path, gauge)
    await world.measure()
    world.connectivity.sent(world.connectivity.statements())
    world.is_hired, gauge.found = True, (90, 80, 40)
    world.clock.advance(BANDWIDTH_PERIOD_S)
    link = await world.measure()
    assert link == Link(download_mbit_s=600, upload_mbit_s=400, rtt_ms=40)
    [said] = world.connectivity.statements()
    assert msgspec.json.decode(said.payload, type=Statement).download_bytes == 0
    assert gauge.efforts[1].bytes_max <= 0.0005 * 400 * MBIT / 8 * BANDWIDTH_PERIOD_S


async def test_a_restart_measures_nothing_again_and_a_clock_set_back_does_no_harm(tmp_path: Path) -> None:
    """What was found is on the volume."""
    gauge = Gauge(600, 400, 5)
    world = World(tmp_path, gauge)
    link = await world.measure()
    world.connectivity = world.new()
    assert world.connectivity.link == link
    world.clock.advance(60)
    await world.measure()
    assert (len(gauge.efforts), gauge.sessions) == (1, 2)
    world.clock = FakeClock(datetime(2025, 1, 1, tzinfo=UTC))
    world.connectivity = world.new()
    await world.measure()
    assert len(gauge.efforts) == 2


async def test_without_a_relay_nothing_is_measured_and_a_slow_one_is_tried_again_soon(tmp_path: Path) -> None:
    """The host stays as it is; a repaired link is seen within 15 minutes."""
    gauge = Gauge(100, 100, 5)
    world = World(tmp_path, gauge)
    assert await world.measure([]) is None
    await world.measure()
    gauge.found = (600, 400, 5)
    world.clock.advance(RETRY_S)
    link = await world.measure()
    assert link is not None
    assert link.download_mbit_s == 600


async def test_a_development_slice_measures_briefly(tmp_path: Path) -> None:
    """Several of them share a machine, and their rules are relaxed."""
    gauge, other = Gauge(100, 100, 5), Gauge(100, 100, 6)
    await World(tmp_path, gauge, other, development=True).measure()
    assert (gauge.efforts, other.efforts) == ([BRIEF], [])


async def test_while_the_control_plane_is_away_statements_do_not_pile_up(tmp_path: Path) -> None:
    """A report that is too long would be refused for ever; the newest are kept."""
    world = World(tmp_path, *(Gauge(600, 400, number) for number in range(1, 60)))
    for first in range(0, 59, 10):
        await world.measure(world.specs[first : first + 10])
        world.clock.advance(RTT_PERIOD_S)
    said = world.connectivity.statements()
    assert len(said) == 32
    assert msgspec.json.decode(said[-1].payload, type=Statement).relay_id == world.specs[-1].relay_id
