"""Jobs: what is sent to Ray, what is found wrong before, and logs without gap or repetition."""

import json
import os
from pathlib import Path

import pytest

from corral.sdk import AsyncClient, Client, Jobs
from corral.sdk.errors import (
    ApiError,
    ClusterNotReady,
    EntrypointMissing,
    JobIdMalformed,
    JobInvalid,
    PackageTooLarge,
    RuntimeEnvRefused,
    WorkingDirMissing,
)
from corral.sdk.jobs import package
from corral.sdk.jobs.package import plan_package, write_package
from corral.sdk.jobs.request import checked_job_id, plan_job, script_of
from corral.sdk.jobs.tail import LogCursor
from sdk.fake_control_plane import FakeControlPlane
from sdk.fake_ray import LOG


@pytest.fixture
def jobs(client: Client) -> Jobs:
    """The jobs of a cluster that is ready."""
    client.wait_ready(client.book(client.quote(cpu=1, name="mnist").id).id)
    return client.jobs("mnist")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory with files to send and files to leave out."""
    root = tmp_path / "project"
    files = {
        "main.py": "print('hello')\n",
        ".gitignore": "*.log\n!kept.log\n/build/\n",
        "train.log": "left out",
        "kept.log": "sent",
        "build/out.bin": "left out",
        "data/x.txt": "sent",
        "data/.rayignore": "*.big\n",
        "data/y.big": "left out",
        ".git/HEAD": "left out",
        "pkg/__pycache__/a.pyc": "left out",
        "pkg/__init__.py": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "empty").mkdir()
    return root


SENT = {".gitignore", "main.py", "kept.log", "data/x.txt", "data/.rayignore", "pkg/__init__.py", "empty/"}


def test_working_directory_is_packed_under_the_name_that_ray_gives_it(project: Path) -> None:
    """Names computed by Ray 2.60's get_uri_for_directory for the same tree: equal names save uploads."""
    plan = plan_package(project)
    assert {str(name) for name in plan.files} == {name.rstrip("/") for name in SENT}
    assert plan.uri == "gcs://_ray_pkg_01cee803beb28963.zip"


def test_packing_twice_gives_equal_bytes(project: Path, tmp_path: Path) -> None:
    """Neither the time nor the order of the folder's entries counts."""
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    write_package(plan_package(project), first)
    os.utime(project / "main.py", (1, 1))
    write_package(plan_package(project), second)
    assert first.read_bytes() == second.read_bytes()


def test_submission_sends_package_command_and_environment(
    jobs: Jobs, control_plane: FakeControlPlane, project: Path
) -> None:
    """The package goes first, once; the runtime environment names it."""
    job_id = jobs.submit("python main.py", working_dir=project, env={"A": "1"}, metadata={"team": "x"})
    jobs.submit("python main.py", working_dir=project)
    ray = control_plane.ray
    (name,) = ray.packages
    assert set(ray.files(name)) == SENT
    assert ray.jobs[job_id].body == {
        "entrypoint": "python main.py",
        "submission_id": job_id,
        "runtime_env": {"working_dir": f"gcs://{name}", "env_vars": {"A": "1"}},
        "metadata": {"team": "x"},
    }


def test_submission_whose_answer_is_lost_runs_once(jobs: Jobs, control_plane: FakeControlPlane) -> None:
    """Ray refuses an id that it knows, so the client looks before it repeats."""
    control_plane.ray.submissions_lost = 1
    assert jobs.submit("sleep 1", submission_id="mine") == "mine"
    assert list(control_plane.ray.jobs) == ["mine"]


_ODD_IDS = [
    "../../x",
    "..",
    ".",
    ".x",
    "a/b",
    "a\\b",
    "a b",
    "a?b",
    "a%2fb",
    "a{b}",
    "a\n",
    "ü",
    "\udcff",
    "",
    "x" * 129,
]


