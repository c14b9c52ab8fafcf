"""What a caller of the ledger can cause."""

from corral.core.errors import CorralError
from corral.core.ids import AccountId, TransferId
from corral.core.money import format_credits


class LedgerError(CorralError):
    """Base of the ledger's errors. Nothing was recorded when one is raised."""

    code = "ledger_error"


class InsufficientCredit(LedgerError):
    """An account has less free credit than a transfer or a hold needs."""

    code = "insufficient_credit"

    def __init__(self, *, account_id: AccountId, needed_uc: int, free_uc: int) -> None:
        self.account_id, self.needed_uc, self.free_uc = account_id, needed_uc, free_uc
        super().__init__(
            f"{format_credits(needed_uc)} credits are needed, {format_credits(free_uc)} are free; nothing was held",
            hint="ask the operator for credit: `corral credit add`",
            needed_uc=needed_uc,
            free_uc=free_uc,
        )


class TransferConflict(LedgerError):
    """A transfer id that was already used for something else."""

    code = "transfer_conflict"

    def __init__(self, transfer_id: TransferId) -> None:
        self.transfer_id = transfer_id
        super().__init__(
            f"transfer {transfer_id} already exists with other content; nothing was recorded",
            hint="make a new id for a new transfer",
            transfer_id=transfer_id,
        )


class TransferInvalid(LedgerError):
    """A transfer that no ledger can record: no amount, or an account that pays itself."""

    code = "transfer_invalid"

    def __init__(self, transfer_id: TransferId, reason: str) -> None:
        super().__init__(f"transfer {transfer_id}: {reason}; nothing was recorded", transfer_id=transfer_id)


class HoldUnknown(LedgerError):
    """There is no such hold."""

    code = "hold_unknown"

    def __init__(self, hold_id: TransferId | None) -> None:
        super().__init__(f"hold {hold_id} is not known; nothing was recorded", hold_id=hold_id)


class HoldExceeded(LedgerError):
    """More was to be posted or voided than remains of a hold."""

    code = "hold_exceeded"

    def __init__(self, hold_id: TransferId, *, wanted_uc: int, remaining_uc: int) -> None:
        self.hold_id, self.wanted_uc, self.remaining_uc = hold_id, wanted_uc, remaining_uc
        super().__init__(
            f"hold {hold_id} has {format_credits(remaining_uc)} credits left, "
            f"{format_credits(wanted_uc)} were asked for; nothing was recorded",
            hold_id=hold_id,
            wanted_uc=wanted_uc,
            remaining_uc=remaining_uc,
        )
