"""Where a cluster is reached: the path form for programs, its own origin for browsers."""

from ipaddress import ip_address
from urllib.parse import quote, urlsplit

ENTER_PATH = "/_corral/enter"


def jobs_url(gateway_address: str, cluster_name: str) -> str:
    """Ray's job endpoint of a cluster at a gateway, for programs with a Bearer key."""
    return f"{gateway_address.rstrip('/')}/c/{cluster_name}"


def cluster_origin(gateway_address: str, cluster_name: str, gateway_domain: str) -> str:
    """
    A cluster's own web origin.

    A gateway that is reached on this machine serves NAME.localhost, which every browser resolves to loopback; any other
    one serves NAME under the gateway domain. Scheme and port are the gateway's.
    """
    parts = urlsplit(gateway_address)
    domain = "localhost" if _is_loopback(parts.hostname or "") else gateway_domain
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme}://{cluster_name}.{domain}{port}"


def enter_url(gateway_address: str, cluster_name: str, gateway_domain: str, ticket: str) -> str:
    """Where a browser redeems a ticket."""
    origin = cluster_origin(gateway_address, cluster_name, gateway_domain)
    return f"{origin}{ENTER_PATH}?ticket={quote(ticket, safe='')}"


def _is_loopback(hostname: str) -> bool:
    if hostname == "localhost" or hostname.endswith(".localhost"):
        return True
    try:
        return ip_address(hostname).is_loopback
    except ValueError:
        return False
