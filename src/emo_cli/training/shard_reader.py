"""Reads samples of a dataset by the index, from disk or object storage; never scans a tar."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.training.samples import damaged
from emo_cli.training.shards import (
    ABOUT,
    INDEX,
    check_count,
    cut_short,
    parse_line,
    read_about,
)


class ShardReader:
    """The index of one folder in memory, and its shards where they are; safe to fork and pickle.

    path: a folder, or a URL that fsspec opens. `keys`, `splits` lists and `frames` [N] have one
    entry a sample; `about` is `dataset.json`.

    Raises: EmoError when it is no dataset, or when index or a shard is cut short.
    """

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")
        try:
            self.about: dict[str, Any] = read_about(self._whole(ABOUT), f"{self.path}/{ABOUT}")
            lines = self._whole(INDEX).splitlines(keepends=True)
        except FileNotFoundError as error:
            raise EmoError(
                f"{self.path} is no dataset: it has no {INDEX}",
                "Make one with `emo train prepare RAW --out DATASET`.",
            ) from error
        except OSError as error:
            raise _unreadable(self.path, error) from error
        self._read_index([parse_line(x, i, f"{self.path}/{INDEX}") for i, x in enumerate(lines, 1)])
        check_count(self.path, len(self.keys), int(self.about["samples"]))
        self._check_shards()

    def has(self, row: int, part: str) -> bool:
        """Whether a sample has a file of that suffix."""
        return bool(self._places[part][row, 1] >= 0) if part in self._places else False

    def read(self, row: int, part: str) -> bytes:
        """The bytes of one file of a sample.

        Raises: EmoError when the storage does not give them all.
        """
        offset, length = (int(value) for value in self._places[part][row])
        shard = f"{self.path}/{self._shards[self._shard_of[row]]}"
        try:
            data = self._storage().cat_file(shard, start=offset, end=offset + length)
        except OSError as error:
            raise damaged(self.name(row), f"it cannot be read ({error})") from error
        if len(data) != length:
            raise cut_short(shard, offset + len(data), offset + length)
        return data

    def name(self, row: int) -> str:
        """How messages name a sample."""
        return f"{self.keys[row]} in {self.path}/{self._shards[self._shard_of[row]]}"

    def _read_index(self, lines: list[dict[str, Any]]) -> None:
        self.keys: list[str] = [line["key"] for line in lines]
        self.splits: list[str] = [line.get("split", "") for line in lines]
        self.frames = np.array([line["frames"] for line in lines], np.int32)
        self._shards = sorted({line["shard"] for line in lines})
        number = {shard: i for i, shard in enumerate(self._shards)}
        self._shard_of = np.array([number[line["shard"]] for line in lines], np.int32)
        parts = sorted({part for line in lines for part in line["parts"]})
        self._places = {
            part: np.array([line["parts"].get(part, (-1, -1)) for line in lines], np.int64)
            for part in parts
        }
        self._ends = np.zeros(len(self._shards), np.int64)
        ends = np.array([line["offset"] + line["length"] for line in lines], np.int64)
        np.maximum.at(self._ends, self._shard_of, ends)

    def _check_shards(self) -> None:
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True):
            path = f"{self.path}/{shard}"
            try:
                size = self._storage().size(path)
            except FileNotFoundError:
                size = 0
            except OSError as error:
                raise _unreadable(path, error) from error
            if size is not None and size < end:  # None: a server that does not say
                raise cut_short(path, size, end)

    def _whole(self, name: str) -> bytes:
        return self._storage().cat_file(f"{self.path}/{name}")

    def _storage(self) -> Any:
        # Asked for each time: fsspec keeps one instance for each process, as forks need it.
        return open_storage(self.path)[0]


def open_storage(path: str) -> tuple[Any, str]:
    """The file system of a folder or URL, and how that names it.

    Raises: EmoError for a storage that fsspec does not know, or cannot reach without its package.
    """
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(path))
    except (ImportError, ValueError) as error:
        raise EmoError(
            f"cannot open {path}: {error}",
            "pip install 'emo-cli[storage]' for s3://, gs:// and https://, or name a folder.",
        ) from error


def _unreadable(path: str, error: OSError) -> EmoError:
    return EmoError(
        f"cannot read {path}: {error.strerror or error}",
        "Name a dataset's folder, and make its files readable.",
    )
