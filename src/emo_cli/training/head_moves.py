"""What a clip's landmarks say of its head, as a model is told (`head_flow.py`).

Shapes: F frames, V = 478 landmarks of MediaPipe; coordinates are pixels.
"""

from __future__ import annotations

import numpy as np

from emo_cli.faces import Box
from emo_cli.head_flow import HeadMoves
from emo_cli.training.puppets.mesh import DEPTH, EARS, STABLE, Array, align, smooth_over_time

SMOOTHED = 1.0  # frames: landmarks tremble, heads do not


def head_moves(landmarks: Array, reference: Array) -> tuple[HeadMoves, Box]:
    """Landmarks [F, V, 3] of frames and [V, 3] of the reference -> moves, the reference's box."""
    deep = np.array([1, 1, DEPTH], np.float32)
    stable = smooth_over_time(landmarks[:, STABLE] * deep, SMOOTHED)
    still = reference * deep
    low, high = still[:, :2].min(0), still[:, :2].max(0)
    centre = np.append((low + high) / 2, still[list(EARS), 2].mean())
    turns, scales, shifts = [], [], []
    for points in stable:
        scale, rotation, shift = align(still[STABLE], points)
        turns.append(rotation.T)
        scales.append(scale)
        shifts.append((scale * centre @ rotation + shift - centre)[:2])
    return (
        HeadMoves(np.array(turns), np.array(scales), np.array(shifts)),
        (float(low[0]), float(low[1]), float(high[0]), float(high[1])),
    )
