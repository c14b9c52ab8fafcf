"""What is called ready, read from answers that Ray 2.60 gave, and from odd ones."""

import json
from pathlib import Path

import pytest

from corral.agent.gateway.probe import (
    INCOMPLETE_PERIOD_S,
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
    """Two nodes alive; then one killed, whose entry stays with the state DEAD."""
    assert alive_addresses(sample("nodes_two_alive")) == ("10.128.0.2", "10.128.0.3")
    assert alive_addresses(sample("nodes_one_dead")) == ("10.128.0.2",)


@pytest.mark.parametrize(
    "answer",
    [
        None, [], {}, "text", 7, {"data": None}, {"data": []}, {"data": {"summary": {}}},
        {"data": {"summary": [None, 1, {}, {"raylet": None}, {"raylet": {"state": "ALIVE"}}]}},
        {"data": {"summary": [{"ip": "10.128.0.2\r\nX: y", "raylet": {"state": "ALIVE"}}]}},
        {"data": {"summary": [{"ip": ["10.128.0.2"], "raylet": {"state": "ALIVE"}}]}},
        {"data": {"summary": [{"ip": "10.128.0.2", "raylet": {"state": "DEAD"}}]}},
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
    found = await LeafProbe(browserless, gateway.leaf_url, LEAF_SECRET).look()
    assert found == Readiness()
    assert sorted(path for _, path, _ in gateway.head.requests) == ["/api/jobs/", "/nodes?view=summary"]
    gateway.head.answers = {"/api/jobs/": [], "/nodes?view=summary": sample("nodes_two_alive")}
    found = await LeafProbe(browserless, gateway.leaf_url, LEAF_SECRET).look()
    assert found == Readiness(alive=("10.128.0.2", "10.128.0.3"), serves=True)
    assert await LeafProbe(browserless, gateway.leaf_url, "wrong").look() == Readiness()
    assert await LeafProbe(browserless, "http://127.0.0.1:1", LEAF_SECRET).look() == Readiness()
