"""FID: Fréchet distance of Inception features between generated and real frames (EMO sec. 4.2).

Protocol: every fifth frame of a video from its first, at 25 frames per second (15 of a video of
3 s), whole and as it is; bilinear resize to 299 x 299 and range -1..1 as in pytorch-fid; pool3
features (2048) of Inception 2015-12-05 in fp32; covariances divided by N - 1. torch-fidelity has
the same network and distance, but resizes as TensorFlow 1 did: its figures are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from emo_cli.metrics.contract import Column, Frame, VideoInfo
from emo_cli.metrics.digest import downloaded_sha256, features_digest
from emo_cli.metrics.frechet import FrechetMetric
from emo_cli.weights import weights_path

WEIGHTS = "eval/inception.safetensors"
EVERY = 5  # neighbouring frames are nearly equal: more of them cost time and tell little
BATCH = 8
POOL3 = "pool3"
PROTOCOL = f"Inception 2015-12-05 pool3, every {EVERY}th frame, 299 px as pytorch-fid; 1"

FID = FrechetMetric(
    name="fid",
    extractor="inception",
    array=POOL3,
    column=Column(key="fid", heading="FID", digits=2, better="low"),
    samples="frames",
    none_because="no frames",
    protocol=f"Inception 2015-12-05, pool3, every {EVERY}th frame",
)


class InceptionExtractor:
    """Inception features of evenly sampled frames: `pool3` [frames, 2048]."""

    name = "inception"
    wants_faces = False

    @cached_property
    def digest(self) -> str:
        """Raises: EmoError when the network was not downloaded."""
        return features_digest(PROTOCOL, downloaded_sha256(WEIGHTS))

    @cached_property
    def network(self) -> Any:
        from emo_cli.metrics.inception import load_inception

        return load_inception(weights_path(WEIGHTS))

    def begin(self, info: VideoInfo) -> InceptionReading:
        return InceptionReading(self)


class InceptionReading:
    """Holds at most a batch of frames."""

    def __init__(self, extractor: InceptionExtractor) -> None:
        self._extractor = extractor
        self._num_seen = 0
        self._waiting: list[np.ndarray] = []
        self._features = [np.zeros((0, 2048), np.float32)]

    def add(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if self._num_seen % EVERY == 0:
                self._waiting.append(frame.picture)
            self._num_seen += 1
            if len(self._waiting) == BATCH:
                self._run()

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        if self._waiting:
            self._run()
        return {POOL3: np.concatenate(self._features)}

    def _run(self) -> None:
        from emo_cli.metrics.inception import pool3_features

        self._features.append(pool3_features(self._extractor.network, self._waiting))
        self._waiting = []
