"""What a job sends, worked out and checked before anything of it leaves this machine."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.sdk.errors import EntrypointMissing, JobIdMalformed, RuntimeEnvRefused
from corral.sdk.jobs.package import PackagePlan, plan_package

_SHELL = re.compile(r"[|&;<>()$`\\*?\[\]{}~#\n]")
"""Characters by which a shell does more than run one command: then the entrypoint is left to the cluster to judge."""
_INTERPRETERS = re.compile(r"^(?:.*/)?(?:python[0-9.]*|bash|sh)$")
_JOB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
"""One path segment that means the same however it is written; Ray also names the job's log file after it."""
_REMOTE = re.compile(r"^[a-z0-9+]+://")


@dataclass(frozen=True)
class JobRequest:
    """A checked job: its command, what the cluster must hold first, and the runtime environment that names it."""

    entrypoint: str
    runtime_env: dict[str, Any]
    package: PackagePlan | None


def plan_job(
    entrypoint: str,
    *,
    working_dir: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> JobRequest:
    """
    Works out what to send for a job.

    Args:
        entrypoint: a shell command, run in the working directory on the cluster's head.
        working_dir: a local directory to pack and send, or an address that the cluster itself can fetch.
        env: environment variables of the job. Every provider of the cluster could read them.
        runtime_env: Ray's runtime environment for the rest; its `working_dir` and `env_vars` are merged with the above.

    Raises:
        WorkingDirMissing: the directory does not exist.
        EntrypointMissing: the command's file is not in it.
        RuntimeEnvRefused: `runtime_env` names local files elsewhere.
    """
    environment = dict(runtime_env or {})
    working_dir = working_dir if working_dir is not None else environment.pop("working_dir", None)
    excludes = environment.pop("excludes", None) or []
    _refuse_local_paths(environment)
    for name in ("pip", "uv"):
        if isinstance(environment.get(name), str):
            environment[name] = {"packages": _requirements(name, environment[name])}
    variables = {**(environment.pop("env_vars", None) or {}), **(env or {})}
    if variables:
        environment["env_vars"] = variables
    package = None
    if working_dir is not None and _REMOTE.match(str(working_dir)):
        environment["working_dir"] = str(working_dir)
    elif working_dir is not None:
        package = plan_package(working_dir, excludes=excludes)
        environment["working_dir"] = package.uri
    _check_entrypoint(entrypoint, package, is_dir_given=working_dir is not None)
    return JobRequest(entrypoint, environment, package)


def checked_job_id(job_id: str) -> str:
    """
    An id for a new job, as it is.

    Raises:
        JobIdMalformed: the job could be submitted under it, and not be reached any more.
    """
    if _JOB_ID.fullmatch(job_id) is None:
        raise JobIdMalformed(
            f"{job_id[:60]!r} cannot be the id of a job; nothing was sent",
            hint="use at most 128 letters, digits, points, hyphens and underscores, no point first",
        )
    return job_id


def script_of(entrypoint: str) -> str | None:
    """The relative file that a simple command runs (`python main.py`, `./run.sh`); None if it cannot be told."""
    if _SHELL.search(entrypoint):
        return None
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        return None
    while words and re.match(r"^[A-Za-z_][A-Za-z0-9_]*=", words[0]):
        words = words[1:]
    if not words:
        return None
    if words[0].startswith(("./", "../")):
        return words[0]
    if not _INTERPRETERS.match(words[0]):
        return None
    rest = words[1:]
    while rest and rest[0] in {"-u", "-O", "-OO", "-B", "-E", "-I", "-s", "-x", "-e"}:
        rest = rest[1:]
    if not rest or rest[0].startswith(("-", "/")):
        return None
    return rest[0]


def _check_entrypoint(entrypoint: str, package: PackagePlan | None, *, is_dir_given: bool) -> None:
    if not entrypoint.strip():
        raise EntrypointMissing("the job has no command; nothing was sent")
    script = script_of(entrypoint)
    if script is None or (package is None and is_dir_given):
        return
    if package is None:
        raise EntrypointMissing(
            f"the job runs {script}, but no working directory is sent with it; nothing was sent",
            hint="send the directory that holds it: `--working-dir .`",
            script=script,
        )
    relative = Path(script)
    if ".." in relative.parts:
        raise EntrypointMissing(
            f"{script} is outside the working directory {package.root}; nothing was sent", script=script
        )
    if package.holds(str(relative)):
        return
    if (package.root / relative).is_file():
        raise EntrypointMissing(
            f"{script} is in {package.root}, but its .gitignore or .rayignore leaves it out; nothing was sent",
            hint=f"add a line `!{script}` to {package.root / '.rayignore'}",
            script=script,
        )
    raise EntrypointMissing(
        f"there is no {script} in the working directory {package.root}; nothing was sent",
        hint="name the directory that holds it with `--working-dir`",
        script=script,
    )


def _refuse_local_paths(environment: Mapping[str, Any]) -> None:
    for module in environment.get("py_modules") or []:
        if not isinstance(module, str) or not _REMOTE.match(module):
            raise RuntimeEnvRefused(
                f"py_modules names the local path {module}; nothing was sent",
                hint="put the module into the working directory",
            )
    if isinstance(conda := environment.get("conda"), str) and conda.endswith((".yaml", ".yml")):
        raise RuntimeEnvRefused(
            f"conda names the local file {conda}; nothing was sent",
            hint="give its content as a mapping, or use `pip`",
        )


def _requirements(name: str, path: str) -> list[str]:
    """The lines of a requirements file: the cluster has no access to the file itself."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeEnvRefused(
            f"{name} names the requirements file {path}, which cannot be read; nothing was sent"
        ) from error
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
