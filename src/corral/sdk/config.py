"""
The settings file of a person on a machine, and how it is overridden.

`~/.config/corral/config.toml` (or under `XDG_CONFIG_HOME`) holds the address, the key and the trusted CA; readable by
its owner alone. `CORRAL_URL`, `CORRAL_API_KEY` and `CORRAL_CA` come before it, arguments before both.
"""

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from corral.sdk.addresses import DEFAULT_URL, checked_url
from corral.sdk.errors import ApiKeyMalformed, ConfigMalformed, NotConfigured

CONFIG_NAME = "config.toml"
CA_NAME = "ca.pem"

_KEY = re.compile(r"[!-~]{1,512}")
"""What an HTTP header can carry and a line of text can hold; whether it is a key, the control plane knows."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is known about the control plane and the person; every field may be missing."""

    url: str | None = None
    api_key: str | None = None
    ca: str | None = None
    """Path of a PEM file: the only CA that the control plane's certificate may come from."""
    ca_sha256: str | None = None
    """SHA-256 of that CA's certificate (DER), lower-case hex; enough on its own, the certificate is then fetched."""

    def __repr__(self) -> str:
        """Keeps the key out of logs and tracebacks."""
        key = None if self.api_key is None else "…"
        return f"Config(url={self.url!r}, api_key={key!r}, ca={self.ca!r}, ca_sha256={self.ca_sha256!r})"


def config_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the settings: `$XDG_CONFIG_HOME/corral`, else `~/.config/corral`."""
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path(environ.get("HOME") or Path.home()) / ".config") / "corral"


def data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of what is remembered: `$XDG_DATA_HOME/corral`, else `~/.local/share/corral`."""
    base = environ.get("XDG_DATA_HOME", "")
    home = Path(environ.get("HOME") or Path.home())
    return (Path(base) if base.startswith("/") else home / ".local" / "share") / "corral"


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The settings file."""
    return config_dir(environ) / CONFIG_NAME


def load(path: Path) -> Config:
    """
    Reads the settings file; an empty `Config` where there is none.

    Raises:
        ConfigMalformed: the file is not readable, not TOML, or holds something else than texts.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigMalformed(f"the settings in {path} cannot be read: {error}", path=str(path)) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # Only the place is told: the line itself may hold the key.
        raise ConfigMalformed(
            f"the settings in {path} are not TOML; nothing was sent",
            hint=f"correct or remove {path}, then `corral login`",
            path=str(path),
        ) from error
    known = {field.name for field in fields(Config)}
    for name, value in values.items():
        if name in known and not isinstance(value, str):
            raise ConfigMalformed(f"{name} in {path} is not a text; nothing was sent", path=str(path), name=name)
    return Config(**{name: value for name, value in values.items() if name in known})


def save(config: Config, path: Path) -> None:
    """Writes the settings in one step, readable by their owner alone; a reader sees the old file or the new one."""
    lines = ["# Written by `corral login` and `corral signup`. Holds your API key: keep it to yourself.\n"]
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None:
            lines.append(f"{field.name} = {json.dumps(value)}\n")
    write_private(path, "".join(lines))


def save_ca(pem: str, path: Path) -> None:
    """Writes the trusted CA certificate in one step."""
    write_private(path, pem)


def write_private(path: Path, text: str) -> None:
    """Writes a file in one step, readable by its owner alone (0600); makes its folder if there is none."""
    make_folder(path.parent, mode=0o700)
    # mkstemp makes the file with mode 0600 before a byte is in it.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            _give(descriptor, path.parent)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """
    Makes a folder, and those that it is in, unless they are there.

    Under `sudo` they and the files in them belong to whom the folder around them belongs to: what root has written
    there, the person it belongs to can still read.
    """
    if folder.exists():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True, mode=mode)
    _give(folder, folder.parent)


def _give(what: Path | int, folder: Path) -> None:
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(what, owner.st_uid, owner.st_gid)


def is_key(text: str) -> bool:
    """Whether `text` can be an API key: printable ASCII without spaces, not endless."""
    return _KEY.fullmatch(text) is not None


def effective(
    *,
    url: str | None = None,
    api_key: str | None = None,
    ca: str | None = None,
    ca_sha256: str | None = None,
    environ: Mapping[str, str] = os.environ,
    path: Path | None = None,
) -> Config:
    """
    The settings that count: arguments, then the environment, then the file, then the default address.

    The file's key and CA belong to the file's address: they are not used with another one, so that a key is never sent
    to a control plane that it is not of.

    Raises:
        ConfigMalformed: the settings file cannot be read.
        AddressRefused: the address is plain HTTP to another machine, or none.
        ApiKeyMalformed: the key that was given, or that of the environment, is none. The file's is judged when it is
            used, so that a wrong one can be replaced.
    """
    if api_key:
        _check_key(api_key, "that was given", hint=None)
    elif from_environment := environ.get("CORRAL_API_KEY"):
        _check_key(from_environment, "in CORRAL_API_KEY", hint="set it anew, or unset it to use the kept key")
    stored = load(path or config_path(environ))
    wanted = url or environ.get("CORRAL_URL") or stored.url or DEFAULT_URL
    checked = checked_url(wanted)
    if stored.url is not None and stored.url.rstrip("/") != checked:
        stored = Config()
    given = Config(
        url=checked,
        api_key=api_key or environ.get("CORRAL_API_KEY") or None,
        ca=ca or environ.get("CORRAL_CA") or None,
        ca_sha256=ca_sha256,
    )
    if given.ca is None and given.ca_sha256 is None:
        given = replace(given, ca=stored.ca, ca_sha256=stored.ca_sha256)
    return given if given.api_key is not None else replace(given, api_key=stored.api_key)


def key_of(config: Config) -> str:
    """
    The API key.

    Raises:
        NotConfigured: there is none.
        ApiKeyMalformed: the settings file holds something else in its place.
    """
    if not config.api_key:
        raise NotConfigured(
            f"there is no API key for {config.url}; nothing was sent",
            hint="`corral login`, or `corral signup NAME` for a new account",
            url=config.url,
        )
    _check_key(config.api_key, f"that is kept for {config.url}", hint="`corral login`")
    return config.api_key


def _check_key(key: str, which: str, *, hint: str | None) -> None:
    if not is_key(key):
        raise ApiKeyMalformed(
            f"the API key {which} is none: a key is one word of ASCII characters, `id.secret`; nothing was sent",
            hint=hint,
        )
