"""The assembled agent on a fake engine: what it says first, what it takes, and how an installation is refused."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from agent.containers.builders import HOST, NET_IMAGE, NOW, RAY_IMAGE, a_desired, a_node, facts
from agent.test_connectivity import Client, Gauge, spec
from corral.agent.control_plane import ControlPlane, ServerTime
from corral.agent.hardware import EngineFacts
from corral.agent.host_engine import HostEngine
from corral.agent.install import InstallationRefused, Wishes, agent_body, install
from corral.agent.loop import Agent, IdentityChanged, _check_identity
from corral.agent.machine import Machine
from corral.agent.nodes import NodeKeeper
from corral.agent.requirements import RequirementFacts
from corral.agent.settings import HostSettings, machine_id, records_folder
from corral.testing.clock import FakeClock, settle
from corral.testing.fake_runtime import FakeEngine, FakeRuntime
from corral.wire.agent import Cpu, Desired, DeviceOffer, Hardware, NodeReport, Report, Revision, encode

SETTINGS = HostSettings(
    url="https://corral.example", host_id=HOST, name="ada-host", audience="corral-x", machine_id="m", engine_id="e"
)


class Desk:
    """A control plane that notes reports and answers with one document at a time."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.answers: asyncio.Queue[Desired] = asyncio.Queue()

    async def exchange(self, report: Report) -> Desired | None:
        self.reports.append(report)
        return await self.answers.get()


class Images:
    """An engine that has every image."""

    async def missing_images(self, images: tuple[str, ...]) -> list[str]:
        return []


