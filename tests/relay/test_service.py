"""The relay's process: what it refuses, what it is told, and what it still knows when nobody tells it."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from members import free_ports

from corral.agent.control_plane import ControlPlaneUnreachable, ServerTime
from corral.core.clock import SystemClock
from corral.relay import service
from corral.relay.errors import RelayMisconfigured, RelayNotEnrolled
from corral.testing.ids import numbered_id
from corral.wire.agent import Desired, MailboxSpec, Report, Revision

WITHIN_S = 20
RELAY_ID = numbered_id("ho", 1)


class Desk:
    """A control plane that says one thing, or is away."""

    def __init__(self, desired: Desired | None) -> None:
        self.desired = desired
        self.reports: list[Report] = []
        self.heard = asyncio.Event()
        self.heard_gauge = asyncio.Event()

    async def exchange(self, report: Report) -> Desired | None:
        """Takes a report; holds what brings no news."""
        if self.desired is None:
            raise ControlPlaneUnreachable("nobody is there")
        self.reports.append(report)
        if report.relay is not None and report.relay.gauge_port:
            self.heard_gauge.set()
        if report.seen >= self.desired.revision:
            self.heard.set()
            await asyncio.Event().wait()
        return self.desired


def desired(*ports: int) -> Desired:
    """A mailbox at each of these ports."""
    boxes = tuple(
        MailboxSpec(
            node_id=numbered_id("nd", port),
            cluster_id=numbered_id("cl", 1),
            port=port,
            relayed_key=base64.b64encode(port.to_bytes(32, "big")).decode(),
        )
        for port in ports
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Desired(revision=Revision(1, 1), server_time=now, intent="active", mailboxes=boxes)


@asynccontextmanager
async def running(folder: Path, desk: Any, ports: list[int]) -> AsyncIterator[service.RelayService]:
    """A relay on loopback, until the end of the block."""
    clock = SystemClock()
    options = service.RelayOptions(
        data_dir=folder, bind="127.0.0.1", port_first=min(ports), port_count=100, gauge_port=0
    )
    made = service.RelayService(
        options, desk, clock, ServerTime(clock), host_id=RELAY_ID, key=Ed25519PrivateKey.generate()
    )
    task = asyncio.create_task(made.run())
    try:
        with made.relay:
            yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def mailboxes(made: service.RelayService, count: int) -> None:
    """Returns once so many mailboxes are open."""
    async with asyncio.timeout(WITHIN_S):
        while made.relay.state.mailboxes != count:  # noqa: ASYNC110 - the relay's thread tells nobody
            await asyncio.sleep(0.01)


async def test_it_serves_what_it_is_told_and_says_what_it_is(tmp_path: Path) -> None:
    """Ports and observer key are in every report."""
    ports = free_ports(2, "127.0.0.1")
    desk = Desk(desired(*ports))
    async with running(tmp_path, desk, ports) as made:
        async with asyncio.timeout(WITHIN_S):
            await desk.heard.wait()
        await mailboxes(made, 2)
        said = desk.reports[-1].relay
        assert said is not None
        assert said.port_first == min(ports)
        assert base64.b64decode(said.observer_key) == made.relay.observer_key


async def test_it_measures_hosts_once_it_was_told_with_which_key(tmp_path: Path) -> None:
    """The port is in its reports from then on; before, no host is sent to it."""
    ports = free_ports(1, "127.0.0.1")
    desk = Desk(msgspec.structs.replace(desired(*ports), gauge_key=base64.b64encode(bytes(32)).decode()))
    async with running(tmp_path, desk, ports) as made, asyncio.timeout(WITHIN_S):
        await desk.heard_gauge.wait()
        said = desk.reports[-1].relay
        assert said is not None
        assert said.gauge_port == made.gauge.port
        first = desk.reports[0].relay
        assert first is not None
        assert first.gauge_port == 0


async def test_without_a_control_plane_it_goes_on_with_what_it_was_told_last(tmp_path: Path) -> None:
    """Members behind NAT would lose each other otherwise when relay and control plane restart together."""
    ports = free_ports(2, "127.0.0.1")
    desk = Desk(desired(*ports))
    async with running(tmp_path, desk, ports) as made:
        await mailboxes(made, 2)
        async with asyncio.timeout(WITHIN_S):
            await desk.heard.wait()
    async with running(tmp_path, Desk(None), ports) as made:
        await mailboxes(made, 2)


async def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    """The control plane will tell it anew."""
    (tmp_path / service.DESIRED_FILE).write_bytes(b'[{"node_id"')
    ports = free_ports(1, "127.0.0.1")
    async with running(tmp_path, Desk(desired(*ports)), ports) as made:
        await mailboxes(made, 1)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bind": "everywhere"}, "--bind"),
        ({"address": "relay.example"}, "--address"),
        ({"port_first": 80}, "1024"),
        ({"port_first": 65000, "port_count": 1000}, "65535"),
        ({"port_count": 0}, "not within"),
        ({"gauge_port": 41007}, "--gauge-port"),
        ({"gauge_port": 80}, "--gauge-port"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_opened(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    """In words that name the option."""
    settings = service.RelaySettings(url="https://127.0.0.1:1", host_id="h", name="relay-1", audience="a")
    with pytest.raises(RelayMisconfigured, match=word):
        await service.run(settings, service.RelayOptions(data_dir=tmp_path, **changes))


def test_a_folder_without_a_relay_is_none_and_a_damaged_one_an_error(tmp_path: Path) -> None:
    """Somebody who restores half a backup learns what to do."""
    assert service.load(tmp_path) is None
    (tmp_path / service.RELAY_FILE).write_text("{")
    with pytest.raises(RelayNotEnrolled, match="cannot be read"):
        service.load(tmp_path)
