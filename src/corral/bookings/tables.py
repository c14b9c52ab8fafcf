"""Tables of bookings, their lines, outages and extensions."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from corral.platform.database import Instant, Real, metadata

booking = Table(
    "booking",
    metadata,
    Column("id", Text, primary_key=True),
    Column("renter_id", Text, nullable=False),
    Column("quote_id", Text, ForeignKey("quote.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("hours", Integer, nullable=False),
    Column("hours_held", Integer, nullable=False),
    Column("hold_hours_max", Integer, nullable=False),
    Column("fee_basis_points", Integer, nullable=False),
    Column("rate_uc_per_hour", BigInteger, nullable=False),
    Column("quoted_at", Instant, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("began_at", Instant),
    Column("ended_at", Instant),
    Column("settled_at", Instant),
    Column("reason", Text, nullable=False, server_default=text("''")),
    Column("movements", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("state IN ('booked', 'running', 'ended', 'failed')", name="state_known"),
    CheckConstraint("(state IN ('ended', 'failed')) = (ended_at IS NOT NULL)", name="over_means_ended"),
    CheckConstraint("state <> 'running' OR began_at IS NOT NULL", name="running_means_begun"),
    CheckConstraint("state NOT IN ('booked', 'failed') OR began_at IS NULL", name="not_begun"),
    CheckConstraint("ended_at >= began_at", name="ends_after_begin"),
    CheckConstraint("hours_held BETWEEN 1 AND hours", name="held_within_booked"),
    Index("ix_booking_renter", "renter_id", "created_at"),
    Index("ix_booking_running", "began_at", postgresql_where=text("state = 'running'")),
)

booking_line = Table(
    "booking_line",
    metadata,
    Column("id", Text, primary_key=True),
    Column("booking_id", Text, ForeignKey("booking.id"), nullable=False),
    Column("slot", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("host_id", Text, nullable=False),
    Column("host_name", Text, nullable=False),
    Column("provider_id", Text, nullable=False),
    Column("provider_name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("cores", Real, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("gpu_memory_bytes", BigInteger, nullable=False),
    Column("rate_uc_per_hour", BigInteger, nullable=False),
    Column("is_head", Boolean, nullable=False),
    Column("traffic_cap_bytes", BigInteger),
    Column("from_at", Instant),
    Column("to_at", Instant),
    Column("state", Text, nullable=False),
    Column("minutes_posted", Integer, nullable=False, server_default=text("0")),
    Column("provider_posted_uc", BigInteger, nullable=False, server_default=text("0")),
    Column("fee_posted_uc", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("state IN ('active', 'ended', 'replaced', 'refunded')", name="state_known"),
    CheckConstraint("rate_uc_per_hour > 0", name="rate_positive"),
    CheckConstraint("to_at >= from_at", name="ends_after_begin"),
    CheckConstraint("provider_posted_uc >= 0 AND fee_posted_uc >= 0 AND minutes_posted >= 0", name="posted"),
    CheckConstraint(
        "(provider_posted_uc + fee_posted_uc) * 60 <= rate_uc_per_hour * minutes_posted", name="at_its_rate"
    ),
    UniqueConstraint("booking_id", "slot", "position", name="uq_booking_line_place"),
    Index("ix_booking_line_provider", "provider_id", "id"),
)

booking_outage = Table(
    "booking_outage",
    metadata,
    Column("line_id", Text, ForeignKey("booking_line.id"), primary_key=True),
    Column("from_at", Instant, primary_key=True),
    Column("to_at", Instant),
    CheckConstraint("to_at >= from_at", name="ends_after_begin"),
)
"""When a line did not serve; `to_at` NULL: until further notice."""

booking_extension = Table(
    "booking_extension",
    metadata,
    Column("id", Text, primary_key=True),
    Column("booking_id", Text, ForeignKey("booking.id"), nullable=False),
    Column("hours", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    CheckConstraint("hours > 0", name="hours_positive"),
)
