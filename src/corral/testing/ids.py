"""Ids that count."""

from collections import Counter


class CountingIds:
    """Well-formed ids `bk_00000000000000000000000001`, `bk_…2`: one count per prefix, so that a test can name them."""

    def __init__(self) -> None:
        self._made: Counter[str] = Counter()

    def new(self, prefix: str) -> str:
        """The next id of `prefix`."""
        self._made[prefix] += 1
        return numbered_id(prefix, self._made[prefix])


def numbered_id(prefix: str, number: int) -> str:
    """The well-formed id of `prefix` that carries `number`."""
    return f"{prefix}_{number:026d}"
