"""Where a sync network looks: the face's lower half, or the whole face.

Legend: `H W` size of a picture in pixels, `V` = 478 landmarks, `T` frames; a box is (x0, y0, x1,
y1). Points of the plane are complex numbers, x + iy: times a complex number turns and scales them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

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
