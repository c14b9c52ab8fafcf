"""What a host's provider reads about it."""

from datetime import UTC, datetime

import pytest

from corral.core.ids import DeviceId, HostId, PersonId
from corral.devices.hosts import DeviceRow, Host
from corral.devices.state import Health, Intent
from corral.devices.views import host_view

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOST = HostId("hst_1")


def a_host(intent: Intent) -> Host:
    """A host that was heard of just now, and whose checks are good."""
    return Host(
        host_id=HOST,
        provider_id=PersonId("per_1"),
        name="attic",
        role="host",
        machine_id="m",
        engine_id="e",
        slice="",
        public_key="k",
        development=False,
        intent=intent,
        health=Health.OK,
        failing_rule="",
        hardware=None,
        checks=(),
        agent_version="0.1.0",
        advertise="",
        observed_address="192.0.2.1",
        gateway_address="",
        gauge_port=0,
        connection=None,
        tier="",
        location=None,
        location_note="",
        clock_skew_s=0.0,
        last_seen_at=NOW,
        created_at=NOW,
        left_at=None,
    )


@pytest.mark.parametrize(
    ("intent", "devices", "hired", "status", "reason"),
    [
        (Intent.ACTIVE, 1, 0, "idle", ""),
        (Intent.ACTIVE, 1, 1, "hired", "1 of 1 device"),
        (Intent.ACTIVE, 3, 1, "hired", "1 of 3 devices"),
        (Intent.PAUSED, 3, 0, "paused", "paused by its provider"),
        (Intent.PAUSED, 3, 2, "paused", "paused by its provider; 2 of 3 devices still hired"),
        (Intent.DRAINING, 3, 1, "draining", "it leaves when its hired devices are free: 1 is not yet"),
        (Intent.DRAINING, 3, 2, "draining", "it leaves when its hired devices are free: 2 are not yet"),
    ],
)
def test_reason_behind_a_status_reads_well_for_one_and_for_several(
    intent: Intent, devices: int, hired: int, status: str, reason: str
) -> None:
    """It is shown behind the status, as in `hired (1 of 3 devices)`."""
    rows = [
        DeviceRow(DeviceId(f"dev_{number}"), HOST, f"cpu-{number}", "cpu", "EPYC", 1.0, 2**30, 2**30, 0, True)
        for number in range(devices)
    ]
    hires = {row.device_id: False for row in rows[:hired]}
    shown = host_view(a_host(intent), rows, hires, now=NOW, serving_since=NOW, offline_after_s=75)
    assert (shown.status, shown.reason) == (status, reason)
