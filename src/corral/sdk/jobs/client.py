"""Jobs of one cluster: submit, follow, list, stop."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from ssl import SSLContext
from typing import Any

from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from corral.sdk.errors import ApiError, PackageTooLarge, Unreachable
from corral.sdk.executors import RETRY_DELAYS_S, AsyncExecutor, Executor
from corral.sdk.jobs import calls
from corral.sdk.jobs.model import Job
from corral.sdk.jobs.package import PACKAGE_BYTES_MAX, PackagePlan, write_package
from corral.sdk.jobs.request import checked_job_id, plan_job
from corral.sdk.jobs.tail import (
    FINISH_POLL_S,
    LOST_TAILS_MAX,
    RECONNECT_S,
    LogCursor,
    connect_options,
    must_poll,
)


def _refused_package(error: ApiError, package: PackagePlan) -> Exception:
    """Something on the way accepts less than Ray does."""
    if error.status != 413:
        return error
    return PackageTooLarge(
        f"{package.root} packs to more than the cluster accepts; the job was not submitted",
        hint=f"list what the job does not need in {package.root / '.rayignore'}",
        bytes_max=PACKAGE_BYTES_MAX,
    )


class Jobs:
    """
    The jobs of one cluster. Made by `Client.jobs`.

    Every method raises `ApiError` when Ray or the gateway refuses (404: no such job) and `Unreachable` when the cluster
    cannot be reached.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        api_key: str,
        context: SSLContext | None,
        new_id: Callable[[str], str],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._executor = executor
        self._api_key = api_key
        self._context = context
        self._new_id = new_id
        self._sleep = sleep

    def submit(
        self,
        entrypoint: str,
        *,
        working_dir: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        submission_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """
        Submits a job and returns its id, as soon as Ray has taken it.

        Args:
            entrypoint: a shell command, run in the working directory on the cluster's head.
            working_dir: a local directory, packed and sent as Ray does it (.gitignore and .rayignore are honoured).
            env: environment variables; every provider of the cluster could read them.
            runtime_env: the rest of Ray's runtime environment.
            submission_id: the job's id; made here if it is missing. One that the cluster knows is refused.
            metadata: texts that Ray keeps with the job.

        Raises:
            JobInvalid: the id, the working directory, the command's file or the runtime environment is wrong; nothing
                was sent.
        """
        job_id = self._new_id("job") if submission_id is None else checked_job_id(submission_id)
        request = plan_job(entrypoint, working_dir=working_dir, env=env, runtime_env=runtime_env)
        if request.package is not None:
            self._send(request.package)
        call = calls.submit(job_id, request.entrypoint, request.runtime_env, dict(metadata or {}))
        was_lost = False
        for delay in (*RETRY_DELAYS_S, None):
            failure: Unreachable | ApiError
            try:
                return self._executor.run(call)
            except (Unreachable, ApiError) as error:
                failure = error
            is_refused = isinstance(failure, ApiError) and not failure.is_unavailable
            # Where an answer was lost, Ray may have taken the job: look before sending it again.
            if (was_lost or not is_refused) and self._is_known(job_id):
                return job_id
            if is_refused or delay is None:
                raise failure
            was_lost = True
            self._sleep(delay)
        raise AssertionError("unreachable")

    def list(self) -> list[Job]:
        """All submitted jobs of this cluster, newest first."""
        return self._executor.run(calls.jobs())

    def status(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._executor.run(calls.job(job_id))

    def stop(self, job_id: str) -> bool:
        """Asks the job to stop; whether it was running."""
        return self._executor.run(calls.stop(job_id))

    def wait(self, job_id: str) -> Job:
        """The job once it is finished."""
        while not (job := self.status(job_id)).is_finished:
            self._sleep(FINISH_POLL_S)
        return job

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """
        The log in pieces, from its beginning; `follow` goes on until the job is finished.

        A lost connection is taken up again without a gap or a repetition. Where no WebSocket gets through, the log is
        asked for once a second.
        """
        cursor = LogCursor()
        if not follow:
            yield self._executor.run(calls.logs(job_id))
            return
        lost, polls = 0, False
        while True:
            if not polls:
                cursor.restart()
                try:
                    with connect(
                        **connect_options(self._executor.url, job_id, api_key=self._api_key, context=self._context)
                    ) as socket:
                        for frame in socket:
                            lost = 0
                            if text := cursor.accept(str(frame)):
                                yield text
                except InvalidHandshake as error:
                    polls = must_poll(error, url=self._executor.url)
                except (ConnectionClosed, OSError, TimeoutError):
                    lost += 1
                    if lost > LOST_TAILS_MAX:
                        raise Unreachable(f"the log of {job_id} broke off; the job is not affected") from None
            is_finished = self.status(job_id).is_finished
            if is_finished or polls:  # a tail may have ended early, and cleanly
                text = cursor.rest(self._executor.run(calls.logs(job_id)))
                if text:
                    yield text
            if is_finished:
                return
            self._sleep(RECONNECT_S)

    def _send(self, package: PackagePlan) -> None:
        try:
            self._executor.run(calls.package_exists(package.name))
        except ApiError as error:
            if error.status != 404:
                raise
        else:
            return
        with tempfile.TemporaryDirectory(prefix="corral-") as folder:
            file = Path(folder) / package.name
            write_package(package, file)
            try:
                self._executor.run(calls.upload_package(package.name, file))
            except ApiError as error:
                raise _refused_package(error, package) from error

    def _is_known(self, job_id: str) -> bool:
        try:
            self.status(job_id)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True


class AsyncJobs:
    """The jobs of one cluster, for asyncio. Made by `AsyncClient.jobs`; see `Jobs` for what the methods do."""

    def __init__(
        self,
        executor: AsyncExecutor,
        *,
        api_key: str,
        context: SSLContext | None,
        new_id: Callable[[str], str],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._executor = executor
        self._api_key = api_key
        self._context = context
        self._new_id = new_id
        self._sleep = sleep

    async def submit(
        self,
        entrypoint: str,
        *,
        working_dir: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        submission_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Submits a job and returns its id; see `Jobs.submit`."""
        job_id = self._new_id("job") if submission_id is None else checked_job_id(submission_id)
        request = await asyncio.to_thread(
            plan_job, entrypoint, working_dir=working_dir, env=env, runtime_env=runtime_env
        )
        if request.package is not None:
            await self._send(request.package)
        call = calls.submit(job_id, request.entrypoint, request.runtime_env, dict(metadata or {}))
        was_lost = False
        for delay in (*RETRY_DELAYS_S, None):
            failure: Unreachable | ApiError
            try:
                return await self._executor.run(call)
            except (Unreachable, ApiError) as error:
                failure = error
            is_refused = isinstance(failure, ApiError) and not failure.is_unavailable
            # Where an answer was lost, Ray may have taken the job: look before sending it again.
            if (was_lost or not is_refused) and await self._is_known(job_id):
                return job_id
            if is_refused or delay is None:
                raise failure
            was_lost = True
            await self._sleep(delay)
        raise AssertionError("unreachable")

    async def list(self) -> list[Job]:
        """All submitted jobs of this cluster, newest first."""
        return await self._executor.run(calls.jobs())

    async def status(self, job_id: str) -> Job:
        """The job as it is now."""
        return await self._executor.run(calls.job(job_id))

    async def stop(self, job_id: str) -> bool:
        """Asks the job to stop; whether it was running."""
        return await self._executor.run(calls.stop(job_id))

    async def wait(self, job_id: str) -> Job:
        """The job once it is finished."""
        while not (job := await self.status(job_id)).is_finished:
            await self._sleep(FINISH_POLL_S)
        return job

    async def logs(self, job_id: str, *, follow: bool = False) -> AsyncIterator[str]:
        """The log in pieces; see `Jobs.logs`."""
        cursor = LogCursor()
        if not follow:
            yield await self._executor.run(calls.logs(job_id))
            return
        lost, polls = 0, False
        while True:
            if not polls:
                cursor.restart()
                try:
                    async with connect_async(
                        **connect_options(self._executor.url, job_id, api_key=self._api_key, context=self._context)
                    ) as socket:
                        async for frame in socket:
                            lost = 0
                            if text := cursor.accept(str(frame)):
                                yield text
                except InvalidHandshake as error:
                    polls = must_poll(error, url=self._executor.url)
                except (ConnectionClosed, OSError, TimeoutError):
                    lost += 1
                    if lost > LOST_TAILS_MAX:
                        raise Unreachable(f"the log of {job_id} broke off; the job is not affected") from None
            is_finished = (await self.status(job_id)).is_finished
            if is_finished or polls:  # a tail may have ended early, and cleanly
                text = cursor.rest(await self._executor.run(calls.logs(job_id)))
                if text:
                    yield text
            if is_finished:
                return
            await self._sleep(RECONNECT_S)

    async def _send(self, package: PackagePlan) -> None:
        try:
            await self._executor.run(calls.package_exists(package.name))
        except ApiError as error:
            if error.status != 404:
                raise
        else:
            return
        with tempfile.TemporaryDirectory(prefix="corral-") as folder:
            file = Path(folder) / package.name
            await asyncio.to_thread(write_package, package, file)
            try:
                await self._executor.run(calls.upload_package(package.name, file))
            except ApiError as error:
                raise _refused_package(error, package) from error

    async def _is_known(self, job_id: str) -> bool:
        try:
            await self.status(job_id)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True
