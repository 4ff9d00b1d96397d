"""Head motion as in the paper's Table 2 (EMO sec. 4.5), and the face's curves over time.

Protocol: MediaPipe's pose of the largest face of each frame, at 25 frames per second. Velocity is
the angle between the heads of two frames that follow each other, 2 asin(|R1 - R2|_F / (2 sqrt 2)),
in degrees per frame, as training labels it. Of each video the mean and the variance of its
velocities; then over all videos the mean of the means (Mean Velocity), the mean of the variances
(Velocity Variance) and the variance of the means (VMV). Variances divide by n - 1. The paper states
no unit: per second the same figures are 25, 625 and 625 times as large.

Landmarks tremble, which puts a floor of 0.16 to 0.22 degrees a frame under any velocity, and
MediaPipe turns a face that is off the picture's middle: compare videos of the same framing.

Legend: T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.face_motion import lip_opening, rotation_between_frames
from emo_cli.metrics.contract import FPS, Column, Frame, Score, VideoFeatures, VideoInfo
from emo_cli.metrics.digest import features_digest

# MediaPipe's outer corner, two points of the upper lid, inner corner, two of the lower lid: the six
# points of the eye aspect ratio (Soukupova & Cech 2016), of both eyes.
EYES = ((33, 160, 158, 133, 153, 144), (263, 387, 385, 362, 380, 373))


def eye_opening(landmarks: np.ndarray) -> float:
    """Height of the eyes of one face [478, 3] in units of their width: 0 shut, about 0.3 open."""
    return float(np.mean([_eye_opening(landmarks[list(eye)]) for eye in EYES]))


def _eye_opening(points: np.ndarray) -> float:
    outer, upper_1, upper_2, inner, lower_2, lower_1 = points
    height = np.linalg.norm(upper_1 - lower_1) + np.linalg.norm(upper_2 - lower_2)
    return float(height / (2 * np.linalg.norm(outer - inner)))


class MotionExtractor:
    """Rotation speed, mouth and eyes of the largest face, frame by frame.

    Arrays, all [T] float32, NaN where there is no face: `velocity` in degrees since the frame
    before (NaN too where that one has no face, and in the first frame); `mouth`, the lips' opening
    in units of the mouth's width; `eyes`, the eyes' in units of an eye's width.
    """

    name = "motion"
    wants_faces = True

    @property
    def digest(self) -> str:
        return features_digest("motion 1")

    def begin(self, info: VideoInfo) -> MotionReading:
        """Start on a video."""
        return MotionReading()


class MotionReading:
    """The face's curves so far: a few numbers a frame."""

    def __init__(self) -> None:
        self._rotations: list[np.ndarray | None] = []
        self._mouth: list[float] = []
        self._eyes: list[float] = []

    def add(self, frames: Sequence[Frame]) -> None:
        """The next frames, in order."""
        for _, face in frames:
            self._rotations.append(face.rotation if face else None)
            self._mouth.append(float(lip_opening(face.landmarks)) if face else np.nan)
            self._eyes.append(eye_opening(face.landmarks) if face else np.nan)

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        """The arrays that `MotionExtractor` names."""
        return {
            "velocity": velocities(self._rotations),
            "mouth": np.array(self._mouth, np.float32),
            "eyes": np.array(self._eyes, np.float32),
        }


def velocities(rotations: Sequence[np.ndarray | None]) -> np.ndarray:
    """Degrees of head rotation since the frame before [T] float32; NaN where one is unknown.

    rotations: [3, 3] of each frame, None where there is no face.
    """
    if not rotations:
        return np.zeros(0, np.float32)
    known = np.array([rotation is not None for rotation in rotations])
    turned = rotation_between_frames(
        np.stack([np.eye(3) if rotation is None else rotation for rotation in rotations])
    )
    both = np.concatenate([[False], known[1:] & known[:-1]])
    return np.where(both, turned, np.nan).astype(np.float32)


class HeadMotion:
    """Mean velocity, velocity variance and VMV, per frame and per second."""

    name = "motion"
    extractor = "motion"
    needs_real = False
    columns: tuple[Column, ...] = (
        Column(key="velocity", heading="Mean velocity", digits=3, better="real", unit="°/frame"),
        Column(
            key="velocity_variance",
            heading="Velocity variance",
            digits=3,
            better="real",
            unit="(°/frame)²",
        ),
        Column(key="vmv", heading="VMV", digits=4, better="real", unit="(°/frame)²"),
        Column(key="velocity_s", heading="Mean velocity", digits=1, better="none", unit="°/s"),
        Column(
            key="velocity_variance_s",
            heading="Velocity variance",
            digits=0,
            better="none",
            unit="(°/s)²",
        ),
        Column(key="vmv_s", heading="VMV", digits=1, better="none", unit="(°/s)²"),
    )

    def score(
        self, generated: Iterable[VideoFeatures], real: Iterable[VideoFeatures] | None
    ) -> Score:
        """Table 2's three figures; VMV is None for a single video.

        Raises: EmoError when there is no video.
        """
        means: dict[str, float] = {}
        variances: dict[str, float] = {}
        videos = gaps = frames = 0
        for video in generated:
            videos += 1
            velocity = video.arrays["velocity"].astype(np.float64)
            known = velocity[np.isfinite(velocity)]
            steps = max(len(velocity) - 1, 0)
            frames, gaps = frames + steps, gaps + steps - len(known)
            if len(known) >= 2:
                means[video.key] = float(known.mean())
                variances[video.key] = float(known.var(ddof=1))
        if not videos:
            raise EmoError("there is no video to measure motion in", "Name a folder with videos.")
        notes = []
        if gaps:
            notes.append(f"head rotation is unknown in {gaps} of {frames} steps: no face was found")
        if len(means) < videos:
            notes.append(f"{videos - len(means)} of {videos} videos have too few frames with faces")
        if len(means) < 2:
            notes.append("VMV needs two videos at least")
        return _score(means, variances, tuple(notes))


def _score(means: dict[str, float], variances: dict[str, float], notes: tuple[str, ...]) -> Score:
    # In the order of their names: sums must not depend on which worker was first.
    ordered = [means[key] for key in sorted(means)]
    spread = [variances[key] for key in sorted(variances)]
    values: dict[str, float | None] = {
        "velocity": float(np.mean(ordered)) if ordered else None,
        "velocity_variance": float(np.mean(spread)) if spread else None,
        "vmv": float(np.var(ordered, ddof=1)) if len(ordered) >= 2 else None,
    }
    factors = {"velocity": FPS, "velocity_variance": FPS**2, "vmv": FPS**2}
    for key, factor in factors.items():
        value = values[key]
        values[f"{key}_s"] = None if value is None else factor * value
    return Score(
        values=values,
        notes=notes,
        per_video={"velocity": means, "velocity_variance": variances},
    )
