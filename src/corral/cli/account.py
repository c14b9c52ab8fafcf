"""Who one is: signup, login, whoami."""

import sys
from typing import Annotated

import typer

from corral.cli.output import JsonOption, UsageProblem, confirm, is_json, put, put_json, say, table, usd
from corral.cli.session import client
from corral.cli.wishes import checked_name

UrlOption = Annotated[str | None, typer.Option("--url", help="Address of the control plane.", metavar="URL")]
FingerprintOption = Annotated[
    str | None,
    typer.Option("--ca-sha256", help="Fingerprint of its CA, as its operator tells you.", metavar="HEX"),
]


def signup(
    name: Annotated[str, typer.Argument(help="Your name: lower-case letters, digits and hyphens.")],
    url: UrlOption = None,
    ca_sha256: FingerprintOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the key in the settings file.")] = False,
    json: JsonOption = False,
) -> None:
    """Make an account. Its first key is kept in the settings file and shown this once."""
    from corral.sdk import config
    from corral.sdk.client import Client
    from corral.sdk.enrolment import establish_trust

    checked_name(name)
    path = config.config_path()
    stored = config.load(path)
    if stored.api_key is not None and not replace:
        raise UsageProblem(
            f"{path} already holds a key for {stored.url}; no account was made",
            hint=f"keep that key elsewhere, then `corral signup {name} --replace`",
        )
    trusted = establish_trust(_address(url), ca_sha256=ca_sha256, accept=_accept_ca)
    with Client(url=trusted.url, ca=trusted.ca) as corral:
        made = corral.signup(name)
    config.save(config.Config(url=trusted.url, api_key=made.key.secret, ca=trusted.ca, ca_sha256=trusted.sha256), path)
    if is_json():
        put_json(made)
        return
    say(f"welcome, {made.person.name}. Your key, shown this once and kept in {path}:")
    put(made.key.secret)


def login(
    url: UrlOption = None,
    ca_sha256: FingerprintOption = None,
    json: JsonOption = False,
) -> None:
    """Keep a key in the settings file. It is asked for, or read from stdin; never an argument."""
    from corral.sdk import config
    from corral.sdk.client import Client
    from corral.sdk.enrolment import establish_trust

    trusted = establish_trust(_address(url), ca_sha256=ca_sha256, accept=_accept_ca)
    key = _read_key(trusted.url)
    with Client(url=trusted.url, api_key=key, ca=trusted.ca) as corral:
        who = corral.whoami()
    path = config.config_path()
    config.save(config.Config(url=trusted.url, api_key=key, ca=trusted.ca, ca_sha256=trusted.sha256), path)
    if is_json():
        put_json(who)
        return
    say(f"logged in to {trusted.url} as {who.person.name}; the key is kept in {path}")


def whoami(json: JsonOption = False) -> None:
    """Show who you are, and your balance."""
    with client() as corral:
        who = corral.whoami()
        url = corral.config.url or ""
    if is_json():
        put_json(who)
        return
    rows = [
        ["name", who.person.name + (" (operator)" if who.person.is_operator else "")],
        ["control plane", url],
        ["key", who.key_id],
        ["free", usd(who.balance_uc)],
        ["held", usd(who.held_uc)],
        ["earned", usd(who.earned_uc)],
    ]
    put(table(["", ""], rows).lstrip("\n"))


def _address(url: str | None) -> str:
    from corral.sdk import config

    return config.effective(url=url).url or ""


def _read_key(url: str) -> str:
    from corral.sdk import config

    if sys.stdin.isatty():
        key = typer.prompt(f"API key for {url}", hide_input=True, err=True)
    else:
        key = sys.stdin.readline(1024)
    key = key.strip()
    if not config.is_key(key):
        raise UsageProblem(
            "stdin holds no API key; nothing was sent or kept", hint="`corral login` at a terminal, or `… < KEY_FILE`"
        )
    return key


def _accept_ca(url: str, sha256: str, is_local: bool) -> None:
    say(f"{url} has its own CA; fingerprint (SHA-256):")
    say(f"  {sha256}")
    if is_local:
        return
    if not is_json() and sys.stdin.isatty():
        confirm("Is this the fingerprint that the operator told you?", yes=False)
        return
    raise UsageProblem(
        f"the CA of {url} is not known yet, and nobody is there to compare its fingerprint; nothing was sent",
        hint=f"add `--ca-sha256 {sha256}` if the operator tells you the same",
    )
