"""Tables of hosts, their devices, and who hires them."""

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
from sqlalchemy.dialects.postgresql import JSONB

from corral.platform.database import Instant, Real, metadata

revision_epoch = Table(
    "revision_epoch",
    metadata,
    Column("only", Boolean, primary_key=True, server_default=text("true")),
    Column("epoch", BigInteger, nullable=False),
    CheckConstraint('"only"', name="one_row"),
)
"""One row, raised by an operator's restore: desired states of before are stale from then on. No row means epoch 1."""

join_token = Table(
    "join_token",
    metadata,
    Column("id", Text, primary_key=True),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("person_id", Text, nullable=False, index=True),
    Column("role", Text, nullable=False),
    Column("uses", Integer, nullable=False, server_default=text("0")),
    Column("uses_max", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    CheckConstraint("uses <= uses_max", name="uses"),
)

host = Table(
    "host",
    metadata,
    Column("id", Text, primary_key=True),
    Column("provider_id", Text, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("machine_id", Text, nullable=False),
    Column("engine_id", Text, nullable=False),
    Column("slice", Text, nullable=False),
    Column("public_key", Text, nullable=False),
    Column("join_token_id", Text, nullable=False),
    Column("development", Boolean, nullable=False),
    Column("intent", Text, nullable=False),
    Column("health", Text, nullable=False),
    Column("failing_rule", Text, nullable=False, server_default=text("''")),
    Column("hardware", JSONB),
    Column("checks", JSONB),
    Column("agent_version", Text, nullable=False, server_default=text("''")),
    Column("advertise", Text, nullable=False, server_default=text("''")),
    Column("observed_address", Text, nullable=False, server_default=text("''")),
    Column("gateway_address", Text, nullable=False, server_default=text("''")),
    Column("gauge_port", Integer, nullable=False, server_default=text("0")),
    Column("connection", JSONB),
    Column("tier", Text, nullable=False, server_default=text("''")),
    Column("location", JSONB),
    Column("location_note", Text, nullable=False, server_default=text("''")),
    Column("clock_skew_s", Real),
    Column("traffic_cap_bytes", BigInteger),
    Column("created_at", Instant, nullable=False),
    Column("left_at", Instant),
    CheckConstraint("intent IN ('active','paused','draining','left')", name="intent"),
    CheckConstraint("health IN ('checking','ok','failed')", name="health"),
    CheckConstraint("role IN ('host','gateway','relay')", name="role"),
    CheckConstraint("traffic_cap_bytes > 0", name="traffic_cap_positive"),
    CheckConstraint("tier IN ('','low','medium','high','ultra-high')", name="tier"),
    Index(
        "uq_host_identity", "machine_id", "engine_id", "slice", unique=True, postgresql_where=text("left_at IS NULL")
    ),
    Index("uq_host_name", "provider_id", "name", unique=True, postgresql_where=text("left_at IS NULL")),
)

host_presence = Table(
    "host_presence",
    metadata,
    Column("host_id", Text, ForeignKey("host.id"), primary_key=True),
    Column("last_seen_at", Instant, nullable=False),
    postgresql_with={"fillfactor": 50},
)
"""Apart from `host` and without an index: written in batches each second, so that its updates stay within the page."""

host_revision = Table(
    "host_revision",
    metadata,
    Column("host_id", Text, ForeignKey("host.id"), primary_key=True),
    Column("number", BigInteger, nullable=False),
)
"""Apart from `host`: raising it must not wait for whoever stores a report."""

relay_measure = Table(
    "relay_measure",
    metadata,
    Column("host_id", Text, ForeignKey("host.id"), nullable=False),
    Column("relay_id", Text, ForeignKey("host.id"), nullable=False),
    Column("rtt_us", Integer, nullable=False, server_default=text("0")),
    Column("rtt_us_min", Integer, nullable=False, server_default=text("0")),
    Column("jitter_us", Integer, nullable=False, server_default=text("0")),
    Column("loss_ppm", Integer, nullable=False, server_default=text("0")),
    Column("measured_at", Instant, nullable=False),
    Column("download_bit_s", BigInteger, nullable=False, server_default=text("0")),
    Column("upload_bit_s", BigInteger, nullable=False, server_default=text("0")),
    Column("bandwidth_at", Instant),
    PrimaryKeyConstraint("host_id", "relay_id", name="pk_relay_measure"),
)
"""The last that each relay's gauge has stated of each host. Zero: not measured."""

place = Table(
    "place",
    metadata,
    Column("host_id", Text, ForeignKey("host.id"), primary_key=True),
    Column("x_ms", Real, nullable=False),
    Column("y_ms", Real, nullable=False),
    Column("z_ms", Real, nullable=False),
    Column("height_ms", Real, nullable=False),
    Column("pairs", Integer, nullable=False),
    Column("error", Real, nullable=False),
    Column("fitted_at", Instant, nullable=False),
    CheckConstraint("height_ms >= 0 AND pairs > 0", name="sound"),
)
"""Network coordinates of hosts and relays (`coordinates.fit`). `error`: relative, median over the host's pairs."""

place_fit = Table(
    "place_fit",
    metadata,
    Column("only", Boolean, primary_key=True, server_default=text("true")),
    Column("claim_token", Text, nullable=False, server_default=text("''")),
    Column("claimed_until", Instant),
    Column("newest_at", Instant),
    CheckConstraint('"only"', name="one_row"),
)
"""Which replica fits at present, and the newest measurement that the last fit knew."""

device = Table(
    "device",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host_id", Text, ForeignKey("host.id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("cores", Real, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("gpu_memory_bytes", BigInteger, nullable=False),
    Column("present", Boolean, nullable=False),
    CheckConstraint("kind IN ('gpu','cpu')", name="kind"),
    UniqueConstraint("host_id", "key", name="uq_device_key"),
)
"""`present` is False for a device that vanished: it is kept, because bookings speak of it."""

hire = Table(
    "hire",
    metadata,
    Column("line_id", Text, primary_key=True),
    Column("device_id", Text, ForeignKey("device.id"), nullable=False),
    Column("taken_at", Instant, nullable=False),
    Column("cleaning_since", Instant),
    Column("clean_epoch", BigInteger),
    Column("clean_number", BigInteger),
    Column("released_at", Instant),
    Index("uq_hire_device_open", "device_id", unique=True, postgresql_where=text("released_at IS NULL")),
)
"""Who hires a device: at most one line at a time. `clean_*`: the first revision of the host without the line's node."""
