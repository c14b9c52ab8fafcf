"""What is called ready, read from answers that Ray 2.60 gave, and from odd ones."""

import json
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from corral.agent.gateway.probe import (
    INCOMPLETE_PERIOD_S,
    NODES_PATH,
    READY_PERIOD_S,
    STARTING_PERIOD_S,
    LeafProbe,
    Readiness,
    alive_addresses,
    period_s,
)
from gateway.conftest import LEAF_SECRET

SAMPLES = Path(__file__).parent / "samples"


def sample(name: str):
    return json.loads((SAMPLES / f"{name}.json").read_text())["answer"]


def test_rays_own_answers_are_read():
    """Three nodes alive; a killed one keeps its entry, with the state DEAD."""
    answer = sample("nodes_three_alive")
    assert alive_addresses(answer) == ("10.128.0.1", "10.128.0.2", "10.128.0.3")
    answer["data"]["result"]["result"][0]["state"] = "DEAD"
    assert alive_addresses(answer) == ("10.128.0.2", "10.128.0.3")


@pytest.mark.parametrize(
    "answer",
    [
        None, [], {}, "text", 7, {"data": None}, {"data": []}, {"data": {"result": {"result": {}}}},
        *({"data": {"result": {"result": entries}}} for entries in (
            [None, 1, {}, {"state": "ALIVE"}],
            [{"node_ip": "10.128.0.2\r\nX: y", "state": "ALIVE"}],
            [{"node_ip": ["10.128.0.2"], "state": "ALIVE"}],
            [{"node_ip": "10.128.0.2", "state": "DEAD"}],
        )),
    ],
)  # fmt: skip
def test_odd_answers_mean_that_nothing_is_alive(answer):
    """The answer comes from a stranger's machine."""
    assert alive_addresses(answer) == ()


def test_looks_are_frequent_until_all_is_there():
    """The start waits for this; afterwards it is only watched."""
    expected = frozenset({"10.128.0.2", "10.128.0.3"})
    whole = Readiness(alive=("10.128.0.2", "10.128.0.3"), serves=True)
    part = Readiness(alive=("10.128.0.2",), serves=True)
    assert period_s(whole, expected=expected, incomplete_for_s=0) == READY_PERIOD_S
    assert period_s(whole, expected=frozenset(), incomplete_for_s=0) == STARTING_PERIOD_S
    assert period_s(part, expected=expected, incomplete_for_s=1) == STARTING_PERIOD_S
    assert period_s(part, expected=expected, incomplete_for_s=500) == INCOMPLETE_PERIOD_S


async def test_the_probe_goes_through_the_leaf(gateway, browserless):
    """It needs the leaf's secret, and a head that answers with something else serves no jobs."""
    expected = frozenset({"10.128.0.2", "10.128.0.3"})
    found = await LeafProbe(browserless, gateway.leaf_url, LEAF_SECRET).look(expected)
    assert found == Readiness()
    assert sorted(path for _, path, _ in gateway.head.requests) == ["/api/jobs/", NODES_PATH]
    gateway.head.answers = {"/api/jobs/": [], NODES_PATH: sample("nodes_three_alive")}
    found = await LeafProbe(browserless, gateway.leaf_url, LEAF_SECRET).look(expected)
    assert found == Readiness(alive=("10.128.0.2", "10.128.0.3"), serves=True)
    assert await LeafProbe(browserless, gateway.leaf_url, "wrong").look(expected) == Readiness()
    assert await LeafProbe(browserless, "http://127.0.0.1:1", LEAF_SECRET).look(expected) == Readiness()


@pytest.mark.parametrize(
    "nodes",
    [
        b"[" * 60_000,
        b'{"data":{"result":{"result":[' + b"[]," * 200_000 + b"[]]}}}",
        b'["\xff"]',
        b"\x1f\x8b\x08\x00",
        b"0" * 10_000_000,
    ],
    ids=["deep", "wide", "utf8", "gzip", "long"],
)
async def test_a_hostile_head_costs_neither_memory_nor_the_agent(aiohttp_head, browserless, nodes):
    """Deep, wide, broken and endless answers all mean: nothing is alive."""
    url = await aiohttp_head({"/api/v0/nodes": nodes, "/api/jobs/": b"[" + b"1," * 1_000_000})
    assert await LeafProbe(browserless, url, LEAF_SECRET).look(frozenset({"10.128.0.2"})) == Readiness(serves=True)


async def test_a_head_speaks_of_its_own_cluster_alone(aiohttp_head, browserless):
    """An address of another form would make the control plane refuse the gateway's whole report."""
    entries = [{"node_ip": ip, "state": "ALIVE"} for ip in ("10.128.0.2", "10.128.0.77", "8.8.8.8")]
    answer = json.dumps({"data": {"result": {"result": entries}}}).encode()
    url = await aiohttp_head({"/api/v0/nodes": answer, "/api/jobs/": b"{}"})
    found = await LeafProbe(browserless, url, LEAF_SECRET).look(frozenset({"10.128.0.2", "10.128.0.3"}))
    assert found == Readiness(alive=("10.128.0.2",), serves=False)


@pytest.fixture
async def aiohttp_head():
    """Starts a head that answers with given bytes."""
    runners: list[web.AppRunner] = []

    async def start(answers: dict[str, bytes]) -> str:
        application = web.Application()
        for path, body in answers.items():
            application.router.add_get(path, partial(_answer, body))
        runners.append(runner := web.AppRunner(application))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        return f"http://{host}:{port}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def _answer(body: bytes, _: web.Request) -> web.Response:
    return web.Response(body=body, content_type="application/json")
