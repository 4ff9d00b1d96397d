"""The few points of a face by which lips and eyes are moved (`face_flow.py`), and their shape.

Shapes: 18 points of MediaPipe's 478, in pixels. "Of the eyes": in distances of the eyes' outer
corners, so that the size of a face does not count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emo_cli.face_motion import LOWER_LIP, MOUTH_CORNERS, UPPER_LIP
from emo_cli.faces import Box

# MediaPipe's numbers of what must be known of a face: the corners of the mouth, the inner lips in
# the middle, chin and nose; of each eye the outer and inner corner, both lids and the brow.
MOUTH = (*MOUTH_CORNERS, UPPER_LIP, LOWER_LIP, 152, 2)
EYES = ((33, 133, 159, 145, 52), (263, 362, 386, 374, 282))
IRISES = (468, 473)
FACE_POINTS = [*MOUTH, *EYES[0], *EYES[1], *IRISES]
LEFT_EYE, RIGHT_EYE, LEFT_IRIS = 6, 11, 16  # places of the outer corners and of the first iris
LEAST = 1.0  # pixels: nothing of a face is smaller
# FACE_POINTS in a face's box: the mean of 60 people of the London set, made symmetric.
USUAL = np.array(
    [(0.32, 0.727), (0.68, 0.727), (0.5, 0.718), (0.5, 0.719), (0.5, 1.0), (0.5, 0.586)]
    + [(0.187, 0.32), (0.383, 0.33), (0.265, 0.286), (0.273, 0.345), (0.214, 0.201)]
    + [(0.813, 0.32), (0.617, 0.33), (0.735, 0.286), (0.727, 0.345), (0.786, 0.201)]
    + [(0.285, 0.317), (0.715, 0.317)],
)


def lip_shape(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """The gap between the lips and their width, both of the eyes: FACE_POINTS [..., 18, 3] ->
    [..., 2]."""
    left, right, upper, lower = (points[..., number, :] for number in range(4))
    eyes = np.linalg.norm(points[..., LEFT_EYE, :] - points[..., RIGHT_EYE, :], axis=-1)
    gap = np.linalg.norm((upper - lower)[..., :2], axis=-1)  # as it is seen: lips differ in depth
    width = np.linalg.norm(left - right, axis=-1)
    return (np.stack([gap, width], -1) / eyes.clip(LEAST)[..., None]).astype(np.float32)


def eye_shape(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """How high the brows are above the eyes' corners, and where the irises lie from between them,
    along the eyes and down; all of the eyes, the mean of both: FACE_POINTS [..., 18, 3] ->
    [..., 3]."""
    shapes, axes = [], eye_axes(points)
    for eye, iris in ((LEFT_EYE, LEFT_IRIS), (RIGHT_EYE, LEFT_IRIS + 1)):
        middle = points[..., eye : eye + 2, :].mean(-2)
        high = np.linalg.norm(points[..., eye + 4, :] - middle, axis=-1)
        looks = np.einsum("...ij,...j->...i", axes, (points[..., iris, :] - middle)[..., :2])
        shapes.append(np.concatenate([high[..., None], looks], -1))
    eyes = np.linalg.norm(points[..., RIGHT_EYE, :] - points[..., LEFT_EYE, :], axis=-1)
    return (np.mean(shapes, 0) / eyes.clip(LEAST)[..., None]).astype(np.float32)


def eye_axes(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Along the eyes and down, in the picture: FACE_POINTS [..., 18, 3] -> units [..., 2, 2]."""
    ends = (points[..., RIGHT_EYE, :] - points[..., LEFT_EYE, :])[..., :2]
    along = ends / np.linalg.norm(ends, axis=-1, keepdims=True).clip(LEAST)
    return np.stack([along, np.stack([-along[..., 1], along[..., 0]], -1)], -2)


def usual_points(box: Box) -> NDArray[np.float32]:
    """FACE_POINTS [18, 3] of a face of which only the box is known: a usual one's."""
    x0, y0, x1, y1 = box
    places = np.array([x0, y0]) + USUAL * np.array([x1 - x0, y1 - y0])
    return np.pad(places, ((0, 0), (0, 1))).astype(np.float32)
