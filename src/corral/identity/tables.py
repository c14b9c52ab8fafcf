"""Tables of identity."""

from sqlalchemy import Boolean, CheckConstraint, Column, ForeignKey, Index, LargeBinary, Table, Text, text

from corral.platform.database import Instant, metadata

person = Table(
    "person",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("is_operator", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", Instant, nullable=False),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("person_id", Text, ForeignKey("person.id"), nullable=False),
    Column("label", Text, nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("last_used_at", Instant),
    CheckConstraint("octet_length(secret_sha256) = 32", name="secret_is_a_sha256"),
    Index(None, "person_id"),
)
