"""The mesh of MediaPipe's 478 points: which points are what, and rigid motion of them.

Legend: `V` = 478 points, `T` frames; coordinates are pixels, x right, y down, z away from the
camera. "Upright" means: turned back by the head's rotation, around the mean of the face's oval.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emo_cli.face_motion import MOUTH_CORNERS

Array = NDArray[Any]  # float32 where nothing else is said

NUM_POINTS = 478
# MediaPipe draws faces too flat: with its own z a head turned by 10 degrees measures 6.5.
DEPTH = 1.5
# Rows of points run from one corner to the other, corners included.
INNER_UPPER_LIP = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308]
INNER_LOWER_LIP = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308]
RIGHT_EYE = (
    [33, 246, 161, 160, 159, 158, 157, 173, 133],
    [33, 7, 163, 144, 145, 153, 154, 155, 133],
)
LEFT_EYE = (
    [362, 398, 384, 385, 386, 387, 388, 466, 263],
    [362, 382, 381, 380, 374, 373, 390, 249, 263],
)
RIGHT_IRIS, LEFT_IRIS = range(468, 473), range(473, 478)
RIGHT_BROW = [70, 63, 105, 66, 107, 46, 53, 52, 65, 55]
LEFT_BROW = [300, 293, 334, 296, 336, 276, 283, 282, 295, 285]
# fmt: off
OVAL = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
        152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
# Points that speech does not move: forehead, temples, bridge of the nose, corners of the eyes.
STABLE = [10, 151, 9, 8, 168, 6, 197, 195, 5, 4, 33, 133, 362, 263, 127, 356, 21, 251, 54, 284,
          103, 332, 67, 297, 109, 338]
# fmt: on
FOREHEAD, CHIN, NOSE_BASE = 10, 152, 2
EYE_CORNERS = (33, 263)  # the outer ones
EARS = (234, 454)


@functools.lru_cache(maxsize=1)
def mesh_triangles() -> NDArray[np.int64]:
    """Triangles of the face [N, 3]; the mouth is left open, the eyes are closed by strips."""
    from mediapipe.tasks.python import vision

    edges = vision.FaceLandmarksConnections.FACE_LANDMARKS_TESSELATION
    triangles = []
    for first in range(0, len(edges), 3):  # MediaPipe lists the three edges of each in turn
        sides = edges[first : first + 3]
        triangles.append(sorted({side.start for side in sides} | {side.end for side in sides}))
    for upper, lower in (RIGHT_EYE, LEFT_EYE):
        for i in range(len(upper) - 1):
            triangles.append([upper[i], upper[i + 1], lower[i]])
            triangles.append([upper[i + 1], lower[i + 1], lower[i]])
    return np.array([t for t in triangles if len(set(t)) == 3], np.int64)


def distance(points: Array, pair: tuple[int, int]) -> float:
    """Between two of the points [V, 3]."""
    return float(np.linalg.norm(points[pair[0]] - points[pair[1]]))


def mouth_scale(points: Array) -> float:
    """What displacements of mouth and jaw scale with: sqrt(mouth width * nose to chin)."""
    return math.sqrt(distance(points, MOUTH_CORNERS) * distance(points, (NOSE_BASE, CHIN)))


def align(moving: Array, fixed: Array) -> tuple[float, Array, Array]:
    """The similarity s, R, t that brings rows `moving` onto `fixed`: x -> s x R + t."""
    from_centre, to_centre = moving.mean(0), fixed.mean(0)
    a, b = moving - from_centre, fixed - to_centre
    u, spread, vt = np.linalg.svd(a.T @ b)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])  # a rotation, never a mirror
    rotation = (u * signs) @ vt
    scale = float((spread * signs).sum() / (a**2).sum())
    return scale, rotation, to_centre - scale * from_centre @ rotation


def smooth_over_time(values: Array, sigma: float) -> Array:
    """Gaussian over the first axis, ends repeated; sigma in frames."""
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.concatenate([values[:1].repeat(reach, 0), values, values[-1:].repeat(reach, 0)])
    parts = (weight * padded[i : i + len(values)] for i, weight in enumerate(kernel))
    return np.asarray(sum(parts), np.float32)
