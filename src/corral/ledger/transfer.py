"""
The rules of the ledger, as values: what a transfer does to the accounts and the hold that it touches.

Every movement has two sides, so that all balances together are always zero; only `network:issued` may be below zero
(what operators have put into circulation). Transfers come in four kinds:

| kind       | moves                          | effect                                                       |
|------------|--------------------------------|--------------------------------------------------------------|
| `transfer` | debit → credit                 | at once                                                      |
| `hold`     | nothing                        | sets an amount of the debit account aside; no credit side yet |
| `post`     | debit → credit, out of a hold  | may be repeated until nothing remains of the hold            |
| `void`     | nothing                        | frees what remains of a hold, or a part of it                |

A transfer is never edited: what follows from a hold are further transfers that point to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from corral.core.errors import invariant
from corral.core.ids import AccountId, BookingId, LineId, PersonId, TransferId
from corral.core.money import AMOUNT_UC_MAX
from corral.ledger.errors import HoldExceeded, HoldUnknown, InsufficientCredit, TransferInvalid

ISSUED = AccountId("network:issued")
"""What operators have issued: the only account below zero."""

FEES = AccountId("network:fees")
"""The network's share of what renters paid."""


def balance_of(person_id: PersonId) -> AccountId:
    """The account of a person's credit as a renter."""
    return AccountId(f"balance:{person_id}")


def earnings_of(person_id: PersonId) -> AccountId:
    """The account of what a person earned as a provider."""
    return AccountId(f"earnings:{person_id}")


class Kind(StrEnum):
    """What a transfer does; see the module's table."""

    TRANSFER = "transfer"
    HOLD = "hold"
    POST = "post"
    VOID = "void"


@dataclass(frozen=True)
class Transfer:
    """One row of the ledger; `credit` is None for holds and voids, which move nothing."""

    id: TransferId
    kind: Kind
    debit: AccountId
    credit: AccountId | None
    amount_uc: int
    at: datetime
    hold_id: TransferId | None = None
    booking_id: BookingId | None = None
    line_id: LineId | None = None
    memo: str = ""

    def is_same_as(self, other: "Transfer") -> bool:
        """Whether both say the same; the instant does not count, since a repeated request comes later."""
        return replace(self, at=other.at) == other


@dataclass(frozen=True)
class Account:
    """What an account has, and how much of it is set aside by holds; micro-credits."""

    id: AccountId
    balance_uc: int = 0
    held_uc: int = 0

    @property
    def free_uc(self) -> int:
        """What may be spent or held."""
        return self.balance_uc - self.held_uc


@dataclass(frozen=True)
class Hold:
    """How far a hold was used; `posted_uc + voided_uc <= amount_uc` always."""

    id: TransferId
    account_id: AccountId
    amount_uc: int
    posted_uc: int = 0
    voided_uc: int = 0
    booking_id: BookingId | None = None

    @property
    def remaining_uc(self) -> int:
        """What may still be posted or voided."""
        return self.amount_uc - self.posted_uc - self.voided_uc


@dataclass(frozen=True)
class Effect:
    """What recording a transfer changes: the new state of every account and hold that it touches."""

    transfer: Transfer
    accounts: tuple[Account, ...]
    hold: Hold | None


def effect_of(transfer: Transfer, accounts: Mapping[AccountId, Account], hold: Hold | None) -> Effect:
    """
    What a transfer changes, given the present state of its accounts (all of them) and of the hold that it points to.

    Raises:
        TransferInvalid: no amount, an absurd one, or one account on both sides.
        InsufficientCredit: the paying account has not enough free credit.
        HoldUnknown, HoldExceeded: a post or void of no hold, or of more than remains of it.
    """
    _refuse_malformed(transfer)
    match transfer.kind:
        case Kind.TRANSFER:
            debit = accounts[transfer.debit]
            if debit.id != ISSUED:
                _refuse_overdraft(debit, transfer.amount_uc)
            return Effect(transfer, _moved(transfer, accounts, held_uc=0), None)
        case Kind.HOLD:
            account = accounts[transfer.debit]
            _refuse_overdraft(account, transfer.amount_uc)
            placed = Hold(transfer.id, account.id, transfer.amount_uc, booking_id=transfer.booking_id)
            return Effect(transfer, (replace(account, held_uc=account.held_uc + transfer.amount_uc),), placed)
        case Kind.POST:
            hold = _usable(transfer, hold)
            used = replace(hold, posted_uc=hold.posted_uc + transfer.amount_uc)
            return Effect(transfer, _moved(transfer, accounts, held_uc=transfer.amount_uc), used)
        case Kind.VOID:
            hold = _usable(transfer, hold)
            account = accounts[transfer.debit]
            used = replace(hold, voided_uc=hold.voided_uc + transfer.amount_uc)
            return Effect(transfer, (replace(account, held_uc=account.held_uc - transfer.amount_uc),), used)
        case _:
            assert_never(transfer.kind)


def _refuse_malformed(transfer: Transfer) -> None:
    if not 0 < transfer.amount_uc <= AMOUNT_UC_MAX:
        raise TransferInvalid(transfer.id, f"an amount of {transfer.amount_uc} uc cannot be transferred")
    if transfer.debit == transfer.credit:
        raise TransferInvalid(transfer.id, f"account {transfer.debit} cannot pay itself")
    moves = transfer.kind in (Kind.TRANSFER, Kind.POST)
    invariant(moves == (transfer.credit is not None), f"{transfer.kind} {transfer.id} has the wrong sides")


def _refuse_overdraft(account: Account, amount_uc: int) -> None:
    if account.free_uc < amount_uc:
        raise InsufficientCredit(account_id=account.id, needed_uc=amount_uc, free_uc=max(0, account.free_uc))


def _usable(transfer: Transfer, hold: Hold | None) -> Hold:
    if hold is None:
        raise HoldUnknown(transfer.hold_id)
    invariant(hold.account_id == transfer.debit, f"{transfer.id} debits another account than its hold {hold.id}")
    if transfer.amount_uc > hold.remaining_uc:
        raise HoldExceeded(hold.id, wanted_uc=transfer.amount_uc, remaining_uc=hold.remaining_uc)
    return hold


def _moved(transfer: Transfer, accounts: Mapping[AccountId, Account], *, held_uc: int) -> tuple[Account, ...]:
    assert transfer.credit is not None
    debit, credit = accounts[transfer.debit], accounts[transfer.credit]
    return (
        replace(debit, balance_uc=debit.balance_uc - transfer.amount_uc, held_uc=debit.held_uc - held_uc),
        replace(credit, balance_uc=credit.balance_uc + transfer.amount_uc),
    )
