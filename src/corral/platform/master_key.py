"""
The master key: 32 random bytes from which every per-cluster secret is derived.

What can be derived need not be stored: a copy of the database without this key opens no cluster.
"""

import contextlib
import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from corral.core.errors import invariant
from corral.core.randomness import Randomness
from corral.platform.errors import MasterKeyMalformed
from corral.platform.files import write_secret

KEY_BYTES = 32
FILE_NAME = "master.key"
FILE_VARIABLE = "CORRAL_MASTER_KEY_FILE"


class MasterKey:
    """Derives secrets; never shows itself."""

    def __init__(self, key: bytes) -> None:
        invariant(len(key) == KEY_BYTES, "a master key has 32 bytes")
        self._key = key

    def derive(self, purpose: str, *parts: str, length: int = 32) -> bytes:
        """
        The secret for `purpose` and `parts` (HKDF-SHA256): the same every time, unrelated to every other.

        Args:
            purpose: what it is for, a constant of the caller ("ray token", "roster key").
            parts: what it belongs to, for example a cluster's id.
            length: bytes wanted, 16 to 64.
        """
        # Lengths in front make the parts unambiguous: ("ab", "c") and ("a", "bc") differ.
        words = [word.encode() for word in (purpose, *parts)]
        label = b"corral master key v1" + b"".join(len(word).to_bytes(4, "big") + word for word in words)
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=label).derive(self._key)

    def __repr__(self) -> str:
        """Nothing of the key."""
        return "MasterKey(…)"


def load_master_key(data_dir: Path, randomness: Randomness, *, file: Path | None = None) -> MasterKey:
    """
    Reads the master key from `file`, or else from the data folder, where it is made if it is missing.

    Replicas share one key: give each the same `file` (environment variable CORRAL_MASTER_KEY_FILE).

    Raises:
        MasterKeyMalformed: not 32 bytes, or readable for others than its owner.
    """
    path = file or data_dir / FILE_NAME
    if file is None and not path.exists():
        with contextlib.suppress(FileExistsError):  # Another process was faster: its key counts.
            write_secret(path, randomness.bytes(KEY_BYTES))
    try:
        with path.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            key = opened.read(KEY_BYTES + 1)
    except OSError as error:
        raise MasterKeyMalformed(f"the master key {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise MasterKeyMalformed(f"others may read the master key {path}", hint=f"chmod 600 {path}")
    if len(key) != KEY_BYTES:
        raise MasterKeyMalformed(f"the master key {path} does not hold exactly {KEY_BYTES} bytes")
    return MasterKey(key)
