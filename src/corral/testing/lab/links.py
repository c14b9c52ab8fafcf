"""What a link does to packets: the settings, and the queue in front of a line of limited rate. No I/O, no clock."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from corral.testing.lab.errors import LabRefused

QUEUE_MS = 100.0


@dataclass(frozen=True)
class Shape:
    """
    What one link does in each direction; the delays of all links on a way add up, and so do round trips.

    Args:
        delay_ms: one way.
        jitter_ms: up to so much is added, evenly spread; packets of one way keep their order.
        loss: the share of packets that vanish, 0 to 1.
        rate_mbit: 0 for no limit.
        queue_ms: what would wait longer than this for its turn is dropped.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float = 0.0
    queue_ms: float = QUEUE_MS

    def __post_init__(self) -> None:
        """
        Checks the ranges.

        Raises:
            LabRefused: a value is out of its range.
        """
        for name in ("delay_ms", "jitter_ms", "queue_ms"):
            _check_range(name, getattr(self, name), 0, 60_000)
        _check_range("loss", self.loss, 0, 1)
        _check_range("rate_mbit", self.rate_mbit, 0, 100_000)

    def changed(self, changes: Mapping[str, Any]) -> "Shape":
        """
        This shape with some values replaced.

        Raises:
            LabRefused: an unknown name, no number, or out of range.
        """
        known = {field.name for field in fields(self)}
        if unknown := set(changes) - known:
            raise LabRefused(
                f"a link has no {', '.join(sorted(unknown))}; nothing was changed",
                hint=f"it has {', '.join(sorted(known))}",
            )
        try:
            return replace(self, **{name: float(value) for name, value in changes.items()})
        except (TypeError, ValueError):
            raise LabRefused(f"a link's values are numbers, not {dict(changes)}; nothing was changed") from None

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class Line:
    """A line of limited rate with a bounded queue in front of it."""

    def __init__(self) -> None:
        self._free_at_s = 0.0

    def send(self, size_bytes: int, now_s: float, shape: Shape) -> float | None:
        """
        When the last bit of a packet has left, or None where the queue is full.

        Args:
            size_bytes: of the packet.
            now_s: when it arrives at the queue; never less than at the call before.
            shape: gives rate and queue.
        """
        if not shape.rate_mbit:
            return now_s
        starts_at_s = max(now_s, self._free_at_s)
        if starts_at_s - now_s > shape.queue_ms / 1000:
            return None
        self._free_at_s = starts_at_s + size_bytes * 8 / (shape.rate_mbit * 1e6)
        return self._free_at_s


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise LabRefused(f"{name} is between {least:g} and {most:g}, not {value!r}; nothing was changed")


PLAIN = Shape()
