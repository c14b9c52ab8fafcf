"""API keys."""

from typing import Annotated

import typer

from corral.cli.output import JsonOption, instant, is_json, put, put_json, say, table
from corral.cli.session import client
from corral.cli.wishes import parse_life_s

app = typer.Typer(help="Your API keys.", no_args_is_help=True)


@app.command("create")
def create(
    label: Annotated[str, typer.Argument(help="What the key is for.")],
    expires: Annotated[str | None, typer.Option("--expires", help="Life of the key, like 30d (at most 3650d).")] = None,
    json: JsonOption = False,
) -> None:
    """Make a key and show it this once."""
    seconds = None if expires is None else parse_life_s(expires, days_max=3650)
    with client() as corral:
        made = corral.create_key(label, expires_in_s=seconds)
    if is_json():
        put_json(made)
        return
    ends = "" if made.key.expires_at is None else f", until {instant(made.key.expires_at)}"
    say(f"key {made.key.id} ({made.key.label}{ends}), shown this once:")
    put(made.secret)


@app.command("list")
def list_keys(json: JsonOption = False) -> None:
    """Show your keys, without their secrets."""
    with client() as corral:
        keys = corral.keys()
    if is_json():
        put_json(keys)
        return
    rows = [
        [key.id, key.label, instant(key.created_at), instant(key.expires_at), instant(key.last_used_at), _state(key)]
        for key in keys
    ]
    put(table(["KEY", "LABEL", "MADE", "EXPIRES", "LAST USED", "STATE"], rows))


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, the part before the point.")], json: JsonOption = False
) -> None:
    """End a key at once and for good."""
    with client() as corral:
        corral.revoke_key(key_id)
    if is_json():
        put_json({"id": key_id, "revoked": True})
        return
    say(f"key {key_id} is revoked")


def _state(key: object) -> str:
    return "revoked" if getattr(key, "revoked_at", None) is not None else "usable"
