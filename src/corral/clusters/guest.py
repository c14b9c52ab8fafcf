"""Machines of the renter's own in a cluster's mesh: what is true of them whatever is stored."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from corral.protocol.roster import Member


def is_present(expires_at: datetime, *, is_named: bool, now: datetime, serving_since: datetime, lapse_s: float) -> bool:
    """
    Whether a guest belongs into the next roster.

    While nobody could hear it, it has not gone: a control plane that comes back gives those that its newest roster
    names the time of one lapse to say so.
    """
    return expires_at > now or (is_named and now < serving_since + timedelta(seconds=lapse_s))


def endpoints(observed: Sequence[str]) -> tuple[str, ...]:
    """
    Where others may try to call a guest: where relays see it.

    The first place of a member's endpoints is for its engine's bridge, of which a guest has none: it repeats the next.
    """
    return (observed[0], *observed) if observed else ()


def apart(guests: Iterable[Member], nodes: Iterable[Member]) -> list[Member]:
    """
    Guests that share no key with a node, nor with a guest before them.

    Their keys are checked when they are added; a node tells its own later. A roster with two members of one key would
    be refused by every member.
    """
    seen = {key for node in nodes for key in (node.direct_key, node.relayed_key)}
    found: list[Member] = []
    for guest in guests:
        keys = {guest.direct_key, guest.relayed_key}
        if not keys & seen:
            found.append(guest)
            seen |= keys
    return found
