"""
Jobs on a rented cluster, through Ray's public REST interface and with the renter's own key; no Ray on this machine.

Source of the contract: Ray 2.60, `ray.dashboard.modules.job` (job_head.py, sdk.py) and `_private/runtime_env`.
"""

from corral.sdk.jobs.client import AsyncJobs, Jobs
from corral.sdk.jobs.model import Job, JobStatus

__all__ = ["AsyncJobs", "Job", "JobStatus", "Jobs"]
