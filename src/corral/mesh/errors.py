"""What can go wrong with meshes."""

from corral.core.errors import CorralError


class MeshError(CorralError):
    """Base of this domain's errors."""

    code = "mesh_error"


class NoNetworkLeft(MeshError):
    """Every network number is in use by one renter's living clusters."""

    code = "no_network_left"

    def __init__(self, networks: int) -> None:
        super().__init__(
            f"all {networks} mesh networks are used by your living clusters; nothing was booked",
            hint="corral down NAME",
            networks=networks,
        )
