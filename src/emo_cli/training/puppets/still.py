"""A portrait made ready to be moved: its upright mesh with the mouth shut, and its surroundings.

Legend: `S` side of the picture, `V` = 478 points, `R` anchors around the face, `G` cells of the
grid on a side; coordinates are pixels of the crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emo_cli.face_motion import LOWER_LIP, MOUTH_CORNERS, UPPER_LIP, lip_opening
from emo_cli.faces import Face, FaceFinder
from emo_cli.portrait import FACE_CENTRE_X, FACE_CENTRE_Y, FACE_HEIGHT
from emo_cli.training.puppets.mesh import (
    CHIN,
    DEPTH,
    EARS,
    FOREHEAD,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    OVAL,
    Array,
    distance,
    mesh_triangles,
)

GRID_CELLS = 48
SHOWS_TEETH = 0.05  # lips parted by more than this share of the mouth's width
SHUT_GAP = 0.012  # what stays of the gap of parted lips, so that the rows keep their order
# Rings around the face. Each: growth of the oval; share of the skull's move above the ears and at
# the chin's height; how far back from the face's rim towards the pivot it lies.
RINGS = ((1.15, 1.0, 0.75, 0.15), (1.35, 1.0, 0.4, 0.45), (1.65, 0.75, 0.0, 0.9))


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Where the face lies in the crop: 1, 0, 0 is how portraits are framed."""

    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)  # in shares of the side


@dataclass(frozen=True, kw_only=True)
class Still:
    """Arrays only, so that it can be made on one machine and rendered on another."""

    picture: NDArray[np.uint8]  # [S, S, 3]
    points: Array  # [V, 3] as found
    rotation: Array  # [3, 3], upright to picture, for columns
    shut: Array  # [V, 3] upright, mouth shut
    centre: Array  # [3] where the upright origin lies
    triangles: NDArray[np.int64]  # [N, 3]
    ring: Array  # [R, 3] anchors outside the face
    ring_share: Array  # [R] how much of the skull's move they make
    ring_breath: Array  # [R] how much of the breath
    spread: Array  # [G * G, 36 + R]: moves of oval and ring -> moves of the picture

    @property
    def size(self) -> int:
        return len(self.picture)

    @property
    def face_height(self) -> float:
        return distance(self.shut, (FOREHEAD, CHIN))

    @property
    def pivot(self) -> Array:
        """What the head turns about, upright: between the ears, a little down and back."""
        between = self.shut[list(EARS)].mean(0)
        return between + np.array([0, 0.15, 0.1], np.float32) * self.face_height

    def upright(self, points: Array) -> Array:
        """Picture coordinates [..., 3] -> upright ones."""
        return (points - self.centre) @ self.rotation

    def shows_teeth(self) -> bool:
        return bool(lip_opening(self.points[:, :2]) > SHOWS_TEETH)


def make_still(
    picture: NDArray[np.uint8], finder: FaceFinder, size: int, framing: Framing | None = None
) -> Still | None:
    """A still of side `size` from a picture [H, W, 3] RGB; None where no face is found.

    The face is looked at again in the crop, as in clips: MediaPipe turns one off the middle.
    """
    faces = finder.find(picture)
    if not faces:
        return None
    crop = _crop(picture, faces[0], size, framing or Framing())
    again = finder.find_in_frame(crop)
    return still_of_face(crop, again[0]) if again else None


def still_of_face(crop: NDArray[np.uint8], face: Face) -> Still:
    """A still from a square picture [S, S, 3] RGB and its face."""
    size = len(crop)
    points = (face.landmarks * np.array([1, 1, DEPTH])).astype(np.float32)
    rotation = face.rotation
    if lip_opening(points[:, :2]) > SHOWS_TEETH:
        # The inner rows then run along the teeth's edges: step back onto the lips.
        along = 0.025 * (points[308] - points[78])
        down = np.array([-along[1], along[0], 0.0], np.float32)
        points[INNER_UPPER_LIP[1:-1]] -= down
        points[INNER_LOWER_LIP[1:-1]] += 1.4 * down
    centre = points[OVAL].mean(0)
    shut = shut_mouth((points - centre) @ rotation)
    ring, share, breath = _rings(points, rotation, centre, shut, size)
    anchors = np.concatenate([points[OVAL], ring])[:, :2] / size
    return Still(
        picture=crop,
        points=points,
        rotation=rotation,
        shut=shut,
        centre=centre,
        triangles=mesh_triangles(),
        ring=ring,
        ring_share=share,
        ring_breath=breath,
        spread=_thin_plate(anchors),
    )


