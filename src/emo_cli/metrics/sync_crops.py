"""Where a sync network looks: the face's lower half, or the whole face.

Legend: `H W` size of a picture in pixels, `V` = 478 landmarks, `T` frames; a box is (x0, y0, x1,
y1). Points of the plane are complex numbers, x + iy: times a complex number turns and scales them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from emo_cli.metrics.contract import Frame

MOUTH_HEIGHT, MOUTH_WIDTH = 64, 80
EYES = MOUTH_WIDTH / 1.5  # pixels of a crop between the outer corners of the eyes
CENTRE = 0.95j  # the crop's, between nose and chin; 0 is between the eyes, 1 their distance

# Landmarks that speech does not move (eye corners, bridge and foot of the nose), and where the
# mean face has them.
STEADY = (33, 133, 362, 263, 6, 98, 327, 2)
PLACES = np.array(
    [-0.5, -0.19 + 0.02j, 0.19 + 0.02j, 0.5, 0.06j, -0.19 + 0.53j, 0.19 + 0.53j, 0.55j]
)

# syncnet_python's face crop: half the box's longer side, reaching down and aside by more.
FACE_SIZE = 224
REACH = 0.4
SMOOTHED = 13  # frames of the median of centre and size
GREY = 110  # where the crop leaves the picture


def mouth_crop(picture: np.ndarray, landmarks: np.ndarray, margin: int = 0) -> np.ndarray:
    """The face's lower half, upright and of one size whatever the mouth does.

    picture uint8 RGB [H, W, 3], landmarks [V, 2 or 3] in its pixels -> grey uint8 [64, 80], with
    `margin` more pixels on every side. Black where it leaves the picture.
    """
    height, width = MOUTH_HEIGHT + 2 * margin, MOUTH_WIDTH + 2 * margin
    turn, shift = _placement(landmarks)
    step = turn / EYES  # from one pixel of the crop to the next
    start = turn * CENTRE + shift - step * (width + 1j * height) / 2
    corners = start + step * np.array([0, width, 1j * height, width + 1j * height])
    left, top = int(corners.real.min()) - 1, int(corners.imag.min()) - 1
    right, bottom = int(corners.real.max()) + 2, int(corners.imag.max()) + 2
    # PIL gives black outside the picture; only the part that is needed is turned grey.
    part = Image.fromarray(picture).crop((left, top, right, bottom)).convert("L")
    shrink = max(1, int(abs(step)))
    part = part.reduce(shrink)
    start, step = (start - (left + 1j * top)) / shrink, step / shrink
    crop = part.transform(
        (width, height),
        Image.Transform.AFFINE,
        (step.real, -step.imag, start.real, step.imag, step.real, start.imag),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(crop)


def _placement(landmarks: np.ndarray) -> tuple[complex, complex]:
    """Turn and shift that bring the mean face's steady points nearest to this face's."""
    found = landmarks[STEADY, 0] + 1j * landmarks[STEADY, 1]
    mean = PLACES.mean()
    centred = PLACES - mean
    turn = (centred.conj() * (found - found.mean())).sum() / (np.abs(centred) ** 2).sum()
    return complex(turn), complex(found.mean() - turn * mean)


def face_crop(picture: np.ndarray, centre: complex, half_side: float) -> np.ndarray:
    """The whole face as syncnet_python cuts it, uint8 RGB [224, 224, 3].

    centre and half of the longer side of the face's box, in pixels; grey outside the picture.
    """
    reach = half_side * (1 + REACH)
    left, right = round(centre.real - reach), round(centre.real + reach)
    top, bottom = round(centre.imag - half_side), round(centre.imag + half_side * (1 + 2 * REACH))
    canvas = Image.new("RGB", (max(1, right - left), max(1, bottom - top)), (GREY,) * 3)
    canvas.paste(Image.fromarray(picture), (-left, -top))
    # cv2.resize: bilinear between neighbours, without smoothing; PIL's would average.
    size = canvas.size
    crop = canvas.transform(
        (FACE_SIZE, FACE_SIZE),
        Image.Transform.AFFINE,
        (size[0] / FACE_SIZE, 0, 0, 0, size[1] / FACE_SIZE, 0),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(crop)


class MouthCrops:
    """Crops for SyncNet-mini; a frame without a face repeats the last one, or the first to come."""

    def __init__(self) -> None:
        self.faceless = 0
        self._waiting = 0
        self._last: np.ndarray | None = None

    def add(self, frame: Frame) -> Iterator[np.ndarray]:
        if frame.face is None:
            self.faceless += 1
            if self._last is None:
                self._waiting += 1
                return
        else:
            self._last = mouth_crop(frame.picture, frame.face.landmarks)
        for _ in range(self._waiting + 1):
            yield self._last
        self._waiting = 0

    def finish(self) -> Iterator[np.ndarray]:
        yield from ()


class _Seen(NamedTuple):
    picture: np.ndarray
    centre: complex
    half_side: float


class FaceCrops:
    """Crops for SyncNet: centre and size are medians over 13 frames, fewer at the ends. A frame
    without a face repeats the picture and the place of the one before, or of the first to come."""

    def __init__(self) -> None:
        self.faceless = 0
        self._waiting = 0
        self._seen: deque[_Seen] = deque(maxlen=SMOOTHED)
        self._next = 0  # place in `_seen` of the next frame to cut

    def add(self, frame: Frame) -> Iterator[np.ndarray]:
        if frame.face is None:
            self.faceless += 1
            if not self._seen:
                self._waiting += 1
                return
            seen = self._seen[-1]
        else:
            x0, y0, x1, y1 = frame.face.box
            centre = (x0 + x1) / 2 + 1j * (y0 + y1) / 2
            seen = _Seen(frame.picture, centre, max(x1 - x0, y1 - y0) / 2)
        for _ in range(self._waiting + 1):
            yield from self._take(seen)
        self._waiting = 0

    def finish(self) -> Iterator[np.ndarray]:
        while self._next < len(self._seen):
            if self._next > SMOOTHED // 2:
                self._seen.popleft()
                self._next -= 1
            yield self._cut()

    def _take(self, seen: _Seen) -> Iterator[np.ndarray]:
        if len(self._seen) == SMOOTHED:
            self._next -= 1  # the oldest goes
        self._seen.append(seen)
        if len(self._seen) - self._next > SMOOTHED // 2:
            yield self._cut()

    def _cut(self) -> np.ndarray:
        centre = np.median([[s.centre.real, s.centre.imag] for s in self._seen], axis=0)
        half_side = float(np.median([s.half_side for s in self._seen]))
        picture = self._seen[self._next].picture
        self._next += 1
        return face_crop(picture, complex(*centre), half_side)
