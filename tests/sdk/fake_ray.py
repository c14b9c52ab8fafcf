"""A small Ray head for tests: its job interface as Ray 2.60's `job_head.py` has it, on jobs that end by script."""

import io
import zipfile
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

START_MS = 1_800_000_000_000
LOG = ["Running entrypoint\n", "epoch 1\n", "epoch 2 é\n"]


@dataclass
class FakeJob:
    """A submitted job; `failing…` commands fail, `running…` ones never end, all others succeed at once."""

    body: dict[str, Any]

    @property
    def status(self) -> str:
        """Ray's word for how it stands."""
        command = self.body["entrypoint"]
        if self.body.get("stopped"):
            return "STOPPED"
        return "FAILED" if "failing" in command else "RUNNING" if "running" in command else "SUCCEEDED"

    def details(self) -> dict[str, Any]:
        """Ray's JobDetails."""
        status = self.status
        return {
            "type": "SUBMISSION",
            "job_id": None,
            "submission_id": self.body["submission_id"],
            "driver_info": None,
            "status": status,
            "entrypoint": self.body["entrypoint"],
            "message": "Job entrypoint command failed with exit code 5" if status == "FAILED" else None,
            "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR" if status == "FAILED" else None,
            "start_time": START_MS,
            "end_time": None if status == "RUNNING" else START_MS + 2500,
            "metadata": self.body.get("metadata"),
            "runtime_env": self.body.get("runtime_env"),
            "driver_exit_code": {"FAILED": 5, "SUCCEEDED": 0}.get(status),
        }


@dataclass
class FakeRay:
    """One head behind a gateway that wants a Bearer key."""

    key: str
    packages: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    tails_cut: int = 0
    """This many tails break off after their first piece."""
    tails_empty: int = 0
    """This many tails close cleanly without a word."""
    has_websocket: bool = True
    body_bytes_max: int = 10**9
    submissions_lost: int = 0
    """This many submissions are taken, but their answers are lost behind a 503."""
    seen_extensions: list[str | None] = field(default_factory=list)

    def files(self, name: str) -> list[str]:
        """What is in a package."""
        return zipfile.ZipFile(io.BytesIO(self.packages[name])).namelist()

    def routes(self) -> list[Route | WebSocketRoute]:
        """The interface, below a cluster's path."""
        job = "/api/jobs/{job_id}"
        return [
            Route("/api/packages/gcs/{name}", self._guarded(self._package), methods=["GET", "PUT"]),
            Route("/api/jobs/", self._guarded(self._all_jobs), methods=["GET", "POST"]),
            Route(job, self._guarded(self._job)),
            Route(f"{job}/logs", self._guarded(self._logs)),
            Route(f"{job}/stop", self._guarded(self._stop), methods=["POST"]),
            WebSocketRoute(f"{job}/logs/tail", self._tail),
        ]

    def _guarded(self, endpoint: Any) -> Any:
        async def guarded(request: Request) -> Response:
            if request.headers.get("Authorization") != f"Bearer {self.key}":
                return Response("<html><title>401</title></html>", 401, media_type="text/html")
            return await endpoint(request)

        return guarded

    async def _package(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "GET":
            return Response() if name in self.packages else PlainTextResponse(f"Package {name} does not exist", 404)
        body = await request.body()
        if len(body) > self.body_bytes_max:
            return Response("<html><title>413</title></html>", 413, media_type="text/html")
        self.packages[name] = body
        return Response()

    async def _all_jobs(self, request: Request) -> Response:
        if request.method == "GET":
            driver = {"type": "DRIVER", "job_id": "01", "submission_id": None, "status": "RUNNING", "entrypoint": "x"}
            return JSONResponse([driver, *(job.details() for job in self.jobs.values())])
        body = await request.json()
        job_id = body["submission_id"]
        if job_id in self.jobs:
            trace = (
                f"Traceback (most recent call last):\n  …\nValueError: Job with submission_id {job_id} already exists"
            )
            return PlainTextResponse(f"{trace}.\n.", 500)
        self.jobs[job_id] = FakeJob(body)
        if self.submissions_lost > 0:
            self.submissions_lost -= 1
            return PlainTextResponse("the head's agent did not answer", 503)
        return JSONResponse({"job_id": job_id, "submission_id": job_id})

    def _found(self, request: Request) -> FakeJob | Response:
        job_id = request.path_params["job_id"]
        return self.jobs.get(job_id) or PlainTextResponse(f"Job {job_id} does not exist", 404)

    async def _job(self, request: Request) -> Response:
        job = self._found(request)
        return JSONResponse(job.details()) if isinstance(job, FakeJob) else job

    async def _logs(self, request: Request) -> Response:
        job = self._found(request)
        return JSONResponse({"logs": "".join(LOG)}) if isinstance(job, FakeJob) else job

    async def _stop(self, request: Request) -> Response:
        job = self._found(request)
        if not isinstance(job, FakeJob):
            return job
        was_running = job.status == "RUNNING"
        job.body["stopped"] = True
        return JSONResponse({"stopped": was_running})

    async def _tail(self, socket: WebSocket) -> None:
        self.seen_extensions.append(socket.headers.get("sec-websocket-extensions"))
        if socket.headers.get("Authorization") != f"Bearer {self.key}":
            await socket.send_denial_response(Response("no", 401))
            return
        if socket.path_params["job_id"] not in self.jobs:
            await socket.send_denial_response(PlainTextResponse("Job does not exist", 404))
            return
        if not self.has_websocket:
            await socket.send_denial_response(Response("no upgrade here", 426))
            return
        await socket.accept()
        if self.tails_empty > 0:
            self.tails_empty -= 1
        elif self.tails_cut > 0:
            self.tails_cut -= 1
            await socket.send_text(LOG[0])
            await socket.close(1011)
            return
        else:
            await socket.send_text(LOG[0] + LOG[1])
            await socket.send_text(LOG[2])
        await socket.close(1000)
