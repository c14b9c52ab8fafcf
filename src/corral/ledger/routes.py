"""Routes of the ledger: what one has, how it moved, and credit from an operator."""

from fastapi import APIRouter

from corral.core.ids import TransferId
from corral.identity import CallerDep, OperatorDep, person_named
from corral.ledger import store
from corral.ledger.schemas import shown_caller, shown_transfer
from corral.ledger.transfer import balance_of, earnings_of
from corral.platform.http import PlatformDep
from corral.wire import api

router = APIRouter(prefix="/v1", tags=["ledger"])


@router.get("/whoami")
async def who_am_i(caller: CallerDep, platform: PlatformDep) -> api.WhoAmI:
    """Who you are, and the credits that you have free, held and earned."""
    async with platform.database.transaction() as tx:
        balance = await store.balances(tx, balance_of(caller.person_id))
        earnings = await store.balances(tx, earnings_of(caller.person_id))
    return shown_caller(caller, balance, earnings)


@router.post("/credits", status_code=201)
async def add_credit(wish: api.AddCreditRequest, operator: OperatorDep, platform: PlatformDep) -> api.Transfer:
    """Issues credit to a person. Operators only; the same id again issues nothing more."""
    async with platform.database.transaction() as tx:
        person = await person_named(tx, wish.person)
        transfer = await store.issue(
            tx,
            TransferId(wish.id),
            person.id,
            wish.amount_uc,
            platform.clock.now(),
            memo=f"credit issued by {operator.name}",
        )
    return shown_transfer(transfer)


@router.get("/transfers")
async def list_transfers(caller: CallerDep, platform: PlatformDep) -> list[api.Transfer]:
    """Your latest 200 transfers, as a renter and as a provider, newest first."""
    accounts = [balance_of(caller.person_id), earnings_of(caller.person_id)]
    async with platform.database.transaction() as tx:
        return [shown_transfer(transfer) for transfer in await store.transfers_of(tx, accounts)]