@pytest.mark.parametrize("job_id", _ODD_IDS)
def test_submission_id_under_which_the_job_could_not_be_reached_submits_nothing(
    jobs: Jobs, control_plane: FakeControlPlane, project: Path, job_id: str
) -> None:
    """The gateway lets no such path through, so that nobody could stop the job again."""
    before = len(control_plane.requests)
    with pytest.raises(JobIdMalformed, match="nothing was sent"):
        jobs.submit("python main.py", working_dir=project, submission_id=job_id)
    assert (control_plane.ray.jobs, control_plane.ray.packages) == ({}, {})
    assert len(control_plane.requests) == before


async def test_async_jobs_refuse_the_same_submission_ids(control_plane: FakeControlPlane, client: Client) -> None:
    """Before anything of the job is sent."""
    client.wait_ready(client.book(client.quote(cpu=1, name="mnist").id).id)
    async with AsyncClient() as waiting:
        jobs = await waiting.jobs("mnist")
        for job_id in _ODD_IDS:
            with pytest.raises(JobIdMalformed):
                await jobs.submit("true", submission_id=job_id)
    assert control_plane.ray.jobs == {}


@pytest.mark.parametrize("job_id", ["job_01h", "raysubmit_Ab9", "2027-01-15.run", "x" * 128, "-"])
def test_usual_submission_ids_are_taken_as_they_are(job_id: str) -> None:
    """Ours, Ray's, and what people make up."""
    assert checked_job_id(job_id) == job_id


def test_known_submission_id_is_refused_with_rays_reason(jobs: Jobs) -> None:
    """The last line of Ray's traceback is the reason."""
    jobs.submit("sleep 1", submission_id="mine")
    with pytest.raises(ApiError, match="Job with submission_id mine already exists"):
        jobs.submit("sleep 1", submission_id="mine")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("tails_cut", 0), ("tails_cut", 2), ("tails_empty", 1), ("has_websocket", False)],
)
def test_followed_log_is_whole_whatever_happens_on_the_way(
    jobs: Jobs, control_plane: FakeControlPlane, setting: str, value: int
) -> None:
    """Tails that break off, close early or never open cost nothing but time."""
    setattr(control_plane.ray, setting, value)
    job_id = jobs.submit("python -c pass")
    assert "".join(jobs.logs(job_id, follow=True)) == "".join(LOG)
    assert "".join(jobs.logs(job_id)) == "".join(LOG)


def test_tail_offers_no_compression(jobs: Jobs, control_plane: FakeControlPlane) -> None:
    """Ray's dashboard loses the tail of a client that offers it."""
    list(jobs.logs(jobs.submit("python -c pass"), follow=True))
    assert control_plane.ray.seen_extensions == [None]


async def test_async_jobs_do_what_the_waiting_ones_do(control_plane: FakeControlPlane, project: Path) -> None:
    """Submission with an upload, a broken tail, the end."""

    async def at_once(_: float) -> None:
        return None

    control_plane.ray.tails_cut = 1
    async with AsyncClient(sleep=at_once) as client:
        quote = await client.quote(cpu=1, name="mnist")
        await client.wait_ready((await client.book(quote.id)).id)
        jobs = await client.jobs("mnist")
        job_id = await jobs.submit("python main.py", working_dir=project)
        text = "".join([piece async for piece in jobs.logs(job_id, follow=True)])
        assert text == "".join(LOG)
        assert (await jobs.wait(job_id)).seconds == 2.5
        assert [job.id for job in await jobs.list()] == [job_id]
        assert not await jobs.stop(job_id)


def test_unknown_job_is_told_as_such(jobs: Jobs) -> None:
    """By every method."""
    for ask in (
        lambda: jobs.status("none"),
        lambda: jobs.stop("none"),
        lambda: list(jobs.logs("none")),
        lambda: list(jobs.logs("none", follow=True)),
    ):
        with pytest.raises(ApiError) as caught:
            ask()
        assert caught.value.status == 404


def test_running_job_is_stopped(jobs: Jobs) -> None:
    """And is then finished."""
    job_id = jobs.submit("running")
    assert jobs.stop(job_id)
    assert jobs.wait(job_id).status == "STOPPED"


