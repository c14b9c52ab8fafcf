"""
A host's state: two stored facts (the provider's intent, the host's health) and what is derived from them.

The one word that people see is computed here and nowhere else.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from corral.wire.agent import Check
from corral.wire.api import HostStatus


class Intent(StrEnum):
    """What the provider wants of a host."""

    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"
    LEFT = "left"


class Health(StrEnum):
    """What the host's own checks say; `FAILED` goes with the name of the first failing rule."""

    CHECKING = "checking"
    OK = "ok"
    FAILED = "failed"


class Liveness(StrEnum):
    """Whether a host is heard of; `UNKNOWN` until it could have been heard of since we started."""

    ONLINE = "online"
    UNKNOWN = "unknown"
    OFFLINE = "offline"


DeviceStatus = Literal["idle", "hired", "cleaning", "unavailable"]

_INTENTS: dict[Intent, frozenset[Intent]] = {
    Intent.ACTIVE: frozenset({Intent.PAUSED, Intent.DRAINING}),
    Intent.PAUSED: frozenset({Intent.ACTIVE, Intent.DRAINING}),
    Intent.DRAINING: frozenset({Intent.ACTIVE, Intent.PAUSED, Intent.LEFT}),
    Intent.LEFT: frozenset(),
}


def may_become(intent: Intent, wanted: Intent) -> bool:
    """Whether a host may go from one intent to another; staying is always allowed, coming back from `left` never."""
    return intent == wanted or wanted in _INTENTS[intent]


def liveness_of(
    last_seen_at: datetime | None, *, now: datetime, serving_since: datetime, offline_after_s: float
) -> Liveness:
    """
    Whether a host is online.

    Args:
        last_seen_at: when its last exchange began; None if never.
        now: the present.
        serving_since: when this control plane began to listen. A host that could not have been heard of is unknown for
            one period, never dead: silence of ours proves nothing about it.
        offline_after_s: the period, seconds.
    """
    period = timedelta(seconds=offline_after_s)
    if last_seen_at is not None and now - last_seen_at < period:
        return Liveness.ONLINE
    return Liveness.UNKNOWN if now - serving_since < period else Liveness.OFFLINE


def status_of(intent: Intent, health: Health, liveness: Liveness, *, hired: int) -> HostStatus:
    """
    The one word for a host.

    What the provider must know first wins: that it left, that it is silent, that it drains, that a rule fails, then
    what it does. `hired` counts devices that are hired or being cleaned.
    """
    if intent is Intent.LEFT:
        return "left"
    if liveness is Liveness.OFFLINE:
        return "offline"
    if intent is Intent.DRAINING:
        return "draining"
    if health is Health.FAILED:
        return "failed"
    if health is Health.CHECKING or liveness is Liveness.UNKNOWN:
        return "checking"
    if intent is Intent.PAUSED:
        return "paused"
    return "hired" if hired else "idle"


def is_offered(intent: Intent, health: Health, liveness: Liveness) -> bool:
    """Whether idle devices of such a host can be rented."""
    return intent is Intent.ACTIVE and health is Health.OK and liveness is Liveness.ONLINE


def device_status(*, present: bool, hired: bool, cleaning: bool, offered: bool) -> DeviceStatus:
    """The one word for a device."""
    if cleaning:
        return "cleaning"
    if hired:
        return "hired"
    return "idle" if present and offered else "unavailable"


def health_of(checks: tuple[Check, ...]) -> tuple[Health, str]:
    """Health from the requirement table, and the first failing rule (empty if none fails)."""
    if not checks:
        return Health.CHECKING, ""
    for check in checks:
        if check.outcome == "fail":
            return Health.FAILED, check.rule
    return Health.OK, ""
