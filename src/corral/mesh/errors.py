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


class NothingProposed(MeshError):
    """No roster of this cluster waits for its renter's signature."""

    code = "nothing_proposed"

    def __init__(self, cluster_id: str) -> None:
        super().__init__(
            f"no change of the members of cluster {cluster_id} waits for a signature; nothing was changed",
            cluster_id=cluster_id,
        )


class ProposalOutdated(MeshError):
    """The roster that was signed is not the one that is proposed now."""

    code = "proposal_outdated"

    def __init__(self, cluster_id: str) -> None:
        super().__init__(
            f"the proposed members of cluster {cluster_id} have changed since; what was signed was not taken",
            hint="look at them and sign again: `corral members CLUSTER --approve`",
            cluster_id=cluster_id,
        )
