"""The one face of a clip: where it goes, the square that holds it, and the labels of each frame.

The face is looked for twice: now and then in the whole picture, to place the crop, then in every
frame of the crop, to label it. Labels must come from the crop: MediaPipe turns a face that is off
the middle, so rotation is comparable between clips, and with generated videos, only there.

Legend: `T` frames, `S` side of the crop, `V` = 478 landmarks; coordinates are pixels.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from emo_cli.face_motion import lip_opening, rotation_between_frames
from emo_cli.faces import Box, Face
from emo_cli.portrait import FACE_CENTRE_X, FACE_CENTRE_Y, FACE_HEIGHT
from emo_cli.raw_video import Crop
from emo_cli.training.samples import Labels
from emo_cli.training.shots import Stretch

LOOK_EVERY = 4  # frames between two looks at the whole picture
SEARCH_EVERY = 12  # looks between two searches for faces of any size, anywhere
WINDOW = 3.0  # a look between searches sees this many face sizes around the last box
SECOND_FACE = 0.1  # of the largest face's area: smaller ones are posters and people far away
SAME_FACE = 0.3  # overlap of two boxes LOOK_EVERY frames apart, as a share of the smaller
NEARLY = 0.05  # of the side: framing varies by more than that between clips
NO_FACE, SEVERAL, LOST = "no face", "several faces", "face lost"

T = TypeVar("T")
Region = tuple[float, float, float, float]  # shares of the picture: x0, y0, x1, y1


class Finder(Protocol):
    """What `faces.FaceFinder` can do."""

    def find(self, picture: np.ndarray) -> list[Face]:
        """All faces of a picture, also small ones."""

    def find_in_frame(self, picture: np.ndarray) -> list[Face]:
        """Faces of one look at a picture."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """A face followed through a stretch: the boxes of its looks, in a picture of height, width."""

    stretch: Stretch
    boxes: np.ndarray  # [looks, 4]
    height: int
    width: int


def follow_face(
    pictures: Iterable[np.ndarray], stretch: Stretch, finder: Finder, region: Region | None
) -> Track | str:
    """The longest run of looks that see exactly one face, or why there is none.

    pictures: every LOOK_EVERY-th frame of the stretch, [H, W, 3] uint8. region: only faces whose
    centre lies inside count.
    """
    looks: list[Box | str] = []
    height = width = 0
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        before = looks[-1] if looks and number % SEARCH_EVERY else None
        looks.append(_look(picture, finder, before, region))
    first, last = _longest(looks, _goes_on)
    if last < first:
        failures = collections.Counter(look for look in looks if isinstance(look, str))
        return failures.most_common(1)[0][0] if failures else NO_FACE
    # Up to the neighbouring looks: what lies in between is checked frame by frame.
    start = max(0, (first - 1) * LOOK_EVERY + 1)
    stop = min(stretch.count, (last + 1) * LOOK_EVERY)
    return Track(
        stretch=Stretch(first=stretch.first + start, count=stop - start),
        boxes=np.array(looks[first : last + 1], np.float32),
        height=height,
        width=width,
    )


def stable_crop(track: Track, size: int) -> Crop:
    """One square for all frames, framed as `portrait.py` frames a portrait, inside the picture.

    The median face is FACE_HEIGHT of the side high; the side grows until all boxes fit. Where it
    is nearly `size` it becomes that: pixels that need no scaling stay sharp.
    """
    boxes = track.boxes
    x0, y0 = boxes[:, :2].min(0)
    x1, y1 = boxes[:, 2:].max(0)
    height = np.median(boxes[:, 3] - boxes[:, 1])
    side = max(height / FACE_HEIGHT, x1 - x0, y1 - y0)
    if (1 - NEARLY) * size <= side <= size:
        side = size
    whole = min(int(np.ceil(side)), track.height, track.width)
    x = round(float((x0 + x1) / 2 - whole * FACE_CENTRE_X))
    y = round(float((y0 + y1) / 2 - whole * FACE_CENTRE_Y))
    return Crop(
        x=min(max(x, 0), track.width - whole),
        y=min(max(y, 0), track.height - whole),
        side=whole,
    )


def only_faces(frames: np.ndarray, finder: Finder) -> tuple[int, list[Face]]:
    """The longest run of frames [T, S, S, 3] with exactly one face: its first frame, its faces."""
    seen: list[Face | str] = [_only(finder.find_in_frame(frame)) for frame in frames]
    first, last = _longest(seen, lambda a, b: True)
    return first, [face for face in seen[first : last + 1] if isinstance(face, Face)]


def labels_of(faces: list[Face]) -> Labels:
    """MediaPipe's labels of T consecutive frames."""
    poses = np.tile(np.eye(4, dtype=np.float32), (len(faces), 1, 1))
    poses[:, :3, :3] = [face.rotation for face in faces]
    poses[:, :3, 3] = [face.place for face in faces]
    return Labels(
        boxes=np.array([face.box for face in faces], np.float32),
        poses=poses,
        rotation=rotation_between_frames(poses[:, :3, :3]),
        landmarks=np.stack([face.landmarks for face in faces]),
        opening=lip_opening(np.stack([face.landmarks for face in faces])).astype(np.float32),
    )


