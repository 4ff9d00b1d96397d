"""Where a puppet's points lie in each frame: speech, turns and sway put onto the still's mesh.

Legend: `T` frames, `V` = 478 points, `A` anchors = the oval's 36 points and the still's ring.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emo_cli.eyes import within_eye
from emo_cli.face_motion import lip_opening
from emo_cli.training.puppets.mesh import (
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LEFT_BROW,
    LEFT_EYE,
    LEFT_IRIS,
    NOSE_BASE,
    OVAL,
    RIGHT_BROW,
    RIGHT_EYE,
    RIGHT_IRIS,
    Array,
    mouth_scale,
)
from emo_cli.training.puppets.motion import Motion
from emo_cli.training.puppets.still import Still

EYE_RADIUS = 0.055  # of the face's height: from the eyeball's centre to the iris
UNDER_THE_EYE = 145
BROW_WIDTH = 0.06  # of the face's height: how far a brow's move reaches


@dataclass(frozen=True, kw_only=True)
class Pose:
    """The geometry of a puppet's frames, and with it the exact labels.

    `mesh` [T, V, 3] picture, eyes open; `landmarks` [T, V, 3] as they are seen; `rotations`
    [T, 3, 3] upright to picture; `moves` [T, A, 2] of the anchors; `gaze` [T, 2] shift of the
    irises in the still's picture; `jaw` [T, 3] upright move of the jaw; `head` [T, 3] picture
    position of the still's upright origin.
    """

    mesh: Array
    landmarks: Array
    rotations: Array
    moves: Array
    gaze: Array
    jaw: Array
    head: Array

    @property
    def opening(self) -> Array:
        """Lip opening over mouth width, [T]."""
        return lip_opening(self.landmarks[..., :2])

    @property
    def boxes(self) -> Array:
        """Face boxes (x0, y0, x1, y1), [T, 4]."""
        flat = self.landmarks[..., :2]
        return np.concatenate([flat.min(1), flat.max(1)], axis=1)


def make_pose(still: Still, moves: Array, motion: Motion) -> Pose:
    """Pose a still: `moves` [T, V, 3] as in a Driver, `motion` of the same T frames."""
    assert len(moves) == len(motion.turns)
    turns, pivot = motion.rotations, still.pivot
    shift = np.pad(motion.shift, ((0, 0), (0, 1))) * still.face_height  # [T, 3]
    speech = moves * (mouth_scale(still.shut) * _speaking_share(still.shut))
    speech[..., 1] -= np.outer(motion.brows * still.face_height, _brow_share(still.shut))
    shape = _keep_lips_apart(still.shut + speech)

    def place(upright: Array) -> Array:
        turned = (upright - pivot) @ turns.transpose(0, 2, 1) + pivot
        return turned @ still.rotation.T + still.centre + shift[:, None]

    mesh = place(shape).astype(np.float32)
    skull = place(still.upright(still.ring)[None]) - still.ring
    around = skull * still.ring_share[:, None]
    around[..., 1] -= np.outer(motion.breath * still.face_height, still.ring_breath)
    oval = mesh[:, OVAL] - still.points[OVAL]
    gaze = _gaze(still, motion)
    return Pose(
        mesh=mesh,
        landmarks=_seen_eyes(mesh, motion.blink, gaze),
        rotations=(still.rotation @ turns).astype(np.float32),
        moves=np.concatenate([oval, around], 1)[..., :2].astype(np.float32),
        gaze=gaze,
        jaw=speech[:, INNER_LOWER_LIP[3:8]].mean(1).astype(np.float32),
        head=place(np.zeros((1, 1, 3), np.float32))[:, 0].astype(np.float32),
    )


def _speaking_share(shut: Array) -> Array:
    """[V, 1]: how much of speech's move a point takes: below the nose all, above the eyes none."""
    top, bottom = shut[UNDER_THE_EYE, 1], shut[NOSE_BASE, 1]
    low = np.clip((shut[:, 1] - top) / (bottom - top), 0, 1)
    low = low * low * (3 - 2 * low)
    return np.maximum(low, 0.8 * _brow_share(shut))[:, None].astype(np.float32)


def _brow_share(shut: Array) -> Array:
    """[V]: 1 on the brows, fading around them, 0 below the upper lids."""
    brows = shut[RIGHT_BROW + LEFT_BROW]
    far = np.linalg.norm(shut[:, None] - brows[None], axis=-1).min(1)
    share = np.exp(-((far / (BROW_WIDTH * np.ptp(shut[OVAL, 1]))) ** 2))
    return share * (shut[:, 1] < shut[[27, 257], 1].mean())


def _keep_lips_apart(shape: Array) -> Array:
    """Lips never pass through each other: where they would, they meet halfway."""
    gap = shape[:, INNER_LOWER_LIP, 1] - shape[:, INNER_UPPER_LIP, 1]
    crossed = np.minimum(gap, 0) / 2
    shape[:, INNER_UPPER_LIP, 1] += crossed
    shape[:, INNER_LOWER_LIP, 1] -= crossed
    return shape


def _gaze(still: Still, motion: Motion) -> Array:
    """Eyes hold on to the camera while the head turns; glances are added."""
    camera = still.rotation.T @ np.array([0, 0, -1], np.float32)
    held = camera @ motion.rotations - camera  # row vectors: the inverse turn
    radius = EYE_RADIUS * still.face_height
    away = held[:, :2] * radius + motion.gaze * still.face_height
    return (within_eye(away, radius) @ still.rotation[:2, :2].T).astype(np.float32)


def _seen_eyes(mesh: Array, blink: Array, gaze: Array) -> Array:
    """Lids and irises are painted, not meshed: their points moved to where they are seen."""
    seen = mesh.copy()
    for upper, lower in (RIGHT_EYE, LEFT_EYE):
        seen[:, upper] += blink[:, None, None] * (mesh[:, lower] - mesh[:, upper])
    for iris in (RIGHT_IRIS, LEFT_IRIS):
        seen[:, iris, :2] += gaze[:, None]
    return seen