def test_cluster_that_is_not_ready_takes_no_jobs(client: Client) -> None:
    """The error says what it is instead."""
    client.book(client.quote(cpu=1, name="slow").id)
    with pytest.raises(ClusterNotReady, match="slow is booked"):
        client.jobs("slow")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("python other.py", EntrypointMissing),
        ("python3 -u other.py --lr 1", EntrypointMissing),
        ("X=1 ./run.sh", EntrypointMissing),
        ("bash data/y.big", EntrypointMissing),
        ("python ../main.py", EntrypointMissing),
        ("  ", EntrypointMissing),
    ],
)
def test_job_with_a_missing_file_is_refused_before_anything_is_sent(
    jobs: Jobs, control_plane: FakeControlPlane, project: Path, command: str, error: type[JobInvalid]
) -> None:
    """Missing, or left out by an ignore file."""
    before = len(control_plane.requests)
    with pytest.raises(error, match="nothing was sent"):
        jobs.submit(command, working_dir=project)
    assert len(control_plane.requests) == before
    assert control_plane.ray.packages == {}


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python main.py", "main.py"),
        ("python3.11 -u main.py", "main.py"),
        ("./run.sh a", "./run.sh"),
        ("python -m module", None),
        ("python -c 'print(1)'", None),
        ("cd x && python main.py", None),
        ("python /opt/main.py", None),
        ("nvidia-smi", None),
        ("python 'unclosed", None),
    ],
)
def test_file_of_a_command_is_known_only_where_it_is_certain(command: str, script: str | None) -> None:
    """Whatever a shell could turn into something else is left to the cluster."""
    assert script_of(command) == script


def test_missing_working_directory_is_refused(tmp_path: Path) -> None:
    """As is a file in its place."""
    with pytest.raises(WorkingDirMissing, match="does not exist"):
        plan_job("ls", working_dir=tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(WorkingDirMissing, match="not a directory"):
        plan_job("ls", working_dir=tmp_path / "file")


def test_script_without_a_working_directory_is_refused() -> None:
    """Nothing would be there to run."""
    with pytest.raises(EntrypointMissing, match="no working directory"):
        plan_job("python main.py")


def test_package_above_rays_limit_is_refused_before_it_is_sent(
    monkeypatch: pytest.MonkeyPatch, jobs: Jobs, control_plane: FakeControlPlane, project: Path
) -> None:
    """The largest file is named."""
    (project / "data" / "weights.bin").write_bytes(os.urandom(200_000))
    monkeypatch.setattr(package, "PACKAGE_BYTES_MAX", 100_000)
    with pytest.raises(PackageTooLarge, match=r"weights\.bin"):
        jobs.submit("python main.py", working_dir=project)
    assert control_plane.ray.jobs == {}


def test_package_above_the_gateways_limit_is_told(jobs: Jobs, control_plane: FakeControlPlane, project: Path) -> None:
    """A 413 on the way is the same situation."""
    control_plane.ray.body_bytes_max = 10
    with pytest.raises(PackageTooLarge, match="not submitted"):
        jobs.submit("python main.py", working_dir=project)


@pytest.mark.parametrize("environment", [{"py_modules": ["./mine"]}, {"conda": "env.yaml"}, {"pip": "/no/such/file"}])
def test_runtime_environment_with_local_files_is_refused(environment: dict[str, object]) -> None:
    """They do not exist on the cluster."""
    with pytest.raises(RuntimeEnvRefused, match="nothing was sent"):
        plan_job("ls", runtime_env=environment)


def test_requirements_file_is_sent_as_its_lines(tmp_path: Path) -> None:
    """As Ray's own client does."""
    (tmp_path / "requirements.txt").write_text("# ours\nnumpy==2.0\n\nrich\n")
    request = plan_job("ls", runtime_env={"pip": str(tmp_path / "requirements.txt")})
    assert json.loads(json.dumps(request.runtime_env)) == {"pip": {"packages": ["numpy==2.0", "rich"]}}


def test_log_cursor_gives_each_character_once() -> None:
    """However often a tail starts again, and in whatever pieces."""
    cursor = LogCursor()
    given = cursor.accept("abc")
    cursor.restart()
    given += cursor.accept("a") + cursor.accept("bcde")
    assert given + cursor.rest("abcdefg") == "abcdefg"
    assert cursor.rest("abcdefg") == ""
