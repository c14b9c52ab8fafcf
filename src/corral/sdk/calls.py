"""
Every request to the control plane as a value: what is sent, and how the answer is read.

Nothing here does I/O, so that the two clients, waiting and async, share all rules and differ in how they wait.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from corral.core.ids import ID_PATTERN, NAME_PATTERN, BookingId, QuoteId, is_id, is_name
from corral.sdk.errors import AnswerMalformed, ApiError, RequestInvalid
from corral.wire import api
from corral.wire.problem import Problem

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Method = Literal["GET", "POST", "PUT", "DELETE"]

_PYTHON_REASON = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): (.+)$")

ANSWER_TIMEOUT_S = 30.0
_SHOWN_CHARACTERS_MAX = 60

WAIT_S_MAX = 25
"""How long the control plane holds a waiting request."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request."""

    method: Method
    path: str
    """Below the base address, starting with a slash."""
    read: Callable[[bytes], T]
    """Makes the result of a successful answer's body; ValueError if it cannot."""
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes | None = None
    upload: Path | None = None
    """A file sent as the body, instead of `body`."""
    is_repeatable: bool
    """Whether sending it twice does what sending it once does: reading, or an id made by the client."""
    is_public: bool = False
    """Needs no API key."""
    timeout_s: float = ANSWER_TIMEOUT_S


def segment(text: str) -> str:
    """One path segment; whatever a person typed cannot reach another route."""
    # Surrogates are what Python makes of an argument that is no UTF-8.
    quoted = quote(text, safe="", errors="surrogatepass")
    return quoted.replace(".", "%2E") if quoted in {".", ".."} else quoted


def _model(model: type[M]) -> Callable[[bytes], M]:
    return model.model_validate_json


def _list_of(model: type[M]) -> Callable[[bytes], list[M]]:
    adapter: TypeAdapter[list[M]] = TypeAdapter(list[model])  # pyright: ignore[reportInvalidTypeForm]
    return adapter.validate_json


def _nothing(_: bytes) -> None:
    return None


def _json(request: BaseModel) -> bytes:
    return request.model_dump_json(exclude_none=True).encode()


@contextmanager
def _request() -> Iterator[None]:
    """
    Within it a request is built.

    Raises:
        RequestInvalid: a value is outside of what the request may hold.
    """
    try:
        yield
    except ValidationError as error:
        problems = [{"where": ".".join(map(str, each["loc"])), "what": _wrong_with(each)} for each in error.errors()]
        said = "; ".join(f"{problem['where']} {problem['what']}" for problem in problems)
        raise RequestInvalid(f"{said}; nothing was sent", problems=problems) from error


def _wrong_with(problem: Mapping[str, Any]) -> str:
    """What a value must be and is not, to be read behind its name."""
    facts: Mapping[str, Any] = problem.get("ctx", {})
    given = repr(problem["input"])
    if len(given) > _SHOWN_CHARACTERS_MAX:
        given = given[:_SHOWN_CHARACTERS_MAX] + "…"
    match problem["type"]:
        case "greater_than":
            return f"must be above {facts['gt']}, not {given}"
        case "greater_than_equal":
            return f"must be at least {facts['ge']}, not {given}"
        case "less_than_equal":
            return f"must be at most {facts['le']}, not {given}"
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must have at most {facts['max_length']} characters"
        case "string_pattern_mismatch" if facts["pattern"] == NAME_PATTERN:
            return f"must be at most 40 lower-case letters, digits and hyphens, a letter first, not {given}"
        case "string_pattern_mismatch" if facts["pattern"] == ID_PATTERN:
            return f"must be an id as the control plane or `new_id` makes it, not {given}"
        case _:
            said = str(problem["msg"])
            return f"is not valid ({said[:1].lower()}{said[1:]}): {given}"


