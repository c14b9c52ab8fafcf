"""The ledger without a database: the same rules over dictionaries, for properties that need thousands of histories."""

from corral.core.ids import AccountId, TransferId
from corral.ledger import Account, Hold, Transfer, TransferConflict
from corral.ledger.transfer import effect_of


class MemoryLedger:
    """A ledger in memory; `record` behaves as `ledger.store.record`."""

    def __init__(self) -> None:
        self.accounts: dict[AccountId, Account] = {}
        self.holds: dict[TransferId, Hold] = {}
        self.transfers: dict[TransferId, Transfer] = {}

    async def record(self, transfer: Transfer) -> Transfer:
        """Records a transfer once. Raises what `ledger.transfer.effect_of` refuses, or TransferConflict."""
        earlier = self.transfers.get(transfer.id)
        if earlier is not None:
            if not earlier.is_same_as(transfer):
                raise TransferConflict(transfer.id)
            return earlier
        touched = [transfer.debit, *([transfer.credit] if transfer.credit else [])]
        accounts = {account_id: self.accounts.get(account_id, Account(account_id)) for account_id in touched}
        effect = effect_of(transfer, accounts, self.holds.get(transfer.hold_id) if transfer.hold_id else None)
        self.transfers[transfer.id] = transfer
        self.accounts |= {account.id: account for account in effect.accounts}
        if effect.hold is not None:
            self.holds[effect.hold.id] = effect.hold
        return transfer
