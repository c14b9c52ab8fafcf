"""
The Python SDK: `corral.Client` and `corral.AsyncClient`, and the errors that they raise (`corral.sdk.errors`).

Nothing is imported before it is used, so that `import corral` and the command line start quickly.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corral.sdk.client import AsyncClient, Client, new_id
    from corral.sdk.jobs import AsyncJobs, Job, Jobs

__all__ = ["AsyncClient", "AsyncJobs", "Client", "Job", "Jobs", "new_id"]


def __getattr__(name: str) -> Any:
    if name in {"AsyncClient", "Client", "new_id"}:
        from corral.sdk import client

        return {"AsyncClient": client.AsyncClient, "Client": client.Client, "new_id": client.new_id}[name]
    if name in {"AsyncJobs", "Job", "Jobs"}:
        from corral.sdk import jobs

        return {"AsyncJobs": jobs.AsyncJobs, "Job": jobs.Job, "Jobs": jobs.Jobs}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
