"""The plan of a video: frames -> clips of F with M motion frames, the last one padded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedClip:
    """Frames [start, stop) of the video; the network always makes a whole clip."""

    index: int
    start: int
    stop: int

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


def count_clips(num_frames: int, clip_frames: int) -> int:
    """How many clips cover `num_frames`."""
    return -(-num_frames // clip_frames)


def plan(num_frames: int, clip_frames: int, first: int = 0) -> Iterator[PlannedClip]:
    """The clips of a video from clip `first` on; nothing of the tail is cut off."""
    for index in range(first, count_clips(num_frames, clip_frames)):
        start = index * clip_frames
        yield PlannedClip(index, start, min(start + clip_frames, num_frames))
