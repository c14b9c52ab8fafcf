"""The ledger's laws, over random histories: in memory, and the same histories in PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Protocol

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral.core.ids import AccountId, PersonId, TransferId
from corral.ledger import FEES, ISSUED, Account, Kind, LedgerError, Transfer, balance_of, check, earnings_of, store
from corral.platform.database import Database, Tx
from corral.testing.clock import START
from corral.testing.ids import numbered_id
from corral.testing.memory_ledger import MemoryLedger

PEOPLE = [PersonId("ps_a"), PersonId("ps_b")]
ACCOUNTS = [balance_of(PEOPLE[0]), balance_of(PEOPLE[1]), earnings_of(PEOPLE[0]), earnings_of(PEOPLE[1]), FEES]


@dataclass(frozen=True)
class Step:
    """One request: a new transfer, or (`again`) an earlier one repeated, perhaps with another amount."""

    kind: Literal["issue", "move", "hold", "post", "void", "again"]
    account: AccountId
    other: AccountId
    amount_uc: int
    which: int
    amount_changed: bool


class Recorder(Protocol):
    """A ledger, in memory or not."""

    async def record(self, transfer: Transfer) -> Transfer: ...


class StoredLedger:
    """The ledger in PostgreSQL, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self.tx = tx

    async def record(self, transfer: Transfer) -> Transfer:
        return await store.record(self.tx, transfer)


STEPS = st.builds(
    Step,
    kind=st.sampled_from(["issue", "move", "hold", "hold", "post", "post", "void", "again"]),
    account=st.sampled_from(ACCOUNTS),
    other=st.sampled_from(ACCOUNTS),
    amount_uc=st.integers(-1, 60),
    which=st.integers(0, 30),
    amount_changed=st.booleans(),
)
HISTORIES = st.lists(STEPS, max_size=40)


async def replay(ledger: Recorder, history: list[Step]) -> list[str]:
    """Runs a history; returns what became of each step: `ok`, or the code of the error."""
    asked: list[Transfer] = []
    holds: list[Transfer] = []
    outcomes: list[str] = []
    for number, step in enumerate(history):
        transfer = _transfer(number, step, asked, holds)
        try:
            await ledger.record(transfer)
            outcomes.append("ok")
        except LedgerError as error:
            outcomes.append(error.code)
            continue
        if step.kind != "again":
            asked.append(transfer)
            if transfer.kind is Kind.HOLD:
                holds.append(transfer)
    return outcomes


def _transfer(number: int, step: Step, asked: list[Transfer], holds: list[Transfer]) -> Transfer:
    transfer_id, at = TransferId(numbered_id("tr", number)), START + timedelta(seconds=number)
    if step.kind == "again" and asked:
        first = asked[step.which % len(asked)]
        return Transfer(
            first.id,
            first.kind,
            first.debit,
            first.credit,
            first.amount_uc + step.amount_changed,
            at,
            first.hold_id,
        )
    if step.kind in ("post", "void") and holds:
        hold = holds[step.which % len(holds)]
        if step.kind == "post":
            return Transfer(transfer_id, Kind.POST, hold.debit, step.other, step.amount_uc, at, hold.id)
        return Transfer(transfer_id, Kind.VOID, hold.debit, None, step.amount_uc, at, hold.id)
    if step.kind == "hold":
        return Transfer(transfer_id, Kind.HOLD, step.account, None, step.amount_uc, at)
    if step.kind == "move":
        return Transfer(transfer_id, Kind.TRANSFER, step.account, step.other, step.amount_uc, at)
    return Transfer(transfer_id, Kind.TRANSFER, ISSUED, step.account, step.amount_uc, at)


def assert_lawful(ledger: MemoryLedger) -> None:
    accounts = ledger.accounts.values()
    assert sum(account.balance_uc for account in accounts) == 0
    for account in accounts:
        assert account.held_uc >= 0
        if account.id != ISSUED:
            assert 0 <= account.held_uc <= account.balance_uc
    for hold in ledger.holds.values():
        posted = [one for one in ledger.transfers.values() if one.kind is Kind.POST and one.hold_id == hold.id]
        assert sum(one.amount_uc for one in posted) == hold.posted_uc
        assert hold.remaining_uc >= 0


@given(HISTORIES)
@settings(max_examples=300, deadline=None)
async def test_any_history_sums_to_zero_and_overdraws_nothing(history: list[Step]) -> None:
    """Credits are moved, neither made nor destroyed; nobody spends what is not there or is held."""
    ledger = MemoryLedger()
    await replay(ledger, history)
    assert_lawful(ledger)


@given(HISTORIES)
@settings(max_examples=150, deadline=None)
async def test_any_history_replayed_changes_nothing(history: list[Step]) -> None:
    """Every transfer has its client's id: said again it is the same transfer."""
    ledger = MemoryLedger()
    await replay(ledger, history)
    before = (dict(ledger.accounts), dict(ledger.holds))
    for transfer in list(ledger.transfers.values()):
        assert await ledger.record(transfer) == transfer
    assert (ledger.accounts, ledger.holds) == before


@given(history=HISTORIES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_postgresql_does_what_the_memory_does(database: Database, history: list[Step]) -> None:
    """One history, two ledgers: the same outcomes, balances and holds; and the stored one passes its own check."""
    memory = MemoryLedger()
    expected = await replay(memory, history)
    async with rolled_back(database) as tx:
        stored = StoredLedger(tx)
        assert await replay(stored, history) == expected
        for transfer in memory.transfers.values():
            assert await store.record(tx, transfer) == transfer
        for account_id in [*ACCOUNTS, ISSUED]:
            assert await store.balances(tx, account_id) == memory.accounts.get(account_id, Account(account_id))
        for hold in memory.holds.values():
            assert await store.find_hold(tx, hold.id) == hold
        assert await check(tx) == []


@asynccontextmanager
async def rolled_back(database: Database) -> AsyncIterator[Tx]:
    """A transaction that leaves nothing."""
    try:
        async with database.transaction() as tx:
            yield tx
            raise _Undo
    except _Undo:
        pass


class _Undo(Exception):
    pass
