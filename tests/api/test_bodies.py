"""Bodies over the limit, announced or chunked, for people and for agents."""

from collections.abc import AsyncIterator

import httpx
import pytest

from corral.core.units import MIB
from corral.wire.problem import PROBLEM_MEDIA_TYPE

JSON = {"Content-Type": "application/json"}


async def chunks(count: int) -> AsyncIterator[bytes]:
    """`count` MiB in pieces, of which nobody said how many will come."""
    for _ in range(count * 16):
        yield b" " * (MIB // 16)


@pytest.mark.parametrize(("path", "limit_mib"), [("/v1/signup", 1), ("/agent/v1/enrol", 1), ("/agent/v1/exchange", 4)])
async def test_a_body_over_the_limit_is_refused_whether_announced_or_not(
    http: httpx.AsyncClient, path: str, limit_mib: int
):
    """A chunked body is counted while it is read."""
    for content in (b" " * (limit_mib * MIB + 1), chunks(limit_mib + 1), chunks(40)):
        response = await http.post(path, content=content, headers=JSON)
        assert response.status_code == 413
        assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
        assert response.json()["code"] == "body_too_large"


async def test_a_body_at_the_limit_is_read(http: httpx.AsyncClient):
    """White space is no crime: the refusal is about what it says."""
    body = b'{"name": "ada"}'.rjust(MIB)
    assert (await http.post("/v1/signup", content=body, headers=JSON)).status_code == 201


async def test_a_body_that_lies_about_its_length_is_no_bug(http: httpx.AsyncClient):
    """Whatever the header claims, the bytes count."""
    for length in ("-1", "x", "9" * 5000, "0x10", ""):
        response = await http.post("/v1/signup", content=chunks(2), headers={**JSON, "Content-Length": length})
        assert response.status_code == 413, length


async def test_another_media_type_than_json_is_refused(http: httpx.AsyncClient):
    """A stranger's page can send a form or plain text to us without asking, so those do nothing."""
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = await http.post("/v1/signup", content=b'{"name": "ada"}', headers={"Content-Type": media_type})
        assert response.status_code == 422
