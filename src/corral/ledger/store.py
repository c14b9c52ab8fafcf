"""
The ledger in PostgreSQL: all its SQL.

Nothing here commits. Accounts are locked in ascending id order, so that two transactions never wait for each other in a
circle: a transaction that records several transfers first calls `lock` with all their accounts. A hold is guarded by
the lock of the account that it was placed on.
"""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, literal, or_, select, text, union_all, update
from sqlalchemy.dialects.postgresql import insert

from corral.core.errors import invariant
from corral.core.ids import AccountId, BookingId, LineId, PersonId, TransferId
from corral.ledger.errors import HoldUnknown, TransferConflict
from corral.ledger.tables import ledger_account, ledger_hold, ledger_transfer
from corral.ledger.transfer import ISSUED, Account, Effect, Hold, Kind, Transfer, balance_of, effect_of
from corral.platform.database import Tx


async def lock(tx: Tx, account_ids: Iterable[AccountId]) -> dict[AccountId, Account]:
    """Locks the accounts until the transaction ends, in ascending id order; makes those that are missing."""
    wanted = sorted(set(account_ids))
    await tx.execute(
        insert(ledger_account).values([{"id": account_id} for account_id in wanted]).on_conflict_do_nothing()
    )
    rows = await tx.execute(
        select(ledger_account).where(ledger_account.c.id.in_(wanted)).order_by(ledger_account.c.id).with_for_update()
    )
    return {account.id: account for account in map(_account, rows)}


async def record(tx: Tx, transfer: Transfer) -> Transfer:
    """
    Records a transfer once: the same id with the same content again returns the first and changes nothing.

    Raises:
        TransferConflict: the id is taken by another content.
        LedgerError: whatever `transfer.effect_of` refuses.
    """
    accounts = await lock(tx, [transfer.debit, *([transfer.credit] if transfer.credit else [])])
    earlier = await _find(tx, transfer.id)
    if earlier is not None:
        return _same(earlier, transfer)
    effect = effect_of(transfer, accounts, await find_hold(tx, transfer.hold_id) if transfer.hold_id else None)
    statement = insert(ledger_transfer).values(**_columns(transfer)).on_conflict_do_nothing()
    if (await tx.execute(statement.returning(ledger_transfer.c.id))).first() is None:
        # Another transaction used the id for other accounts between our look and our insert.
        earlier = await _find(tx, transfer.id)
        invariant(earlier is not None, f"transfer {transfer.id} neither inserted nor found")
        assert earlier is not None
        return _same(earlier, transfer)
    await _write(tx, effect)
    return transfer


async def issue(
    tx: Tx, id: TransferId, person_id: PersonId, amount_uc: int, now: datetime, memo: str = "credit issued"
) -> Transfer:
    """Gives a person new credit. Raises as `record`."""
    return await record(tx, Transfer(id, Kind.TRANSFER, ISSUED, balance_of(person_id), amount_uc, now, memo=memo))


async def move(
    tx: Tx,
    id: TransferId,
    debit: AccountId,
    credit: AccountId,
    amount_uc: int,
    now: datetime,
    *,
    booking_id: BookingId | None = None,
    line_id: LineId | None = None,
    memo: str = "",
) -> Transfer:
    """Moves free credit between two accounts at once. Raises as `record`."""
    return await record(
        tx,
        Transfer(id, Kind.TRANSFER, debit, credit, amount_uc, now, booking_id=booking_id, line_id=line_id, memo=memo),
    )


async def hold(
    tx: Tx,
    id: TransferId,
    person_id: PersonId,
    amount_uc: int,
    now: datetime,
    booking_id: BookingId | None = None,
    memo: str = "",
) -> Transfer:
    """
    Sets a part of a person's free credit aside.

    Raises:
        InsufficientCredit: there is less; nothing was held.
    """
    return await record(
        tx, Transfer(id, Kind.HOLD, balance_of(person_id), None, amount_uc, now, booking_id=booking_id, memo=memo)
    )


async def post(
    tx: Tx,
    id: TransferId,
    hold_id: TransferId,
    credit_account: AccountId,
    amount_uc: int,
    now: datetime,
    booking_id: BookingId | None = None,
    line_id: LineId | None = None,
    memo: str = "",
) -> Transfer:
    """
    Pays out of a hold; may be repeated (with other ids) until nothing remains.

    Raises:
        HoldUnknown, HoldExceeded: nothing was posted.
    """
    debit = await _account_of_hold(tx, hold_id)
    return await record(
        tx, Transfer(id, Kind.POST, debit, credit_account, amount_uc, now, hold_id, booking_id, line_id, memo)
    )


