"""Every error has a status, every answer to an error is a problem, and a bug tells nothing about itself."""

import importlib
import pkgutil

import httpx
import pytest
from fastapi import FastAPI

import corral
from corral.api.errors import STATUS_OF
from corral.core.errors import CorralError
from corral.testing.postgres import PostgresServer
from corral.wire.problem import PROBLEM_MEDIA_TYPE, Problem

_ELSEWHERE = ("corral.sdk", "corral.cli", "corral.agent", "corral.relay", "corral.testing", "corral.api.migrations")
"""Parts that never run in the control plane's process."""


def _errors_below(base: type[CorralError]) -> set[type[CorralError]]:
    return {base}.union(*(_errors_below(each) for each in base.__subclasses__()))


def test_every_error_of_the_control_plane_has_a_status():
    """Who adds an error decides what its caller sees."""
    for module in pkgutil.walk_packages(corral.__path__, "corral."):
        if not module.name.startswith(_ELSEWHERE):
            importlib.import_module(module.name)
    known = {each for each in _errors_below(CorralError) if each.__module__.startswith("corral.")}
    missing = {each for each in known if not each.__module__.startswith(_ELSEWHERE)} - set(STATUS_OF)
    assert not missing, f"add to api/errors.py: {sorted(each.__qualname__ for each in missing)}"


def test_codes_are_stable_words_and_each_belongs_to_one_error():
    """Programs compare codes: two situations must not share one."""
    codes = [each.code for each in STATUS_OF]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


def problem_of(response: httpx.Response) -> Problem:
    """The problem that `response` is."""
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    problem = Problem.model_validate_json(response.content)
    assert problem.status == response.status_code
    return problem


async def test_an_unknown_path_is_a_problem(http: httpx.AsyncClient):
    """Not even the framework's own errors have another form."""
    response = await http.get("/nowhere")
    assert (response.status_code, problem_of(response).code) == (404, "not_found")


async def test_a_wrong_method_is_a_problem(http: httpx.AsyncClient):
    """The answer names what is allowed."""
    response = await http.put("/v1/signup")
    assert (response.status_code, problem_of(response).code) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b'{"name": 1}', b'{"name": "ada", "more": 1}', b"[" * 9999],
)
async def test_a_malformed_body_is_a_problem_and_does_nothing(http: httpx.AsyncClient, body: bytes):
    """Whatever was sent, the answer is a refusal of the caller's own making."""
    response = await http.post("/v1/signup", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in {400, 422}
    assert problem_of(response).code in {"body_malformed", "request_invalid"}


async def test_a_refused_request_does_not_repeat_what_was_sent(http: httpx.AsyncClient):
    """It may be a secret that was typed into the wrong field."""
    response = await http.post("/v1/signup", json={"name": "S3CRET-value", "password": "S3CRET-value"})
    assert response.status_code == 422
    assert "S3CRET" not in response.text


async def test_a_bug_answers_500_without_its_inside(app: FastAPI, http: httpx.AsyncClient):
    """The message and the stack are for the log."""

    async def fail() -> None:
        raise RuntimeError("inner secret")

    app.add_api_route("/fail", fail)
    response = await http.get("/fail")
    assert (response.status_code, problem_of(response).code) == (500, "internal_error")
    assert "inner secret" not in response.text
    assert "Traceback" not in response.text


async def test_an_absent_database_answers_503_with_a_time_to_try_again(
    http: httpx.AsyncClient, postgres: PostgresServer, database_url: str
):
    """A restart of PostgreSQL is nobody's fault; callers try again."""
    assert (await http.get("/readyz")).status_code == 200
    await postgres.drop_database(database_url)
    response = await http.get("/readyz")
    assert (response.status_code, problem_of(response).code) == (503, "database_unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert (await http.get("/healthz")).status_code == 200


async def test_security_headers_are_on_every_answer_and_no_other_origin_may_read(http: httpx.AsyncClient):
    """A cluster's page is a stranger's: it gets no answer of ours to read or to frame."""
    for response in (
        await http.get("/healthz", headers={"Origin": "https://evil.example"}),
        await http.options(
            "/v1/keys", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
        ),
        await http.get("/nowhere"),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert not any(name.startswith("access-control") for name in response.headers)
