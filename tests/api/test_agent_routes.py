"""The hosts' routes as HTTP: bodies of every kind, replies that are held, and what ends the wait."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from msgspec.structs import replace as replaced

from api.estate import IMAGES, Estate
from corral import devices
from corral.core.ids import HostId
from corral.platform.http import Platform
from corral.platform.nudges import Nudges
from corral.testing.clock import FakeClock, settle
from corral.testing.simulated_host import SimulatedHost
from corral.wire.agent import Report, encode
from keyholders import Keyholder, keyholder

WITHIN_S = 20


@pytest.fixture
def platform(platform: Platform) -> Platform:
    """With images, so that clusters can be booked."""
    return replace(platform, images=IMAGES)


@pytest.fixture
async def estate(
    app: FastAPI, http: Any, platform: Platform, clock: FakeClock, operator: Keyholder, live_nudges: Nudges
) -> Estate:
    """Ada's host and the operator's gateway; the control plane hears its own nudges."""
    ada, bob = await keyholder(platform, "ada"), await keyholder(platform, "bob")
    made = Estate(app, http, platform, clock, operator, ada, bob)
    await made.build()
    await made.run(2)
    return made


class Call:
    """One request, spoken in ASGI: its body arrives in parts, and its connection ends when the test says so."""

    def __init__(self, app: FastAPI, path: str, *parts: bytes, token: str = "", is_complete: bool = True) -> None:
        self.status = 0
        self.body = b""
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for index, part in enumerate(parts):
            more = index < len(parts) - 1 or not is_complete
            self._inbox.put_nowait({"type": "http.request", "body": part, "more_body": more})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode())],
            "client": ("192.0.2.7", 40000),
            "server": ("control", 80),
        }
        self.task = asyncio.create_task(app(scope, self._inbox.get, self._send))

    def hang_up(self) -> None:
        """The client is gone."""
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def answered(self) -> dict[str, Any]:
        """The answer's body, once it is complete."""
        await asyncio.wait_for(self.task, WITHIN_S)
        return json.loads(self.body) if self.body else {}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")


def waiting_report(host: SimulatedHost, **changes: Any) -> bytes:
    """A report whose reply is held: the host has seen all there is."""
    return encode(replace_report(host.report(), hold_s=25.0, **changes))


def replace_report(report: Report, **changes: Any) -> Report:
    """A report with other fields."""
    return replaced(report, **changes)


async def held(estate: Estate, host: SimulatedHost, **changes: Any) -> Call:
    """An exchange of `host` that waits."""
    call = Call(estate.app, "/agent/v1/exchange", waiting_report(host, **changes), token=host.token())
    async with asyncio.timeout(WITHIN_S):
        before = estate.desk._held  # pyright: ignore[reportPrivateUsage]
        while estate.desk._held == before and not call.task.done():  # noqa: ASYNC110  # pyright: ignore[reportPrivateUsage]
            await asyncio.sleep(0.005)
    assert not call.task.done(), call.body
    return call


@pytest.mark.parametrize("path", ["/agent/v1/enrol", "/agent/v1/exchange", "/agent/v1/authorise"])
@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ((b"",), 400, "body_malformed"),
        ((b"{",), 400, "body_malformed"),
        ((b"[]",), 400, "body_malformed"),
        ((b'{"token": "\xff"}',), 400, "body_malformed"),
        ((b'{"x":' + b"[" * 15_000,), 400, "body_malformed"),
        ((b'{"a": "' + b"x" * 3_000_000, b"x" * 3_000_000), 413, "body_too_large"),
    ],
    ids=["empty", "cut", "another", "no-text", "deep", "huge"],
)
async def test_bodies_that_are_no_message_are_refused(
    app: FastAPI, path: str, parts: tuple[bytes, ...], status: int, code: str
) -> None:
    """Whatever strangers send, they learn what is wrong, and the log tells of no failure of ours."""
    with structlog.testing.capture_logs() as logs:
        call = Call(app, path, *parts)
        answer = await call.answered()
    assert (call.status, answer["code"]) == (status, code)
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []


@pytest.mark.parametrize("path", ["/agent/v1/enrol", "/agent/v1/exchange", "/agent/v1/authorise"])
async def test_a_host_that_hangs_up_within_its_message_is_no_failure_of_ours(app: FastAPI, path: str) -> None:
    """Networks break; that is worth no stack trace."""
    with structlog.testing.capture_logs() as logs:
        call = Call(app, path, b'{"tok', is_complete=False)
        call.hang_up()
        await call.answered()
    assert call.status == 0
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []


async def test_a_held_reply_is_woken_by_a_change(estate: Estate) -> None:
    """Nobody polls: the commit that changes a host's desired state ends the wait of its host, and of no other."""
    barn, gate = estate.host("barn"), estate.host("gate")
    mine, other = await held(estate, barn), await held(estate, gate)
    async with estate.platform.database.transaction() as tx:
        await devices.bump(tx, [HostId(barn.host_id)])
    answer = await mine.answered()
    assert mine.status == 200
    assert answer["revision"][1] > barn.seen.number
    assert not other.task.done()
    other.hang_up()
    await other.answered()


