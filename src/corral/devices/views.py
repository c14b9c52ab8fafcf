"""Hosts as their providers see them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import msgspec

from corral.core.ids import DeviceId, HostId
from corral.devices.connection import Connection
from corral.devices.hosts import DeviceRow, Host
from corral.devices.state import Health, Intent, Liveness, device_status, is_offered, liveness_of, status_of
from corral.protocol.tiers import MBIT, is_recommended
from corral.wire import api


def host_view(
    host: Host,
    devices: list[DeviceRow],
    hires: dict[DeviceId, bool],
    *,
    now: datetime,
    serving_since: datetime,
    offline_after_s: float,
    relay_names: Mapping[HostId, str] | None = None,
) -> api.Host:
    """
    A host with its one word.

    Args:
        host: the host.
        devices: its devices; those that vanished are shown only while they are hired.
        hires: devices that are hired; True while one is being cleaned.
        now: the present.
        serving_since: since when hosts could be heard of.
        offline_after_s: silence after which a host is offline, seconds.
        relay_names: names of relays by id; one that is missing is shown by its id.
    """
    relay_names = relay_names or {}
    liveness = liveness_of(host.last_seen_at, now=now, serving_since=serving_since, offline_after_s=offline_after_s)
    offered = is_offered(host.intent, host.health, liveness) and host.role == "host"
    hardware = host.hardware
    shown = [device for device in devices if device.present or device.device_id in hires]
    return api.Host(
        id=host.host_id,
        name=host.name,
        role=cast(Any, host.role),
        status=status_of(host.intent, host.health, liveness, hired=len(hires)),
        reason=_reason(host, liveness, hired=len(hires), devices=len(shown)),
        intent=host.intent.value,
        development=host.development,
        last_seen_at=host.last_seen_at,
        clock_skew_s=host.clock_skew_s,
        agent_version=host.agent_version,
        cpu_model=hardware.cpu.model if hardware else "",
        cores=hardware.cpu.cores if hardware else 0.0,
        memory_bytes=hardware.memory_bytes if hardware else 0,
        disk_free_bytes=hardware.disk_free_bytes if hardware else 0,
        traffic_cap_bytes=host.traffic_cap_bytes,
        gpus=[gpu.model for gpu in hardware.gpus] if hardware else [],
        devices=[_device_view(device, hires, offered=offered) for device in shown],
        checks=[
            api.HostCheck(
                rule=check.rule, outcome=check.outcome, value=check.value, need=check.need, remedy=check.remedy
            )
            for check in host.checks
        ],
        connection=None if host.connection is None else _connection_view(host.connection, relay_names),
        location=None if host.location is None else api.Location(**msgspec.structs.asdict(host.location)),
        location_note=host.location_note,
    )


def _connection_view(connection: Connection, relay_names: Mapping[HostId, str]) -> api.Connection:
    has_bandwidth, has_rtt = connection.bandwidth_at is not None, connection.rtt_us > 0
    return api.Connection(
        download_mbit_s=round(connection.download_bit_s / MBIT, 1) if has_bandwidth else None,
        upload_mbit_s=round(connection.upload_bit_s / MBIT, 1) if has_bandwidth else None,
        bandwidth_at=connection.bandwidth_at,
        relay=relay_names.get(HostId(connection.nearest_id), connection.nearest_id),
        rtt_ms=connection.rtt_us / 1000 if has_rtt else None,
        jitter_ms=connection.jitter_us / 1000 if has_rtt else None,
        loss_percent=connection.loss_ppm / 10_000 if has_rtt else None,
        measured_at=connection.measured_at,
        tier=connection.tier,
        is_recommended=is_recommended(connection.download_bit_s, connection.upload_bit_s, connection.rtt_us),
    )


def _device_view(device: DeviceRow, hires: dict[DeviceId, bool], *, offered: bool) -> api.Device:
    return api.Device(
        id=device.device_id,
        key=device.key,
        kind=cast(Any, device.kind),
        model=device.model,
        cores=device.cores,
        memory_bytes=device.memory_bytes,
        disk_bytes=device.disk_bytes,
        gpu_memory_bytes=device.gpu_memory_bytes,
        status=device_status(
            present=device.present,
            hired=device.device_id in hires,
            cleaning=hires.get(device.device_id, False),
            offered=offered,
        ),
    )


def _reason(host: Host, liveness: Liveness, *, hired: int, devices: int) -> str:
    share = f"{hired} of {devices} {'device' if devices == 1 else 'devices'}"
    seen = "never" if host.last_seen_at is None else host.last_seen_at.isoformat(timespec="seconds")
    if host.intent is Intent.LEFT:
        return "it left"
    if liveness is Liveness.OFFLINE:
        return f"last heard of: {seen}"
    if host.intent is Intent.DRAINING:
        return f"it leaves when its hired devices are free: {hired} {'is' if hired == 1 else 'are'} not yet"
    if host.health is Health.FAILED:
        failing = next((check for check in host.checks if check.rule == host.failing_rule), None)
        if failing is None:
            return host.failing_rule
        return f"{failing.rule}: {failing.value}, needs {failing.need}"
    if host.health is Health.CHECKING:
        return "its checks have not been reported yet"
    if liveness is Liveness.UNKNOWN:
        return f"not heard of since the control plane started; before that: {seen}"
    if host.intent is Intent.PAUSED:
        return f"paused by its provider; {share} still hired" if hired else "paused by its provider"
    return share if hired else ""
