"""What can go wrong between hosts, their providers and the control plane."""

from corral.core.errors import CorralError
from corral.core.ids import DeviceId


class DevicesError(CorralError):
    """Base of this domain's errors."""

    code = "devices_error"


class JoinTokenUnknown(DevicesError):
    """No such join token, or its secret part is wrong: the two are not told apart."""

    code = "join_token_unknown"

    def __init__(self) -> None:
        super().__init__("this join token is not known; the host was not enrolled", hint="corral host join")


class JoinTokenExpired(DevicesError):
    """The join token's time is over."""

    code = "join_token_expired"

    def __init__(self, expired_at: str) -> None:
        super().__init__(
            f"this join token expired at {expired_at}; the host was not enrolled",
            hint="corral host join",
            expired_at=expired_at,
        )


class JoinTokenUsed(DevicesError):
    """The join token has let in as many hosts as it may."""

    code = "join_token_used"

    def __init__(self, uses_max: int) -> None:
        super().__init__(
            f"this join token has been used {uses_max} of {uses_max} times; the host was not enrolled",
            hint="corral host join, or corral fleet token for many hosts",
            uses_max=uses_max,
        )


class JoinTokenForeign(DevicesError):
    """The join token is for another role than the one asked for."""

    code = "join_token_foreign"

    def __init__(self, token_role: str, role: str) -> None:
        super().__init__(
            f"this join token is for the role {token_role}, not {role}; the host was not enrolled",
            token_role=token_role,
            role=role,
        )


class EnrolmentMalformed(DevicesError):
    """The request does not prove its key, or contradicts itself."""

    code = "enrolment_malformed"

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; the host was not enrolled")


class HostIdentityTaken(DevicesError):
    """The machine is enrolled already, with another key."""

    code = "host_identity_taken"

    def __init__(self) -> None:
        super().__init__(
            "this machine is enrolled already, with another key; nothing was changed",
            hint="corral host leave on the old entry, or restore the agent's volume",
        )


class HostNameTaken(DevicesError):
    """Another living host of this provider has the name."""

    code = "host_name_taken"

    def __init__(self, name: str) -> None:
        super().__init__(f"you have a host named {name} already; the host was not enrolled", name=name)


class HostRefused(DevicesError):
    """A host's token is not valid, or the host is no longer one of ours."""

    code = "host_refused"

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; nothing was read or changed")


class HostUnknown(DevicesError):
    """The caller has no host of that name or id."""

    code = "host_unknown"

    def __init__(self, name: str) -> None:
        super().__init__(f"you have no host {name}", hint="corral host list", name=name)


class HostHasLeft(DevicesError):
    """A host that left cannot be steered any more."""

    code = "host_has_left"

    def __init__(self, name: str) -> None:
        super().__init__(f"host {name} has left; nothing was changed", hint="corral host join", name=name)


class ReportRefused(DevicesError):
    """A report contradicts itself or claims the absurd."""

    code = "report_refused"

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; nothing of the report was stored")


class LocationContradicted(DevicesError):
    """A host cannot be where it is said to be: a relay answers sooner than light could."""

    code = "location_contradicted"

    def __init__(self, host: str, words: str, *, relay: str, distance_km: float, rtt_ms: float) -> None:
        super().__init__(
            f"host {host} cannot be in {words}: relay {relay} is {distance_km:.0f} km from there, but a round trip to "
            f"it takes {rtt_ms:.1f} ms, so the host is within {rtt_ms * 100:.0f} km of it; nothing was changed",
            hint="give the place where the machine is; if the relay's place is wrong, tell its operator",
            relay=relay,
            distance_km=round(distance_km),
            rtt_ms=round(rtt_ms, 1),
        )


class DeviceTaken(DevicesError):
    """Devices were hired by somebody else in the meantime, or are no longer offered."""

    code = "device_taken"

    def __init__(self, device_ids: list[DeviceId]) -> None:
        self.device_ids = device_ids
        super().__init__(
            f"{len(device_ids)} of the devices were taken in the meantime; nothing was booked or charged",
            hint="ask for a new quote",
            device_ids=list(device_ids),
        )
