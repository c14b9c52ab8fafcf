"""What the agent writes into its gateway containers, and where people reach the gateway."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from corral.agent.gateway.front import front_configuration
from corral.agent.gateway.web import leaf_configuration
from corral.core.errors import CorralError
from corral.wire.agent import LeafSpec, Secrets

DEVELOPMENT_DOMAIN = "localhost"


class GatewayAddressRefused(CorralError):
    """The address at which people should reach a gateway is none."""

    code = "gateway_address_refused"


@dataclass(frozen=True, kw_only=True)
class GatewaySite:
    """Where people reach a gateway."""

    address: str
    """The origin, for example `https://gateway.example.org` or `http://127.0.0.1:8471`."""
    domain: str
    """Clusters are served at `NAME.<domain>`."""
    is_secure: bool
    """Whether browsers arrive over TLS."""

    @classmethod
    def at(cls, address: str) -> "GatewaySite":
        """
        The site at an address; one without a DNS name (an IP address) serves clusters at `NAME.localhost`.

        Raises:
            GatewayAddressRefused: not an http or https origin, or plain http beyond this machine.
        """
        parts = urlsplit(address)
        host = (parts.hostname or "").lower()
        if parts.scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.query or parts.username:
            raise GatewayAddressRefused(
                f"{address!r} is not the address of a gateway", hint="write https://HOST[:PORT]", address=address
            )
        is_here = host == DEVELOPMENT_DOMAIN or _is_loopback(host)
        if parts.scheme == "http" and not is_here:
            raise GatewayAddressRefused(
                f"{address} would carry keys in the clear", hint="put TLS in front and give its https address"
            )
        domain = DEVELOPMENT_DOMAIN if is_here or _is_address(host) else host
        return cls(address=address.rstrip("/"), domain=domain, is_secure=parts.scheme == "https")


class GatewayConfigurer:
    """The nginx configurations of one gateway's containers."""

    def __init__(self, site: GatewaySite) -> None:
        self._site = site

    def leaf_configuration(self, leaf: LeafSpec, secrets: Secrets, leaf_secret: str) -> str:
        """The web server in a leaf's network namespace."""
        return leaf_configuration(leaf, secrets, leaf_secret)

    def front_configuration(self, leaves: Sequence[tuple[str, str, str]]) -> str:
        """The front. It is the same whatever leaves there are, so that none's coming cuts another's connections."""
        del leaves
        return front_configuration(domain=self._site.domain)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return _is_address(host) and ip_address(host).is_loopback
