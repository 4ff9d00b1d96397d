"""Files: those below a folder, their digests, and how they are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Set
from pathlib import Path

from emo_cli.errors import EmoError


def walk_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted folder by folder; memory holds one folder's names.

    Raises: EmoError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise EmoError(
            f"cannot read the folder {error.filename}: {error.strerror}",
            "Make it readable, or name the folders beside it one by one.",
        ) from error

    for root, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders.sort()
        yield from (Path(root, name) for name in sorted(names))


def find_files(source: Path, suffixes: Set[str], *, what: str, option: str) -> list[Path]:
    """The files of these kinds below a folder, sorted, without links that lead nowhere; or the one
    file that was named.

    Raises: EmoError when there is none, or a folder cannot be read.
    """
    if not source.exists():
        raise EmoError(f"{source} does not exist", f"{option} takes folders and files.")
    candidates = sorted(walk_files(source)) if source.is_dir() else [source]
    files = [path for path in candidates if path.suffix.lower() in suffixes and path.is_file()]
    if not files:
        raise EmoError(f"{source} holds no {what}", f"{option} takes folders and files.")
    return files


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file whole or not at all, also when the power goes."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether it says so; torch and safetensors wrap the system's error in their own types."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)


def move_into_place(part: Path, path: Path) -> None:
    """Renames a finished file over `path`; both are on disk when it returns."""
    _sync(part)
    os.replace(part, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
