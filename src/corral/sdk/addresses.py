"""Addresses: which may be spoken to in plain HTTP, and how they are written."""

import ipaddress
from urllib.parse import urlsplit

from corral.sdk.errors import AddressRefused

DEFAULT_URL = "https://127.0.0.1:8470"


def is_loopback(host: str) -> bool:
    """Whether `host` can only mean this machine: localhost, NAME.localhost, 127.0.0.0/8 or ::1."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked_url(url: str) -> str:
    """
    Returns `url` without a trailing slash.

    Raises:
        AddressRefused: not an HTTPS address, nor an HTTP one of this machine; or it carries a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    has_blanks = any(character.isspace() or not character.isprintable() for character in url)
    if not host or has_blanks or parts.scheme not in {"http", "https"} or parts.query or parts.fragment:
        raise AddressRefused(
            f"{url!r} is not an address of a control plane", hint="write it like https://corral.example:8470", url=url
        )
    if parts.username is not None or parts.password is not None:
        raise AddressRefused("an address must not carry a name or password", hint="use `corral login` for the key")
    if parts.scheme == "http" and not is_loopback(host):
        raise AddressRefused(
            f"{url} is plain HTTP to another machine: your key would be readable on the way; nothing was sent",
            hint=f"use https://{parts.netloc}",
            url=url,
        )
    return url.rstrip("/")


def host_of(url: str) -> str:
    """The host name or address of a checked URL."""
    return urlsplit(url).hostname or ""


def is_plain(url: str) -> bool:
    """Whether a checked URL is plain HTTP (on this machine)."""
    return url.startswith("http://")