async def test_a_held_reply_ends_with_its_time(estate: Estate) -> None:
    """After 25 s without news the state is told again, unchanged."""
    barn = estate.host("barn")
    call = await held(estate, barn)
    await settle()
    estate.clock.advance(25)
    answer = await call.answered()
    assert (call.status, answer["revision"]) == (200, [barn.seen.epoch, barn.seen.number])


async def test_a_host_that_hangs_up_is_no_longer_waited_for(estate: Estate) -> None:
    """Its place is free at once."""
    call = await held(estate, estate.host("barn"))
    call.hang_up()
    await call.answered()
    assert call.status == 204
    assert estate.desk._held == 0  # pyright: ignore[reportPrivateUsage]
    assert estate.desk._superseded == {}  # pyright: ignore[reportPrivateUsage]


async def test_a_later_report_ends_the_wait_of_the_one_before(estate: Estate) -> None:
    """A host has one exchange at a time; what the later one says is stored."""
    barn = estate.host("barn")
    first = await held(estate, barn)
    second = Call(estate.app, "/agent/v1/exchange", waiting_report(barn), token=barn.token())
    await first.answered()
    assert first.status == 200
    assert not second.task.done()
    second.hang_up()
    await second.answered()


async def test_a_process_that_stops_answers_every_held_reply(estate: Estate) -> None:
    """SIGTERM while hosts wait: each gets its state at once, and nobody is cut off."""
    calls = [await held(estate, estate.host("barn")), await held(estate, estate.host("gate"))]
    estate.platform.nudges.stop()
    estate.desk.close()
    for call in calls:
        assert "revision" in await call.answered()
        assert call.status == 200
    late = Call(
        estate.app,
        "/agent/v1/exchange",
        waiting_report(estate.host("barn")),
        token=estate.host("barn").token(),
    )
    await late.answered()
    assert late.status == 200


async def test_a_waiting_renter_sees_a_change_at_once_and_is_told_when_the_server_stops(estate: Estate) -> None:
    """The long poll of clusters: an answer by a nudge, after its time, or the reason why there is none."""
    await estate.book(estate.renter, "mnist")
    shown = await estate.ok("GET", "/v1/clusters/mnist", estate.renter)
    path = f"/v1/clusters/mnist?newer_than={shown['version']}&wait_s=25"
    waiting = asyncio.create_task(estate.ok("GET", path, estate.renter))
    await estate.run(1)
    assert (await asyncio.wait_for(waiting, WITHIN_S))["version"] > shown["version"]
    newest = (await estate.ok("GET", "/v1/clusters/mnist", estate.renter))["version"] + 1000
    path = f"/v1/clusters/mnist?newer_than={newest}&wait_s=25"
    stopped = asyncio.create_task(estate.http.get(path, headers=estate.renter.headers))
    for _ in range(100):
        if estate.platform.nudges._of_key:  # pyright: ignore[reportPrivateUsage]
            break
        await asyncio.sleep(0.01)
    with structlog.testing.capture_logs() as logs:
        estate.platform.nudges.stop()
        answer = await asyncio.wait_for(stopped, WITHIN_S)
    assert (answer.status_code, answer.json()["code"]) == (503, "server_stopping")
    [line] = [entry for entry in logs if entry["event"] == "http.unavailable"]
    assert "exc_info" not in line


@pytest.mark.parametrize("revision", [[1, 2**63], [2**63, 1], [-1, 1], [10**30, 0]])
async def test_a_revision_that_nobody_made_confirms_nothing(estate: Estate, revision: list[int]) -> None:
    """A host that claims the absurd is refused; one that is merely ahead frees no device by it."""
    barn = estate.host("barn")
    body = json.loads(encode(barn.report())) | {"applied": revision}
    call = Call(estate.app, "/agent/v1/exchange", json.dumps(body).encode(), token=barn.token())
    answer = await call.answered()
    assert (call.status, answer["code"]) in [(422, "report_refused"), (400, "body_malformed")]


async def test_a_host_ahead_of_a_restored_database_frees_no_device(estate: Estate) -> None:
    """It applied what the lost past said; that is no proof that the present's nodes are gone."""
    barn = estate.host("barn")
    await estate.book(estate.renter, "mnist")
    await estate.run()
    assert (await estate.ok("DELETE", "/v1/clusters/mnist", estate.renter))["state"] == "ending"
    report = replace_report(barn.report(), nodes=(), applied=replace_revision(barn, 1000))
    call = Call(estate.app, "/agent/v1/exchange", encode(report), token=barn.token())
    await call.answered()
    assert call.status == 200
    shown = await estate.ok("GET", "/v1/hosts/barn", estate.provider)
    assert "cleaning" in [device["status"] for device in shown["devices"]]
    async with estate.platform.database.transaction() as tx:
        await devices.begin_epoch(tx)
    barn.restart_agent()
    await estate.run(4)
    shown = await estate.ok("GET", "/v1/hosts/barn", estate.provider)
    assert [device["status"] for device in shown["devices"]] == ["idle", "idle"]


def replace_revision(host: SimulatedHost, ahead: int) -> Any:
    """What a host would have applied had it seen `ahead` more states."""
    return replaced(host.applied, number=host.applied.number + ahead)