def shut_mouth(upright: Array) -> Array:
    """Upright points [V, 3] with parted lips brought together: the jaw makes most of the way."""
    width = distance(upright, MOUTH_CORNERS)
    gap = upright[INNER_LOWER_LIP] - upright[INNER_UPPER_LIP]
    length = np.maximum(np.linalg.norm(gap, axis=1, keepdims=True), 1e-6)
    excess = gap * np.clip(1 - SHUT_GAP * width / length, 0, 1)
    lower = upright[:, 1] > upright[[UPPER_LIP, LOWER_LIP], 1].mean()
    lower[INNER_LOWER_LIP], lower[INNER_UPPER_LIP] = True, False
    from_above = _fade(upright, INNER_UPPER_LIP, 0.35 * excess, 0.4 * width)
    from_below = _fade(upright, INNER_LOWER_LIP, -0.65 * excess, 0.8 * width)
    return upright + np.where(lower[:, None], from_below, from_above)


def _fade(points: Array, handles: list[int], moves: Array, sigma: float) -> Array:
    """For every point the move of its nearest handle, faded with the distance."""
    far = np.linalg.norm(points[:, None, :2] - points[None, handles, :2], axis=-1)
    fading = np.exp(-((far.min(1) / sigma) ** 2))
    return (moves[far.argmin(1)] * fading[:, None]).astype(np.float32)


def _crop(picture: NDArray[np.uint8], face: Face, size: int, framing: Framing) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    side = min(face.height / FACE_HEIGHT / framing.zoom, height, width)
    x = (face.box[0] + face.box[2]) / 2 - side * (FACE_CENTRE_X + framing.shift[0])
    y = (face.box[1] + face.box[3]) / 2 - side * (FACE_CENTRE_Y + framing.shift[1])
    left, top = min(max(x, 0), width - side), min(max(y, 0), height - side)
    box = (left, top, left + side, top + side)
    return np.array(
        Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS, box=box)
    )


def _rings(
    points: Array, rotation: Array, centre: Array, shut: Array, size: int
) -> tuple[Array, Array, Array]:
    """Hair turns with the skull, the neck follows in part, shoulders and borders rest."""
    oval, middle = points[OVAL], points[OVAL].mean(0)
    ears = shut[list(EARS)].mean(0)
    pivot_depth = float((ears @ rotation.T + centre)[2])
    rings, shares = [], []
    for growth, at_ears, at_chin, roundness in RINGS:
        out = middle + (oval - middle) * growth
        out[:, 2] = oval[:, 2] + roundness * (pivot_depth - oval[:, 2])
        upright = (out - centre) @ rotation
        below = np.clip((upright[:, 1] - ears[1]) / (shut[CHIN, 1] - ears[1]), 0, 1)
        rings.append(out)
        shares.append(at_ears + (at_chin - at_ears) * below)
    ring, share = np.concatenate(rings), np.concatenate(shares)
    margin = 0.025 * size
    kept = ((ring[:, :2] > margin) & (ring[:, :2] < size - margin)).all(1)
    edge = np.linspace(0, size, 7)
    border = [(x, y, pivot_depth) for x in edge for y in edge if {x, y} & {0.0, float(size)}]
    ring = np.concatenate([ring[kept], border]).astype(np.float32)
    share = np.concatenate([share[kept], np.zeros(len(border))]).astype(np.float32)
    low = np.clip((ring[:, 1] - points[CHIN, 1]) / max(size - points[CHIN, 1], 1), 0, 1)
    return ring, share, (np.sqrt(low) * (1 - share)).astype(np.float32)


def _thin_plate(anchors: Array) -> Array:
    """[G * G, A]: values at anchors [A, 2] in 0..1 -> smooth values at the cells' centres."""
    axis = (np.arange(GRID_CELLS) + 0.5) / GRID_CELLS
    cells = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)

    def bends(at: Array) -> Array:
        square = ((at[:, None] - anchors[None]) ** 2).sum(-1)
        return square * np.log(square + 1e-9)

    def plane(at: Array) -> Array:
        return np.column_stack([np.ones(len(at)), at])

    count = len(anchors)
    stiffness = bends(anchors) + 1e-4 * np.eye(count)
    system = np.block([[stiffness, plane(anchors)], [plane(anchors).T, np.zeros((3, 3))]])
    basis = np.column_stack([bends(cells), plane(cells)])
    return (basis @ np.linalg.inv(system)[:, :count]).astype(np.float32)


def turned_by(rotation: Array) -> float:
    """Degrees between a head's rotation [3, 3] and the straight view."""
    return math.degrees(math.acos(min(1.0, max(-1.0, (float(np.trace(rotation)) - 1) / 2))))
