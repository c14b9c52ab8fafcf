"""The mesh on WireGuard in the kernel, in an emulated machine: most machines that run tests have no such module."""

import json
import os
from pathlib import Path

import pytest

from . import machine

pytestmark = [pytest.mark.kernel, pytest.mark.docker, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / ".cache" / "kernel"


def test_mesh_on_the_kernels_own_wireguard(tmp_path: Path) -> None:
    """Two members meet, raise their packets, and restarts that leave their interfaces behind leave nothing twice."""
    if not os.environ.get("CORRAL_TEST_ALL"):
        pytest.skip("an emulated machine takes minutes; scripts/test --all runs it")
    if reason := machine.missing(KERNEL):
        pytest.skip(reason)
    images = json.loads((ROOT / ".cache" / "images.json").read_text())
    init = Path(__file__).with_name("guest.py")
    kernel, packed = machine.build(tmp_path, kernels=KERNEL, image=images["corral-net"], init=init)
    messages, text = machine.run(kernel, packed, timeout_s=800)
    assert not [message for message in messages if "failed" in message], text
    assert [message["ok"] for message in messages] == ["boot", "kernel", "met", "sizes", "restarts"], text
