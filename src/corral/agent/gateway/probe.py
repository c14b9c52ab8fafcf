"""
What the control plane calls ready, read through the leaf: which nodes Ray holds for alive, and whether jobs are taken.

The way is the renters' own (leaf, mesh, head), so a yes means that they will get through too.
"""

import asyncio
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import aiohttp
import msgspec

from corral.agent.gateway.web import LEAF_PORT, LEAF_SECRET_HEADER

READY_PERIOD_S = 10.0
"""Between two looks at a cluster that serves."""
STARTING_PERIOD_S = 0.2
"""Between two looks at one that does not yet, or no longer: this is on the way of every start."""
STARTING_S_MAX = 180.0
"""The longest start; what is incomplete after that is looked at less often."""
INCOMPLETE_PERIOD_S = 2.0
TIMEOUT_S = 3.0
ANSWER_BYTES_MAX = 32 * 1024 * 1024
"""A summary takes about 7 KB a node; beyond this a hostile head only wants our memory."""
ALIVE_MAX = 4096


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What was seen through one leaf."""

    alive: tuple[str, ...] = ()
    """Mesh addresses that Ray holds for alive, in ascending order."""
    serves: bool = False
    """The job endpoint answers 200."""


class LeafProbe:
    """
    Looks at one cluster through its leaf.

    Args:
        session: any client session; closing it is the caller's.
        base_url: the leaf's web server, for example `http://172.17.0.5:8080`.
        secret: the leaf's secret.
    """

    def __init__(self, session: aiohttp.ClientSession, base_url: str, secret: str) -> None:
        self._session = session
        self._base_url = base_url
        self._headers = {LEAF_SECRET_HEADER: secret}

    @classmethod
    def of_leaf(cls, session: aiohttp.ClientSession, address: str, secret: str) -> "LeafProbe":
        """The probe of the leaf with this bridge address."""
        return cls(session, f"http://{address}:{LEAF_PORT}", secret)

    async def look(self) -> Readiness:
        """What is seen now. Whatever goes wrong on the way means: not alive, does not serve."""
        nodes, jobs = await asyncio.gather(self._answer("/nodes?view=summary"), self._answer("/api/jobs/"))
        return Readiness(alive=alive_addresses(nodes), serves=isinstance(jobs, list))

    async def _answer(self, path: str) -> Any | None:
        try:
            async with self._session.get(
                self._base_url + path,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    return None
                return _json(await _bounded_body(response))
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


def period_s(readiness: Readiness, *, expected: frozenset[str], incomplete_for_s: float) -> float:
    """
    How long to wait before the next look.

    Args:
        readiness: what the last look saw.
        expected: the mesh addresses of all nodes of the cluster; empty while they are not known.
        incomplete_for_s: for how long something has been missing.
    """
    if readiness.serves and expected and expected <= set(readiness.alive):
        return READY_PERIOD_S
    return STARTING_PERIOD_S if incomplete_for_s < STARTING_S_MAX else INCOMPLETE_PERIOD_S


def alive_addresses(answer: Any) -> tuple[str, ...]:
    """
    Addresses of the nodes that Ray holds for alive.

    Args:
        answer: the decoded body of `GET /nodes?view=summary`; anything else means that none is alive.

    Returns:
        IPv4 addresses, ascending, without repetition. Entries that cannot be read are left out: the answer comes from
        a stranger's machine, and its shape is not promised by Ray.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    summary = data.get("summary") if isinstance(data, dict) else None
    if not isinstance(summary, list):
        return ()
    found = {address for entry in summary[:ALIVE_MAX] if (address := _alive_address(entry)) is not None}
    return tuple(str(address) for address in sorted(found))


def _alive_address(entry: Any) -> IPv4Address | None:
    if not isinstance(entry, dict) or not isinstance(raylet := entry.get("raylet"), dict):
        return None
    if raylet.get("state") != "ALIVE":
        return None
    try:
        return IPv4Address(str(raylet.get("nodeManagerAddress") or entry.get("ip") or ""))
    except ValueError:
        return None


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            return b""
    return bytes(body)


def _json(body: bytes) -> Any | None:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
