"""Containers for the tests that run real WireGuard through a relay."""

import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The containers of the images' tests serve here too; they stand on the benchmarks' client of the Engine.
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(Path(__file__).resolve().parent)]

from tests.images.parts import Lab  # noqa: E402


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Makes containers from this checkout's images, and removes them at the end."""
    path = ROOT / ".cache" / "images.json"
    if not path.exists():
        pytest.fail("there are no images yet; run scripts/setup")
    lab = Lab(json.loads(path.read_text()), secrets.token_hex(4))
    try:
        yield lab
    finally:
        lab.remove()