class Assembled:
    """An agent with everything around it in plain sight."""

    def __init__(self, folder: Path) -> None:
        self.engine, self.clock, self.desk = FakeEngine(images={NET_IMAGE, RAY_IMAGE}), FakeClock(NOW), Desk()
        self.folder = folder
        self.gauge = Gauge(300, 100, 12)

    @asynccontextmanager
    async def running(self):
        time = ServerTime(self.clock)
        hardware = Hardware(cpu=Cpu(model="EPYC", cores=8.0), memory_bytes=2**36, disk_free_bytes=2**40)
        found = RequirementFacts(memory_bytes=2**36, disk_free_bytes=2**40, engine=None)
        offer = DeviceOffer(key="cpu-0", kind="cpu", model="EPYC", cores=1.0, memory_bytes=2**32, disk_bytes=2**34)
        machine = Machine(found=found, development=False, hardware=hardware, devices=(offer,))
        keeper = NodeKeeper(FakeRuntime(self.engine, HOST), facts(), self.folder, self.clock)
        agent = Agent(
            SETTINGS, machine, keeper, cast(ControlPlane, self.desk), cast(HostEngine, Images()),
            folder=self.folder, clock=self.clock, time=time, site=None,
            gauge_client=cast(Any, lambda spec: Client(self.gauge, spec.relay_id)),
        )  # fmt: skip
        task = asyncio.create_task(agent.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def answer(self, document: Desired) -> None:
        self.desk.answers.put_nowait(document)
        await self.clock.run_for(1)
        await settle()

    def node(self) -> NodeReport:
        (node,) = self.desk.reports[-1].nodes
        return node


@pytest.fixture
def assembled(tmp_path: Path) -> Assembled:
    """An agent that has not begun."""
    return Assembled(tmp_path)


async def test_nothing_is_reported_before_the_host_was_looked_at(assembled: Assembled) -> None:
    """A node that a report does not name counts as unknown: after a restart all of them would."""
    async with assembled.running():
        await settle()
        await assembled.answer(a_desired(1, a_node(1)))
        assert assembled.node().work == "running"
    assembled.engine.is_reachable = False
    began = len(assembled.desk.reports)
    async with assembled.running():
        await assembled.clock.run_for(6)
        assert len(assembled.desk.reports) == began
        assembled.engine.is_reachable = True
        await assembled.clock.run_for(6)
        first = assembled.desk.reports[began]
        assert (first.sequence, first.nodes[0].work, first.nodes[0].pause) == (1, "running", "running")
        assert first.hardware is not None
        assert first.seen == Revision(0, 0)


async def test_what_relays_have_measured_is_told_once_and_keeps_a_slow_host_out(assembled: Assembled) -> None:
    """The statements arrive with the table that follows from them; permits are in no record on disk."""
    async with assembled.running():
        await settle()
        document = msgspec.structs.replace(a_desired(1), gauges=(spec(1),))
        await assembled.answer(document)
        told = [report for report in assembled.desk.reports if report.statements]
        assert len(told[-1].statements) == 2
        assert told[-1].checks is not None
        rows = {row.rule: (row.outcome, row.value) for row in told[-1].checks}
        assert rows["download"] == ("pass", "300 Mbit/s, less than recommended")
        assert rows["upload"] == ("fail", "100 Mbit/s")
        assert rows["ping"] == ("pass", "12.0 ms")
        await assembled.answer(msgspec.structs.replace(document, revision=Revision(1, 2)))
        assert assembled.desk.reports[-1].statements == ()
    kept = [path.read_text() for path in assembled.folder.rglob("*.json")]
    assert any("download_mbit_s" in text for text in kept)
    assert not any("permit" in text and spec(1).permit in text for text in kept)


async def test_a_refused_document_is_not_seen_and_ends_nothing(assembled: Assembled) -> None:
    """The control plane brings it again, without hammering; the one before stays in force."""
    async with assembled.running():
        await settle()
        await assembled.answer(a_desired(1, a_node(1)))
        await assembled.answer(a_desired(2, a_node(1), a_node(1)))
        assert assembled.desk.reports[-1].seen == Revision(1, 1)
        assert len(assembled.engine.processes) == 3
        await assembled.answer(a_desired(3))
        await assembled.clock.run_for(5)
        assert assembled.desk.reports[-1].seen == Revision(1, 3)
        assert assembled.engine.processes == {}


async def test_hardware_is_told_once_and_when_it_is_asked_for(assembled: Assembled) -> None:
    """It is the large part of a report."""
    async with assembled.running():
        await settle()
        await assembled.answer(a_desired(1))
        assert [report.hardware is not None for report in assembled.desk.reports][:2] == [True, False]


def test_another_network_s_record_is_another_folder(tmp_path: Path) -> None:
    """A machine that joins a second control plane would else hold its first, lower revisions for stale for ever."""
    assert records_folder(tmp_path, "hst_a") != records_folder(tmp_path, "hst_b")


async def test_a_copied_machine_is_not_the_same_host() -> None:
    """Two that speak with one key would take turns in being believed."""

    class Engine:
        async def facts(self) -> EngineFacts:
            return EngineFacts(
                engine_id="other", version="24", api_version=(1, 43), kernel="", os="", runtimes=(),
                has_cpu_limit=True, has_memory_limit=True, has_pids_limit=True, is_rootless=False,
            )  # fmt: skip

    with pytest.raises(IdentityChanged, match="another machine or engine"):
        await _check_identity(SETTINGS, cast(HostEngine, Engine()))
    same = HostSettings(url="", host_id=HOST, name="a", audience="", machine_id=machine_id(), engine_id="other")
    await _check_identity(same, cast(HostEngine, Engine()))


@pytest.mark.parametrize(
    "wish",
    [
        {"advertise": "host.example"}, {"advertise": "::1"}, {"cores": float("nan")}, {"memory_gib": float("inf")},
        {"gateway_bind": "8471"}, {"gateway_bind": "0.0.0.0:0"}, {"gateway_bind": "x:80"}, {"slice": "a"},
        {"slice": "A b", "development": True}, {"name": "-"},
    ],
)  # fmt: skip
async def test_an_odd_wish_is_refused_before_anything_is_asked(wish: dict[str, Any]) -> None:
    """An address of another form would make the control plane refuse every report of the host."""
    with pytest.raises(InstallationRefused):
        await install(Wishes(**{"url": "https://corral.example", "cores": 1.0, "memory_gib": 2.0, **wish}), "token")


def test_what_an_agent_lends_is_written_on_its_container() -> None:
    """Other installations on the machine read it there; a gateway lends nothing."""
    whole = agent_body(SETTINGS, ())
    share = agent_body(
        HostSettings(
            url="", host_id=HOST, name="a", audience="", machine_id="", engine_id="e", development=True, slice="x",
            cores=0.5, memory_gib=1.5,
        ), ()
    )  # fmt: skip
    assert whole["Labels"]["corral.cores"] == "all"
    assert (share["Labels"]["corral.cores"], share["Labels"]["corral.memory"]) == ("0.5", str(3 * 2**29))
    assert whole["HostConfig"]["CapDrop"] == ["ALL"]
    assert "Privileged" not in whole["HostConfig"]


def test_the_server_s_time_is_kept_by_what_passes() -> None:
    """Not by a wall clock, which may be set."""
    clock = FakeClock(NOW)
    time = ServerTime(clock)
    time.heard(datetime(2026, 6, 1, tzinfo=UTC))
    clock.advance(60)
    assert time.now() == datetime(2026, 6, 1, tzinfo=UTC) + timedelta(minutes=1)


def test_an_agent_may_run_for_years() -> None:
    """Reports are counted from its start; a bound of a million would end a busy one within a week."""
    said = encode(Report(sequence=10**9, applied=Revision(1, 1), seen=Revision(1, 1)))
    assert msgspec.json.decode(said, type=Report).sequence == 10**9
