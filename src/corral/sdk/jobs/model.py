"""A job as Ray tells of it."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

JobStatus = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
FINISHED: frozenset[str] = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})


class Job(BaseModel):
    """One submitted command and how it went. Fields that Ray adds later are ignored."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    id: str = Field(alias="submission_id", description="what `logs`, `status` and `stop` take")
    status: JobStatus
    entrypoint: str
    message: str | None = None
    error_type: str | None = None
    started_at: datetime | None = Field(default=None, alias="start_time")
    ended_at: datetime | None = Field(default=None, alias="end_time")
    exit_code: int | None = Field(default=None, alias="driver_exit_code")
    metadata: dict[str, str] | None = None

    @field_validator("started_at", "ended_at", mode="before")
    @classmethod
    def _from_milliseconds(cls, value: Any) -> Any:
        """Ray writes milliseconds since 1970; 0 means not yet."""
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000, UTC) if value > 0 else None
        return value

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in FINISHED

    @property
    def seconds(self) -> float | None:
        """How long it ran; None while it does not run or is not finished."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()
