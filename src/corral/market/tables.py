"""The market's table: quotes, kept so that what is booked is what was shown."""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, Table, Text

from corral.platform.database import Document, Instant, metadata

quote = Table(
    "quote",
    metadata,
    Column("id", Text, primary_key=True),
    Column("renter_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("hours", Integer, nullable=False),
    Column("hold_hours_max", Integer, nullable=False),
    Column("fee_basis_points", Integer, nullable=False),
    Column("rate_uc_per_hour", BigInteger, nullable=False),
    Column("single_provider", Boolean, nullable=False),
    Column("internet", Boolean, nullable=False),
    Column("lines", Document, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    CheckConstraint("hours > 0 AND hold_hours_max > 0", name="hours_positive"),
    CheckConstraint("fee_basis_points BETWEEN 0 AND 10000", name="fee_is_a_share"),
    CheckConstraint("rate_uc_per_hour > 0", name="rate_positive"),
    Index("ix_quote_renter", "renter_id", "created_at"),
)
