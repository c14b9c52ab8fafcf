"""Jobs on a rented cluster."""

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.cli.clusters import ClusterArgument
from corral.cli.output import (
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    JsonOption,
    UsageProblem,
    instant,
    is_json,
    put,
    put_json,
    say,
    table,
)
from corral.cli.session import client

if TYPE_CHECKING:
    from corral.sdk.jobs import Job, Jobs

app = typer.Typer(help="Jobs on your clusters.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


@app.command("submit")
def submit(
    cluster: ClusterArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run, after `--`.")],
    working_dir: Annotated[
        str | None,
        typer.Option("--working-dir", metavar="DIR", help="Send this directory; .gitignore and .rayignore count."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME[=VALUE]", help="Environment of the job; without value: as it is here."),
    ] = None,
    runtime_env: Annotated[
        str | None, typer.Option("--runtime-env", metavar="FILE", help="Ray's runtime environment, as JSON.")
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option("--submission-id", metavar="ID", help="The job's id; else one is made.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a command on a cluster, follow its log, and end as it ends: 0 if it succeeded, else 1."""
    variables = dict(_variable(text) for text in env or [])
    environment = _runtime_env(runtime_env)
    entrypoint = command[0] if len(command) == 1 else shlex.join(command)
    with client() as corral:
        jobs = corral.jobs(cluster)
        job_id = jobs.submit(
            entrypoint,
            working_dir=working_dir,
            env=variables,
            runtime_env=environment,
            submission_id=submission_id,
        )
        if no_wait:
            if is_json():
                put_json({"submission_id": job_id})
            else:
                put(job_id)
            return
        say(f"job {job_id}")
        job = _follow(jobs, job_id, cluster, is_data=not is_json())
    if is_json():
        put_json(job)
    _end_as(job)


@app.command("logs")
def logs(
    cluster: ClusterArgument,
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is finished.")] = False,
    json: JsonOption = False,
) -> None:
    """Show a job's log."""
    with client() as corral:
        jobs = corral.jobs(cluster)
        if is_json():
            put_json({"submission_id": job, "logs": "".join(jobs.logs(job, follow=follow))})
            return
        for text in jobs.logs(job, follow=follow):
            _write(text, is_data=True)


@app.command("list")
def list_jobs(cluster: ClusterArgument, json: JsonOption = False) -> None:
    """Show the jobs of a cluster."""
    with client() as corral:
        found = corral.jobs(cluster).list()
    if is_json():
        put_json(found)
        return
    rows = [[job.id, job.status, instant(job.started_at), _took(job), job.entrypoint] for job in found]
    put(table(["JOB", "STATUS", "STARTED", "TOOK", "COMMAND"], rows, right=["TOOK"]))


@app.command("stop")
def stop(cluster: ClusterArgument, job: JobArgument, json: JsonOption = False) -> None:
    """Stop a job."""
    with client() as corral:
        was_running = corral.jobs(cluster).stop(job)
    if is_json():
        put_json({"submission_id": job, "stopped": was_running})
        return
    say(f"job {job} is being stopped" if was_running else f"job {job} was not running")


def _follow(jobs: "Jobs", job_id: str, cluster: str, *, is_data: bool) -> "Job":
    try:
        for text in jobs.logs(job_id, follow=True):
            _write(text, is_data=is_data)
        return jobs.wait(job_id)
    except KeyboardInterrupt:
        say()
        say(f"job {job_id} goes on")
        say(f"hint: `corral job logs {cluster} {job_id} -f` to go on, `corral job stop {cluster} {job_id}` to stop it")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _end_as(job: "Job") -> None:
    took = f" after {job.seconds:.1f} s" if job.seconds is not None else ""
    if job.status == "SUCCEEDED":
        say(f"job {job.id} succeeded{took}")
        return
    code = f", exit code {job.exit_code}" if job.exit_code is not None else ""
    # Where the command itself failed, Ray's message repeats the end of the log that was just shown.
    is_own_failure = job.error_type == "JOB_ENTRYPOINT_COMMAND_ERROR"
    reason = f": {job.message.strip()}" if job.message and job.status == "FAILED" and not is_own_failure else ""
    say(f"job {job.id} {job.status.lower()}{took}{code}{reason}")
    raise typer.Exit(EXIT_REFUSED)


def _write(text: str, *, is_data: bool) -> None:
    stream = sys.stdout if is_data else sys.stderr
    stream.write(text)
    stream.flush()


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name:
        raise UsageProblem(f"{text!r} names no environment variable", hint="write it like --env NAME=VALUE")
    if separator:
        return name, value
    if name not in os.environ:
        raise UsageProblem(f"{name} is not set here, so that it cannot be passed on", hint=f"--env {name}=VALUE")
    return name, os.environ[name]


def _runtime_env(path: str | None) -> dict[str, Any]:
    import json

    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageProblem(f"the runtime environment {path} cannot be read: {reason}; nothing was sent") from error
    if not isinstance(value, dict):
        raise UsageProblem(f"the runtime environment {path} is not a JSON object; nothing was sent")
    return value


def _took(job: "Job") -> str:
    return "-" if job.seconds is None else f"{job.seconds:.1f} s"
