"""Tables of meshes: their networks, and the chain of their rosters."""

from sqlalchemy import Column, ForeignKey, Index, Integer, PrimaryKeyConstraint, Table, Text, text

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
