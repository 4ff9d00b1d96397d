"""Features on disk: one file for each video and extractor, there whole or not at all.

A file is found by the contents of the video, of its portrait and of the report that `emo generate`
writes beside it, by the extractor's digest and the way of decoding; names and folders do not
matter. So a run goes on where it was stopped, and a reference set is read once for all methods ever
compared with it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emo_cli.files import write_atomically

COUNTS = "_counts"  # beside the extractor's own arrays: frames, frames without a face (or -1)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What an extractor made of one video."""

    arrays: Mapping[str, np.ndarray]
    num_frames: int
    num_faceless: int | None  # None: no faces were looked for


def entry_path(folder: Path, *, extractor: str, digest: str, contents: Sequence[str]) -> Path:
    """Where an entry lies; `digest` is the extractor's, `contents` are those of the files read."""
    content = hashlib.sha256(" ".join(contents).encode()).hexdigest()
    version = hashlib.sha256(digest.encode()).hexdigest()[:16]
    return folder / f"{extractor}-{version}" / content[:2] / f"{content[2:34]}.npz"


def write_entry(path: Path, entry: Entry) -> None:
    """Writes an entry. Raises: OSError."""
    counts = [entry.num_frames, -1 if entry.num_faceless is None else entry.num_faceless]
    arrays = {**entry.arrays, COUNTS: np.array(counts, np.int64)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:  # as np.savez, which refuses some names
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w") as part:
                np.lib.format.write_array(part, array, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, stream.getvalue())


def read_entry(path: Path) -> Entry | None:
    """An entry; None where there is none, or a damaged one, which is then made again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            frames, faceless = arrays.pop(COUNTS).tolist()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # a bad disk: the video is still there
    return Entry(arrays=arrays, num_frames=frames, num_faceless=None if faceless < 0 else faceless)
