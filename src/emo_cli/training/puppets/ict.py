"""ICT-FaceKit's expression shapes, carried over to MediaPipe's points.

The neutral mesh is drawn with its jaw a little open and looked at like any portrait; each point
then takes the motion of the visible skin beneath it.

Legend: `V` = 478 points, `N` vertices of ICT's mesh, `S` side of the drawing in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from emo_cli.errors import EmoError
from emo_cli.faces import FaceFinder
from emo_cli.training.puppets.mesh import NUM_POINTS, Array, mouth_scale
from emo_cli.training.puppets.raster import rasterise

SIZE = 512
FACE_SHARE = 0.9  # of the drawing's height, chin to crown
OPEN = 0.35  # of `jawOpen`, so that upper and lower lips are not one line
# Rows of the vertices in every ICT mesh.
NUM_SKIN = 9409  # the face comes first
PAINT = {  # first vertex of a part, its colour: MediaPipe looks for eyes and a mouth
    0: (205, 160, 140),
    11248: (90, 35, 35),  # mouth socket
    13294: (170, 80, 80),  # gums, tongue
    14062: (235, 230, 215),  # teeth
    17039: (240, 240, 240),  # eyes
}
LAMP = np.array([0.3, -0.5, -0.81], np.float32)
ARRAYS = ("neutral", "faces", "expr", "expr_names")


@dataclass(frozen=True, kw_only=True)
class FaceShapes:
    """Moves of the points [V, 3] by the shapes' names, upright, in units of `mouth_scale`."""

    moves: dict[str, Array]


def read_face_shapes(path: Path, finder: FaceFinder) -> FaceShapes:
    """The shapes of an ICT-FaceKit file (npz with neutral, faces, expr, expr_names).

    Raises: EmoError when it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            neutral, quads, deltas, names = (file[name] for name in ARRAYS)
        opened = list(names).index("jawOpen")
    except (OSError, ValueError, KeyError) as error:
        raise EmoError(
            f"{path} holds no ICT-FaceKit shapes: {error}", "See docs/training.md for the file."
        ) from error
    # ICT: y up, z towards the camera; here: y down, z away.
    flip = np.array([1, -1, -1], np.float32)
    posed = (neutral + OPEN * deltas[opened].astype(np.float32)) * flip
    skin = posed[:NUM_SKIN]
    scale = SIZE * FACE_SHARE / np.ptp(skin[:, 1])
    middle = (skin.max(0) + skin.min(0)) / 2
    posed = (posed - middle) * scale + np.array([SIZE / 2, SIZE / 2, 0], np.float32)
    triangles = np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]]).astype(np.int64)
    picture, visible = _draw(posed.astype(np.float32), triangles)
    faces = finder.find(picture)
    if not faces:
        raise EmoError(f"no face is seen in {path}", "Its mesh is another than ICT-FaceKit's.")
    below = _nearest(faces[0].landmarks, posed, visible)
    at_rest = neutral[below] * flip
    unit = mouth_scale(at_rest)
    moves = deltas[:, below].astype(np.float32) * flip / unit
    return FaceShapes(moves={str(name): moves[i] for i, name in enumerate(names)})


def _nearest(landmarks: Array, posed: Array, visible: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each landmark [V, 3] the visible skin vertex beneath it."""
    assert len(landmarks) == NUM_POINTS
    far = np.linalg.norm(landmarks[:, None, :2] - posed[None, visible, :2], axis=-1)
    return visible[far.argmin(1)]


def _draw(
    posed: Array, triangles: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A plain picture [S, S, 3] of the mesh, and which of its skin's vertices are seen in it."""
    points, corners = torch.from_numpy(posed)[None], torch.from_numpy(triangles)
    shown = rasterise(points, corners, SIZE)[0][0].numpy()
    a, b, c = (posed[triangles[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    normals *= np.where(normals[:, 2:] > 0, -1, 1)
    light = 0.25 + 0.75 * np.clip(normals @ LAMP, 0, 1)
    part = np.searchsorted(list(PAINT), triangles.min(1), "right") - 1
    colours = np.array(list(PAINT.values()))[part] * light[:, None]
    picture = np.where((shown >= 0)[..., None], colours[shown], 120)
    vertices = np.unique(triangles[np.unique(shown[shown >= 0])])
    return picture.clip(0, 255).astype(np.uint8), vertices[vertices < NUM_SKIN]
