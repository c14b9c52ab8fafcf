"""Jobs from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sdk.fake_control_plane import FakeControlPlane

from .conftest import Corral

Compare = Callable[..., None]


@pytest.fixture
def ready(corral: Corral) -> Corral:
    """A cluster `mnist` that takes jobs."""
    corral("up", "--cpu", "1", "--name", "mnist", "-y")
    return corral


def test_job_shows_its_log_and_ends_as_it_ends(ready: Corral, tmp_path: Path, matches_snapshot: Compare) -> None:
    """The log is data; what the command line has to say is not."""
    (tmp_path / "main.py").write_text("print()")
    words = ("job", "submit", "mnist", "--submission-id", "one")
    matches_snapshot(
        ready(*words, "--working-dir", str(tmp_path), "--", "python", "main.py"),
        ready(*words[:-1], "two", "--", "failing --json"),
        ready(*words[:-1], "three", "--no-wait", "--", "running"),
        ready("job", "list", "mnist"),
        ready("job", "stop", "mnist", "three"),
        ready("job", "stop", "mnist", "three"),
        ready("job", "logs", "mnist", "one"),
        ready("job", "logs", "mnist", "none"),
    )


def test_job_with_a_missing_file_is_refused(ready: Corral, tmp_path: Path, matches_snapshot: Compare) -> None:
    """Before anything is sent."""
    matches_snapshot(
        ready("job", "submit", "mnist", "--working-dir", str(tmp_path), "--", "python", "main.py"),
        ready("job", "submit", "mnist", "--", "python", "main.py"),
        ready("job", "submit", "mnist", "--working-dir", str(tmp_path / "none"), "--json", "--", "ls"),
    )


def test_what_is_wrong_on_the_command_line_of_a_job_is_wrong_usage(
    ready: Corral, control_plane: FakeControlPlane, tmp_path: Path, matches_snapshot: Compare
) -> None:
    """Whichever option names the thing that is not there; nothing is submitted."""
    nowhere = str(tmp_path / "none")
    ran = [
        ready("job", "submit", "mnist", "--working-dir", nowhere, "--", "ls"),
        ready("job", "submit", "mnist", "--runtime-env", nowhere, "--", "ls"),
        ready("job", "submit", "mnist", "--submission-id", "../../x", "--", "true"),
    ]
    assert [each.code for each in ran] == [2, 2, 2]
    assert control_plane.ray.jobs == {}
    matches_snapshot(*ran)


def test_job_environment_is_passed_without_its_values_in_the_command_line(
    ready: Corral, control_plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--env NAME` takes the value from here."""
    monkeypatch.setenv("TOKEN_OF_ADA", "hidden")
    ran = ready(
        "job", "submit", "mnist", "--env", "TOKEN_OF_ADA", "--env", "A=b=c", "--no-wait", "--json", "--", "ls", "-l x"
    )
    job = control_plane.ray.jobs[json.loads(ran.out)["submission_id"]]
    assert job.body["runtime_env"] == {"env_vars": {"TOKEN_OF_ADA": "hidden", "A": "b=c"}}
    assert job.body["entrypoint"] == "ls '-l x'"


def test_job_with_json_puts_the_job_on_stdout_and_the_log_on_stderr(ready: Corral) -> None:
    """One document."""
    ran = ready("job", "submit", "mnist", "--json", "--", "failing")
    assert ran.code == 1
    assert (json.loads(ran.out)["status"], json.loads(ran.out)["exit_code"]) == ("FAILED", 5)
    assert "epoch 1" in ran.err
