"""Ray's job interface as calls: paths are below a cluster's `jobs_url`."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from corral.sdk.calls import Call, segment
from corral.sdk.jobs.model import Job

SUBMIT_TIMEOUT_S = 120.0
"""Ray answers a submission once its head's agent has taken it, which a busy head may delay."""
UPLOAD_TIMEOUT_S = 600.0


class _Logs(BaseModel):
    logs: str


class _Stopped(BaseModel):
    stopped: bool


class _Submitted(BaseModel):
    submission_id: str


def package_exists(name: str) -> Call[None]:
    """ApiError with status 404 if it does not."""
    return Call(method="GET", path=f"/api/packages/gcs/{segment(name)}", read=_nothing, is_repeatable=True)


def upload_package(name: str, file: Path) -> Call[None]:
    # The name is made of the content, so that uploading twice changes nothing.
    return Call(
        method="PUT",
        path=f"/api/packages/gcs/{segment(name)}",
        read=_nothing,
        upload=file,
        is_repeatable=True,
        timeout_s=UPLOAD_TIMEOUT_S,
    )


def submit(job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> Call[str]:
    """The job's id. Not repeatable as it stands: Ray refuses an id that it knows, so clients look before repeating."""
    body = {"entrypoint": entrypoint, "submission_id": job_id, "runtime_env": runtime_env, "metadata": metadata}
    return Call(
        method="POST",
        path="/api/jobs/",
        read=lambda answer: _Submitted.model_validate_json(answer).submission_id,
        body=json.dumps(body).encode(),
        is_repeatable=False,
        timeout_s=SUBMIT_TIMEOUT_S,
    )


def jobs() -> Call[list[Job]]:
    """Submitted jobs, newest first; drivers that were started in other ways are left out."""
    return Call(method="GET", path="/api/jobs/", read=_read_jobs, is_repeatable=True)


def job(job_id: str) -> Call[Job]:
    return Call(method="GET", path=f"/api/jobs/{segment(job_id)}", read=Job.model_validate_json, is_repeatable=True)


def stop(job_id: str) -> Call[bool]:
    return Call(
        method="POST",
        path=f"/api/jobs/{segment(job_id)}/stop",
        read=lambda answer: _Stopped.model_validate_json(answer).stopped,
        is_repeatable=True,
    )


def logs(job_id: str) -> Call[str]:
    return Call(
        method="GET",
        path=f"/api/jobs/{segment(job_id)}/logs",
        read=lambda answer: _Logs.model_validate_json(answer).logs,
        is_repeatable=True,
    )


def tail_path(job_id: str) -> str:
    """The WebSocket that sends a job's log as it grows, and closes when the job is finished."""
    return f"/api/jobs/{segment(job_id)}/logs/tail"


def _nothing(_: bytes) -> None:
    return None


def _read_jobs(answer: bytes) -> list[Job]:
    found = [Job.model_validate(item) for item in json.loads(answer) if item.get("submission_id")]
    return sorted(found, key=lambda each: each.started_at.timestamp() if each.started_at else 0.0, reverse=True)
