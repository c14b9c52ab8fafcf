"""`scripts/demo` around its story: what it says when that breaks, and what it does about an earlier one."""

import importlib.util
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [pytest.mark.docker]

PROGRAM = Path(__file__).parents[2] / "scripts/lib/demo.py"


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The demo's program, with a state file and ports of the test's own."""
    specification = importlib.util.spec_from_file_location("corral_demo", PROGRAM)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "STATE_FILE", tmp_path / "demo.json")
    monkeypatch.setattr(module, "CONTROL_PLANE_PORT", 0)
    monkeypatch.setattr(module, "GATEWAY_PORT", 0)
    before = signal.getsignal(signal.SIGTERM)
    yield module
    signal.signal(signal.SIGTERM, before)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The JSON object that ends the standard output."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (subprocess.TimeoutExpired("corral up", 300), "TimeoutExpired: "),
        (RuntimeError("[Errno 5] no such thing"), "RuntimeError: [Errno 5] no such thing"),
        (KeyboardInterrupt(), "it was interrupted"),
    ],
)
def test_whatever_breaks_the_demo_its_last_line_is_json_and_nothing_is_left(
    demo: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    reason: str,
) -> None:
    """Programs read it, and the exit status; the folder that was made is gone."""
    folders: list[Path] = []

    def run(story: object) -> None:
        folders.append(story.network.folder)  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(demo.Demo, "run", run)
    assert demo.main(["--json"]) == 1
    shown = last_line(capsys)
    assert str(shown["error"]).startswith(reason)
    assert shown["phases"] == {}
    assert [folder.exists() for folder in folders] == [False]
    assert not demo.STATE_FILE.exists()


def test_a_second_demo_does_not_begin_beside_a_kept_one(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """It would get its answers from the other's control plane; it says the command that ends the other one."""
    kept = demo.LocalNetwork(images={}, state_file=demo.STATE_FILE)
    assert demo.main(["--json"]) == 1
    assert "`scripts/demo --end`" in str(last_line(capsys)["error"])
    assert kept.folder.exists()
    assert demo.main(["--end", "--json"]) == 0
    assert last_line(capsys) == {"ended": True}
    assert not kept.folder.exists()
    assert demo.main(["--end", "--json"]) == 0
    assert last_line(capsys) == {"ended": False}


def test_nothing_is_done_while_another_demo_of_the_checkout_plays(
    demo: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its network must not be ended under it."""
    with demo.alone() as is_alone:
        assert is_alone
        assert demo.main(["--end", "--json"]) == 1
    assert "another demo" in str(last_line(capsys)["error"])
