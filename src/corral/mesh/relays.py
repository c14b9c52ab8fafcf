"""
Relays and their mailboxes: which relays a cluster uses, and the port of each of its members there.

A cluster uses a few relays, and every member has a mailbox at each of them, so that any two have them in common; which
of them a pair uses is decided by the pair (`protocol.relays`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from corral import devices
from corral.core.ids import ClusterId, HostId
from corral.mesh.tables import mailbox, relay
from corral.platform.database import Tx
from corral.protocol.roster import Mailbox, Member, Relay
from corral.wire.agent import MailboxSpec, RelayReport

RELAYS_PER_CLUSTER = 3
"""A primary, a backup elsewhere, and one more while either is being replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayView:
    """A relay that an operator runs."""

    relay_id: HostId
    address: str
    observer_key: str
    is_online: bool
    mailboxes: int
    port_count: int

    @property
    def site(self) -> str:
        """Relays at one address are on one host and fail together."""
        return self.address

    @property
    def has_room(self) -> bool:
        """Whether it takes members of another cluster: the last tenth is for those that it has."""
        return self.mailboxes < self.port_count * 9 // 10

    def described(self) -> Relay:
        """As a roster names it."""
        return Relay(relay_id=self.relay_id, site=self.site, address=self.address, observer_key=self.observer_key)


def wanted_relays(present: Collection[str], relays: Iterable[RelayView]) -> tuple[RelayView, ...]:
    """
    The relays that a cluster should use, in the order of their ids.

    Those that it uses stay while they are online: each change is a new roster. The rest are the emptiest ones, at other
    sites if possible. One that went offline stays until there is another in its place.

    Args:
        present: ids of the relays that it uses.
        relays: all relays.
    """
    known = sorted(relays, key=lambda one: (one.mailboxes, one.relay_id))
    chosen = [one for one in known if one.relay_id in present and one.is_online][:RELAYS_PER_CLUSTER]
    rest = [one for one in known if one.is_online and one.has_room and one not in chosen]
    while rest and len(chosen) < RELAYS_PER_CLUSTER:
        sites = {one.site for one in chosen}
        best = next((one for one in rest if one.site not in sites), rest[0])
        rest.remove(best)
        chosen.append(best)
    chosen += [one for one in known if one.relay_id in present and not one.is_online][
        : max(0, RELAYS_PER_CLUSTER - len(chosen))
    ]
    return tuple(sorted(chosen, key=lambda one: one.relay_id))


async def relays(tx: Tx, *, heard_after: datetime) -> list[RelayView]:
    """All relays whose operators want them to serve; online are those heard after this instant."""
    counts = sa.select(mailbox.c.relay_id, sa.func.count().label("used")).group_by(mailbox.c.relay_id)
    used = {row.relay_id: row.used for row in await tx.execute(counts)}
    rows = {HostId(row.host_id): row for row in await tx.execute(sa.select(relay))}
    hosts = await devices.hosts_by_id(tx, rows)
    return [
        RelayView(
            relay_id=host_id,
            address=host.reachable_at,
            observer_key=rows[host_id].observer_key,
            is_online=host.last_seen_at is not None and host.last_seen_at > heard_after,
            mailboxes=used.get(host_id, 0),
            port_count=rows[host_id].port_count,
        )
        for host_id, host in sorted(hosts.items())
        if host.intent is devices.Intent.ACTIVE and host.reachable_at
    ]


async def note_relay(tx: Tx, host_id: HostId, report: RelayReport) -> set[ClusterId]:
    """
    Stores what a relay says of itself and of the members that it serves.

    Returns:
        The clusters of which it said something new.
    """
    said = {name: getattr(report, name) for name in ("port_first", "port_count", "observer_key")}
    statement = insert(relay).values(host_id=host_id, **said)
    differs = sa.or_(*(relay.c[name] != statement.excluded[name] for name in said))
    stored = await tx.execute(
        statement.on_conflict_do_update(
            index_elements=["host_id"], set_={name: statement.excluded[name] for name in said}, where=differs
        )
    )
    changed: set[ClusterId] = set()
    endpoints = {one.node_id: one.endpoint for one in report.observed}
    rows = (await tx.execute(sa.select(mailbox).where(mailbox.c.relay_id == host_id))).all()
    for row in rows:
        endpoint = endpoints.get(row.node_id, row.observed)
        if endpoint != row.observed:
            mine = (mailbox.c.relay_id == host_id) & (mailbox.c.port == row.port)
            await tx.execute(sa.update(mailbox).where(mine).values(observed=endpoint))
        if endpoint != row.observed or stored.rowcount:
            changed.add(ClusterId(row.cluster_id))
    return changed


