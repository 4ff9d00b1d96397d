"""Where a portrait's eyes look and when its brows rise, for models that are told (`told_lips`).

Shapes: T frames of a video at 25 fps. "Of the eyes": in distances of the eyes' outer corners.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emo_cli.raw_video import FPS
from emo_cli.sampler import video_generator

EYE_RADIUS = 0.12  # of the eyes: from an eyeball's centre to its iris
FARTHEST_GAZE = 0.45  # of that radius
LIDS_REST = 0.6  # lids would follow an eye that looks up or down; ours do not, so it goes less far
GLANCES = np.array([0.012, 0.006])  # of the eyes, standard deviation of where eyes rest
RESTS = (12, 50)  # frames

BROWS_HZ = np.array([0.08, 0.17, 0.31])  # brows are never quite still
BROWS_SWAY = 0.008  # of the eyes, standard deviation
HIGHEST_BROWS = 0.035  # of the eyes: how far they rise at most with what is said


def gaze(turns: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """How far the irises move in the portrait, [T, 2] of the eyes, x right and y down.

    They hold on to the camera while the head makes its `turns` [T, 3, 3], and glance aside a
    little. The first frame's are the portrait's.
    """
    camera = np.array([0.0, 0.0, -1.0])
    held = camera @ turns - camera  # row vectors: the inverse turn
    aside = GLANCES * glances(len(turns), video_generator(seed, "glances"))
    away = EYE_RADIUS * held[:, :2] + aside - aside[:1]
    return within_eye(away, EYE_RADIUS).astype(np.float32)


def within_eye(away: NDArray[np.floating], radius: float) -> NDArray[np.floating]:
    """Moves [T, 2] of irises, no farther than eyes of such a radius show them."""
    length = np.linalg.norm(away, axis=1, keepdims=True)
    farthest = FARTHEST_GAZE * radius
    return away * np.minimum(1, farthest / np.maximum(length, 1e-6)) * [1, LIDS_REST]


def glances(num_frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Where eyes rest, [T, 2] of standard deviation 1: for half a second to two, then they jump
    within two frames."""
    gaze = np.zeros((num_frames, 2))
    at, here = 0, rng.normal(size=2)
    while at < num_frames:
        gaze[at:] = here
        at += int(rng.integers(*RESTS))
        there = rng.normal(size=2)
        gaze[at : at + 1] = (here + there) / 2
        at, here = at + 1, there
    return gaze


def brow_lifts(accents: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """How far the brows rise, [T] of the eyes: a slow sway, and with what is said.

    accents: [T], 0..1 (`accents.py`).
    """
    phases = video_generator(seed, "brows").random(len(BROWS_HZ))
    time = np.arange(len(accents))[:, None] / FPS
    waves = np.sin(2 * np.pi * (BROWS_HZ * time + phases))
    sway = BROWS_SWAY * np.sqrt(2 / len(BROWS_HZ)) * (waves - waves[:1]).sum(1)
    return (sway + HIGHEST_BROWS * accents).astype(np.float32)
