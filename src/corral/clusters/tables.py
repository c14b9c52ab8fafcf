"""Tables of clusters, their nodes, phases, and the ways in."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from corral.platform.database import Document, Instant, Real, metadata

cluster = Table(
    "cluster",
    metadata,
    Column("id", Text, primary_key=True),
    Column("booking_id", Text, nullable=False, unique=True),
    Column("renter_id", Text, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, server_default=text("''")),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("gateway_id", Text, nullable=False),
    Column("internet", Boolean, nullable=False),
    Column("roster_key", Text),
    Column("created_at", Instant, nullable=False),
    Column("ready_at", Instant),
    Column("ending_at", Instant),
    Column("ended_at", Instant),
    Column("due_at", Instant, nullable=False),
    Column("claim_token", Text),
    Column("claimed_until", Instant),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("state IN ('booked','starting','ready','ending','ended','failed')", name="state"),
    CheckConstraint("(state IN ('ended','failed')) = (ended_at IS NOT NULL)", name="ended"),
    Index("uq_cluster_name_living", "name", unique=True, postgresql_where=text("ended_at IS NULL")),
    Index("ix_cluster_due", "due_at", postgresql_where=text("ended_at IS NULL")),
)

"""`roster_key`: the renter's, who alone signs its rosters; NULL: the control plane's, which is derived."""

cluster_history = Table(
    "cluster_history",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("cluster_id", Text, ForeignKey("cluster.id"), nullable=False, index=True),
    Column("at", Instant, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, server_default=text("''")),
)

node = Table(
    "node",
    metadata,
    Column("id", Text, primary_key=True),
    Column("cluster_id", Text, ForeignKey("cluster.id"), nullable=False, index=True),
    Column("host_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("member", Integer, nullable=False),
    Column("address", Text, nullable=False),
    Column("num_cpus", Integer, nullable=False),
    Column("num_gpus", Integer, nullable=False),
    Column("object_store_bytes", BigInteger, nullable=False),
    Column("traffic_cap_bytes", BigInteger),
    Column("replaces", Text, ForeignKey("node.id")),
    Column("created_at", Instant, nullable=False),
    Column("report", Document),
    Column("reported_at", Instant),
    Column("alive_at", Instant),
    Column("away_since", Instant),
    Column("returned_at", Instant),
    Column("received_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("sent_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("internet_received_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("internet_sent_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("counts_said", Document),
    Column("removed_at", Instant),
    Column("removed_as", Text),
    Column("gone_epoch", BigInteger),
    Column("gone_number", BigInteger),
    Column("gone_at", Instant),
    Column("reason", Text, nullable=False, server_default=text("''")),
    CheckConstraint("kind IN ('node','leaf')", name="kind"),
    CheckConstraint("role IN ('head','worker','gateway')", name="role"),
    CheckConstraint("(removed_at IS NULL) = (removed_as IS NULL)", name="removed"),
    Index("ix_node_host_wanted", "host_id", postgresql_where=text("removed_at IS NULL")),
    Index("ix_node_host_present", "host_id", postgresql_where=text("gone_at IS NULL")),
    Index("uq_node_address", "cluster_id", "address", unique=True, postgresql_where=text("removed_at IS NULL")),
)
"""
`removed_at`: no longer wanted on its host; `gone_at`: its host has confirmed that. `…_bytes` are totals; `counts_said`
is what its host reported last of them, which may begin anew.
"""

node_line = Table(
    "node_line",
    metadata,
    Column("line_id", Text, nullable=False),
    Column("node_id", Text, ForeignKey("node.id"), nullable=False, index=True),
    Column("device_id", Text, nullable=False),
    Column("device_key", Text, nullable=False),
    PrimaryKeyConstraint("line_id", name="pk_node_line"),
)

guest = Table(
    "guest",
    metadata,
    Column("id", Text, primary_key=True),
    Column("cluster_id", Text, ForeignKey("cluster.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("direct_key", Text, nullable=False),
    Column("relayed_key", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    CheckConstraint("direct_key <> relayed_key", name="keys"),
    UniqueConstraint("cluster_id", "address", name="uq_guest_address"),
)
"""A machine of the renter's in the mesh. It lapses at `expires_at` unless it says before that it is still there."""

phase = Table(
    "phase",
    metadata,
    Column("cluster_id", Text, ForeignKey("cluster.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("at", Instant),
    Column("seconds", Real),
    Column("detail", Text, nullable=False, server_default=text("''")),
    PrimaryKeyConstraint("cluster_id", "name", name="pk_phase"),
)

ticket = Table(
    "ticket",
    metadata,
    Column("secret_hash", LargeBinary, primary_key=True),
    Column("cluster_id", Text, ForeignKey("cluster.id"), nullable=False, index=True),
    Column("person_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("used_at", Instant),
)

web_session = Table(
    "web_session",
    metadata,
    Column("secret_hash", LargeBinary, primary_key=True),
    Column("cluster_id", Text, ForeignKey("cluster.id"), nullable=False, index=True),
    Column("person_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("expires_at", Instant, nullable=False),
)
