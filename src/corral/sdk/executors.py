"""How a call is carried out: two thin executors, one that waits and one for asyncio, on the same rules of retrying."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from ssl import SSLContext
from typing import Any, TypeVar

import httpx

import corral
from corral.sdk.addresses import host_of, is_loopback
from corral.sdk.calls import Call, result_of
from corral.sdk.errors import UNAVAILABLE_STATUSES
from corral.sdk.tls import CONNECT_TIMEOUT_S, certificate_reason, unreachable

T = TypeVar("T")

RETRY_DELAYS_S = (0.2, 0.6, 1.5)
"""Waits before the second, third and fourth attempt: enough for a restart of a replica, short enough for a person."""
UPLOAD_CHUNK_BYTES = 1024 * 1024


def delay_after_failure(call: Call[Any], attempt: int, error: httpx.TransportError) -> float | None:
    """Seconds to wait before the next attempt after a failed connection, None to give up. `attempt` counts from 0."""
    if certificate_reason(error) is not None:
        return None
    was_never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return _delay(attempt) if was_never_sent or call.is_repeatable else None


def delay_after_answer(call: Call[Any], attempt: int, status: int) -> float | None:
    """Seconds to wait before another attempt after an answer, None to take the answer as it is."""
    return _delay(attempt) if status in UNAVAILABLE_STATUSES and call.is_repeatable else None


def _delay(attempt: int) -> float | None:
    return RETRY_DELAYS_S[attempt] if attempt < len(RETRY_DELAYS_S) else None


def _client_options(url: str, context: SSLContext | None) -> dict[str, Any]:
    return {
        "headers": {"User-Agent": f"corral/{corral.__version__}", "Accept": "application/json"},
        "verify": False if context is None else context,
        # What is on this machine is never reached through a proxy that the environment names.
        "trust_env": not is_loopback(host_of(url)),
        "follow_redirects": False,
    }


def _request_options(call: Call[Any], url: str, api_key: str | None) -> dict[str, Any]:
    headers: dict[str, str] = {}
    options: dict[str, Any] = {
        "method": call.method,
        "url": url + call.path,
        "params": dict(call.query),
        "headers": headers,
        "timeout": httpx.Timeout(call.timeout_s, connect=CONNECT_TIMEOUT_S),
    }
    if api_key is not None and not call.is_public:
        headers["Authorization"] = f"Bearer {api_key}"
    if call.body is not None:
        headers["Content-Type"] = "application/json"
        options["content"] = call.body
    elif call.upload is not None:
        headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(call.upload.stat().st_size)}
    return options


class Executor:
    """Carries calls out and waits for them. Thread-safe as far as `httpx.Client` is."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        context: SSLContext | None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.url = url
        self._api_key = api_key
        self._http = httpx.Client(**_client_options(url, context))
        self._sleep = sleep

    def run(self, call: Call[T]) -> T:
        """
        The result of `call`.

        Raises:
            ApiError: refused.
            Unreachable: nobody answered, after the retries that are harmless.
            CertificateUntrusted: the server is not who it should be.
            AnswerMalformed: the answer is not understood.
        """
        attempt = 0
        while True:
            try:
                if call.upload is None:
                    answer = self._http.request(**_request_options(call, self.url, self._api_key))
                else:
                    with call.upload.open("rb") as file:
                        answer = self._http.request(**_request_options(call, self.url, self._api_key), content=file)
            except httpx.TransportError as error:
                if (delay := delay_after_failure(call, attempt, error)) is None:
                    raise unreachable(self.url, error) from error
            else:
                if (delay := delay_after_answer(call, attempt, answer.status_code)) is None:
                    return result_of(call, answer.status_code, answer.content, url=self.url)
            self._sleep(delay)
            attempt += 1

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()


class AsyncExecutor:
    """Carries calls out in asyncio."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        context: SSLContext | None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url
        self._api_key = api_key
        self._http = httpx.AsyncClient(**_client_options(url, context))
        self._sleep = sleep

    async def run(self, call: Call[T]) -> T:
        """The result of `call`; raises what `Executor.run` raises."""
        attempt = 0
        while True:
            try:
                options = _request_options(call, self.url, self._api_key)
                if call.upload is not None:
                    options["content"] = _chunks(call.upload)
                answer = await self._http.request(**options)
            except httpx.TransportError as error:
                if (delay := delay_after_failure(call, attempt, error)) is None:
                    raise unreachable(self.url, error) from error
            else:
                if (delay := delay_after_answer(call, attempt, answer.status_code)) is None:
                    return result_of(call, answer.status_code, answer.content, url=self.url)
            await self._sleep(delay)
            attempt += 1

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, UPLOAD_CHUNK_BYTES):
            yield chunk
