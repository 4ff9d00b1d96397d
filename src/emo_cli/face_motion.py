"""What moves in a face from frame to frame, told from its pose and landmarks.

Legend: `T` frames, `V` = 478 points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UPPER_LIP, LOWER_LIP = 13, 14  # MediaPipe's inner lips, in the middle
MOUTH_CORNERS = (61, 291)


def rotation_between_frames(rotations: NDArray[np.floating]) -> NDArray[np.float32]:
    """Degrees of head rotation since the frame before, [T, 3, 3] -> [T] (EMO sec. 3.2).

    w = 2 asin(|R1 - R2|_F / (2 sqrt 2)); the first frame has the second's.
    """
    if len(rotations) < 2:
        return np.zeros(len(rotations), np.float32)
    wide = rotations.astype(np.float64)
    distance = np.linalg.norm(wide[1:] - wide[:-1], axis=(1, 2))
    angles = np.degrees(2 * np.arcsin((distance / (2 * np.sqrt(2))).clip(0, 1)))
    return np.concatenate([angles[:1], angles]).astype(np.float32)


def rotation_matrices(degrees: NDArray[np.floating]) -> NDArray[np.float32]:
    """Yaw, pitch, roll [T, 3] in degrees -> [T, 3, 3]; yaw turns about y, pitch x, roll z."""
    yaw, pitch, roll = np.deg2rad(np.asarray(degrees, np.float64)).T
    return (_about(1, yaw) @ _about(0, pitch) @ _about(2, roll)).astype(np.float32)


def lip_opening(landmarks: NDArray[np.floating]) -> NDArray[Any]:
    """Gap of the inner lips over the width of the mouth, [..., V, 2 or 3] -> [...]."""
    left, right = MOUTH_CORNERS
    gap = landmarks[..., UPPER_LIP, :] - landmarks[..., LOWER_LIP, :]
    width = landmarks[..., left, :] - landmarks[..., right, :]
    return np.asarray(np.linalg.norm(gap, axis=-1) / np.linalg.norm(width, axis=-1))


def _about(axis: int, angle: NDArray[np.float64]) -> NDArray[np.float64]:
    matrices = np.tile(np.eye(3), (len(angle), 1, 1))
    j, k = (axis + 1) % 3, (axis + 2) % 3
    matrices[:, j, j] = matrices[:, k, k] = np.cos(angle)
    matrices[:, k, j], matrices[:, j, k] = np.sin(angle), -np.sin(angle)
    return matrices