def _checked(name_or_id: str, *, kind: Literal["cluster", "host"], hint: str) -> str:
    if not is_name(name_or_id) and not is_id(name_or_id):
        shown = repr(name_or_id[:_SHOWN_CHARACTERS_MAX])
        raise RequestInvalid(f"{shown} is neither the name nor the id of a {kind}; nothing was sent", hint=hint)
    return name_or_id


def problem_of(status: int, body: bytes, *, url: str) -> Problem:
    """
    The problem document of a refused request.

    Where the server sent none (Ray, a proxy), one is made of the status and of the text's last line, which in a Python
    traceback is the reason.
    """
    try:
        return Problem.model_validate_json(body)
    except ValidationError:
        pass
    text = body[-4000:].decode(errors="replace").strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    is_page = "<html" in text.lower()
    reasons = [match.group(1) for line in lines if (match := _PYTHON_REASON.match(line))]
    detail = f"{url} answered HTTP {status}" if is_page or not lines else (reasons or lines)[-1][:500]
    hint = "`corral login` with a key that is valid" if status == 401 else None
    return Problem(title="refused", status=status, code=f"http_{status}", detail=detail, hint=hint)


def result_of(call: Call[T], status: int, body: bytes, *, url: str) -> T:
    """
    The result of an answer.

    Raises:
        ApiError: the server refused.
        AnswerMalformed: the answer is not what was agreed.
    """
    if not 200 <= status < 300:
        raise ApiError(problem_of(status, body, url=url))
    try:
        return call.read(body)
    except ValueError as error:
        raise AnswerMalformed(
            f"the answer to {call.method} {call.path} is not understood by this version",
            hint="`pip install --upgrade corral`, or ask the operator which version the control plane runs",
            path=call.path,
        ) from error


# --- persons, keys, money -----------------------------------------------------------------------------------------


def signup(name: str) -> Call[api.SignedUp]:
    """A new account; not repeatable, its key is shown once."""
    body = json.dumps({"name": name}).encode()  # the server judges the name, so that there is one message for it
    return Call(
        method="POST", path="/v1/signup", read=_model(api.SignedUp), body=body, is_repeatable=False, is_public=True
    )


def whoami() -> Call[api.WhoAmI]:
    return Call(method="GET", path="/v1/whoami", read=_model(api.WhoAmI), is_repeatable=True)


def keys() -> Call[list[api.Key]]:
    return Call(method="GET", path="/v1/keys", read=_list_of(api.Key), is_repeatable=True)


def create_key(label: str, *, expires_in_s: int | None) -> Call[api.NewKey]:
    with _request():
        request = api.CreateKeyRequest(label=label, expires_in_s=expires_in_s)
    return Call(method="POST", path="/v1/keys", read=_model(api.NewKey), body=_json(request), is_repeatable=False)


def revoke_key(key_id: str) -> Call[None]:
    if not is_id(key_id):
        # Not quoted: it may be the secret, or the whole key.
        raise RequestInvalid(
            "what was given is not the id of an API key; nothing was revoked",
            hint="`corral keys list` shows the ids; of a key, the id is the part before the point",
        )
    return Call(method="DELETE", path=f"/v1/keys/{segment(key_id)}", read=_nothing, is_repeatable=True)


def add_credit(transfer_id: str, person: str, amount_uc: int) -> Call[api.Transfer]:
    with _request():
        request = api.AddCreditRequest(id=transfer_id, person=person, amount_uc=amount_uc)
    return Call(method="POST", path="/v1/credits", read=_model(api.Transfer), body=_json(request), is_repeatable=True)


def transfers() -> Call[list[api.Transfer]]:
    return Call(method="GET", path="/v1/transfers", read=_list_of(api.Transfer), is_repeatable=True)


def earnings() -> Call[api.Earnings]:
    return Call(method="GET", path="/v1/earnings", read=_model(api.Earnings), is_repeatable=True)


# --- hosts --------------------------------------------------------------------------------------------------------