async def void(
    tx: Tx, id: TransferId, hold_id: TransferId, amount_uc: int | None, now: datetime, memo: str = ""
) -> Transfer | None:
    """
    Frees a part of a hold, or (None) all that remains of it.

    Returns:
        The transfer; None if all was to be freed and nothing remained.

    Raises:
        HoldUnknown, HoldExceeded: nothing was freed.
    """
    account_id = await _account_of_hold(tx, hold_id)
    await lock(tx, [account_id])
    held = await find_hold(tx, hold_id)
    invariant(held is not None, f"hold {hold_id} vanished")
    assert held is not None
    earlier = await _find(tx, id)
    if amount_uc is None:
        amount_uc = earlier.amount_uc if earlier is not None else held.remaining_uc
    if amount_uc == 0 and earlier is None:
        return None
    return await record(
        tx, Transfer(id, Kind.VOID, account_id, None, amount_uc, now, hold_id, held.booking_id, None, memo)
    )


async def balances(tx: Tx, account_id: AccountId) -> Account:
    """What an account has; zero for one that was never used."""
    row = (await tx.execute(select(ledger_account).where(ledger_account.c.id == account_id))).first()
    return _account(row) if row is not None else Account(account_id)


async def find_hold(tx: Tx, hold_id: TransferId) -> Hold | None:
    """The present state of a hold."""
    row = (await tx.execute(select(ledger_hold).where(ledger_hold.c.id == hold_id))).first()
    return _hold(row) if row is not None else None


async def holds_of(tx: Tx, booking_id: BookingId) -> list[Hold]:
    """All holds of a booking, oldest first."""
    rows = await tx.execute(
        select(ledger_hold)
        .join(ledger_transfer, ledger_transfer.c.id == ledger_hold.c.id)
        .where(ledger_hold.c.booking_id == booking_id)
        .order_by(ledger_transfer.c.position)
    )
    return [_hold(row) for row in rows]


async def transfers_of(tx: Tx, account_ids: Collection[AccountId], *, limit: int = 200) -> list[Transfer]:
    """The latest transfers that touch one of the accounts, newest first."""
    ids = list(account_ids)
    rows = await tx.execute(
        select(ledger_transfer)
        .where(or_(ledger_transfer.c.debit.in_(ids), ledger_transfer.c.credit.in_(ids)))
        .order_by(ledger_transfer.c.position.desc())
        .limit(limit)
    )
    return [_transfer(row) for row in rows]


async def transfers_of_booking(tx: Tx, booking_id: BookingId) -> list[Transfer]:
    """All transfers of a booking, oldest first."""
    rows = await tx.execute(
        select(ledger_transfer).where(ledger_transfer.c.booking_id == booking_id).order_by(ledger_transfer.c.position)
    )
    return [_transfer(row) for row in rows]


async def sums_of_booking(tx: Tx, booking_id: BookingId) -> dict[AccountId, int]:
    """What a booking has moved into (or, below zero, out of) each account; micro-credits."""
    sides = _sides(ledger_transfer.c.booking_id == booking_id)
    rows = await tx.execute(select(sides.c.account_id, func.sum(sides.c.amount_uc)).group_by(sides.c.account_id))
    return {AccountId(account_id): int(amount_uc) for account_id, amount_uc in rows}


async def check(tx: Tx) -> list[str]:
    """
    Recomputes everything that is derived from transfers and compares it with what is stored.

    Returns:
        One sentence per fact that does not hold; empty if the ledger is sound.
    """
    faults: list[str] = []
    total = (await tx.execute(select(func.coalesce(func.sum(ledger_account.c.balance_uc), 0)))).scalar_one()
    if total != 0:
        faults.append(f"all balances together are {total} uc, not 0")
    for query, sentence in _CHECKS:
        faults += [sentence.format(*row) for row in await tx.execute(text(query))]
    return faults


