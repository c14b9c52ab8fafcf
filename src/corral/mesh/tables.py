"""Tables of meshes: their networks, the chain of their rosters, relays and the mailboxes there."""

from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from corral.platform.database import Instant, metadata

mesh_network = Table(
    "mesh_network",
    metadata,
    Column("cluster_id", Text, primary_key=True),
    Column("renter_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("members", Integer, nullable=False, server_default=text("0")),
    Column("closed_at", Instant),
    Index("uq_mesh_network_open", "renter_id", "number", unique=True, postgresql_where=text("closed_at IS NULL")),
)
"""One /18 per cluster, distinct among a renter's living ones. `members`: the highest member number handed out."""

roster = Table(
    "roster",
    metadata,
    Column("cluster_id", Text, ForeignKey("mesh_network.cluster_id"), nullable=False),
    Column("serial", Integer, nullable=False),
    Column("payload", Text, nullable=False),
    Column("signature", Text, nullable=False),
    Column("signed_at", Instant, nullable=False),
    PrimaryKeyConstraint("cluster_id", "serial", name="pk_roster"),
)
"""Never edited: every node and client can check that each roster names the hash of the one before."""

roster_proposal = Table(
    "roster_proposal",
    metadata,
    Column("cluster_id", Text, ForeignKey("mesh_network.cluster_id"), primary_key=True),
    Column("payload", Text, nullable=False),
    Column("proposed_at", Instant, nullable=False),
)
"""
The next roster of a cluster whose renter alone signs. `proposed_at`: since when one waits, whatever it was changed to
meanwhile.
"""

relay = Table(
    "relay",
    metadata,
    Column("host_id", Text, ForeignKey("host.id"), primary_key=True),
    Column("port_first", Integer, nullable=False),
    Column("port_count", Integer, nullable=False),
    Column("observer_key", Text, nullable=False),
)

mailbox = Table(
    "mailbox",
    metadata,
    Column("relay_id", Text, ForeignKey("relay.host_id"), nullable=False),
    Column("port", Integer, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("cluster_id", Text, nullable=False, index=True),
    Column("relayed_key", Text, nullable=False),
    Column("observed", Text, nullable=False, server_default=text("''")),
    PrimaryKeyConstraint("relay_id", "port", name="pk_mailbox"),
    UniqueConstraint("relay_id", "node_id", name="uq_mailbox_node"),
)
"""`observed`: the endpoint at which the relay sees the member's direct plane; empty while it has not."""
