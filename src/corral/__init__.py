"""Corral: idle GPUs and CPUs of many owners, lent by the hour as ready Ray clusters."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corral.sdk.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__", "get_job_submission_client_cluster_info"]


def __getattr__(name: str) -> Any:
    # The clients are loaded when they are asked for: the agent and the command line's help do without them.
    if name in {"AsyncClient", "Client"}:
        from corral.sdk import client

        return {"AsyncClient": client.AsyncClient, "Client": client.Client}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_job_submission_client_cluster_info(
    address: str,
    create_cluster_if_needed: bool = False,
    cookies: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    headers: dict[str, Any] | None = None,
    **_: Any,
) -> Any:
    """
    Ray's question for `corral://NAME`: where that cluster takes jobs, and with which headers.

    Ray finds this function by its name, in the module that the scheme names. A cluster is never made here, whatever
    `create_cluster_if_needed` says: that costs money, and `corral up` asks first. Raises what `sdk.ray_jobs` raises.
    """
    from corral.sdk.ray_jobs import job_endpoint

    return job_endpoint(address, cookies=cookies, metadata=metadata, headers=headers)
