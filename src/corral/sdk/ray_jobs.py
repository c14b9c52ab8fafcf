"""
Where Ray's own programs find the jobs of a cluster: `RAY_API_SERVER_ADDRESS=corral://NAME ray job submit -- …`.

Ray imports the module that an address names by its scheme and asks it for address and headers; see
`corral.get_job_submission_client_cluster_info`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from corral.sdk import config
from corral.sdk.addresses import checked_url
from corral.sdk.client import Client
from corral.sdk.clusters import jobs_url
from corral.sdk.errors import RequestInvalid


class JobEndpoint(NamedTuple):
    """
    What Ray's job client reads of an answer, by these names.

    Source: Ray 2.60, `ray.dashboard.modules.dashboard_sdk`, ClusterInfo.
    """

    address: str
    cookies: dict[str, Any] | None
    metadata: dict[str, Any] | None
    headers: dict[str, Any] | None

    def __repr__(self) -> str:
        """Keeps the key out of logs and tracebacks."""
        return f"JobEndpoint({self.address!r})"


def job_endpoint(
    name: str,
    *,
    cookies: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    headers: Mapping[str, Any] | None = None,
) -> JobEndpoint:
    """
    The gateway's address of a cluster's jobs, and the renter's key in a header.

    Args:
        name: name or id of the cluster, as it stands behind `corral://`.
        cookies: what else is to be sent; kept as it is.
        metadata: kept as it is.
        headers: sent too; an `Authorization` among them goes before the renter's key.

    Raises:
        RequestInvalid: there is no name.
        ClusterNotReady: the cluster takes no jobs now.
        ApiError, Unreachable, NotConfigured: as of every call of `Client`.
    """
    cluster = name.strip("/")
    if not cluster:
        raise RequestInvalid(
            "the address corral:// names no cluster; nothing was sent",
            hint="write it like corral://NAME; `corral ps` lists your clusters",
        )
    with Client() as client:
        url = checked_url(jobs_url(client.cluster(cluster)))
        sent = {"Authorization": f"Bearer {config.key_of(client.config)}", **(headers or {})}
    return JobEndpoint(url, dict(cookies) if cookies else None, dict(metadata) if metadata else None, sent)
