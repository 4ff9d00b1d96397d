"""Networks that say who a face is, and how a face is cut out for them.

Legend: N faces, S the side of a face picture in pixels, D numbers that describe a face.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.faces import Face
from emo_cli.files import sha256_of
from emo_cli.metrics.digest import downloaded_sha256, features_digest
from emo_cli.weights import weights_folder, weights_path

NETWORK, LANDMARKS = "eval/face_embedding.dat", "eval/face_5_points.dat"
ARCFACE_FILE = "eval/arcface.pth"  # below the weights folder; the user puts it there
# dlib's landmarks start from the square that its detector gives, MediaPipe's boxes are the hull of
# the landmarks: on 20 portraits the square was 0.96 of the box's mean side (deviation 0.06) and
# had the same centre.
SQUARE = 0.96
SIDE, PADDING = 150, 0.25  # of a face picture: pixels, share of the face around it
BATCH = 32


class FaceEmbedding(Protocol):
    """Turns faces into numbers that say who it is."""

    @property
    def digest(self) -> str:
        """Changes with the weights and with how faces are cut out. Raises: EmoError, as below."""
        ...

    def cut(self, picture: np.ndarray, face: Face) -> np.ndarray:
        """The face of a picture [H, W, 3] uint8 as the network takes it, [S, S, 3] uint8."""
        ...

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Faces [N, S, S, 3] uint8 -> descriptors [N, D] float32."""
        ...


class DlibEmbedding:
    """dlib's network and landmarks (both CC0), from `emo download eval`.

    Raises: EmoError, at the first use, when the weights or `dlib-bin` are not here.
    """

    @cached_property
    def digest(self) -> str:
        assert self._dlib  # what is missing is told before any video is read
        return features_digest(
            f"dlib 1: square {SQUARE}, {SIDE} px, padding {PADDING}",
            downloaded_sha256(NETWORK),
            downloaded_sha256(LANDMARKS),
        )

    def cut(self, picture: np.ndarray, face: Face) -> np.ndarray:
        """The upright face [S, S, 3] uint8."""
        x0, y0, x1, y1 = face.box
        half = SQUARE * (face.width + face.height) / 4
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        square = (round(v) for v in (x - half, y - half, x + half, y + half))
        picture = np.ascontiguousarray(picture)
        points = self._predictor(picture, self._dlib.rectangle(*square))
        return self._dlib.get_face_chip(picture, points, SIDE, PADDING)

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Faces [N, S, S, 3] uint8 -> descriptors [N, 128] float32."""
        return in_batches(self._network, faces)

    @cached_property
    def _dlib(self) -> Any:
        try:
            import dlib
        except ImportError as error:
            raise EmoError(
                f"F-SIM needs dlib, which cannot be loaded: {error}",
                "pip install 'emo-cli[eval]' brings it (dlib-bin); or leave fsim out of --metrics.",
            ) from error
        return dlib

    @cached_property
    def _predictor(self) -> Any:
        return self._dlib.shape_predictor(str(weights_path(LANDMARKS)))

    @cached_property
    def _network(self) -> Any:
        from emo_cli.metrics.dlib_network import load_face_network

        return load_face_network(weights_path(NETWORK))


class ArcFaceEmbedding:
    """An IResNet of InsightFace, from `eval/arcface.pth` in the weights folder or `checkpoint`.

    Raises: EmoError, at the first use, when it is not there.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint or weights_folder() / ARCFACE_FILE

    @cached_property
    def digest(self) -> str:
        if not self.checkpoint.is_file():
            raise EmoError(
                f"ArcFace's weights are not at {self.checkpoint}",
                "They are for research only, so emo does not fetch them: put backbone.pth of an "
                "IResNet of InsightFace's arcface_torch there, or use the metric 'fsim'.",
            )
        return features_digest("arcface 1: 5 points, 112 px", sha256_of(self.checkpoint))

    def cut(self, picture: np.ndarray, face: Face) -> np.ndarray:
        """The upright face [112, 112, 3] uint8."""
        from emo_cli.metrics.arcface import align_face

        return align_face(picture, face.landmarks)

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Faces [N, 112, 112, 3] uint8 -> descriptors [N, 512] float32."""
        return in_batches(self._network, faces)

    @cached_property
    def _network(self) -> Any:
        from emo_cli.metrics.arcface import load_arcface

        return load_arcface(self.checkpoint)


def in_batches(network: Any, faces: np.ndarray) -> np.ndarray:
    """Descriptors [N, D] of faces [N, S, S, 3] uint8 by a network that takes [B, 3, S, S]."""
    import torch

    with torch.inference_mode():
        batches = torch.tensor(faces).permute(0, 3, 1, 2).split(BATCH)
        return np.concatenate([network(batch.float()).numpy() for batch in batches])
