"""Corral: idle GPUs and CPUs of many owners, lent by the hour as ready Ray clusters."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corral.sdk.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    # The clients are loaded when they are asked for: the agent and the command line's help do without them.
    if name in {"AsyncClient", "Client"}:
        from corral.sdk import client

        return {"AsyncClient": client.AsyncClient, "Client": client.Client}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
