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
ANSWER_BYTES_PER_NODE, ANSWER_VALUES_PER_NODE = 32 * 1024, 2048
"""Ray takes about 400 bytes a node, more with many resources; beyond this a hostile head only wants our memory."""
NODES_PATH = "/api/v0/nodes?limit=10000"
"""What `ray list nodes` asks, without its details. The dashboard's own `/nodes` is up to 2 s old: Ray caches it."""
NODES_SPARE = 32
"""Nodes that have died stay in Ray's answer for a while."""


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

    async def look(self, expected: frozenset[str]) -> Readiness:
        """
        What is seen now. Whatever goes wrong on the way means: not alive, does not serve.

        Args:
            expected: the mesh addresses of the cluster's nodes; a head may speak of these and no others.
        """
        size = len(expected) + NODES_SPARE
        nodes, jobs = await asyncio.gather(
            self._answer(NODES_PATH, bytes_max=size * ANSWER_BYTES_PER_NODE),
            self._begins("/api/jobs/", b"["),
        )
        if sum(nodes.count(mark) for mark in (b",", b"[", b"{")) > size * ANSWER_VALUES_PER_NODE:
            nodes = b""
        alive = tuple(address for address in alive_addresses(_json(nodes)) if address in expected)
        return Readiness(alive=alive, serves=jobs)

    async def _begins(self, path: str, start: bytes) -> bool:
        """Whether a path answers 200 with JSON that begins so; the rest may be long, and is not read."""
        return (await self._answer(path, bytes_max=len(start), is_cut=True)).startswith(start)

    async def _answer(self, path: str, *, bytes_max: int, is_cut: bool = False) -> bytes:
        """The body; empty if there is none, or more of it than `bytes_max` (with `is_cut`, its beginning then)."""
        try:
            async with self._session.get(
                self._base_url + path,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    return b""
                return await _bounded_body(response, bytes_max=bytes_max, is_cut=is_cut)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return b""


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
        answer: the decoded body of `GET /api/v0/nodes`; anything else means that none is alive.

    Returns:
        IPv4 addresses, ascending, without repetition. Entries that cannot be read are left out: the answer comes from
        a stranger's machine, and its shape is not promised by Ray.
    """
    for key in ("data", "result", "result"):
        answer = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(answer, list):
        return ()
    found = {address for entry in answer if (address := _alive_address(entry)) is not None}
    return tuple(str(address) for address in sorted(found))


def _alive_address(entry: Any) -> IPv4Address | None:
    if not isinstance(entry, dict) or entry.get("state") != "ALIVE":
        return None
    try:
        return IPv4Address(str(entry.get("node_ip") or ""))
    except ValueError:
        return None


async def _bounded_body(response: aiohttp.ClientResponse, *, bytes_max: int, is_cut: bool) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > bytes_max:
            return bytes(body[:bytes_max]) if is_cut else b""
    return bytes(body)


def _json(body: bytes) -> Any | None:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
