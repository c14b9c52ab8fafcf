"""Words of a command line, read: durations, GPUs, names, addresses."""

import math
import re
from dataclasses import dataclass
from ipaddress import IPv4Address

from corral.cli.output import UsageProblem
from corral.core.ids import is_name

GPUS_MAX = 100_000
"""As many as the control plane lets one wish name."""

_DURATION = re.compile(r"^(?:(\d{1,5})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?$")
_TRAFFIC = re.compile(r"^([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(mb|gb|tb)$")
_TRAFFIC_UNITS = {"mb": 10**6, "gb": 10**9, "tb": 10**12}
_GPU = re.compile(r"^([A-Za-z0-9][A-Za-z0-9 ._/+-]{0,78}?)(?::(\d{1,6}))?$")


@dataclass(frozen=True)
class WholeHours:
    """A duration as it is hired: by the whole hour, rounded up."""

    hours: int
    is_rounded: bool


def parse_minutes(text: str, *, shortest: str = "the shortest hire is 1h") -> int:
    """
    Minutes of a duration: `3h`, `90m`, `2d`, `1h30m`, or a plain number of hours.

    Raises:
        UsageProblem: it is no duration, or none at all.
    """
    stripped = text.strip().lower()
    if stripped.isascii() and stripped.isdigit() and len(stripped) < 6:
        minutes = int(stripped) * 60
    else:
        match = _DURATION.match(stripped)
        if match is None or not stripped:
            raise UsageProblem(f"{text!r} is not a duration", hint="write it like 3h, 90m, 2d or 1h30m")
        days, hours, single = (int(part or 0) for part in match.groups())
        minutes = (days * 24 + hours) * 60 + single
    if minutes < 1:
        raise UsageProblem(f"{text!r} is no time at all", hint=shortest)
    return minutes


def parse_life_s(text: str, *, days_max: int) -> int:
    """
    How long a key or a token lives, in seconds.

    Raises:
        UsageProblem: it is no duration, or longer than `days_max` days.
    """
    minutes = parse_minutes(text, shortest="the shortest life is 1m")
    if minutes > days_max * 1440:
        raise UsageProblem(f"{text!r} is longer than {days_max}d; nothing was made", hint=f"at most {days_max}d")
    return minutes * 60


def parse_hours(text: str) -> WholeHours:
    """
    A duration in whole hours, rounded up: clusters are hired by the hour.

    Raises:
        UsageProblem: it is no duration, or longer than a year.
    """
    minutes = parse_minutes(text)
    hours = -(-minutes // 60)
    if hours > 8760:
        raise UsageProblem(f"{text!r} is longer than a year", hint="hire for at most 365d, then `corral extend`")
    return WholeHours(hours, is_rounded=minutes % 60 != 0)


def parse_gpu(text: str) -> tuple[str, int]:
    """
    Model and count of `H100:8` (eight in all) or `H100` (one).

    Raises:
        UsageProblem: it is neither.
    """
    match = _GPU.match(text.strip())
    if match is None or match.group(2) in {"0", "00"}:
        raise UsageProblem(f"{text!r} names no GPUs", hint="write model and count in all, like H100:8")
    count = int(match.group(2) or 1)
    if count > GPUS_MAX:
        raise UsageProblem(f"{text!r} names more GPUs than one cluster can have", hint=f"at most {GPUS_MAX} in all")
    return match.group(1), count


def parse_traffic(text: str) -> int | None:
    """
    Bytes of `5GB`, `500 MB` or `1.5TB`, decimal as networks are measured; None for `none`.

    Raises:
        UsageProblem: it is neither.
    """
    stripped = text.strip().lower()
    if stripped == "none":
        return None
    match = _TRAFFIC.match(stripped)
    if match is None:
        raise UsageProblem(f"{text!r} is no amount of traffic", hint="write it like 5GB or 500MB, or none for no cap")
    return round(float(match.group(1)) * _TRAFFIC_UNITS[match.group(2)])


def checked_name(name: str) -> str:
    """
    The name of a person, a host or a cluster, as it is.

    Raises:
        UsageProblem: it cannot be a name.
    """
    if not is_name(name):
        raise UsageProblem(
            f"{name!r} cannot be a name: at most 40 lower-case letters, digits and hyphens, a letter first"
        )
    return name


def checked_number(value: float, option: str) -> float:
    """
    The value of a numeric option, as it is.

    Raises:
        UsageProblem: it is infinite or no number.
    """
    if not math.isfinite(value):
        raise UsageProblem(f"{option} {value} is no amount; nothing was asked for", hint=f"write it like {option} 1.5")
    return value


def checked_address(text: str, option: str) -> str:
    """
    An IPv4 address, as it is.

    Raises:
        UsageProblem: it is none.
    """
    if not _is_ipv4(text):
        raise UsageProblem(
            f"{option} {text!r} is not an IPv4 address; nothing was asked for", hint=f"write it like {option} 192.0.2.7"
        )
    return text


def checked_bind(text: str, option: str) -> str:
    """
    An IPv4 address and a port to listen on, as they are.

    Raises:
        UsageProblem: one of them is none.
    """
    address, _, port = text.rpartition(":")
    if not _is_ipv4(address) or not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise UsageProblem(
            f"{option} {text!r} is not an IPv4 address and a port; nothing was asked for",
            hint=f"write it like {option} 127.0.0.1:8471",
        )
    return text


def parse_location(text: str) -> tuple[str, str, str]:
    """
    Country, region and city of a text like DE/Hesse/Frankfurt; the last two may be left out.

    Raises:
        UsageProblem: it does not begin with two letters, or has more parts.
    """
    country, *rest = [part.strip() for part in text.split("/")]
    if len(country) != 2 or not country.isascii() or not country.isalpha() or len(rest) > 2:
        raise UsageProblem(
            f"--location {text!r} is not a country of two letters, a region and a city; nothing was asked for",
            hint="write it like --location DE/Hesse/Frankfurt",
        )
    region, city = (*rest, "", "")[:2]
    return country.upper(), region, city


def parse_degrees(text: str) -> tuple[float, float]:
    """
    Latitude and longitude of a text like 50.11,8.68.

    Raises:
        UsageProblem: it is something else, or no place on the earth.
    """
    try:
        latitude, longitude = (float(part) for part in text.split(","))
    except ValueError:
        latitude = longitude = math.nan
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise UsageProblem(
            f"--at {text!r} is not a latitude and a longitude in degrees; nothing was asked for",
            hint="write it like --at 50.11,8.68; south and west are negative: --at=-33.87,151.21",
        )
    return latitude, longitude


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True
