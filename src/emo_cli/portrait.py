"""From a picture file to what the model takes: a square crop and the mask of the face region.

Legend: pixels, x right, y down, of the picture as a viewer shows it; a box is (x0, y0, x1, y1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image

from emo_cli.errors import EmoError
from emo_cli.face_points import FACE_POINTS, usual_points
from emo_cli.faces import Box, Face, find_faces
from emo_cli.picture import read_picture

RegionName = Literal["box", "wide", "tall", "all"]

SMALLEST_REGION = 16  # px
# The face as the training clips show it (GRID s1, 600 frames of 40 clips, 256x256): its box is
# 0.57 of the side high, standard deviation 0.01; its centre lies at 0.50 and 0.535.
FACE_HEIGHT, FACE_CENTRE_X, FACE_CENTRE_Y = 0.57, 0.5, 0.535
ENLARGED = 0.75  # of the wanted size: below, the picture visibly lacks detail
FACE_FILLS = 0.8  # of the crop's side: more than this and the head has no room to move
# What a region adds to the face box on each side, in shares of its width and height (EMO fig. 7).
# In GRID the union of a clip's boxes adds 1 % to one frame's box on the mean, 4 % at most.
GROWTH: dict[str, tuple[float, float]] = {
    "box": (0.05, 0.05),
    "wide": (0.5, 0.05),
    "tall": (0.05, 0.3),
}
REGION_HINT = "--face-region takes box, wide, tall, all, or X0,Y0,X1,Y1 in pixels of the portrait."


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """The portrait as the model takes it.

    `picture` [S, S, 3] uint8 RGB, and `shown` [L, L, 3], the same as large as the frames are;
    `mask` [S, S] float32, 1 inside the face region, else 0; `face_box` and `face_points` [18, 3]
    (`face_points.FACE_POINTS`) in pixels of `picture`; `crop` (x0, y0, x1, y1) in pixels of the
    source, always a square inside it; `num_faces` found, 0 where the region was given in pixels;
    `notes` are lines to tell the user.
    """

    picture: np.ndarray
    shown: np.ndarray
    mask: np.ndarray
    face_box: Box
    face_points: np.ndarray
    crop: tuple[int, int, int, int]
    num_faces: int
    notes: tuple[str, ...]


def prepare_portrait(
    path: Path, *, size: int, face: int | None, face_region: str, shown_size: int = 0
) -> Portrait:
    """The square around the face, scaled to `size`, never stretched, and its region mask.

    `shown_size`: of the frames; 0: the same.
    `face` counts from 1, the largest first; `face_region` as `parse_region` reads it. Raises:
    EmoError for an unreadable picture, no face, a face that is not there, a wrong region.
    """
    region = parse_region(face_region)
    picture = read_picture(path)
    notes: list[str] = []
    num_faces = 0
    if isinstance(region, str):
        faces = find_faces(picture)
        num_faces = len(faces)
        chosen = _choose(faces, face, path.name, notes)
        face_box, points = chosen.box, chosen.landmarks[FACE_POINTS]
        mask_box = None if region == "all" else _grow(face_box, *GROWTH[region])
    else:
        if face is not None:
            raise EmoError(
                "--face chooses among detected faces, --face-region in pixels needs none",
                "Leave one of the two out.",
                exit_code=2,
            )
        mask_box = _inside(region, picture)
        face_box = _shrink(mask_box, *GROWTH["box"])
        points = usual_points(face_box)
    crop = _crop(picture, face_box, mask_box if num_faces == 0 else face_box)
    notes += _framing_notes(crop, face_box, shown_size or size)
    small = _resize(picture, crop, size)
    return Portrait(
        picture=small,
        shown=small if shown_size in (0, size) else _resize(picture, crop, shown_size),
        mask=_mask(mask_box, crop, size),
        face_box=_in_crop(face_box, crop, size),
        face_points=_points_in_crop(points, crop, size),
        crop=crop,
        num_faces=num_faces,
        notes=tuple(notes),
    )


def parse_region(text: str) -> RegionName | Box:
    """`box`, `wide`, `tall`, `all`, or four numbers `X0,Y0,X1,Y1`.

    Raises: EmoError (wrong usage) for anything else, and for a box without an inside.
    """
    name = text.strip().lower()
    if name in (*GROWTH, "all"):
        return cast(RegionName, name)
    try:
        x0, y0, x1, y1 = (float(part) for part in name.split(","))
    except ValueError as error:
        raise EmoError(f"'{text}' is no face region", REGION_HINT, exit_code=2) from error
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise EmoError(
            f"the face region '{text}' has no inside",
            "X0,Y0 is its upper left corner, X1,Y1 its lower right one.",
            exit_code=2,
        )
    return (x0, y0, x1, y1)


def region_box(
    region: RegionName | Box, *, face_box: Box, crop: tuple[int, int, int, int], size: int
) -> Box:
    """What the mask of a portrait covers, in pixels of its crop of `size`; it may reach beyond.

    `face_box` in pixels of the crop; `crop` and a region of four numbers in those of the source.
    """
    if region == "all":
        return (0.0, 0.0, float(size), float(size))
    if isinstance(region, str):
        return _grow(face_box, *GROWTH[region])
    return _in_crop(region, crop, size)


def _choose(faces: list[Face], face: int | None, name: str, notes: list[str]) -> Face:
    if not faces:
        raise EmoError(
            f"no face found in {name}",
            "For a drawing or a side view say where it is: --face-region X0,Y0,X1,Y1 (pixels).",
        )
    count = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
    if face is None:
        if len(faces) > 1:
            notes.append(f"{count}: the largest is used; --face N chooses")
        return faces[0]
    if not 1 <= face <= len(faces):
        raise EmoError(
            f"there is no face {face} in {name}: {count} found",
            f"--face counts from 1, the largest, to {len(faces)}.",
        )
    return faces[face - 1]


def _inside(region: Box, picture: np.ndarray) -> Box:
    height, width = picture.shape[:2]
    x0, y0 = max(region[0], 0.0), max(region[1], 0.0)
    x1, y1 = min(region[2], float(width)), min(region[3], float(height))
    if x1 - x0 < SMALLEST_REGION or y1 - y0 < SMALLEST_REGION:
        raise EmoError(
            f"the face region covers {max(x1 - x0, 0):.0f}x{max(y1 - y0, 0):.0f} px"
            f" of the portrait, which is {width}x{height}",
            f"It must cover {SMALLEST_REGION} px at least, both ways.",
        )
    return (x0, y0, x1, y1)


def _grow(box: Box, share_x: float, share_y: float) -> Box:
    x, y = (box[2] - box[0]) * share_x, (box[3] - box[1]) * share_y
    return (box[0] - x, box[1] - y, box[2] + x, box[3] + y)


def _shrink(box: Box, share_x: float, share_y: float) -> Box:
    """The box that `_grow` makes into this one."""
    return _grow(box, -share_x / (1 + 2 * share_x), -share_y / (1 + 2 * share_y))


def _crop(picture: np.ndarray, face_box: Box, keep: Box | None) -> tuple[int, int, int, int]:
    """The square that frames the face as in training, shifted and shrunk to fit the picture."""
    height, width = picture.shape[:2]
    face_height = face_box[3] - face_box[1]
    side = face_height / FACE_HEIGHT
    if keep is not None:
        side = max(side, keep[2] - keep[0], keep[3] - keep[1])
    whole = min(math.ceil(side), width, height)
    x0 = (face_box[0] + face_box[2]) / 2 - whole * FACE_CENTRE_X
    y0 = (face_box[1] + face_box[3]) / 2 - whole * FACE_CENTRE_Y
    left = min(max(round(x0), 0), width - whole)
    top = min(max(round(y0), 0), height - whole)
    return (left, top, left + whole, top + whole)


def _framing_notes(crop: tuple[int, int, int, int], face_box: Box, size: int) -> list[str]:
    side = crop[2] - crop[0]
    notes = []
    if side < ENLARGED * size:
        notes.append(f"the head fills {side} px, enlarged to {size}: a larger picture is sharper")
    if max(face_box[2] - face_box[0], face_box[3] - face_box[1]) > FACE_FILLS * side:
        notes.append("the face fills the picture: one with more room around the head does better")
    return notes


def _in_crop(box: Box, crop: tuple[int, int, int, int], size: int) -> Box:
    scale = size / (crop[2] - crop[0])
    x0, y0, x1, y1 = box
    x0, x1 = (x0 - crop[0]) * scale, (x1 - crop[0]) * scale
    y0, y1 = (y0 - crop[1]) * scale, (y1 - crop[1]) * scale
    return (x0, y0, x1, y1)


def _points_in_crop(points: np.ndarray, crop: tuple[int, int, int, int], size: int) -> np.ndarray:
    return ((points - (*crop[:2], 0)) * (size / (crop[2] - crop[0]))).astype(np.float32)


def _mask(region: Box | None, crop: tuple[int, int, int, int], size: int) -> np.ndarray:
    if region is None:
        return np.ones((size, size), np.float32)
    x0, y0, x1, y1 = _in_crop(region, crop, size)
    centres = np.arange(size) + 0.5
    inside_x = (centres >= x0) & (centres < x1)
    inside_y = (centres >= y0) & (centres < y1)
    return np.outer(inside_y, inside_x).astype(np.float32)  # [S, S]


def mask_box(mask: np.ndarray) -> Box:
    """The box of a face region's mask [S, S], in its pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _resize(picture: np.ndarray, crop: tuple[int, int, int, int], size: int) -> np.ndarray:
    x0, y0, x1, y1 = crop
    image = Image.fromarray(picture[y0:y1, x0:x1])
    return np.array(image.resize((size, size), Image.Resampling.LANCZOS))
