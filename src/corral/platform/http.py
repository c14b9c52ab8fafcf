"""What every route needs: the platform bundle and the addresses of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from corral.core.clock import Clock
from corral.core.ids import IdSource
from corral.core.randomness import Randomness
from corral.platform.database import Database
from corral.platform.master_key import MasterKey
from corral.platform.nudges import Nudges
from corral.platform.settings import ServerSettings


@dataclass(frozen=True)
class Platform:
    """What the process that assembles the control plane hands to every domain; at `app.state.platform`."""

    database: Database
    clock: Clock
    ids: IdSource
    randomness: Randomness
    settings: ServerSettings
    nudges: Nudges
    master_key: MasterKey
    ca_sha256: str = ""
    """SHA-256 of the CA certificate (DER) that people and agents pin, hex; empty for plain HTTP."""
    ca_pem: str = ""
    images: Mapping[str, str] = field(default_factory=dict[str, str])
    """Image name (`corral-agent`) to digest."""


def platform_of(request: Request) -> Platform:
    """The bundle of the application that received `request`."""
    return cast(Platform, request.app.state.platform)


PlatformDep = Annotated[Platform, Depends(platform_of)]
"""Route parameter: the platform bundle."""


def client_address(request: Request) -> str:
    """The address that the request came from: the peer's own, since a forwarded one can be made up."""
    return request.client.host if request.client is not None else "unknown"
