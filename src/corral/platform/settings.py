"""The control plane's settings: one typed class, read at start-up from the environment and the command line."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corral.core.units import MIB
from corral.platform.errors import SettingInvalid

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class ServerSettings(BaseModel):
    """
    Every number and place of the control plane.

    Each field may be set by the environment variable `CORRAL_` + its name in capitals; the command line overrides the
    environment. Units are in the names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(default_factory=lambda: default_data_dir(), description="keys, certificates, PostgreSQL")
    database_url: str | None = Field(
        default=None, repr=False, description="PostgreSQL to use instead of the embedded one; may hold a password"
    )
    database_connections_max: Positive = 20
    public_url: str = Field(default="https://127.0.0.1:8470", description="where people reach the API")
    agent_url: str = Field(
        default="https://host.docker.internal:8470", description="where a container on a host reaches the API"
    )
    gateway_domain: str = Field(default="localhost", description="a cluster's web origin is NAME.<this domain>")
    prices_file: Path | None = Field(default=None, description="prices.toml; empty: the prices that come with Corral")
    images_file: Path | None = Field(default=None, description="JSON: image name to digest, as scripts/setup writes it")
    log_format: Literal["console", "json"] = "console"
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"

    body_bytes_max_people: Positive = 1 * MIB
    body_bytes_max_agents: Positive = 4 * MIB
    signups_per_hour_per_address: Positive = 20
    signups_per_hour: Positive = 500
    keys_per_person_max: Positive = 100
    key_last_used_step_s: Seconds = Field(default=60, description="how exact a key's `last_used_at` is")

    quote_expiry_s: Seconds = 300
    exchange_hold_s: Seconds = Field(default=25, description="an agent's reply is held at most this long")
    host_offline_after_s: Seconds = 75
    liveness_flush_s: Seconds = 1
    node_start_s: Seconds = Field(default=60, description="a node that is not up by then is replaced, once")
    cluster_start_s: Seconds = Field(default=180, description="a start that is not ready by then fails as a whole")
    signature_s: Seconds = Field(default=600, description="a start whose renter does not sign its members fails then")
    orphan_grace_s: Seconds = 60
    hold_hours_max: Annotated[int, Field(ge=2)] = Field(
        default=24, description="hours ahead that are held; more are held at each full hour, so that one is not enough"
    )
    fee_basis_points: Annotated[int, Field(ge=0, le=10_000)] = Field(default=500, description="the network's share")
    ticket_expiry_s: Seconds = Field(default=60, description="a browser's one-time way into a cluster's pages")
    session_expiry_s: Seconds = Field(default=12 * 3600, description="a browser's session on a cluster's origin")
    places_period_s: Seconds = Field(default=60, description="network coordinates are fitted at most this often")
    guests_per_cluster_max: Positive = Field(default=8, description="machines of a renter's own in a cluster's mesh")
    guest_lapse_s: Seconds = Field(default=120, description="one that is not heard of for so long leaves the mesh")
    poll_s: Seconds = Field(default=1, description="reconcilers look this often, nudged or not")


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/corral`, which is `~/.local/share/corral` unless set."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "corral"


def read_settings(environment: Mapping[str, str], **options: Any) -> ServerSettings:
    """
    Settings from `CORRAL_*` variables, overridden by `options` that are not None.

    Variables of other parts of Corral (CORRAL_URL, CORRAL_API_KEY) are not settings of the control plane; they and
    unknown ones are left alone.

    Raises:
        SettingInvalid: a value cannot be used; the message names it without quoting it.
    """
    values: dict[str, Any] = {
        name: environment[variable]
        for name in ServerSettings.model_fields
        if environment.get(variable := f"CORRAL_{name.upper()}", "") != ""
    }
    values |= {name: value for name, value in options.items() if value is not None}
    try:
        return ServerSettings.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise SettingInvalid(f"a setting cannot be used: {problems}") from None
