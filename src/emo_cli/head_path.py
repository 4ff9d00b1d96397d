"""How a portrait's head moves, for models that are told (`UNetConfig.told_head`).

Shapes: T frames of a video at 25 fps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emo_cli.face_motion import rotation_between_frames, rotation_matrices
from emo_cli.faces import Box
from emo_cli.head_flow import HeadMoves
from emo_cli.raw_video import FPS
from emo_cli.sampler import video_generator

TURNS = np.array([3.6, 2.6, 1.8])  # standard deviation of yaw, pitch, roll, in degrees
FARTHEST = np.array([12.0, 8.0, 7.0])  # what training shows
TURNS_HZ = (0.06, 0.7)
WAVES = 7
NOD, NODS_AT = 1.8, 0.2  # degrees down at most for a syllable, at so many degrees a frame
WIDEST_NOD = 1.5  # times that, where heads move faster
HOME_S = 2.0  # a video begins in its portrait's pose; in this time it finds its own
LEANS = np.array([-1.0, 1.0])  # a head goes where it looks: positive yaw is left, pitch down
# With the farthest turn: a share of the room that the face region leaves; in face heights.
ROAM, FARTHEST_ROAM = 0.6, 0.15
MEASURED = 4096  # frames on which a path's speed is measured
# The neck about which a head turns, from the middle of the face, in its heights: down and back.
PIVOT = np.array([0.0, 0.2, 0.1])


def head_path(
    nods: NDArray[np.floating], seed: int, speed: float, box: Box, region: Box
) -> HeadMoves:
    """Smooth turns of `speed` degrees a frame on the mean, a sway inside of the face region, and
    nods [T], 0..1, with what is said.

    A pure function of its arguments; a longer video begins as a shorter one. `box` of the face and
    `region` in pixels of the portrait. The first frame's head is the portrait's.
    """
    degrees = _turns(len(nods), seed, speed)
    degrees[:, 1] += NOD * min(np.sqrt(speed / NODS_AT), WIDEST_NOD) * nods
    turns = rotation_matrices(degrees)
    height = box[3] - box[1]
    room = np.array([min(box[0] - region[0], region[2] - box[2]),
                     min(box[1] - region[1], region[3] - box[3])]) / height  # fmt: skip
    reach = (ROAM * room).clip(0, FARTHEST_ROAM)
    sway = reach * LEANS * (degrees / FARTHEST)[:, :2]
    arm = -PIVOT * height  # from the neck to the middle of the face
    carried = (turns @ arm - arm)[:, :2]
    shifts = (carried + height * sway).astype(np.float32)
    return HeadMoves(turns, np.ones(len(nods), np.float32), shifts)


def _turns(num_frames: int, seed: int, speed: float) -> NDArray[np.float64]:
    """Yaw, pitch and roll in degrees, [T, 3]. Twice the speed: wider and faster by a root of two.

    The speed is measured on a stretch of its own, so that it does not depend on the length.
    """

    def path(frames: int, more: float) -> NDArray[np.float64]:
        stretched = (TURNS_HZ[0] * more, TURNS_HZ[1] * more)
        wide = more * TURNS * _waves(frames, seed, stretched)
        return FARTHEST * np.tanh(_from_rest(wide) / FARTHEST)

    more = 1.0
    for _ in range(4 if speed > 0 else 0):  # bounds bend the path: closer each time
        found = rotation_between_frames(rotation_matrices(path(MEASURED, more)))[1:].mean()
        more *= float(np.sqrt(speed / found))
    return path(num_frames, more) if speed > 0 else np.zeros((num_frames, 3))


def _waves(num_frames: int, seed: int, band: tuple[float, float]) -> NDArray[np.float64]:
    """[T, 3] of mean 0 and standard deviation 1: waves of a band in Hz, slow ones larger."""
    rng = video_generator(seed, "head turns")
    low, high = np.log(band[0]), np.log(band[1])
    places = (np.arange(WAVES)[:, None] + rng.random((WAVES, 3))) / WAVES
    hertz = np.exp(low + (high - low) * places)
    size = hertz**-0.5
    size *= np.sqrt(2 / (size**2).sum(0))
    time = np.arange(num_frames)[:, None, None] / FPS
    return (size * np.sin(2 * np.pi * (hertz * time + rng.random((WAVES, 3))))).sum(1)


def _from_rest(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """A path [T, 3] that leaves zero and comes into its own."""
    if len(path) == 0:
        return path
    time = np.arange(len(path))[:, None] / FPS
    return path - path[:1] * np.exp(-time / HOME_S)
