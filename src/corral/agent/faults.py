"""Why something of a node does not work, in words that may leave the host."""

import re

from corral.agent.channels import Heard
from corral.agent.runtime import Container
from corral.core.errors import CorralError
from corral.wire.agent import Fault

FAULT_CHARACTERS = 2000

_SECRET_LIKE = re.compile(r"(?<![0-9a-fA-F])(?<!sha256:)[0-9a-fA-F]{40,}|(?i:bearer)\s+\S+")
"""Nothing that looks like a token or a key leaves the host in a fault's text, whoever printed it.

An image's digest may stay."""


def fault_code(error: CorralError) -> str:
    """The code under which an error of ours is reported."""
    known = ("image_missing", "device_unknown", "device_busy", "node_too_small", "engine_unreachable")
    return error.code if error.code in known else "container_failed"


def ended_fault(part: str, container: Container, heard: Heard, last: tuple[str, ...]) -> Fault:
    """How a container ended: its status, what it said about it, and the `last` lines of its stderr."""
    code = {"mesh": "mesh_failed", "work": "ray_exited"}.get(part, "container_failed")
    words = [f"the {part} container ended with status {container.exit_code}"]
    if container.exit_code == 137:
        words.append("(killed: by the engine, its restart, or for lack of memory)")
    said = heard.fatal or heard.ray_detail
    if said:
        words.append(f": {said}")
    lines = "\n".join(line for line in last if line.strip())
    return Fault(code=code, message=tidy(" ".join(words) + (f"\n{lines}" if lines else "")))


def tidy(text: str) -> str:
    """A fault's text without anything like a secret, the end kept where it is too long: errors come last."""
    clean = _SECRET_LIKE.sub("[removed]", text)
    if len(clean) <= FAULT_CHARACTERS:
        return clean
    head = clean[:200]
    return f"{head} … {clean[len(clean) - (FAULT_CHARACTERS - len(head) - 3) :]}"
