"""The motion of a face that speaks, with the head's pose taken out.

Legend: `T` frames, `V` = 478 points.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from emo_cli.face_motion import lip_opening
from emo_cli.faces import Face, FaceFinder
from emo_cli.training.puppets.mesh import (
    DEPTH,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    NUM_POINTS,
    STABLE,
    Array,
    align,
    mouth_scale,
    smooth_over_time,
)

SHUT_SHARE = 0.15  # of the frames, those with the smallest opening, make the shut mouth
# In frames. Lips close within two frames, the rest of the face is slower and the landmarks jitter.
LIPS_SIGMA, FACE_SIGMA = 0.5, 0.9
LARGEST_GAP = 5  # frames without a face that may be bridged


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Displacement of upright points from the shut mouth [T, V, 3], in units of `mouth_scale`."""

    moves: Array

    @property
    def num_frames(self) -> int:
        return len(self.moves)


def read_driver(frames: Iterable[np.ndarray], finder: FaceFinder) -> Driver | None:
    """The driver of a clip's frames [H, W, 3] uint8 at 25 fps; None where the face is lost."""
    faces: list[Face] = []
    lost = 0
    for frame in frames:
        found = finder.find_in_frame(frame)
        lost = 0 if found else lost + 1
        if lost > LARGEST_GAP or not (found or faces):
            return None
        faces.append(found[0] if found else faces[-1])
    if not faces:
        return None
    points = np.stack([face.landmarks for face in faces]) * np.array([1, 1, DEPTH], np.float32)
    return driver_of_points(points, faces[0].rotation)


def driver_of_points(points: Array, rotation: Array) -> Driver:
    """The driver of tracked points [T, V, 3], z in true depth; `rotation` that of the first."""
    assert points.shape[1:] == (NUM_POINTS, 3)
    mean = (points[0] - points[0].mean(0)) @ rotation
    upright = points
    for _ in range(2):  # generalised Procrustes on what speech does not move
        upright = np.stack([_onto(frame, mean) for frame in points])
        mean = upright.mean(0)
    opening = lip_opening(upright[..., :2])
    shut = upright[opening <= np.quantile(opening, SHUT_SHARE)].mean(0)
    moves = (upright - shut) / mouth_scale(shut)
    lips = sorted({*INNER_UPPER_LIP, *INNER_LOWER_LIP})
    smooth = smooth_over_time(moves, FACE_SIGMA)
    smooth[:, lips] = smooth_over_time(moves[:, lips], LIPS_SIGMA)
    return Driver(moves=smooth.astype(np.float32))


def _onto(frame: Array, mean: Array) -> Array:
    scale, rotation, shift = align(frame[STABLE], mean[STABLE])
    return scale * frame @ rotation + shift
