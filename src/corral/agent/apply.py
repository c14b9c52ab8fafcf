"""Doing what was planned, on a container runtime. Every act may be repeated, and may find part of it done."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from corral.agent.bodies import HostFacts, Part, container_name, front_body, leaf_bodies, node_bodies
from corral.agent.plan import End
from corral.agent.runtime import Body, ContainerRuntime
from corral.wire.agent import Desired

WORK_GRACE_S = 5
"""Ray's time to end its workers."""


def bodies_for(node_id: str, desired: Desired, facts: HostFacts) -> dict[Part, Body] | None:
    """
    The containers of a wanted node, leaf or front; None if it is not wanted.

    Raises:
        SpecRefused: this host cannot be what is asked for.
    """
    if node_id == facts.host_id:
        return {"front": front_body(facts)}
    for spec in desired.nodes:
        if spec.node_id == node_id:
            return node_bodies(spec, facts, revision=desired.revision)
    for leaf in desired.leaves:
        if leaf.node_id == node_id:
            return leaf_bodies(leaf, facts, revision=desired.revision)
    return None


async def build(
    runtime: ContainerRuntime,
    node_id: str,
    bodies: Mapping[Part, Body],
    *,
    attach: Callable[[Part, str], Awaitable[None]],
) -> None:
    """
    Brings all containers of a node to life, as quickly as the engine allows.

    All are created at once; the owner of the network is started first, and the others, which join it, right after.
    `attach(part, name)` is awaited between a container's creation and its start, so that no line of it is lost.

    Raises:
        RuntimeFailed: the engine could not do it. What was made stays, for the next try or for an End.
    """
    names: dict[Part, str] = {part: container_name(node_id, part) for part in bodies}
    await _all(runtime.create(names[part], body) for part, body in bodies.items())
    joining: list[Part] = [part for part in bodies if part != "pause"]

    async def begin_network() -> None:
        if "pause" in bodies:
            await runtime.start(names["pause"])

    await _all([begin_network(), *(attach(part, names[part]) for part in joining)])
    await _all(runtime.start(names[part]) for part in joining)


async def end(runtime: ContainerRuntime, action: End) -> None:
    """
    Ends a node: its containers stop and go one after the other, with their anonymous volumes.

    Raises:
        RuntimeFailed: the engine could not do it; the rest of the node stays until the next try.
    """
    for name in action.containers:
        # Only the workload has something to finish. The mesh keeps nothing, and the pause container has no state.
        if not name.endswith(("-mesh", "-pause")):
            await runtime.stop(name, grace_s=WORK_GRACE_S)
        await runtime.remove(name)


async def _all(acts: Iterable[Awaitable[None]]) -> None:
    """Awaits all of them even when one fails, so that nothing goes on behind the caller's back; then raises."""
    results: Sequence[BaseException | None] = await asyncio.gather(*acts, return_exceptions=True)
    for result in results:
        if result is not None:
            raise result
