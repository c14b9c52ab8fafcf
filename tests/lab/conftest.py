"""Fixtures of the lab's own tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.lab.lab import Lab


def why_no_namespaces() -> str:
    """Why machines of the lab cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "namespaces are made by root alone"
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"missing: {', '.join(missing)}"
    return "" if Path("/dev/net/tun").exists() else "/dev/net/tun is missing"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab with an internet and no machine; nothing of it may be left."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    with Lab() as made:
        yield made
    assert made.left_behind() == []
