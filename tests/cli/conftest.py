"""The real command line, in process, against a fake control plane; its output compared with kept snapshots."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from corral.cli import main
from sdk.fake_control_plane import KEY, FakeControlPlane, Serving, a_host

SNAPSHOTS = Path(__file__).parent / "snapshots"
UPDATE_VARIABLE = "CORRAL_UPDATE_SNAPSHOTS"


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str

    def as_text(self) -> str:
        """For people to read in a snapshot."""
        return f"$ corral {' '.join(self.arguments)}\nexit {self.code}\n--- stdout\n{self.out}--- stderr\n{self.err}"


Corral = Callable[..., Ran]


class Terminal(io.StringIO):
    """A stdin with somebody at it."""

    def isatty(self) -> bool:
        """Always."""
        return True


@pytest.fixture
def control_plane(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeControlPlane]:
    """A fake control plane, and the environment that leads to it."""
    fake = FakeControlPlane(hosts={"alpha": a_host()})
    serving = Serving(fake.app())
    fake.base_url = f"http://127.0.0.1:{serving.port}"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("CORRAL_URL", fake.base_url)
    monkeypatch.setenv("CORRAL_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("CORRAL_CA", raising=False)
    yield fake
    serving.close()


@pytest.fixture
def corral(
    control_plane: FakeControlPlane, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Corral:
    """Runs `corral` with the given words; `answers` are typed at a terminal, `stdin` comes from a pipe."""

    def run(*arguments: str, answers: str | None = None, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin) if answers is None else Terminal(answers))
        capfd.readouterr()
        code = main.run(arguments)
        sys.stdout.flush()
        out, err = capfd.readouterr()
        plain = [
            text.replace(control_plane.base_url, "http://CONTROL").replace(str(tmp_path), "TMP") for text in (out, err)
        ]
        return Ran(tuple(word.replace(str(tmp_path), "TMP") for word in arguments), code, *plain)

    return run


@pytest.fixture
def matches_snapshot(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compares what ran with the snapshot of the test's name; CORRAL_UPDATE_SNAPSHOTS=1 writes it anew."""

    def compare(*ran: Ran) -> None:
        name = re.sub(r"[^a-z0-9]+", "_", request.node.name.removeprefix("test_").lower()).strip("_")
        path = SNAPSHOTS / f"{name}.txt"
        text = re.sub(r"\b(bk|tr|ex|job)_(?!0{20})[0-9a-z]{26}\b", r"\1_ID", "\n".join(each.as_text() for each in ran))
        if os.environ.get(UPDATE_VARIABLE) == "1":
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"no snapshot {path.name}: run again with {UPDATE_VARIABLE}=1 and read it"
        assert text == path.read_text(encoding="utf-8")

    return compare