def create_join_token(
    *, uses_max: int, expires_in_s: int, role: Literal["host", "gateway", "relay"]
) -> Call[api.JoinToken]:
    with _request():
        request = api.JoinTokenRequest(uses_max=uses_max, expires_in_s=expires_in_s, role=role)
    path = "/v1/hosts/tokens"
    return Call(method="POST", path=path, read=_model(api.JoinToken), body=_json(request), is_repeatable=False)


def hosts() -> Call[list[api.Host]]:
    return Call(method="GET", path="/v1/hosts", read=_list_of(api.Host), is_repeatable=True)


def host(name_or_id: str) -> Call[api.Host]:
    return Call(method="GET", path=_host_path(name_or_id), read=_model(api.Host), is_repeatable=True)


def set_intent(name_or_id: str, intent: Literal["active", "paused", "left"]) -> Call[api.Host]:
    path = f"{_host_path(name_or_id)}/intent"
    with _request():
        request = api.IntentRequest(intent=intent)
    return Call(method="PUT", path=path, read=_model(api.Host), body=_json(request), is_repeatable=True)


def set_traffic_cap(name_or_id: str, cap_bytes: int | None) -> Call[api.Host]:
    path = f"{_host_path(name_or_id)}/traffic-cap"
    with _request():
        body = api.TrafficCapRequest(traffic_cap_bytes=cap_bytes).model_dump_json().encode()
    return Call(method="PUT", path=path, read=_model(api.Host), body=body, is_repeatable=True)


def claim_location(
    name_or_id: str, *, country: str, region: str, city: str, latitude: float, longitude: float
) -> Call[api.Host]:
    path = f"{_host_path(name_or_id)}/location"
    with _request():
        request = api.LocationRequest(country=country, region=region, city=city, latitude=latitude, longitude=longitude)
    return Call(method="PUT", path=path, read=_model(api.Host), body=_json(request), is_repeatable=True)


def _host_path(name_or_id: str) -> str:
    return f"/v1/hosts/{_checked(name_or_id, kind='host', hint='`corral host list`')}"


# --- market and clusters ------------------------------------------------------------------------------------------


def offers() -> Call[api.Offers]:
    return Call(method="GET", path="/v1/offers", read=_model(api.Offers), is_repeatable=True)


def wish(
    *,
    name: str | None,
    nodes: int | None,
    cpu: int,
    gpu_model: str | None,
    gpu_count: int,
    hours: int,
    single_provider: bool,
    internet: bool,
) -> api.ClusterRequest:
    """
    A renter's wish.

    Raises:
        RequestInvalid: a number or a name is outside of what can be wished for.
    """
    with _request():
        return api.ClusterRequest(
            name=name,
            nodes=nodes,
            cpu=cpu,
            gpu_model=gpu_model,
            gpu_count=gpu_count,
            hours=hours,
            single_provider=single_provider,
            internet=internet,
        )


def quote_for(request: api.ClusterRequest) -> Call[api.Quote]:
    # A quote takes and holds nothing, so asking twice is harmless.
    return Call(method="POST", path="/v1/quotes", read=_model(api.Quote), body=_json(request), is_repeatable=True)


def book(booking_id: str, quote_id: str, *, roster_key: str | None = None) -> Call[api.Cluster]:
    with _request():
        request = api.BookRequest(id=BookingId(booking_id), quote_id=QuoteId(quote_id), roster_key=roster_key)
    return Call(method="POST", path="/v1/clusters", read=_model(api.Cluster), body=_json(request), is_repeatable=True)


def clusters(*, include_ended: bool) -> Call[list[api.Cluster]]:
    query = {"all": "true"} if include_ended else {}
    return Call(method="GET", path="/v1/clusters", read=_list_of(api.Cluster), query=query, is_repeatable=True)


def cluster(name_or_id: str) -> Call[api.Cluster]:
    return Call(method="GET", path=_cluster_path(name_or_id), read=_model(api.Cluster), is_repeatable=True)


