"""Files that hold secrets, and the folder that they lie in."""

import os
from pathlib import Path


def make_data_folder(folder: Path) -> None:
    """
    Makes the data folder if it is missing; an existing one keeps its mode.

    0700; as root 0711, so that PostgreSQL's own user can get to its part. Every secret in it is 0600 by itself.
    """
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o711 if os.geteuid() == 0 else 0o700)


def write_secret(path: Path, content: bytes) -> None:
    """
    Writes a file that only its owner can read (0600): whole or not at all, and durable.

    Raises:
        FileExistsError: the file is there already; it was not changed.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)  # Unlike a rename, this never replaces what another process just wrote.
    finally:
        unfinished.unlink()
