"""
The ledger's tables.

`ledger_transfer` is the truth and never changes; `ledger_account` and `ledger_hold` are derived from it and kept beside
it, so that a balance is one row. The rules of `transfer.py` stand here a second time, as constraints.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Table,
    Text,
    event,
    text,
)
from sqlalchemy.schema import DDL

from corral.ledger.transfer import ISSUED
from corral.platform.database import Instant, metadata

ledger_account = Table(
    "ledger_account",
    metadata,
    Column("id", Text, primary_key=True),
    Column("balance_uc", BigInteger, nullable=False, server_default=text("0")),
    Column("held_uc", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint(f"balance_uc >= 0 OR id = '{ISSUED}'", name="balance_not_negative"),
    CheckConstraint("held_uc >= 0", name="held_not_negative"),
    CheckConstraint(f"held_uc <= balance_uc OR (id = '{ISSUED}' AND held_uc = 0)", name="held_within_balance"),
)

ledger_transfer = Table(
    "ledger_transfer",
    metadata,
    Column("id", Text, primary_key=True),
    Column("position", BigInteger, Identity(always=True), nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("debit", Text, ForeignKey("ledger_account.id"), nullable=False),
    Column("credit", Text, ForeignKey("ledger_account.id")),
    Column("amount_uc", BigInteger, nullable=False),
    Column("hold_id", Text, ForeignKey("ledger_transfer.id")),
    # Bookings are a domain above this one, so their ids are plain text here.
    Column("booking_id", Text),
    Column("line_id", Text),
    Column("memo", Text, nullable=False, server_default=text("''")),
    Column("at", Instant, nullable=False),
    CheckConstraint("kind IN ('transfer', 'hold', 'post', 'void')", name="kind_known"),
    CheckConstraint("amount_uc > 0", name="amount_positive"),
    CheckConstraint("debit <> credit", name="sides_differ"),
    CheckConstraint("(kind IN ('transfer', 'post')) = (credit IS NOT NULL)", name="only_movements_have_a_credit_side"),
    CheckConstraint("(kind IN ('post', 'void')) = (hold_id IS NOT NULL)", name="only_what_follows_a_hold_points_to_it"),
    Index("ix_ledger_transfer_debit", "debit", "position"),
    Index("ix_ledger_transfer_credit", "credit", "position"),
    Index("ix_ledger_transfer_booking", "booking_id", "position"),
)

ledger_hold = Table(
    "ledger_hold",
    metadata,
    Column("id", Text, ForeignKey("ledger_transfer.id"), primary_key=True),
    Column("account_id", Text, ForeignKey("ledger_account.id"), nullable=False),
    Column("booking_id", Text),
    Column("amount_uc", BigInteger, nullable=False),
    Column("posted_uc", BigInteger, nullable=False, server_default=text("0")),
    Column("voided_uc", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("posted_uc >= 0 AND voided_uc >= 0", name="used_not_negative"),
    CheckConstraint("posted_uc + voided_uc <= amount_uc", name="used_within_amount"),
    Index("ix_ledger_hold_booking", "booking_id"),
)

FORBID_CHANGES: tuple[str, ...] = (
    """
    CREATE OR REPLACE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'transfers are never changed: record another one' USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE TRIGGER ledger_transfer_is_immutable BEFORE UPDATE OR DELETE ON ledger_transfer
        FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change()
    """,
    """
    CREATE TRIGGER ledger_transfer_is_never_emptied BEFORE TRUNCATE ON ledger_transfer
        FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change()
    """,
)
"""Statements that make `ledger_transfer` immutable; a migration runs each with `op.execute`, right after the table."""

ALLOW_CHANGES = "DROP FUNCTION IF EXISTS ledger_refuse_change() CASCADE"
"""Undoes `FORBID_CHANGES`: for a migration's way back only."""

for _statement in FORBID_CHANGES:
    event.listen(ledger_transfer, "after_create", DDL(_statement))
event.listen(ledger_transfer, "after_drop", DDL(ALLOW_CHANGES))
