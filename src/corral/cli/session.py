"""The SDK's client for a command; imported when a command runs, so that help stays quick."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corral.sdk.client import Client


@contextmanager
def client() -> "Iterator[Client]":
    """A client with the settings of the environment and the file, closed at the end."""
    from corral.sdk.client import Client

    with Client() as connected:
        yield connected
