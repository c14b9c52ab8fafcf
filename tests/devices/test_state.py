"""The pure rules about hosts: their one word, their capacity, late reports."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.devices.capacity import check_devices, check_hardware
from corral.devices.errors import ReportRefused
from corral.devices.state import Health, Intent, Liveness, is_offered, liveness_of, may_become, status_of
from corral.wire.agent import Cpu, DeviceOffer, Hardware

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.sampled_from(Intent), st.sampled_from(Health), st.sampled_from(Liveness), st.integers(0, 3))
def test_only_offered_hosts_are_called_idle(intent: Intent, health: Health, liveness: Liveness, hired: int) -> None:
    """Counts shown equal what can be rented."""
    word = status_of(intent, health, liveness, hired=hired)
    assert (word in ("idle", "hired")) == is_offered(intent, health, liveness)
    assert (word == "left") == (intent is Intent.LEFT)


def test_nobody_comes_back_from_left() -> None:
    """A host that left enrols anew."""
    assert [intent for intent in Intent if may_become(Intent.LEFT, intent)] == [Intent.LEFT]


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_host_is_never_dead_before_it_could_be_heard(silent_s: int, serving_s: int) -> None:
    """Within one period of our own start silence proves nothing."""
    seen, since = NOW - timedelta(seconds=silent_s), NOW - timedelta(seconds=serving_s)
    found = liveness_of(seen, now=NOW, serving_since=since, offline_after_s=75)
    assert (found is Liveness.ONLINE) == (silent_s < 75)
    assert (found is Liveness.OFFLINE) == (silent_s >= 75 and serving_s >= 75)


def hardware(cores: float) -> Hardware:
    return Hardware(cpu=Cpu(model="m", cores=cores), memory_bytes=1000, disk_free_bytes=1000)


def a_slice(index: int, cores: float) -> DeviceOffer:
    return DeviceOffer(key=f"cpu-{index}", kind="cpu", model="m", cores=cores, memory_bytes=1, disk_bytes=1)


@given(st.floats(0.01, 64), st.integers(1, 20))
def test_devices_never_exceed_their_host(cores: float, count: int) -> None:
    """Even shares fit; one more of them does not."""
    share = cores / count
    if share < 0.01:
        return
    check_devices(tuple(a_slice(index, share) for index in range(count)), hardware(cores))
    with pytest.raises(ReportRefused):
        check_devices(tuple(a_slice(index, share) for index in range(count + 1)), hardware(cores))


@pytest.mark.parametrize("cores", [math.nan, math.inf, -1, 1e9])
def test_absurd_hardware_is_refused(cores: float) -> None:
    """Numbers that no machine has."""
    with pytest.raises(ReportRefused):
        check_hardware(hardware(cores))


def test_a_device_key_twice_is_refused() -> None:
    """Keys name devices."""
    with pytest.raises(ReportRefused):
        check_devices((a_slice(0, 1), a_slice(0, 1)), hardware(8))
