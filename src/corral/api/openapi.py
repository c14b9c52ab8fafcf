"""
Writes the API's description, for generated clients and for reading.

`python -m corral.api.openapi FILE` writes it; a test fails while `docs/openapi.json` differs from the code.
"""

import json
import sys
from pathlib import Path
from typing import Any

from corral.api.app import create_app
from corral.api.assembly import desired_source
from corral.core.clock import SystemClock
from corral.core.ids import TimeOrderedIds
from corral.core.randomness import SystemRandomness
from corral.market import Prices
from corral.platform.database import Database
from corral.platform.http import Platform
from corral.platform.master_key import MasterKey
from corral.platform.nudges import Nudges
from corral.platform.settings import ServerSettings

DEFAULT_FILE = Path("docs/openapi.json")


def describe() -> dict[str, Any]:
    """The OpenAPI document of the control plane. Connects to nothing."""
    clock, randomness, url = SystemClock(), SystemRandomness(), "postgresql+asyncpg://nowhere/corral"
    platform = Platform(
        database=Database(url),
        clock=clock,
        ids=TimeOrderedIds(clock, randomness),
        randomness=randomness,
        settings=ServerSettings(),
        nudges=Nudges(url, clock),
        master_key=MasterKey(bytes(32)),
    )
    prices = Prices.load()
    return create_app(platform, prices=prices, desired=desired_source(platform)).openapi()


def write(file: Path) -> None:
    """Writes the document in a form whose differences can be read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(describe(), indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE)
