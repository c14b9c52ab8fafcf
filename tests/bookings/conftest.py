"""A town to book in, and the instant at which every test begins."""

from datetime import datetime

import pytest

from corral.core.ids import IdSource
from corral.core.randomness import SeededRandomness
from corral.market import Prices
from corral.platform.settings import ServerSettings
from corral.testing.clock import FakeClock
from corral.testing.town import Town


@pytest.fixture
def town(ids: IdSource, settings: ServerSettings) -> Town:
    """A town that is not built yet: `await town.build(tx, now)` writes it."""
    return Town(ids, settings, Prices.load(), SeededRandomness(7))


@pytest.fixture
def now(clock: FakeClock) -> datetime:
    """The instant at which every test begins."""
    return clock.now()
