"""What can go wrong with clusters."""

from collections.abc import Sequence
from datetime import datetime

from corral.core.errors import CorralError


class ClustersError(CorralError):
    """Base of this domain's errors."""

    code = "clusters_error"


class ClusterUnknown(ClustersError):
    """The caller has no cluster of that name or id; somebody else's is not told apart from none."""

    code = "cluster_unknown"

    def __init__(self, name: str) -> None:
        super().__init__(f"you have no cluster {name}", hint="corral ps", name=name)


class ClusterNameTaken(ClustersError):
    """A living cluster has the name already; names are web origins, so they are unique for everybody."""

    code = "cluster_name_taken"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"a living cluster is named {name} already; nothing was booked or charged",
            hint="ask for a quote with another name",
            name=name,
        )


class GatewayUnavailable(ClustersError):
    """No gateway is online that could serve a new cluster."""

    code = "gateway_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "no gateway is online at the moment; nothing was booked or charged", hint="try again in a minute"
        )


class ImageUnavailable(ClustersError):
    """The control plane was started without the digest of an image that clusters run."""

    code = "image_unavailable"

    def __init__(self, image: str) -> None:
        super().__init__(
            f"this control plane knows no image {image}; nothing was booked or charged",
            hint="its operator starts it with --images",
            image=image,
        )


class ClusterNotReady(ClustersError):
    """The cluster cannot be entered in its present state."""

    code = "cluster_not_ready"

    def __init__(self, name: str, state: str) -> None:
        super().__init__(f"cluster {name} is {state}; nothing was opened", name=name, state=state)


class ClusterOver(ClustersError):
    """The cluster ends or has ended."""

    code = "cluster_over"

    def __init__(self, name: str, state: str) -> None:
        super().__init__(f"cluster {name} is {state}; nothing was changed", name=name, state=state)


class TooManyGuests(ClustersError):
    """As many machines of the renter's are in the mesh as may be."""

    code = "too_many_guests"

    def __init__(self, name: str, held: int) -> None:
        super().__init__(
            f"{held} machines of yours are connected to cluster {name} already; this one was not added",
            hint="end one of their `corral connect`; one that has gone silent is taken out by itself",
            name=name,
            held=held,
        )


class GuestRefused(ClustersError):
    """A machine cannot be added with this id or these keys: another member has them."""

    code = "guest_refused"

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"another member has this {what}; nothing was added to cluster {name}", name=name, what=what)


class NotAGateway(ClustersError):
    """A host that is no gateway asked what only gateways may."""

    code = "not_a_gateway"

    def __init__(self) -> None:
        super().__init__("only a gateway may ask this; nothing was answered")


class TransitionIllegal(ClustersError):
    """A cluster cannot go from one state to another."""

    code = "transition_illegal"

    def __init__(self, cluster_id: str, present: str, wanted: str, history: Sequence[tuple[str, datetime]]) -> None:
        steps = ", ".join(f"{state} at {at.isoformat()}" for state, at in history)
        super().__init__(
            f"cluster {cluster_id} cannot go from {present} to {wanted}; its history: {steps}",
            cluster_id=cluster_id,
            present=present,
            wanted=wanted,
        )
