"""The requirement table."""

import pytest

from corral.agent.hardware.engine import EngineFacts
from corral.agent.requirements import Link, RequirementFacts, check_requirements, failing
from corral.core.units import GB


def an_engine(**changes) -> EngineFacts:
    values = {
        "engine_id": "E", "version": "20.10.24", "api_version": (1, 41), "kernel": "6.1", "os": "Debian 12",
        "runtimes": ("runc",), "has_cpu_limit": True, "has_memory_limit": True, "has_pids_limit": True,
        "is_rootless": False,
    }  # fmt: skip
    return EngineFacts(**(values | changes))


def facts(**changes) -> RequirementFacts:
    values = {
        "memory_bytes": 64 * GB, "disk_free_bytes": 900 * GB, "engine": an_engine(), "tun_error": "",
        "clock_skew_s": 0.5, "missing_images": (),
    }  # fmt: skip
    return RequirementFacts(**(values | changes))


def outcomes(found: RequirementFacts, *, development: bool = False) -> dict[str, str]:
    return {row.rule: row.outcome for row in check_requirements(found, development=development)}


def test_a_good_host_passes_and_connectivity_is_said_not_to_be_measured():
    """The three rows of connectivity are shown, so that nobody takes them for passed."""
    found = outcomes(facts())
    assert {rule for rule, outcome in found.items() if outcome == "not_measured"} == {"download", "upload", "ping"}
    assert all(outcome == "pass" for rule, outcome in found.items() if rule not in ("download", "upload", "ping"))


@pytest.mark.parametrize(
    ("link", "expected", "words"),
    [
        ((900, 900, 5), ("pass", "pass", "pass"), ("900 Mbit/s", "900 Mbit/s", "5.0 ms")),
        ((499.9, 250, 30), ("pass", "pass", "pass"), ("less than recommended", "250 Mbit/s", "more than recommended")),
        ((249.9, 900, 5), ("fail", "pass", "pass"), ("249 Mbit/s", "900 Mbit/s", "5.0 ms")),
        ((900, 20, 0), ("pass", "fail", "not_measured"), ("900", "20 Mbit/s", "not measured yet")),
    ],
)
def test_a_slow_link_keeps_a_host_out_and_a_fair_one_is_shown(
    link: tuple[float, float, float], expected: tuple[str, str, str], words: tuple[str, str, str]
):
    """250 Mbit/s each way are needed; what is recommended beyond that, and a long way, keep nobody out."""
    measured = Link(download_mbit_s=link[0], upload_mbit_s=link[1], rtt_ms=link[2])
    rows = check_requirements(facts(link=measured), development=False)[-3:]
    assert tuple(row.outcome for row in rows) == expected
    assert all(word in row.value for row, word in zip(rows, words, strict=True))
    assert all(row.remedy for row in rows if row.outcome == "fail")
    relaxed = outcomes(facts(link=measured), development=True)
    assert "fail" not in relaxed.values()


def test_every_failing_row_has_value_need_and_remedy():
    """A provider reads what was found, what is needed and what to do."""
    bad = facts(
        memory_bytes=8 * GB, disk_free_bytes=100 * GB, tun_error="Operation not permitted",
        engine=an_engine(api_version=(1, 40), has_pids_limit=False),
    )  # fmt: skip
    rows = failing(check_requirements(bad, development=False))
    assert [row.rule for row in rows] == ["memory", "disk", "engine", "tun", "limits"]
    assert all(row.value and row.need and row.remedy for row in rows)
    assert "8.0 GB" in rows[0].value
    assert "processes" in rows[4].value


def test_development_relaxes_visibly_but_not_what_nothing_works_without():
    """Relaxed rows keep their value and remedy."""
    bad = facts(memory_bytes=GB, disk_free_bytes=GB, tun_error="no", engine=None)
    found = outcomes(bad, development=True)
    assert found["memory"] == found["disk"] == "relaxed"
    assert found["engine"] == found["tun"] == "fail"
    [memory, *_] = check_requirements(bad, development=True)
    assert memory.remedy


def test_a_host_without_the_images_of_nodes_is_kept_out_in_development_too():
    """A start there would fail; before anybody named the images, the row says so and keeps nobody out."""
    [row] = failing(check_requirements(facts(missing_images=("sha256:ab",)), development=True))
    assert (row.rule, row.value) == ("images", "missing: sha256:ab")
    assert outcomes(facts(missing_images=None))["images"] == "not_measured"


def test_a_wrong_clock_is_shown_and_keeps_no_host_out():
    """Tokens are made with the control plane's time."""
    assert outcomes(facts(clock_skew_s=-4000.0))["clock"] == "relaxed"
    assert outcomes(facts(clock_skew_s=None))["clock"] == "not_measured"
    assert not failing(check_requirements(facts(clock_skew_s=1e9), development=False))


def test_a_rootless_engine_does_not_do():
    """It can give no node what it needs."""
    assert outcomes(facts(engine=an_engine(is_rootless=True)))["engine"] == "fail"
