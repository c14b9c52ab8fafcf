"""Hosts as their providers see them."""

from datetime import datetime
from typing import Any, cast

from corral.core.ids import DeviceId
from corral.devices.hosts import DeviceRow, Host
from corral.devices.state import Health, Intent, Liveness, device_status, is_offered, liveness_of, status_of
from corral.wire import api


def host_view(
    host: Host,
    devices: list[DeviceRow],
    hires: dict[DeviceId, bool],
    *,
    now: datetime,
    serving_since: datetime,
    offline_after_s: float,
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
    """
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
