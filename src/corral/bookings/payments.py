"""Moving a booking's money: from what its lines cost to transfers of the ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from corral import ledger
from corral.bookings import store
from corral.bookings.booking import Booking, Line, transfer_id
from corral.bookings.charge import LineCharge, LineUse, Outage, slot_charges
from corral.core.errors import invariant
from corral.core.ids import AccountId, LineId, TransferId
from corral.platform.database import Tx


@dataclass(frozen=True)
class Payment:
    """What one account is still owed for one line; below zero: what it was paid too much."""

    line_id: LineId
    account_id: AccountId
    amount_uc: int
    memo: str


def charges_of(
    booking: Booking,
    lines: Sequence[Line],
    outages: Mapping[LineId, tuple[Outage, ...]],
    *,
    until: datetime,
    is_final: bool,
) -> dict[LineId, LineCharge]:
    """What every line of a booking costs; nothing before T1."""
    charges: dict[LineId, LineCharge] = {}
    for slot in sorted({line.slot for line in lines}):
        uses = [
            LineUse(
                line_id=line.id,
                rate_uc_per_hour=line.rate_uc_per_hour,
                from_at=line.from_at,
                to_at=line.to_at if line.state == "replaced" else None,
                outages=outages.get(line.id, ()),
            )
            for line in lines
            if line.slot == slot
        ]
        for charge in slot_charges(
            uses,
            starts_at=booking.began_at,
            until=until,
            is_final=is_final,
            fee_basis_points=booking.fee_basis_points,
        ):
            charges[charge.line_id] = charge
    return charges


def payments_due(lines: Sequence[Line], charges: Mapping[LineId, LineCharge]) -> list[Payment]:
    """What has to move so that every line has paid exactly its charge; what comes back first."""
    due: list[Payment] = []
    for line in lines:
        charge = charges[line.id]
        owed = charge.provider_uc - line.provider_posted_uc
        fee_owed = charge.fee_uc - line.fee_posted_uc
        what = f"{line.device_label} on {line.host_name}"
        due.append(Payment(line.id, ledger.earnings_of(line.provider_id), owed, f"{what}: {charge.minutes} min"))
        due.append(Payment(line.id, ledger.FEES, fee_owed, f"{what}: network's fee"))
    return sorted((one for one in due if one.amount_uc != 0), key=lambda one: one.amount_uc > 0)


async def pay(
    tx: Tx, booking: Booking, lines: Sequence[Line], charges: Mapping[LineId, LineCharge], now: datetime
) -> "Purse":
    """Posts what the lines cost and were not charged yet, takes back what they were charged too much."""
    due = payments_due(lines, charges)
    purse = Purse(booking, now, movements=booking.movements)
    await ledger.lock(tx, [ledger.balance_of(booking.renter_id), *(payment.account_id for payment in due)])
    for payment in due:
        if payment.amount_uc < 0:
            await purse.take_back(tx, payment)
        else:
            await purse.post(tx, payment)
    for line in lines:
        charge = charges[line.id]
        posted = (charge.minutes, charge.provider_uc, charge.fee_uc)
        if posted != (line.minutes_posted, line.provider_posted_uc, line.fee_posted_uc):
            await store.change_lines(
                tx,
                [line.id],
                minutes_posted=charge.minutes,
                provider_posted_uc=charge.provider_uc,
                fee_posted_uc=charge.fee_uc,
            )
    return purse


@dataclass
class Purse:
    """The holds of one booking, used in the order in which they were placed. Counts the transfers that it makes."""

    booking: Booking
    now: datetime
    movements: int

    async def hold(self, tx: Tx, amount_uc: int, memo: str) -> None:
        """Holds more of the renter's credit for this booking. Raises InsufficientCredit."""
        transfer = self._next("hold")
        await ledger.hold(tx, transfer, self.booking.renter_id, amount_uc, self.now, self.booking.id, memo)

    async def post(self, tx: Tx, payment: Payment) -> None:
        """Pays an account out of the holds."""
        owed = payment.amount_uc
        for held in await ledger.holds_of(tx, self.booking.id):
            part = min(owed, held.remaining_uc)
            if part > 0:
                transfer = self._next("post")
                await ledger.post(
                    tx,
                    transfer,
                    held.id,
                    payment.account_id,
                    part,
                    self.now,
                    self.booking.id,
                    payment.line_id,
                    payment.memo,
                )
                owed -= part
        invariant(owed == 0, f"booking {self.booking.id} costs {owed} uc more than was held")

    async def take_back(self, tx: Tx, payment: Payment) -> None:
        """
        Returns what was posted for minutes that turned out not to be delivered, and holds it again.

        Held again, because the slot may still need it: what remains held is always the plan less what was paid.
        """
        transfer = self._next("back")
        amount_uc = -payment.amount_uc
        renter = ledger.balance_of(self.booking.renter_id)
        await ledger.move(
            tx,
            transfer,
            payment.account_id,
            renter,
            amount_uc,
            self.now,
            booking_id=self.booking.id,
            line_id=payment.line_id,
            memo=f"{payment.memo}, not delivered",
        )
        await self.hold(tx, amount_uc, "held again: not delivered")

    async def release(self, tx: Tx) -> None:
        """Gives all that remains held back to the renter."""
        await ledger.lock(tx, [ledger.balance_of(self.booking.renter_id)])
        for held in await ledger.holds_of(tx, self.booking.id):
            if held.remaining_uc:
                await ledger.void(tx, self._next("void"), held.id, held.remaining_uc, self.now, memo="not used")

    def _next(self, purpose: str) -> TransferId:
        self.movements += 1
        return transfer_id(self.booking.id, self.movements, purpose)
