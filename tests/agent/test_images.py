"""Images ahead of need: pulled where a public registry can have them, told of where not."""

import asyncio

import pytest

from corral.agent.host_engine import EngineFailed
from corral.agent.images import RETRY_S, ImageStore, why_not_pulled
from corral.testing.clock import FakeClock, settle

DIGEST = "sha256:" + "a" * 64


class Engine:
    """Notes what is pulled; images that are `gone` cannot be had."""

    def __init__(self) -> None:
        self.here: set[str] = set()
        self.gone: set[str] = set()
        self.pulled: list[str] = []

    async def missing_images(self, images: tuple[str, ...]) -> list[str]:
        return [image for image in images if image not in self.here]

    async def pull(self, image: str, *, bytes_max: int, free_min: int) -> None:
        self.pulled.append(image)
        if image in self.gone:
            raise EngineFailed("manifest unknown")
        self.here.add(image)


async def test_images_are_pulled_once_and_the_missing_are_told_of() -> None:
    """A registry's image is brought here; a bare digest is a note; what failed is tried again a quarter later."""
    engine, clock = Engine(), FakeClock()
    told: list[tuple[str, ...] | None] = []
    store = ImageStore(engine, clock, lambda: told.append(store.missing))
    assert store.missing is None
    running = asyncio.create_task(store.run())
    public, absent = f"ghcr.io/corral/ray@{DIGEST}", f"docker.io/corral/net@{DIGEST}"
    engine.gone.add(absent)
    store.want((public, absent, DIGEST))
    await settle()
    assert engine.pulled == [public, absent]
    assert [note for note in store.notes() if DIGEST in note and "no registry is named" in note]
    assert len(store.notes()) == 2
    assert store.missing == (absent, DIGEST)
    store.want((public, absent, DIGEST))
    await clock.run_for(RETRY_S - 1)
    assert engine.pulled == [public, absent]
    engine.gone.clear()
    engine.here.add(DIGEST)
    await clock.run_for(2)
    assert engine.pulled == [public, absent, absent]
    assert told == [(public, absent, DIGEST), (absent, DIGEST), (absent,), ()]
    assert store.notes() == ()
    assert store.missing == ()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("name", ["ray", "corral/ray", "docker.io/corral/ray", "registry.example.org/a/b/c"])
def test_public_names_are_asked_for(name: str) -> None:
    """Docker Hub's short names too."""
    assert why_not_pulled(f"{name}@{DIGEST}") is None


@pytest.mark.parametrize(
    "name",
    [
        "127.0.0.1:2375/x", "localhost/x", "localhost:5000/x", "10.0.0.7/x", "192.168.1.1:80/x", "router:80/x",
        "registry.example.org:22/x", "nas.local/x", "metadata.google.internal/x", "2130706433.1/x", "a..b/x",
    ],
)  # fmt: skip
def test_the_engine_is_not_sent_into_the_provider_s_own_network(name: str) -> None:
    """A pull is a request from the provider's machine to wherever the name says."""
    assert why_not_pulled(f"{name}@{DIGEST}") is not None
