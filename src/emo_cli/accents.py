"""What in a sound a portrait underlines with its brows and its head.

Shapes: T frames of a video at 25 fps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emo_cli.raw_video import FPS
from emo_cli.sampler import video_generator

STANDS_OUT = 0.6  # of the loudest within two seconds before: so loud is a syllable that does
NEXT = 20  # frames after one, at the earliest
UNDERLINED = 0.6  # of such syllables
LEAST = 0.35  # of the farthest that brows or head go for one
BEAT = np.array([0.15, 0.5, 0.85, 1.0, 1.0, 0.95, 0.85, 0.7, 0.5, 0.35, 0.2, 0.1], np.float32)
PEAK = 3  # frames of it pass before the syllable


def accents(loudness: NDArray[np.floating], seed: int, purpose: str) -> NDArray[np.float32]:
    """How far brows or a head go for syllables that stand out, [T] of 0..1.

    loudness: [T], the sound's in each frame. A longer sound begins as a shorter one, but for the
    last few frames of that.
    """
    rng = video_generator(seed, purpose)
    found = np.zeros(PEAK + len(loudness) + len(BEAT), np.float32)
    for frame in _standing_out(loudness):
        far, drawn = rng.uniform(LEAST, 1.0), rng.random()
        if drawn < UNDERLINED:
            found[frame : frame + len(BEAT)] += far * BEAT
    return found[PEAK : PEAK + len(loudness)]


def _standing_out(loudness: NDArray[np.floating]) -> list[int]:
    """The frames of syllables that are loud beside what came before them; the first frame of a
    video is its portrait, whatever it hears."""
    found: list[int] = []
    for frame in range(PEAK + 1, len(loudness) - 1):
        before, here, after = loudness[frame - 1 : frame + 2]
        loudest = loudness[max(frame - 2 * FPS, 0) : frame + 1].max()
        far = not found or frame - found[-1] >= NEXT
        if far and before < here >= after and here >= STANDS_OUT * loudest:
            found.append(frame)
    return found
