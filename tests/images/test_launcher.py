"""The launcher of a workload before Ray runs: what it refuses, and how it fails in words."""

import pytest
from parts import TOKEN, Lab

pytestmark = pytest.mark.docker
NODE = "127.0.0.1"  # exists in every namespace: no mesh is needed here


def test_malformed_token_is_refused_and_starts_nothing(lab: Lab) -> None:
    """Only 64 hexadecimal digits are a token."""
    work = lab.work("token-work", lab.pause("token-pause"), "10.128.0.1", "10.128.0.1")
    for wrong in (
        {"type": "start", "token": "abc"},
        {"type": "start"},
        {"type": "start", "token": "Z" * 64},
        "nonsense",
    ):
        since = work.mark()
        work.send(wrong)
        assert work.wait_type("refused", since=since)["reason"]
    since = work.mark()
    work.send({"type": "hello"})
    assert work.wait_type("phase", since=since)["phase"] == "waiting_mesh"
    assert work.run("ls", "/run/corral")[1] == ""
    assert work.stop(within_s=60) < 30


def test_full_tmpfs_fails_the_start_in_words(lab: Lab) -> None:
    """A token that cannot be written is a failed phase, not a traceback."""
    tmpfs = {"/tmp": "exec,size=64m,mode=1777", "/run/corral": "size=4k,mode=0700,uid=1000,gid=1000"}
    work = lab.work("full-work", lab.pause("full-pause"), "10.128.0.1", "10.128.0.1", Tmpfs=tmpfs)
    work.wait_type("phase", phase="waiting_mesh")
    assert work.run("sh", "-c", "head -c 4096 /dev/zero > /run/corral/filler", user="1000:1000")[0] == 0
    work.send({"type": "start", "token": TOKEN})
    failed = work.wait_type("phase", phase="failed")
    assert "/run/corral" in failed["detail"]
    assert work.wait_exit() == 2


def test_ray_that_cannot_start_is_a_failed_phase_with_its_status(lab: Lab) -> None:
    """Here its scratch space is read-only. Ray's own words stay on stderr, its status becomes the container's."""
    tmpfs = {"/run/corral": "size=1m,mode=0700,uid=1000,gid=1000"}
    work = lab.work("failing-work", lab.pause("failing-pause"), NODE, NODE, Tmpfs=tmpfs)
    work.send({"type": "start", "token": TOKEN})
    failed = work.wait_type("phase", phase="failed")
    assert "status" in failed["detail"]
    assert work.wait_exit() != 0