def _look(
    picture: np.ndarray, finder: Finder, before: Box | str | None, region: Region | None
) -> Box | str:
    if before is None or isinstance(before, str):
        faces, left, top = finder.find(picture), 0, 0
    else:
        left, top, right, bottom = _window(before, picture.shape)
        faces = finder.find_in_frame(np.ascontiguousarray(picture[top:bottom, left:right]))
    boxes = [_moved(face.box, left, top) for face in faces]
    if region is not None:
        boxes = [box for box in boxes if _centre_in(box, region, picture.shape)]
    return _only_box(boxes)


def _only(faces: list[Face]) -> Face | str:
    boxes = [face.box for face in faces]
    found = _only_box(boxes)
    return found if isinstance(found, str) else faces[boxes.index(found)]


def _only_box(boxes: list[Box]) -> Box | str:
    if not boxes:
        return NO_FACE
    largest = max(map(_area, boxes))
    large = [box for box in boxes if _area(box) >= SECOND_FACE * largest]
    return large[0] if len(large) == 1 else SEVERAL


def _window(box: Box, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    half = WINDOW / 2 * max(box[2] - box[0], box[3] - box[1])
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    left, top = max(0, round(x - half)), max(0, round(y - half))
    return left, top, min(shape[1], round(x + half)), min(shape[0], round(y + half))


def _moved(box: Box, x: int, y: int) -> Box:
    return (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def _centre_in(box: Box, region: Region, shape: tuple[int, ...]) -> bool:
    x, y = (box[0] + box[2]) / 2 / shape[1], (box[1] + box[3]) / 2 / shape[0]
    return region[0] <= x <= region[2] and region[1] <= y <= region[3]


def _goes_on(before: Box, box: Box) -> bool:
    width = max(min(before[2], box[2]) - max(before[0], box[0]), 0.0)
    height = max(min(before[3], box[3]) - max(before[1], box[1]), 0.0)
    return width * height > SAME_FACE * min(_area(before), _area(box))


def _area(box: Box) -> float:
    return max((box[2] - box[0]) * (box[3] - box[1]), 1e-6)


def _longest(seen: Sequence[T | str], goes_on: Callable[[T, T], bool]) -> tuple[int, int]:
    """First and last index of the longest run without a failure (str); (0, -1): there is none."""
    best, first = (0, -1), 0
    for i, value in enumerate(seen):
        if isinstance(value, str):
            first = i + 1
            continue
        before = seen[i - 1]
        if i > first and not isinstance(before, str) and not goes_on(before, value):
            first = i
        if i - first > best[1] - best[0]:
            best = (first, i)
    return best