async def mailboxes_at(tx: Tx, host_id: HostId) -> tuple[MailboxSpec, ...]:
    """All mailboxes that a relay should serve."""
    query = sa.select(mailbox).where(mailbox.c.relay_id == host_id).order_by(mailbox.c.port)
    return tuple(
        MailboxSpec(node_id=row.node_id, cluster_id=row.cluster_id, port=row.port, relayed_key=row.relayed_key)
        for row in await tx.execute(query)
    )


async def observed_endpoints(tx: Tx, cluster_id: ClusterId) -> dict[str, tuple[str, ...]]:
    """By node: where relays see its direct plane; more than one where its NAT maps every way out differently."""
    query = sa.select(mailbox.c.node_id, mailbox.c.observed).where(
        mailbox.c.cluster_id == cluster_id, mailbox.c.observed != ""
    )
    found: dict[str, set[str]] = {}
    for row in await tx.execute(query):
        found.setdefault(row.node_id, set()).add(row.observed)
    return {node_id: tuple(sorted(endpoints)) for node_id, endpoints in found.items()}


async def give_mailboxes(
    tx: Tx,
    cluster_id: ClusterId,
    members: Sequence[Member],
    wanted: Sequence[RelayView],
    *,
    rtts_us: Mapping[str, Mapping[str, int]],
) -> tuple[Member, ...]:
    """
    Gives each member a mailbox at each wanted relay, and takes back all others of this cluster.

    A relay that has no port left gives none: its members go without it. Relays whose mailboxes change are told.

    Args:
        tx: the transaction.
        cluster_id: the cluster.
        members: all members.
        wanted: its relays.
        rtts_us: by node and relay, microseconds, as far as measured.

    Returns:
        The members with their mailboxes.
    """
    ids = sorted(one.relay_id for one in wanted)
    for relay_id in ids:  # two clusters at once wait for each other here
        await tx.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"relay {relay_id}", 0))))
    rows = (await tx.execute(sa.select(mailbox).where(mailbox.c.cluster_id == cluster_id))).all()
    keys = {member.node_id: member.relayed_key for member in members}
    superfluous = [row for row in rows if row.relay_id not in ids or keys.get(row.node_id) != row.relayed_key]
    changed = {HostId(row.relay_id) for row in superfluous}
    for row in superfluous:
        await tx.execute(sa.delete(mailbox).where(mailbox.c.relay_id == row.relay_id, mailbox.c.port == row.port))
    kept = {(row.relay_id, row.node_id): row.port for row in rows if row not in superfluous}
    ports: dict[tuple[str, str], int] = dict(kept)
    for relay_id in ids:
        lacking = [member for member in members if (relay_id, member.node_id) not in kept]
        for member, port in zip(lacking, await _free_ports(tx, relay_id, len(lacking)), strict=False):
            await tx.execute(
                sa.insert(mailbox).values(
                    relay_id=relay_id,
                    port=port,
                    node_id=member.node_id,
                    cluster_id=cluster_id,
                    relayed_key=member.relayed_key,
                )
            )
            ports[relay_id, member.node_id] = port
            changed.add(relay_id)
    await devices.bump(tx, sorted(changed))
    return tuple(
        msgspec.structs.replace(member, mailboxes=_boxes(member, ids, ports, rtts_us.get(member.node_id, {})))
        for member in members
    )


async def close_mailboxes(tx: Tx, cluster_id: ClusterId) -> None:
    """Takes back all mailboxes of a cluster."""
    await give_mailboxes(tx, cluster_id, (), (), rtts_us={})


def _boxes(
    member: Member, relay_ids: Iterable[str], ports: Mapping[tuple[str, str], int], rtts_us: Mapping[str, int]
) -> tuple[Mailbox, ...]:
    places = ((relay_id, ports.get((relay_id, member.node_id))) for relay_id in relay_ids)
    return tuple(
        Mailbox(relay_id=relay_id, port=port, rtt_us=rtts_us.get(relay_id, 0))
        for relay_id, port in places
        if port is not None
    )


async def _free_ports(tx: Tx, relay_id: str, count: int) -> list[int]:
    """The first free ports of a relay, as many as there are up to `count`."""
    if not count:
        return []
    row = (await tx.execute(sa.select(relay).where(relay.c.host_id == relay_id))).one()
    used = {found.port for found in await tx.execute(sa.select(mailbox.c.port).where(mailbox.c.relay_id == relay_id))}
    ports = range(row.port_first, row.port_first + row.port_count)
    return [port for port in ports if port not in used][:count]
