"""Routes of bookings: what one earned. Bills are shown with their clusters, see `bill`."""

from fastapi import APIRouter

from corral.bookings.bill import earnings
from corral.identity import CallerDep
from corral.platform.http import PlatformDep
from corral.wire import api

router = APIRouter(prefix="/v1", tags=["bookings"])


@router.get("/earnings")
async def show_earnings(caller: CallerDep, platform: PlatformDep) -> api.Earnings:
    """What your hosts have earned: the total, and the latest 500 lines as posted so far."""
    async with platform.database.transaction() as tx:
        return await earnings(tx, caller.person_id)
