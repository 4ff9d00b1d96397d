"""What networks made of a dataset's clips, joined with the clips by key (see `precompute.py`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emo_cli.errors import EmoError
from emo_cli.training.samples import damaged, unpack_arrays
from emo_cli.training.shard_reader import ShardReader


class SideFolder:
    """One pass of `emo train prepare`, such as "features-3f02b6c9d1", for the clips in `rows`.

    Raises: EmoError when it has not been made, or lacks one of these clips; only those with sound
    have sound features.
    """

    def __init__(self, clips: ShardReader, rows: np.ndarray, name: str) -> None:
        self._clips = clips
        self._what = name.partition("-")[0]
        self._reader = ShardReader(f"{clips.path}/{name}")
        self._rows = {key: row for row, key in enumerate(self._reader.keys)}
        heard = self._what == "features"
        wanted = {clips.keys[row] for row in rows if not heard or clips.has(row, "flac")}
        missing = wanted - self._rows.keys()
        if missing:
            raise EmoError(
                f"{len(missing)} of {len(wanted)} clips have no {self._what} yet",
                "Run `emo train prepare` with --audio-model or --latents to the end.",
            )

    @property
    def width(self) -> int:
        """Width of sound features."""
        return int(self._reader.about["width"])

    def read(self, row: int) -> Tensor:
        """All frames of a clip, fp16 [T, ...]; `row` is the clip's in its own folder.

        Raises: EmoError when it does not have as many frames as the clip.
        """
        name = self._clips.name(row)
        sample = self._reader.read(self._rows[self._clips.keys[row]], "npz")
        arrays = unpack_arrays(sample, name)
        if self._what not in arrays or len(arrays[self._what]) != self._clips.frames[row]:
            raise damaged(name, f"its {self._what} do not belong to its pictures")
        return torch.from_numpy(arrays[self._what])
