"""The API's description is complete, current, and holds: no request within or beyond it makes a 5xx."""

import asyncio
import json
from pathlib import Path

import httpx
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from corral.api.app import create_app
from corral.api.assembly import desired_source
from corral.api.openapi import DEFAULT_FILE, describe
from corral.core.randomness import SeededRandomness
from corral.market import Prices
from corral.platform.database import Database
from corral.platform.http import Platform
from corral.platform.master_key import MasterKey
from corral.platform.nudges import Nudges
from corral.platform.settings import ServerSettings
from corral.testing.clock import FakeClock
from corral.testing.ids import CountingIds
from corral.testing.postgres import PostgresServer
from keyholders import keyholder

ROOT = Path(__file__).parents[2]

EXAMPLES = 12
"""Per operation: a few seconds in all, the same ones each time."""


def test_the_exported_description_is_current():
    """If this fails: `python -m corral.api.openapi`, and commit the difference."""
    assert json.loads((ROOT / DEFAULT_FILE).read_text(encoding="utf-8")) == json.loads(json.dumps(describe()))


def test_every_operation_has_a_name_of_its_own_a_text_and_a_problem():
    """Generated clients call operations by these names."""
    found = [operation for path in describe()["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in found]
    assert len(set(names)) == len(names)
    assert all(operation["description"] for operation in found)
    assert all("application/problem+json" in operation["responses"]["default"]["content"] for operation in found)


def test_no_request_makes_a_server_error(postgres: PostgresServer, tmp_path: Path):
    """Well-formed and malformed requests of every operation, with a key that may do everything: never a 5xx."""
    with asyncio.Runner() as runner:
        url = runner.run(postgres.fresh_database())
        app, platform = _application(url, tmp_path)
        operator = runner.run(keyholder(platform, "operator", is_operator=True))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://control", headers=operator.headers)
        schema = schemathesis.openapi.from_dict(app.openapi())
        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()

            @settings(
                max_examples=EXAMPLES,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            )
            @given(
                case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
                | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            )
            def no_server_error(case: schemathesis.Case) -> None:
                response = runner.run(client.send(_request(client, case)))
                assert response.status_code < 500, (case.method, case.path, case.body, response.text)

            no_server_error()
        runner.run(client.aclose())
        runner.run(platform.database.dispose())
        runner.run(postgres.drop_database(url))


def _application(url: str, data_dir: Path) -> tuple[FastAPI, Platform]:
    clock, randomness = FakeClock(), SeededRandomness(1)
    platform = Platform(
        database=Database(url, connections_max=4),
        clock=clock,
        ids=CountingIds(),
        randomness=randomness,
        # Nothing is waited for: the clock stands still.
        settings=ServerSettings(data_dir=data_dir, signups_per_hour=10_000, signups_per_hour_per_address=10_000),
        nudges=Nudges(url, clock),
        master_key=MasterKey(bytes(32)),
    )
    prices = Prices.load()
    return create_app(platform, prices=prices, desired=desired_source(platform)), platform


def _request(client: httpx.AsyncClient, case: schemathesis.Case) -> httpx.Request:
    """The generated case as bytes on the wire, whatever oddities it holds."""
    sent = requests.Request(**case.as_transport_kwargs(base_url="http://control")).prepare()
    body = sent.body.encode() if isinstance(sent.body, str) else sent.body
    assert body is None or isinstance(body, bytes)
    media_type = sent.headers.get("Content-Type")
    headers = {"Content-Type": str(media_type)} if media_type is not None else {}
    return client.build_request(sent.method or "GET", sent.url or "/", content=body, headers=headers)
