"""Where the shots of a video begin, and the stretches of at most ten seconds they are worked in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from emo_cli.raw_video import EVEN_FRAMES, FPS, ffmpeg_output

CUT_SCORE = 10.0  # scdet's own default, in percent
LOOK_WIDTH = 320  # a cut shows in a small picture too
MIN_FRAMES = 16  # 4 motion frames and a clip of 12
MAX_FRAMES = 10 * FPS  # bounds the memory, and what a kill can lose
BEAT_EVERY = 500  # frames between two signs of life


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Frames first..first+count-1 of a video at 25 fps, without a cut in between."""

    first: int
    count: int


def find_shots(path: Path, beat: Callable[[], None] = lambda: None) -> list[Stretch]:
    """The shots of a video, in order and without gaps; `beat` is called now and then.

    Raises: EmoError when ffmpeg cannot read the video.
    """
    filters = f"{EVEN_FRAMES},scale={LOOK_WIDTH}:-2:flags=area,scdet=threshold={CUT_SCORE}"
    filters += ",metadata=mode=print:file=-"
    output = ["-map", "0:V:0", "-an", "-vf", filters, "-f", "null"]
    num_frames, cuts = 0, []
    with ffmpeg_output(path, [], output) as stream:
        for line in stream:
            if match := re.match(rb"frame:(\d+)", line):
                num_frames = int(match[1]) + 1
                if num_frames % BEAT_EVERY == 0:
                    beat()
            elif line.startswith(b"lavfi.scd.time") and num_frames > 1:
                cuts.append(num_frames - 1)
    edges = [0, *cuts, num_frames]
    return [
        Stretch(first=a, count=b - a) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a
    ]


def within(shots: Iterable[Stretch], start_s: float, stop_s: float | None) -> list[Stretch]:
    """What of the shots lies between two times, in whole frames."""
    first = round(start_s * FPS)
    inside = []
    for shot in shots:
        begin = max(shot.first, first)
        end = shot.first + shot.count
        end = end if stop_s is None else min(end, round(stop_s * FPS))
        if end > begin:
            inside.append(Stretch(first=begin, count=end - begin))
    return inside


def divide(shot: Stretch) -> list[Stretch]:
    """A shot in parts of equal length, ten seconds at most."""
    parts = -(-shot.count // MAX_FRAMES)
    edges = [shot.first + shot.count * i // parts for i in range(parts + 1)]
    return [Stretch(first=a, count=b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
