"""Where the faces of a picture are: MediaPipe's face landmarker, IMAGE mode, everywhere the same.

Legend: pixels, x right, y down, z away from the camera; a box is (x0, y0, x1, y1).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emo_cli.errors import EmoError

Box = tuple[float, float, float, float]

LANDMARKER = Path(__file__).parent / "assets" / "face_landmarker.task"
MAX_FACES = 16  # in one look; more people than that are found by the tiled pass
LOOK_SIZE = 768  # a look is shrunk to this: the detector itself works on 128x128
PORTRAIT_SHARE = 0.25  # a face this wide makes the picture a portrait: no search for small ones
TILE_LEVELS = 3
MIN_TILE = 200  # the detector needs 13 % of a tile's width: smaller faces than 26 px are no use
SAME_FACE = 0.5  # overlap, as a share of the smaller box
Y_DOWN = np.diag([1.0, -1.0, -1.0])  # MediaPipe's y is up and its z towards the camera

_stderr_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face: its box, 478 landmarks [478, 3], the head's rotation [3, 3], upright = 1, its
    place [3] before MediaPipe's camera, in centimetres, and, where the finder was asked for them,
    MediaPipe's 52 blendshapes [52] in 0..1, in MediaPipe's order."""

    box: Box
    landmarks: np.ndarray
    rotation: np.ndarray
    place: np.ndarray = field(default_factory=lambda: np.zeros(3, np.float32))
    blendshapes: np.ndarray | None = None

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]


@dataclass(frozen=True)
class _Look:
    """A square part of the picture; it may reach beyond the picture's edges."""

    x: int
    y: int
    side: int


class FaceFinder:
    """A landmarker kept open for many pictures; use it with `with`, from one thread at a time.

    `blendshapes` fills `Face.blendshapes`, by one more small network for each face.
    Raises: EmoError when MediaPipe cannot start on this machine.
    """

    def __init__(self, *, blendshapes: bool = False) -> None:
        self._blendshapes = blendshapes
        self._landmarker: Any = None

    def __enter__(self) -> FaceFinder:
        with _quiet_stderr():
            self._landmarker = _open_landmarker(self._blendshapes)
            # MediaPipe logs its last lines at the first detection.
            self._detect(np.zeros((64, 64, 3), np.uint8))
        return self

    def __exit__(self, *_: object) -> None:
        with _quiet_stderr():
            self._landmarker.close()

    def find_in_frame(self, picture: np.ndarray) -> list[Face]:
        """Faces of one look at the whole picture [H, W, 3] uint8, largest first: for video."""
        return _largest_first(self._look(picture, _whole(picture, 1.0)))

    def find(self, picture: np.ndarray) -> list[Face]:
        """All faces of a picture [H, W, 3] uint8, largest first; small ones by a tiled pass.

        A face narrower than 13 % of the picture escapes the first look, one that fills the
        picture does so too: the latter gets a look with a margin around the picture.
        """
        faces = self._look(picture, _whole(picture, 1.0)) or self._look(
            picture, _whole(picture, 1.6)
        )
        if not any(face.width >= PORTRAIT_SHARE * picture.shape[1] for face in faces):
            self._add_small_faces(picture, faces)
        return _largest_first(faces)

    def _add_small_faces(self, picture: np.ndarray, faces: list[Face]) -> None:
        height, width = picture.shape[:2]
        for side in _tile_sides(height, width):
            before = len(faces)
            for tile in _tiles(height, width, side):
                for face in self._look(picture, tile):
                    known = any(_same(face, other) for other in faces)
                    if not known and not _cut_by_tile(face.box, tile, height, width):
                        faces.extend(self._look_again(picture, face))
            if faces and len(faces) == before:
                return  # people in one picture are of similar size: smaller finds are mistakes

    def _look_again(self, picture: np.ndarray, face: Face) -> list[Face]:
        """The face as seen from near, or nothing: leaves that look like a face vanish."""
        side = round(3 * max(face.width, face.height))
        centre_x, centre_y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
        look = _Look(round(centre_x - side / 2), round(centre_y - side / 2), side)
        return [seen for seen in self._look(picture, look) if _same(seen, face)][:1]

    def _look(self, picture: np.ndarray, look: _Look) -> list[Face]:
        height, width = picture.shape[:2]
        x0, y0 = max(look.x, 0), max(look.y, 0)
        x1, y1 = min(look.x + look.side, width), min(look.y + look.side, height)
        scale = min(1.0, LOOK_SIZE / look.side)
        part = picture[y0:y1, x0:x1]
        if scale < 1.0:
            size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
            part = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX))
        # Always a square: MediaPipe projects landmarks less exactly on other shapes, and says so.
        side = max(round(look.side * scale), *part.shape[:2])
        canvas = np.zeros((side, side, 3), np.uint8)
        left = min(round((x0 - look.x) * scale), side - part.shape[1])
        top = min(round((y0 - look.y) * scale), side - part.shape[0])
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        return [_face(*found, look) for found in self._detect(canvas)]

    def _detect(self, canvas: np.ndarray) -> list[tuple[Any, Any, Any]]:
        import mediapipe

        result = self._landmarker.detect(
            mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=canvas)
        )
        poses = result.facial_transformation_matrixes
        shapes = result.face_blendshapes or [None] * len(poses)
        return list(zip(result.face_landmarks, poses, shapes, strict=True))