def cluster_after(name_or_id: str, *, version: int, wait_s: int) -> Call[api.Cluster]:
    """The cluster once it is newer than `version`, or as it is after `wait_s` seconds (at most `WAIT_S_MAX`)."""
    wait = min(wait_s, WAIT_S_MAX)
    return Call(
        method="GET",
        path=_cluster_path(name_or_id),
        read=_model(api.Cluster),
        query={"newer_than": str(version), "wait_s": str(wait)},
        is_repeatable=True,
        timeout_s=wait + ANSWER_TIMEOUT_S,
    )


def end_cluster(name_or_id: str) -> Call[api.Cluster]:
    return Call(method="DELETE", path=_cluster_path(name_or_id), read=_model(api.Cluster), is_repeatable=True)


def extend(name_or_id: str, *, extension_id: str, hours: int, total_uc_max: int | None) -> Call[api.Cluster]:
    path = f"{_cluster_path(name_or_id)}/extension"
    with _request():
        request = api.ExtendRequest(id=extension_id, hours=hours, total_uc_max=total_uc_max)
    return Call(method="POST", path=path, read=_model(api.Cluster), body=_json(request), is_repeatable=True)


def rosters(name_or_id: str, *, after: int) -> Call[api.RosterChain]:
    """The rosters after serial `after`, as many as the control plane sends at once."""
    path = f"{_cluster_path(name_or_id)}/rosters"
    return Call(method="GET", path=path, read=_model(api.RosterChain), query={"after": str(after)}, is_repeatable=True)


def guests(name_or_id: str) -> Call[list[api.Guest]]:
    return Call(method="GET", path=f"{_cluster_path(name_or_id)}/guests", read=_list_of(api.Guest), is_repeatable=True)


def put_guest(name_or_id: str, guest_id: str, *, direct_key: str, relayed_key: str) -> Call[api.Guest]:
    with _request():
        request = api.GuestRequest(direct_key=direct_key, relayed_key=relayed_key)
    path = _guest_path(name_or_id, guest_id)
    return Call(method="PUT", path=path, read=_model(api.Guest), body=_json(request), is_repeatable=True)


def ray_access(name_or_id: str) -> Call[api.RayAccess]:
    return Call(method="GET", path=f"{_cluster_path(name_or_id)}/ray", read=_model(api.RayAccess), is_repeatable=True)


def remove_guest(name_or_id: str, guest_id: str) -> Call[None]:
    return Call(method="DELETE", path=_guest_path(name_or_id, guest_id), read=_nothing, is_repeatable=True)


def proposal(name_or_id: str) -> Call[api.RosterProposal]:
    path = f"{_cluster_path(name_or_id)}/proposal"
    return Call(method="GET", path=path, read=_model(api.RosterProposal), is_repeatable=True)


def sign_roster(name_or_id: str, *, payload: str, signature: str) -> Call[api.Cluster]:
    path = f"{_cluster_path(name_or_id)}/rosters"
    with _request():
        request = api.SignRosterRequest(payload=payload, signature=signature)
    # Sent twice it finds nothing proposed any more, which looks like a failure.
    return Call(method="POST", path=path, read=_model(api.Cluster), body=_json(request), is_repeatable=False)


def create_ticket(name_or_id: str) -> Call[api.TicketAnswer]:
    # A second ticket replaces nothing and lapses by itself.
    path = f"{_cluster_path(name_or_id)}/tickets"
    return Call(method="POST", path=path, read=_model(api.TicketAnswer), is_repeatable=True)


def bill(name_or_id: str) -> Call[api.Bill]:
    return Call(method="GET", path=f"{_cluster_path(name_or_id)}/bill", read=_model(api.Bill), is_repeatable=True)


def _guest_path(name_or_id: str, guest_id: str) -> str:
    return f"{_cluster_path(name_or_id)}/guests/{segment(guest_id)}"


def _cluster_path(name_or_id: str) -> str:
    return f"/v1/clusters/{_checked(name_or_id, kind='cluster', hint='`corral ps --all`')}"
