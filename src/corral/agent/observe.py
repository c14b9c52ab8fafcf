"""What is on this host, read from the labels of our containers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from corral.agent.runtime import (
    LABEL_DEVICES,
    LABEL_NODE,
    LABEL_PART,
    LABEL_REVISION,
    LABEL_SPEC,
    LABEL_STOP_AFTER,
    Container,
)
from corral.wire.agent import Revision

AGENT_PART = "agent"
"""The agent's own container carries the host's label too; it is not ours to keep or end."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One node, leaf or front as found. What its labels do not tell is None."""

    node_id: str
    parts: Mapping[str, Container]
    """By part; containers whose part is unknown or doubled stand under their own name."""
    revision: Revision | None
    """The desired state that it was started from; the newest where its containers differ."""
    digest: str
    """Of the spec that it was started from; empty where its containers differ."""
    stop_after: datetime | None
    devices: frozenset[str]


def observe(containers: Iterable[Container]) -> dict[str, Found]:
    """Groups our containers by node."""
    groups: dict[str, list[Container]] = {}
    for container in containers:
        if container.labels.get(LABEL_PART) != AGENT_PART:
            groups.setdefault(container.labels.get(LABEL_NODE) or container.name, []).append(container)
    return {node_id: _found(node_id, group) for node_id, group in groups.items()}


def _found(node_id: str, group: list[Container]) -> Found:
    parts: dict[str, Container] = {}
    for container in sorted(group, key=lambda one: one.name):
        part = container.labels.get(LABEL_PART, container.name)
        parts[container.name if part in parts else part] = container
    revisions = [revision for one in group if (revision := _revision(one.labels.get(LABEL_REVISION, ""))) is not None]
    digests = {one.labels.get(LABEL_SPEC, "") for one in group}
    ends = [end for one in group if (end := _instant(one.labels.get(LABEL_STOP_AFTER, ""))) is not None]
    devices = {key for one in group for key in one.labels.get(LABEL_DEVICES, "").split(",") if key}
    return Found(
        node_id=node_id,
        parts=parts,
        revision=max(revisions, default=None),
        digest=digests.pop() if len(digests) == 1 else "",
        stop_after=max(ends, default=None),
        devices=frozenset(devices),
    )


def _revision(text: str) -> Revision | None:
    epoch, _, number = text.partition(".")
    return Revision(int(epoch), int(number)) if epoch.isdecimal() and number.isdecimal() else None


def _instant(text: str) -> datetime | None:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant if instant.tzinfo is not None else None