_CHECKS = (
    (
        """
        SELECT a.id, a.balance_uc, COALESCE(d.amount, 0) FROM ledger_account a LEFT JOIN (
            SELECT account, sum(amount) AS amount FROM (
                SELECT debit AS account, -amount_uc AS amount FROM ledger_transfer WHERE credit IS NOT NULL
                UNION ALL SELECT credit, amount_uc FROM ledger_transfer WHERE credit IS NOT NULL) legs
            GROUP BY account) d ON d.account = a.id
        WHERE a.balance_uc <> COALESCE(d.amount, 0)
        """,
        "account {0} stores a balance of {1} uc, its transfers make {2}",
    ),
    (
        """
        SELECT a.id, a.held_uc, COALESCE(h.held, 0) FROM ledger_account a LEFT JOIN (
            SELECT debit, sum(CASE kind WHEN 'hold' THEN amount_uc ELSE -amount_uc END) AS held
            FROM ledger_transfer WHERE kind <> 'transfer' GROUP BY debit) h ON h.debit = a.id
        WHERE a.held_uc <> COALESCE(h.held, 0)
        """,
        "account {0} stores {1} uc as held, its transfers make {2}",
    ),
    (
        f"SELECT id, balance_uc FROM ledger_account WHERE balance_uc < 0 AND id <> '{ISSUED}'",  # noqa: S608
        "account {0} is below zero: {1} uc",
    ),
    (
        f"SELECT id, held_uc, balance_uc FROM ledger_account WHERE held_uc > balance_uc AND id <> '{ISSUED}'",  # noqa: S608
        "account {0} has {1} uc held of only {2}",
    ),
    (
        """
        SELECT t.id, h.posted_uc, h.voided_uc, COALESCE(u.posted, 0), COALESCE(u.voided, 0) FROM ledger_transfer t
        LEFT JOIN ledger_hold h ON h.id = t.id AND h.amount_uc = t.amount_uc AND h.account_id = t.debit
        LEFT JOIN (SELECT hold_id, sum(amount_uc) FILTER (WHERE kind = 'post') AS posted,
                          sum(amount_uc) FILTER (WHERE kind = 'void') AS voided
                   FROM ledger_transfer WHERE hold_id IS NOT NULL GROUP BY hold_id) u ON u.hold_id = t.id
        WHERE t.kind = 'hold' AND (h.posted_uc, h.voided_uc) IS DISTINCT FROM
              (COALESCE(u.posted, 0)::bigint, COALESCE(u.voided, 0)::bigint)
        """,
        "hold {0} stores {1} uc posted and {2} voided, its transfers make {3} and {4}",
    ),
    (
        "SELECT id, posted_uc + voided_uc, amount_uc FROM ledger_hold WHERE posted_uc + voided_uc > amount_uc",
        "hold {0} was used for {1} uc of only {2}",
    ),
)


async def _write(tx: Tx, effect: Effect) -> None:
    for account in effect.accounts:
        await tx.execute(
            update(ledger_account)
            .where(ledger_account.c.id == account.id)
            .values(balance_uc=account.balance_uc, held_uc=account.held_uc)
        )
    if effect.hold is not None:
        values = {"posted_uc": effect.hold.posted_uc, "voided_uc": effect.hold.voided_uc}
        await tx.execute(
            insert(ledger_hold)
            .values(
                id=effect.hold.id,
                account_id=effect.hold.account_id,
                booking_id=effect.hold.booking_id,
                amount_uc=effect.hold.amount_uc,
                **values,
            )
            .on_conflict_do_update(index_elements=["id"], set_=values)
        )


async def _find(tx: Tx, transfer_id: TransferId) -> Transfer | None:
    row = (await tx.execute(select(ledger_transfer).where(ledger_transfer.c.id == transfer_id))).first()
    return _transfer(row) if row is not None else None


def _same(earlier: Transfer, wanted: Transfer) -> Transfer:
    if not earlier.is_same_as(wanted):
        raise TransferConflict(wanted.id)
    return earlier


async def _account_of_hold(tx: Tx, hold_id: TransferId) -> AccountId:
    found = await find_hold(tx, hold_id)
    if found is None:
        raise HoldUnknown(hold_id)
    return found.account_id


def _sides(condition: Any) -> Any:
    moves = ledger_transfer.c.credit.is_not(None)
    return union_all(
        select(ledger_transfer.c.debit.label("account_id"), (-ledger_transfer.c.amount_uc).label("amount_uc")).where(
            moves, condition
        ),
        select(ledger_transfer.c.credit, ledger_transfer.c.amount_uc * literal(1)).where(moves, condition),
    ).subquery()


def _columns(transfer: Transfer) -> dict[str, Any]:
    return {
        "id": transfer.id,
        "kind": str(transfer.kind),
        "debit": transfer.debit,
        "credit": transfer.credit,
        "amount_uc": transfer.amount_uc,
        "hold_id": transfer.hold_id,
        "booking_id": transfer.booking_id,
        "line_id": transfer.line_id,
        "memo": transfer.memo,
        "at": transfer.at,
    }


def _account(row: Row[Any]) -> Account:
    return Account(AccountId(row.id), row.balance_uc, row.held_uc)


def _hold(row: Row[Any]) -> Hold:
    return Hold(
        id=TransferId(row.id),
        account_id=AccountId(row.account_id),
        amount_uc=row.amount_uc,
        posted_uc=row.posted_uc,
        voided_uc=row.voided_uc,
        booking_id=BookingId(row.booking_id) if row.booking_id else None,
    )


def _transfer(row: Row[Any]) -> Transfer:
    return Transfer(
        id=TransferId(row.id),
        kind=Kind(row.kind),
        debit=AccountId(row.debit),
        credit=AccountId(row.credit) if row.credit else None,
        amount_uc=row.amount_uc,
        at=row.at,
        hold_id=TransferId(row.hold_id) if row.hold_id else None,
        booking_id=BookingId(row.booking_id) if row.booking_id else None,
        line_id=LineId(row.line_id) if row.line_id else None,
        memo=row.memo,
    )
