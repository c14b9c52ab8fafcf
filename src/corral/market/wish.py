"""A renter's request as one clear wish, or the reason why it is none."""

from dataclasses import dataclass

from corral.market.errors import WishUnclear
from corral.wire.api import ClusterRequest


@dataclass(frozen=True)
class Wish:
    """
    What is to be placed.

    `nodes` None: on as few hosts as the GPUs need. Otherwise on exactly that many different hosts, each with `cpu`
    slices and an even share of `gpu_count`.
    """

    nodes: int | None
    cpu: int = 0
    gpu_model: str | None = None
    gpu_count: int = 0
    single_provider: bool = False


def read_wish(request: ClusterRequest) -> Wish:
    """
    What a request asks for.

    Raises:
        WishUnclear: it asks for nothing, for GPUs without a model or a count, for more nodes than GPUs, or for CPU
            slices beside GPUs without saying on how many nodes.
    """
    if request.gpu_count == 0:
        if request.gpu_model is not None:
            raise WishUnclear("gpu_count", f"0 {request.gpu_model} were asked for", hint="corral up --gpu MODEL:COUNT")
        if request.cpu == 0:
            raise WishUnclear("cpu, gpu_count", "0 devices were asked for", hint="corral up --cpu 1 --nodes 3")
        return Wish(request.nodes or 1, cpu=request.cpu, single_provider=request.single_provider)
    if request.gpu_model is None:
        raise WishUnclear("gpu_model", "GPUs were asked for, but not which", hint="corral up --gpu MODEL:COUNT")
    if request.nodes is not None and request.nodes > request.gpu_count:
        raise WishUnclear("nodes", f"{request.nodes} nodes cannot share {request.gpu_count} GPUs: each needs one")
    if request.cpu and request.nodes is None:
        raise WishUnclear("nodes", "CPU slices beside GPUs are per node: say how many nodes", hint="add `--nodes N`")
    return Wish(
        request.nodes,
        cpu=request.cpu,
        gpu_model=request.gpu_model,
        gpu_count=request.gpu_count,
        single_provider=request.single_provider,
    )
