"""Credit."""

from typing import Annotated

import typer

from corral.cli.output import JsonOption, UsageProblem, is_json, put_json, say, usd
from corral.cli.session import client
from corral.cli.wishes import checked_name
from corral.core.money import parse_credits

app = typer.Typer(help="Credit of renters.", no_args_is_help=True)


@app.command("add")
def add(
    person: Annotated[str, typer.Argument(help="Name of the person.")],
    amount: Annotated[str, typer.Argument(help="Credits (1 credit = 1 USD), like 12.50.")],
    json: JsonOption = False,
) -> None:
    """Give credit to a person (operators only)."""
    checked_name(person)
    amount_uc = parse_credits(amount)
    if amount_uc == 0:
        raise UsageProblem(f"{amount!r} is no credit at all; nothing was given", hint="the least is 0.000001")
    with client() as corral:
        transfer = corral.add_credit(person, amount_uc)
    if is_json():
        put_json(transfer)
        return
    say(f"{person} has {usd(transfer.amount_uc)} more; transfer {transfer.id}")
