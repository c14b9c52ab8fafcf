"""A control plane on loopback, and a home without settings."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.sdk.client import Client
from sdk.fake_control_plane import KEY, FakeControlPlane, Serving


@pytest.fixture
def control_plane(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeControlPlane]:
    """A fake control plane with a fake Ray behind it, and the environment that leads to it."""
    fake = FakeControlPlane()
    serving = Serving(fake.app())
    fake.base_url = f"http://127.0.0.1:{serving.port}"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("CORRAL_URL", fake.base_url)
    monkeypatch.setenv("CORRAL_API_KEY", KEY)
    monkeypatch.delenv("CORRAL_CA", raising=False)
    yield fake
    serving.close()


@pytest.fixture
def client(control_plane: FakeControlPlane) -> Iterator[Client]:
    """A client that waits for nothing."""
    with Client(sleep=lambda _: None) as connected:
        yield connected
