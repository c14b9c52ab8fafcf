"""The ledger in PostgreSQL: races, immutability, and the nightly check."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from corral import ledger
from corral.core.ids import AccountId, BookingId, LineId, PersonId, TransferId
from corral.platform.database import Database
from corral.testing.clock import START
from corral.testing.ids import numbered_id

ADA, BOB = PersonId("ps_ada"), PersonId("ps_bob")
BOOKING = BookingId("bk_1")


def tr(number: int) -> TransferId:
    return TransferId(numbered_id("tr", number))


async def test_hold_is_posted_in_parts_and_the_rest_is_voided(database: Database) -> None:
    """Fee and provider's share come out of one hold; what nobody used is free again."""
    async with database.transaction() as tx:
        await ledger.issue(tx, tr(1), ADA, 1000, START)
        await ledger.hold(tx, tr(2), ADA, 600, START, BOOKING)
        await ledger.post(tx, tr(3), tr(2), ledger.earnings_of(BOB), 95, START, BOOKING, LineId("ln_1"))
        await ledger.post(tx, tr(4), tr(2), ledger.FEES, 5, START, BOOKING, LineId("ln_1"))
        voided = await ledger.void(tx, tr(5), tr(2), None, START)
        assert voided is not None
        assert voided.amount_uc == 500
        assert await ledger.void(tx, tr(6), tr(2), None, START) is None
        assert await ledger.balances(tx, ledger.balance_of(ADA)) == ledger.Account(ledger.balance_of(ADA), 900, 0)
        sums = await ledger.sums_of_booking(tx, BOOKING)
        assert sums == {ledger.balance_of(ADA): -100, ledger.earnings_of(BOB): 95, ledger.FEES: 5}
        assert await ledger.void(tx, tr(5), tr(2), None, START) == voided
        assert await ledger.check(tx) == []


async def test_post_beyond_the_hold_records_nothing(database: Database) -> None:
    """A hold is the most that can be paid out of it."""
    async with database.transaction() as tx:
        await ledger.issue(tx, tr(1), ADA, 1000, START)
        await ledger.hold(tx, tr(2), ADA, 100, START, BOOKING)
        with pytest.raises(ledger.HoldExceeded):
            await ledger.post(tx, tr(3), tr(2), ledger.FEES, 101, START)
        with pytest.raises(ledger.HoldUnknown):
            await ledger.post(tx, tr(4), tr(9), ledger.FEES, 1, START)
        assert await ledger.check(tx) == []


async def test_concurrent_holds_never_exceed_the_balance(database: Database) -> None:
    """Ten transactions at once want 30 of 100: three get it, the others learn how much is free."""
    async with database.transaction() as tx:
        await ledger.issue(tx, tr(1), ADA, 100, START)

    async def hold(number: int) -> tuple[int, int] | None:
        try:
            async with database.transaction() as tx:
                await ledger.hold(tx, tr(number), ADA, 30, START, BOOKING)
        except ledger.InsufficientCredit as error:
            return error.needed_uc, error.free_uc
        return None

    outcomes = await asyncio.gather(*(hold(number) for number in range(10, 20)))
    assert outcomes.count(None) == 3
    assert outcomes.count((30, 10)) == 7
    async with database.transaction() as tx:
        assert (await ledger.balances(tx, ledger.balance_of(ADA))).free_uc == 10
        assert await ledger.check(tx) == []


async def test_one_id_at_the_same_time_is_one_transfer(database: Database) -> None:
    """A request that is repeated before its first answer came happens once; with other content it is a conflict."""

    async def issue(person: PersonId) -> str:
        try:
            async with database.transaction() as tx:
                await ledger.issue(tx, tr(1), person, 100, START)
        except ledger.TransferConflict:
            return "conflict"
        return person

    outcomes = await asyncio.gather(*(issue(person) for person in [ADA, ADA, BOB, BOB, ADA]))
    winner = ADA if ADA in outcomes else BOB
    assert set(outcomes) == {winner, "conflict"}
    async with database.transaction() as tx:
        assert (await ledger.balances(tx, ledger.balance_of(winner))).balance_uc == 100
        assert await ledger.check(tx) == []


async def test_crossing_transfers_do_not_block_each_other_for_ever(database: Database) -> None:
    """Accounts are locked in ascending order, so payments in both directions at once all come through."""
    async with database.transaction() as tx:
        await ledger.issue(tx, tr(1), ADA, 100, START)
        await ledger.issue(tx, tr(2), BOB, 100, START)

    async def pay(number: int, debit: AccountId, credit: AccountId) -> None:
        async with database.transaction() as tx:
            await ledger.move(tx, tr(number), debit, credit, 1, START)

    ada, bob = ledger.balance_of(ADA), ledger.balance_of(BOB)
    await asyncio.gather(*(pay(10 + n, *((ada, bob) if n % 2 else (bob, ada))) for n in range(20)))
    async with database.transaction() as tx:
        assert (await ledger.balances(tx, ada)).balance_uc == 100
        assert await ledger.check(tx) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_transfer SET amount_uc = 1",
        "DELETE FROM ledger_transfer",
        "TRUNCATE ledger_transfer CASCADE",
        "UPDATE ledger_account SET balance_uc = -1 WHERE id <> 'network:issued'",
        "UPDATE ledger_account SET held_uc = balance_uc + 1",
        "INSERT INTO ledger_transfer (id, kind, debit, credit, amount_uc, at)"
        " VALUES ('x', 'transfer', 'network:issued', 'network:issued', 1, now())",
    ],
)
async def test_database_itself_refuses_to_break_the_rules(database: Database, statement: str) -> None:
    """The rules stand twice: whoever writes past the code is refused by PostgreSQL."""
    async with database.transaction() as tx:
        await ledger.issue(tx, tr(1), ADA, 100, START)
    with pytest.raises(DBAPIError):
        async with database.transaction() as tx:
            await tx.execute(text(statement))


async def test_check_tells_what_was_tampered_with(database: Database) -> None:
    """Balances are derived: one that does not follow from its transfers is found."""
    async with database.transaction() as tx:
        await ledger.issue(tx, tr(1), ADA, 100, START)
        await ledger.hold(tx, tr(2), ADA, 40, START, BOOKING)
        await tx.execute(text("UPDATE ledger_account SET balance_uc = 90 WHERE id = 'balance:ps_ada'"))
        await tx.execute(text("UPDATE ledger_hold SET posted_uc = 5"))
        faults = await ledger.check(tx)
    assert len(faults) == 3
    assert "all balances together are -10 uc" in faults[0]
    assert "balance:ps_ada stores a balance of 90 uc, its transfers make 100" in faults[1]
    assert "stores 5 uc posted" in faults[2]
