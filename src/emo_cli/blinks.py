"""When a portrait blinks, for models that are told (`UNetConfig.told_lids`).

Shapes: T frames of a video at 25 fps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emo_cli.sampler import video_generator

BLINK = np.array([0.45, 0.95, 1.0, 0.75, 0.4, 0.15], np.float32)  # two frames down, three up
APART = (25, 105)  # frames from one blink to the next: 23 a minute, as people who talk
FIRST = (12, 50)  # the first one sooner, so that short videos blink as well


def blinks(num_frames: int, seed: int) -> NDArray[np.float32]:
    """How far the eyes are shut, [T], 0 open .. 1 shut: a pure function of its arguments.

    A longer video begins as a shorter one of the same seed.
    """
    rng = video_generator(seed, "blinks")
    lids = np.zeros(num_frames + len(BLINK), np.float32)
    frame = int(rng.integers(*FIRST))
    while frame < num_frames:
        lids[frame : frame + len(BLINK)] = BLINK
        frame += int(rng.integers(*APART))
    return lids[:num_frames]
