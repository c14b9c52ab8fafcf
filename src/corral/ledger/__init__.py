"""Who has how many credits, and why: a double-entry ledger with two-phase transfers."""

from corral.ledger.errors import (
    HoldExceeded,
    HoldUnknown,
    InsufficientCredit,
    LedgerError,
    TransferConflict,
    TransferInvalid,
)
from corral.ledger.routes import router
from corral.ledger.store import (
    balances,
    check,
    find_hold,
    hold,
    holds_of,
    issue,
    lock,
    move,
    post,
    sums_of_booking,
    transfers_of,
    transfers_of_booking,
    void,
)
from corral.ledger.transfer import FEES, ISSUED, Account, Hold, Kind, Transfer, balance_of, earnings_of

__all__ = [
    "FEES",
    "ISSUED",
    "Account",
    "Hold",
    "HoldExceeded",
    "HoldUnknown",
    "InsufficientCredit",
    "Kind",
    "LedgerError",
    "Transfer",
    "TransferConflict",
    "TransferInvalid",
    "balance_of",
    "balances",
    "check",
    "earnings_of",
    "find_hold",
    "hold",
    "holds_of",
    "issue",
    "lock",
    "move",
    "post",
    "router",
    "sums_of_booking",
    "transfers_of",
    "transfers_of_booking",
    "void",
]
