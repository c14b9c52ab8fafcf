"""The leaves of a gateway, as its web servers and its probe see them."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from corral.agent.runtime import Container
from corral.wire.agent import LeafSpec, Secrets


class LeafConfigurer(Protocol):
    """Writes the web servers' configurations of a gateway."""

    def leaf_configuration(self, leaf: LeafSpec, secrets: Secrets, leaf_secret: str) -> str:
        """Configuration of a leaf's nginx: it serves who shows `leaf_secret`, and swaps it for Ray's token."""
        ...

    def front_configuration(self, leaves: Sequence[tuple[str, str, str]]) -> str:
        """Configuration of the front's nginx, from (cluster name, leaf's address, leaf's secret)."""
        ...


@dataclass(frozen=True, kw_only=True)
class LeafView:
    """A leaf as the gateway's own services see it."""

    node_id: str
    cluster_id: str
    cluster_name: str
    address: str
    """On the engine's bridge; empty while the leaf does not run."""
    leaf_secret: str
    """Empty until the control plane has sent the cluster's secrets."""
    is_serving: bool

    def __repr__(self) -> str:
        """Keeps the secret out of logs and tracebacks."""
        return f"LeafView({self.cluster_name}, {self.address or 'not running'}, serving={self.is_serving})"


def leaf_view(leaf: LeafSpec, pause: Container | None, secrets: Secrets | None, *, is_serving: bool) -> LeafView:
    """The leaf whose network `pause` owns."""
    return LeafView(
        node_id=leaf.node_id,
        cluster_id=leaf.cluster_id,
        cluster_name=leaf.cluster_name,
        address=pause.address if pause is not None else "",
        leaf_secret=leaf_secret(leaf, secrets) if secrets is not None else "",
        is_serving=is_serving,
    )


def leaf_secret(leaf: LeafSpec, secrets: Secrets) -> str:
    """
    What the front and the prober show to a leaf, hex.

    Derived from the cluster's token, so that it needs no memory and stays the same over our restart. Who knows the
    token gains nothing by it: the token is what the leaf would add.
    """
    return hmac.new(secrets.ray_token.encode(), f"corral leaf {leaf.node_id}".encode(), hashlib.sha256).hexdigest()