def find_faces(picture: np.ndarray) -> list[Face]:
    """All faces of a picture [H, W, 3] uint8 RGB, largest first, boxes in its pixels.

    Raises: EmoError when MediaPipe cannot start on this machine.
    """
    with FaceFinder() as finder:
        return finder.find(picture)


def _open_landmarker(blendshapes: bool) -> Any:
    try:
        from mediapipe.tasks.python import BaseOptions, vision

        return vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                # As bytes: MediaPipe opens no path with letters it does not know.
                base_options=BaseOptions(model_asset_buffer=LANDMARKER.read_bytes()),
                running_mode=vision.RunningMode.IMAGE,
                num_faces=MAX_FACES,
                output_facial_transformation_matrixes=True,
                output_face_blendshapes=blendshapes,
            )
        )
    except FileNotFoundError as error:
        raise EmoError(
            f"{LANDMARKER.name} is missing from the installed package", "Install emo-cli again."
        ) from error
    except (OSError, ImportError) as error:
        # What the dynamic loader says when a slim container lacks libEGL.so.1 or libGLESv2.so.2,
        # or libGL.so.1 or libglib-2.0.so.0, which the OpenCV that MediaPipe imports needs.
        raise EmoError(
            f"MediaPipe, which finds the face, cannot start: {error}",
            "On Debian and Ubuntu: apt install libegl1 libgles2 libgl1 libglib2.0-0",
        ) from error


def _face(points: Any, pose: Any, shapes: Any, look: _Look) -> Face:
    landmarks = np.array([(p.x, p.y, p.z) for p in points], np.float32) * look.side
    landmarks[:, :2] += (look.x, look.y)
    (x0, y0), (x1, y1) = landmarks[:, :2].min(0).tolist(), landmarks[:, :2].max(0).tolist()
    matrix = np.asarray(pose)
    # The matrix carries a scale and rounding: the nearest rotation to it.
    u, _, vt = np.linalg.svd(Y_DOWN @ matrix[:3, :3] @ Y_DOWN)
    return Face(
        box=(x0, y0, x1, y1),
        landmarks=landmarks,
        rotation=(u @ vt).astype(np.float32),
        place=(Y_DOWN @ matrix[:3, 3]).astype(np.float32),
        blendshapes=None if shapes is None else np.array([s.score for s in shapes], np.float32),
    )


def _whole(picture: np.ndarray, factor: float) -> _Look:
    height, width = picture.shape[:2]
    side = round(max(height, width) * factor)
    return _Look((width - side) // 2, (height - side) // 2, side)


def _tile_sides(height: int, width: int) -> list[int]:
    largest = min(height, width, max(height, width) // 2)
    sides = (largest >> level for level in range(TILE_LEVELS))
    return [side for side in sides if side >= MIN_TILE]


def _tiles(height: int, width: int, side: int) -> Iterator[_Look]:
    # Half a tile's overlap: each face smaller than that lies whole in one of them.
    for y in _starts(height, side):
        for x in _starts(width, side):
            yield _Look(x, y, side)


def _starts(length: int, side: int) -> list[int]:
    count = -(-2 * (length - side) // side) + 1
    return np.linspace(0, length - side, count).round().astype(int).tolist()


def _cut_by_tile(box: Box, tile: _Look, height: int, width: int) -> bool:
    right, bottom = tile.x + tile.side, tile.y + tile.side
    return bool(
        (tile.x > 0 and box[0] < tile.x)
        or (tile.y > 0 and box[1] < tile.y)
        or (right < width and box[2] > right)
        or (bottom < height and box[3] > bottom)
    )


def _same(face: Face, other: Face) -> bool:
    a, b = face.box, other.box
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    return width * height > SAME_FACE * min(_area(a), _area(b))


def _area(box: Box) -> float:
    return max((box[2] - box[0]) * (box[3] - box[1]), 1e-6)


def _largest_first(faces: list[Face]) -> list[Face]:
    return sorted(faces, key=lambda face: -_area(face.box))


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keeps what C++ writes to file descriptor 2 off the screen; EMO_DEBUG=1 lets it through."""
    with _stderr_lock:
        kept = _copy_of_stderr()
        if kept is None:
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _copy_of_stderr() -> int | None:
    if os.environ.get("EMO_DEBUG") == "1":
        return None
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        return os.dup(2)
    except OSError:  # started with stderr closed
        return None
