"""E-FID: Fréchet distance of expression coefficients of generated and real faces (EMO sec. 4.2).

The paper takes the coefficients of a 3D face reconstruction (Deng et al. 2019). That network's
weights are for research only and cannot be fetched by a command, so there are two extractors, each
with a metric of its own; their figures do not compare, and the result names which it is:

- `expression`, the default: MediaPipe's 52 blendshapes (one of them "neutral", nearly constant),
  each in 0..1, from the face landmarker that comes with the package;
- `deep3d`, the paper's: 64 of the 257 coefficients of Deng et al.'s ResNet-50 (`deep3d.py`).

Protocol of both: the largest face of every frame at 25 frames per second; frames without a face
are left out and counted; covariances divided by N - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.faces import LANDMARKER
from emo_cli.files import sha256_of
from emo_cli.metrics.contract import Column, Frame, VideoInfo
from emo_cli.metrics.digest import features_digest
from emo_cli.metrics.frechet import FRAMES_LEFT_OUT, FrechetMetric
from emo_cli.weights import weights_folder

EXPRESSION = "expression"
NUM_BLENDSHAPES = 52
NUM_COEFFICIENTS = 64
DEEP3D_FILE = "eval/deep3d.pth"  # below the weights folder; the user puts it there
DEEP3D_BATCH = 16

EFID = FrechetMetric(
    name="efid",
    extractor="expression",
    array=EXPRESSION,
    column=Column(key="efid", heading="E-FID (blendshapes)", digits=4, better="low"),
    samples="frames",
    none_because="no frame with a face",
    protocol="MediaPipe's 52 blendshapes, not the paper's coefficients",
)

EFID_DEEP3D = FrechetMetric(
    name="efid-deep3d",
    extractor="deep3d",
    array=EXPRESSION,
    column=Column(key="efid-deep3d", heading="E-FID (deep3d)", digits=2, better="low"),
    samples="frames",
    none_because="no frame with a face",
    protocol="64 expression coefficients of Deng et al. 2019, as in the paper",
)


class ExpressionExtractor:
    """MediaPipe's blendshapes: `expression` [frames with a face, 52].

    Needs faces that were found with `FaceFinder(blendshapes=True)`.
    """

    name = "expression"
    wants_faces = True

    @cached_property
    def digest(self) -> str:
        return features_digest("MediaPipe blendshapes of each frame; 1", sha256_of(LANDMARKER))

    def begin(self, info: VideoInfo) -> BlendshapeReading:
        return BlendshapeReading()


class BlendshapeReading:
    """Keeps 52 numbers a frame."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._num_left_out = 0

    def add(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame.face is None:
                self._num_left_out += 1
                continue
            if frame.face.blendshapes is None:
                raise ValueError("faces without blendshapes: FaceFinder(blendshapes=True)")
            self._rows.append(frame.face.blendshapes)

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        rows = np.array(self._rows, np.float32).reshape(-1, NUM_BLENDSHAPES)
        return {EXPRESSION: rows, FRAMES_LEFT_OUT: np.array(self._num_left_out)}


class Deep3DExtractor:
    """The paper's coefficients: `expression` [frames with a face, 64].

    `checkpoint`: Deep3DFaceRecon_pytorch's `epoch_20.pth`; without one, `eval/deep3d.pth` in the
    weights folder. `width` is 64 in ResNet-50; tests use less.
    """

    name = "deep3d"
    wants_faces = True

    def __init__(self, checkpoint: Path | None = None, *, width: int = 64) -> None:
        self.checkpoint = checkpoint or weights_folder() / DEEP3D_FILE
        self._width = width

    @cached_property
    def digest(self) -> str:
        """Raises: EmoError when the checkpoint is not there."""
        if not self.checkpoint.is_file():
            raise EmoError(
                f"the 3D face reconstruction of Deng et al. is not at {self.checkpoint}",
                "Its licence (research only, no commercial use; Basel Face Model) forbids emo to "
                "fetch it: get epoch_20.pth as github.com/sicxu/Deep3DFaceRecon_pytorch says and "
                "put it there, or use the metric 'efid'.",
            )
        return features_digest("deep3d, 5 points, 224 px; 1", sha256_of(self.checkpoint))

    @cached_property
    def network(self) -> Any:
        from emo_cli.metrics.deep3d import load_deep3d

        return load_deep3d(self.checkpoint, width=self._width)

    def begin(self, info: VideoInfo) -> Deep3DReading:
        return Deep3DReading(self)


class Deep3DReading:
    """Holds at most a batch of face crops."""

    def __init__(self, extractor: Deep3DExtractor) -> None:
        self._extractor = extractor
        self._crops: list[np.ndarray] = []
        self._features = [np.zeros((0, NUM_COEFFICIENTS), np.float32)]
        self._num_left_out = 0

    def add(self, frames: Sequence[Frame]) -> None:
        from emo_cli.metrics.deep3d import align_face

        for frame in frames:
            if frame.face is None:
                self._num_left_out += 1
                continue
            self._crops.append(align_face(frame.picture, frame.face.landmarks))
            if len(self._crops) == DEEP3D_BATCH:
                self._run()

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        if self._crops:
            self._run()
        left_out = np.array(self._num_left_out)
        return {EXPRESSION: np.concatenate(self._features), FRAMES_LEFT_OUT: left_out}

    def _run(self) -> None:
        from emo_cli.metrics.deep3d import expression_coefficients

        self._features.append(expression_coefficients(self._extractor.network, self._crops))
        self._crops = []
