"""What makes a sample differ from its clip: mirror, light, colour, crop, and which reference frame.

All of it is a pure function of a seed, and the same for every picture and label of a sample.

Legend: `n` pictures, `T` frames of a clip, `S` side of a picture in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from emo_cli.face_motion import MOUTH_CORNERS
from emo_cli.training.draws import derive_seed
from emo_cli.training.samples import Labels

CROP = (0.92, 1.08)  # side of the crop, in sides of the picture
SHIFT = 0.04  # of its middle; what lies outside the picture is mirrored in
REACH = (CROP[1] - 1) / 2 + SHIFT  # how far a crop goes beyond the picture
GAIN = (0.9, 1.1)  # of each colour
CONTRAST = (0.85, 1.15)
BRIGHTNESS = (-0.08, 0.08)
GAMMA = (0.85, 1.2)
LIGHT = 0.12  # brighter on one side, darker on the other
MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How samples of a dataset vary; validation never does."""

    looks: bool = False  # mirror, light, colour and crop; needs pictures, not cached latents
    references: bool = False  # a reference frame whose mouth is shut, open, wide, in equal shares


AS_IT_IS = Variation()


@dataclass(frozen=True, kw_only=True)
class Look:
    """One draw of mirror, crop and light.

    left, top, side: the crop, in sides of the picture; tables: [256, 3], the new value of each
    value of each colour; light: [2], brightening from the middle to the right and lower edge.
    """

    mirror: bool
    left: float
    top: float
    side: float
    tables: np.ndarray
    light: np.ndarray


def draw_look(seed: int) -> Look:
    """A look, a pure function of the seed."""
    rng = np.random.default_rng(seed)
    side = rng.uniform(*CROP)
    middle = 0.5 + rng.uniform(-SHIFT, SHIFT, 2)
    values = (np.arange(256) / 255)[:, None] ** rng.uniform(*GAMMA)
    values = (values - 0.5) * rng.uniform(*CONTRAST) + 0.5 + rng.uniform(*BRIGHTNESS)
    return Look(
        mirror=bool(rng.integers(2)),
        left=middle[0] - side / 2,
        top=middle[1] - side / 2,
        side=side,
        tables=(values * rng.uniform(*GAIN, 3) * 255).astype(np.float32),
        light=rng.uniform(-LIGHT, LIGHT, 2).astype(np.float32),
    )


def vary_frames(frames: np.ndarray, look: Look) -> np.ndarray:
    """Pictures uint8 [n, S, S, 3] as this look shows them."""
    return np.stack([_vary_frame(frame, look) for frame in frames])


def vary_labels(labels: Labels, size: int, look: Look) -> Labels:
    """Labels of pictures of `size` pixels as they are in this look.

    Head rotation per frame stays what it is. A mirrored landmark keeps its number, and so names
    the point on the face's other side.
    """
    boxes = _points(labels.boxes.reshape(-1, 2, 2), size, look).reshape(-1, 4)
    poses = labels.poses
    if look.mirror:
        boxes = boxes[:, [2, 1, 0, 3]]
        poses = MIRROR @ poses @ MIRROR
    landmarks = labels.landmarks.copy()
    landmarks[..., :2] = _points(landmarks[..., :2], size, look)
    landmarks[..., 2] /= look.side
    return Labels(
        boxes=boxes.astype(np.float32),
        poses=poses,
        rotation=labels.rotation,
        landmarks=landmarks,
        opening=labels.opening,
    )


def another_frame(rng: np.random.Generator, total: int, start: int, count: int) -> int:
    """A frame outside the chosen ones; where there is none, any but the first chosen one."""
    outside = total - count
    if outside > 0:
        index = int(rng.integers(outside))
        return index if index < start else index + count
    return (start + 1 + int(rng.integers(max(1, total - 1)))) % total


def frame_by_mouth(labels: Labels, start: int, count: int, seed: int) -> int | None:
    """A frame outside the chosen ones whose mouth is shut, open or wide as in a smile.

    Each kind is one draw in three: that third of the clip's frames which has most of it. None
    where the clip has no other frame.
    """
    frames = np.arange(labels.num_frames)
    outside = frames[(frames < start) | (frames >= start + count)]
    if len(outside) == 0:
        return None
    left, right = (labels.landmarks[:, point, :2] for point in MOUTH_CORNERS)
    width = np.linalg.norm(right - left, axis=1) / (labels.boxes[:, 2] - labels.boxes[:, 0])
    kinds = (-labels.opening, labels.opening, width)
    wanted = kinds[derive_seed(seed, "mouth") % len(kinds)][outside]
    most = outside[np.argsort(-wanted, kind="stable")[: max(1, len(outside) // 3)]]
    return int(most[derive_seed(seed, "reference") % len(most)])


def _vary_frame(frame: np.ndarray, look: Look) -> np.ndarray:
    size = len(frame)
    margin = int(np.ceil(REACH * size)) + 1
    padded = np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    left, top = (margin + size * place for place in (look.left, look.top))
    box = (left, top, left + size * look.side, top + size * look.side)
    cut = np.asarray(Image.fromarray(padded).resize((size, size), Image.Resampling.BICUBIC, box))
    lit = look.tables[cut, np.arange(3)] * _light(size, look.light)
    seen = lit.clip(0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(seen[:, ::-1]) if look.mirror else seen


def _light(size: int, slope: np.ndarray) -> np.ndarray:
    place = np.linspace(-1, 1, size, dtype=np.float32)
    return (1 + slope[0] * place[None, :] + slope[1] * place[:, None])[..., None]  # [S, S, 1]


def _points(points: np.ndarray, size: int, look: Look) -> np.ndarray:
    """Points [..., 2] in pixels."""
    moved = (points - size * np.array([look.left, look.top])) / look.side
    if look.mirror:
        moved[..., 0] = size - moved[..., 0]
    return moved
