"""Errors on the wire: RFC 9457 problem+json with a stable `code`, the facts behind it and a hint."""

from typing import Any

from pydantic import BaseModel, Field

PROBLEM_MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What went wrong, on which object, and what did not happen."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="stable; programs compare this and nothing else")
    detail: str
    hint: str | None = Field(default=None, description="a command or an act that helps")
    facts: dict[str, Any] = Field(default_factory=dict, description="the plain values behind the message")
