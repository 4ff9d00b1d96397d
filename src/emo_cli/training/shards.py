"""Tar shards in WebDataset's layout, and the index by which a sample is read without a scan.

    DATASET/dataset.json   format, picture size, and how many samples are complete
    DATASET/index.jsonl    a line a sample: key, identity, split, frames, shard, offset, length, and
                           offset and length of each of its files
    DATASET/00000.tar      the files of a sample side by side, KEY.mp4 KEY.flac KEY.npz KEY.json

The index is the truth: a sample counts once its line is written, after its bytes are on disk. What
a killed run has left behind the last line is cut off when the next one opens the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from emo_cli.errors import EmoError
from emo_cli.files import write_atomically
from emo_cli.training.samples import PackedSample

FORMAT = 1
INDEX, ABOUT, LOCK = "index.jsonl", "dataset.json", ".lock"
SHARD_BYTES = 512 << 20
SHARD_NAMES = "[0-9]" * 5 + ".tar"
BLOCK = 512
END_OF_TAR = bytes(2 * BLOCK)


class ShardWriter:
    """Appends samples to a dataset's folder, from one process at a time; use it with `with`.

    about: JSON values that all samples of the folder share, such as their size.

    Raises: EmoError when another process writes there, when the folder holds samples of another
    kind, when a shard is shorter than the index says, and on a full disk.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder = folder
        self.num_samples = 0
        self._about = {"format": FORMAT, **about}
        self._shard_bytes = shard_bytes
        self._shard = 0
        self._end = 0  # of the last sample in the last shard
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ShardWriter:
        with disk_errors(self.folder), contextlib.ExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(self.folder))
            self._about = check_about(self.folder, self._about)
            self._cut_off_unfinished()
            self._index = stack.enter_context((self.folder / INDEX).open("ab"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack, disk_errors(self.folder):
            if self._end:
                _append(self._path(self._shard), self._end, END_OF_TAR)
            about = self._about | {"samples": self.num_samples}
            write_json(self.folder / ABOUT, about)

    def add(self, sample: PackedSample) -> None:
        """Write a sample; once this returns, no kill can lose it."""
        data, places = _tar_members(sample)
        with disk_errors(self.folder):
            if self._end and self._end + len(data) > self._shard_bytes:
                _append(self._path(self._shard), self._end, END_OF_TAR)
                self._shard, self._end = self._shard + 1, 0
            line = {
                "key": sample.key,
                **sample.entry,
                "shard": self._path(self._shard).name,
                "offset": self._end,
                "length": len(data),
                "parts": {name: [self._end + at, size] for name, (at, size) in places.items()},
            }
            _append(self._path(self._shard), self._end, data)
            self._index.write((json.dumps(line) + "\n").encode())
            self._index.flush()
            os.fsync(self._index.fileno())
        self._end += len(data)
        self.num_samples += 1

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.tar"

    def _cut_off_unfinished(self) -> None:
        index = self.folder / INDEX
        last: dict[str, Any] | None = None
        if index.exists():
            os.truncate(index, _end_of_last_line(index))
            for line in read_lines(self.folder):
                last = line
                self.num_samples += 1
        if last is not None:
            self._shard = int(Path(last["shard"]).stem)
            self._end = last["offset"] + last["length"]
        check_count(self.folder, self.num_samples, _complete(self.folder))
        for path in self.folder.glob(SHARD_NAMES):
            if int(path.stem) > self._shard or not self._end:
                path.unlink()
        self._check_last_shard()

    def _check_last_shard(self) -> None:
        path = self._path(self._shard)
        if not self._end:
            return
        size = path.stat().st_size if path.exists() else 0
        if size < self._end:
            raise cut_short(path, size, self._end)
        os.truncate(path, self._end)


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of an index on disk, one at a time.

    Raises: EmoError for a line that is none.
    """
    path = folder / INDEX
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            yield parse_line(line, number, path)


def parse_line(line: bytes, number: int, path: object) -> dict[str, Any]:
    """One line of an index.

    Raises: EmoError when it is cut short or no line of an index.
    """
    try:
        if not line.endswith(b"\n"):
            raise ValueError("it is cut short")
        values = json.loads(line)
        if not isinstance(values, dict) or "parts" not in values:
            raise ValueError("it names no files")
        return values
    except ValueError as error:
        raise EmoError(
            f"line {number} of {path} cannot be read: {error}",
            "Copy the dataset again; where it was made, `emo train prepare` repairs it.",
        ) from error


def check_about(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Record what the samples of a folder have in common, or refuse to mix them with others.

    Returns all that is recorded: also what other makers of samples in the folder said. Raises:
    EmoError that names every difference.
    """
    before = refuse_others(folder, about)
    if before | about != before:
        write_json(folder / ABOUT, {"samples": 0} | before | about)
    return before | about


def refuse_others(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What a folder's samples have in common, {} where there are none yet.

    Raises: EmoError that names every difference; a value that was never recorded is none.
    """
    path = folder / ABOUT
    if not path.exists():
        if any(folder.glob("*.tar")):
            raise EmoError(
                f"{folder} holds tar files, but no {ABOUT}", "Choose another --out, or empty it."
            )
        return {}
    before = read_about(path.read_bytes(), path)
    names = [name for name, value in about.items() if before.get(name, value) != value]
    if names:
        changes = ", ".join(f"{n} is {before[n]!r}, not {about[n]!r}" for n in names)
        raise EmoError(
            f"{folder} holds other samples: {changes}", "Choose another --out for these."
        )
    return before


def read_about(data: bytes, path: object) -> dict[str, Any]:
    """What `dataset.json` says.

    Raises: EmoError when it is no such file, or of another format.
    """
    try:
        about = json.loads(data)
    except ValueError as error:
        raise EmoError(f"cannot read {path}: {error}", "Copy the dataset again.") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise EmoError(
            f"{path} is of another format; this emo reads {FORMAT}",
            "Upgrade emo-cli, or prepare the dataset again.",
        )
    return about


def check_count(folder: object, found: int, complete: int) -> None:
    """Raises: EmoError when the index has lost lines that were complete."""
    if found < complete:
        raise EmoError(
            f"the index of {folder} is cut short: {found} of {complete} samples",
            "Copy the dataset again, or remove it and prepare it again.",
        )


def write_json(path: Path, values: Any) -> None:
    """Write a small file so that a reader sees the old one or the new one, never a part."""
    write_atomically(path, json.dumps(values, indent=1) + "\n")


def cut_short(path: object, size: int, needed: int) -> EmoError:
    """The error for a shard that ends before its last sample."""
    return EmoError(
        f"the shard {path} is cut short: {size} of {needed} bytes are there",
        "Copy the dataset again, or remove it and prepare it again.",
    )


def _complete(folder: Path) -> int:
    path = folder / ABOUT
    return read_about(path.read_bytes(), path)["samples"]


def _tar_members(sample: PackedSample) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The sample's tar members as one piece, and where in it each file's bytes lie."""
    buffer = io.BytesIO()
    places = {}
    for suffix, data in sample.parts.items():
        header = tarfile.TarInfo(f"{sample.key}.{suffix}")
        header.size = len(data)
        buffer.write(header.tobuf(format=tarfile.USTAR_FORMAT))
        places[suffix] = (buffer.tell(), len(data))
        buffer.write(data)
        buffer.write(bytes(-len(data) % BLOCK))
    return buffer.getvalue(), places


def _append(path: Path, end: int, data: bytes) -> None:
    """Write at `end`, which is the file's end; a part of it is taken back."""
    with path.open("ab") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise


def _end_of_last_line(path: Path) -> int:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EmoError(
                f"another process is writing to {folder}", "Wait for it, or choose another --out."
            ) from error
        yield


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a disk's refusal into an EmoError that names the folder."""
    try:
        yield
    except OSError as error:
        raise EmoError(
            f"cannot write to {folder}: {error.strerror}",
            "Make room there, and run the same command again: it goes on where it stopped.",
        ) from error
