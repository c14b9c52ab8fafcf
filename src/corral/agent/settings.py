"""What an agent keeps on its volume: who it is, whom it belongs to, and what it was told at its installation."""

import os
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.core.errors import CorralError
from corral.core.units import GIB
from corral.wire.agent import Cpu

STATE_DIR = Path("/var/lib/corral")
HOST_FILE = "host.json"
KEY_FILE = "key"
IMAGES_FILE = Path("/etc/corral/images.json")
"""Ids of the images that this one was built with."""

DEVELOPMENT_CORES = 1.0
DEVELOPMENT_MEMORY_GIB = 2.0


class SettingsUnreadable(CorralError):
    """The agent's volume does not hold what an installation has written to it."""

    code = "settings_unreadable"


class HostSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One installation. Nothing in it is secret; the key lies beside it."""

    url: str
    ca_pem: str = ""
    """The control plane's CA, pinned at the installation; empty for plain HTTP on loopback."""
    host_id: str
    name: str
    audience: str
    machine_id: str
    engine_id: str
    role: Literal["host", "gateway"] = "host"
    development: bool = False
    slice: str = ""
    cores: float = DEVELOPMENT_CORES
    """Development only."""
    memory_gib: float = DEVELOPMENT_MEMORY_GIB
    """Development only."""
    advertise: str = ""
    gateway_bind: str = "127.0.0.1:8471"
    gateway_address: str = ""
    """Origin at which people reach this gateway; empty: plain HTTP at `gateway_bind`."""
    own_image: str = ""
    """Id of the image that the agent runs, for its own test containers."""
    cpu: Cpu | None = None
    """The processor as found at the installation: to find its name takes seconds."""

    @property
    def memory_bytes(self) -> int:
        """The development slice's memory in bytes."""
        return int(self.memory_gib * GIB)

    @property
    def container_name(self) -> str:
        """Name of the agent's container, of its volume, and the beginning of its other volume's."""
        return container_name(self.slice)


def container_name(slice_name: str) -> str:
    """Name of the agent's container: one per machine, in development one per slice."""
    return f"corral-agent-{slice_name}" if slice_name else "corral-agent"


def auth_volume(slice_name: str) -> str:
    """Name of the volume with the authorisation socket, which a gateway's agent and front share."""
    return f"{container_name(slice_name)}-auth"


def records_folder(state_dir: Path, host_id: str) -> Path:
    """
    Where the node keeper keeps its records.

    One folder for each host id: a machine that joins another network is another host, and starts from nothing there.
    """
    return state_dir / host_id


def load_settings(state_dir: Path = STATE_DIR) -> tuple[HostSettings, Ed25519PrivateKey]:
    """
    The installation on the agent's volume, and the host's key.

    Raises:
        SettingsUnreadable: one of the files is missing or damaged.
    """
    try:
        settings = msgspec.json.decode((state_dir / HOST_FILE).read_bytes(), type=HostSettings)
        key = parse_key((state_dir / KEY_FILE).read_bytes())
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise SettingsUnreadable(
            f"the agent's settings in {state_dir} cannot be read: {error}",
            hint="run the line of `corral host join` again",
        ) from error
    return settings, key


def new_key() -> Ed25519PrivateKey:
    """A fresh key for a host."""
    return Ed25519PrivateKey.generate()


def key_bytes(key: Ed25519PrivateKey) -> bytes:
    """The key as it is kept: PEM, unencrypted, in a file that only the agent may read."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def parse_key(data: bytes) -> Ed25519PrivateKey:
    """
    The key in a file's content.

    Raises:
        ValueError: it is no Ed25519 key.
    """
    key = serialization.load_pem_private_key(data, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")
    return key


def machine_id(path: Path = Path("/etc/machine-id")) -> str:
    """The machine's own id; empty where the system has none (a folder is what Docker makes of a missing file)."""
    try:
        return path.read_text().strip()[:512]
    except (OSError, UnicodeDecodeError):
        return ""


def image_ids(path: Path = IMAGES_FILE) -> dict[str, str]:
    """Ids by image name of what this image was built with; empty outside of one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replaces a file so that a crash leaves either the old or the new content."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
