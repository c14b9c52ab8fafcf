"""Every domain's tables, so that `metadata` is complete once this is imported."""

from corral.bookings import tables as bookings
from corral.clusters import tables as clusters
from corral.devices import tables as devices
from corral.identity import tables as identity
from corral.ledger import tables as ledger
from corral.market import tables as market
from corral.mesh import tables as mesh
from corral.platform.database import metadata

__all__ = ["bookings", "clusters", "devices", "identity", "ledger", "market", "mesh", "metadata"]
