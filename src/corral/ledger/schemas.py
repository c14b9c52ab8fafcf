"""How the ledger is shown to people."""

from corral.identity import Caller, shown_person
from corral.identity import Person as IdentityPerson
from corral.ledger.transfer import Account, Transfer
from corral.wire import api


def shown_transfer(transfer: Transfer) -> api.Transfer:
    """A transfer, as its parties see it; a hold or void has no credit side, shown as an empty text."""
    return api.Transfer(
        id=transfer.id,
        kind=transfer.kind.value,
        debit=transfer.debit,
        credit=transfer.credit or "",
        amount_uc=transfer.amount_uc,
        hold_id=transfer.hold_id,
        booking_id=transfer.booking_id,
        line_id=transfer.line_id,
        at=transfer.at,
        memo=transfer.memo,
    )


def shown_caller(caller: Caller, balance: Account, earnings: Account) -> api.WhoAmI:
    """Who makes the request, and what they have."""
    person = IdentityPerson(caller.person_id, caller.name, caller.is_operator, caller.created_at)
    return api.WhoAmI(
        person=shown_person(person),
        key_id=caller.key_id,
        balance_uc=balance.free_uc,
        held_uc=balance.held_uc,
        earned_uc=earnings.balance_uc,
    )
