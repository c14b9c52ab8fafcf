"""
A working directory as a zip for Ray: the same files, the same name for the same content as Ray's own client gives.

Ray names a package by the exclusive or of one SHA-1 per file and folder; a cluster that holds the name needs no upload.
SHA-1 serves here as Ray's file name, not as a proof of anything.

Source: Ray 2.60, `ray/_private/runtime_env/packaging.py` (get_uri_for_directory, _zip_files, _dir_travel).
"""

import hashlib
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import PathSpec

from corral.core.units import MIB
from corral.sdk.errors import PackageTooLarge, WorkingDirMissing

DEFAULT_EXCLUDES = (".git", ".venv", "venv", "__pycache__")
"""What Ray leaves out by itself (RAY_RUNTIME_ENV_DEFAULT_EXCLUDES)."""
IGNORE_FILES = (".gitignore", ".rayignore")
PACKAGE_BYTES_MAX = 100 * MIB
"""Ray's job server reads at most this much at once (DASHBOARD_CLIENT_MAX_SIZE), less than its 512 MiB per package."""
_CHUNK_BYTES = 4 * MIB
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""Zip files know no earlier time; a fixed one makes equal content give equal bytes."""

Excludes = Callable[[Path], bool]


@dataclass(frozen=True)
class PackagePlan:
    """What a working directory would send: `name` as Ray names it, and the paths below it that go into the zip."""

    root: Path
    name: str
    files: tuple[Path, ...]
    """Relative; files and empty folders, sorted."""

    @property
    def uri(self) -> str:
        """How a runtime environment names the package."""
        return f"gcs://{self.name}"

    def holds(self, relative: str) -> bool:
        """Whether this file is sent."""
        return Path(relative) in self.files


def plan_package(working_dir: str | Path, *, excludes: Sequence[str] = ()) -> PackagePlan:
    """
    Looks through a working directory and names its package; reads every file once, writes nothing.

    Left out: `DEFAULT_EXCLUDES`, `excludes` (gitignore patterns relative to the directory), and what a `.gitignore` or
    `.rayignore` in any folder says.

    Raises:
        WorkingDirMissing: not an existing directory.
        PackageTooLarge: what is left is far more than Ray could accept, however well it packs.
    """
    root = Path(working_dir).expanduser().absolute()
    if not root.is_dir():
        problem = "is not a directory" if root.exists() else "does not exist"
        raise WorkingDirMissing(
            f"the working directory {working_dir} {problem}; nothing was sent", working_dir=str(working_dir)
        )
    files: list[Path] = []
    # Ray starts with eight characters, and so keeps only eight bytes of the hash; kept for the same name.
    total = b"0" * 8
    for path in _walk(root, [_matcher(root, [*DEFAULT_EXCLUDES, *excludes])]):
        total = _xor(total, _digest(path, root))
        if path.is_file() or (path.is_dir() and next(path.iterdir(), None) is None):
            files.append(path.relative_to(root))
    return PackagePlan(root, f"_ray_pkg_{total.hex()}.zip", tuple(sorted(files)))


def write_package(plan: PackagePlan, target: Path) -> int:
    """
    Writes the zip of `plan` to `target` and returns its size in bytes.

    Equal content gives equal bytes, whenever and wherever it is packed.

    Raises:
        PackageTooLarge: Ray's job server would refuse it.
    """
    with zipfile.ZipFile(target, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for relative in plan.files:
            _add(archive, plan.root / relative, relative)
            if archive.fp is not None and archive.fp.tell() > PACKAGE_BYTES_MAX:
                raise _too_large(plan)
    size = target.stat().st_size
    if size > PACKAGE_BYTES_MAX:
        raise _too_large(plan)
    return size


def _add(archive: zipfile.ZipFile, path: Path, relative: Path) -> None:
    status = path.stat()
    if path.is_dir():
        entry = zipfile.ZipInfo(f"{relative.as_posix()}/", _EARLIEST)
        entry.external_attr = (stat.S_IFDIR | 0o755) << 16 | 0x10
        archive.writestr(entry, b"")
        return
    entry = zipfile.ZipInfo(relative.as_posix(), _EARLIEST)
    entry.external_attr = (stat.S_IFREG | stat.S_IMODE(status.st_mode)) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.file_size = status.st_size
    with path.open("rb") as source, archive.open(entry, "w") as sink:
        while chunk := source.read(_CHUNK_BYTES):
            sink.write(chunk)
            if archive.fp is not None and archive.fp.tell() > PACKAGE_BYTES_MAX:
                return


def _too_large(plan: PackagePlan) -> PackageTooLarge:
    by_size = sorted(((plan.root / name).stat().st_size, name) for name in plan.files)
    size, largest = by_size[-1]
    return PackageTooLarge(
        f"{plan.root} packs to more than {PACKAGE_BYTES_MAX // MIB} MiB, which Ray's job server does not accept; "
        f"nothing was sent (largest file: {largest}, {size / MIB:.0f} MiB)",
        hint=f"list what the job does not need in {plan.root / '.rayignore'}, and let the job fetch large data itself",
        bytes_max=PACKAGE_BYTES_MAX,
        largest=str(largest),
    )


def _walk(path: Path, excludes: list[Excludes]) -> Iterator[Path]:
    """`path` and what is below it, as Ray walks: a folder's ignore files count for the folder and all below it."""
    own = [matcher for name in IGNORE_FILES if (matcher := _ignore_file(path, name)) is not None]
    inherited = [*excludes, *own]
    if any(excluded(path) for excluded in inherited):
        return
    yield path
    if path.is_dir():
        for child in sorted(path.iterdir()):
            yield from _walk(child, inherited)


def _ignore_file(folder: Path, name: str) -> Excludes | None:
    file = folder / name
    if not file.is_file():
        return None
    return _matcher(folder, file.read_text(encoding="utf-8", errors="replace").splitlines())


def _matcher(folder: Path, patterns: Sequence[str]) -> Excludes:
    spec = PathSpec.from_lines("gitignore", patterns)

    def matches(path: Path) -> bool:
        return spec.match_file(str(path.relative_to(folder)))

    return matches


def _digest(path: Path, root: Path) -> bytes:
    digest = hashlib.sha1(str(path.relative_to(root)).encode(), usedforsecurity=False)
    if not path.is_dir():
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError:
            pass  # a socket, or a file that may not be read: Ray counts its name alone
    return digest.digest()


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=False))
