"""FVD: Fréchet distance of I3D features between generated and real videos (EMO sec. 4.2).

Protocol, after Unterthiner et al. 2018 ("Towards Accurate Generative Models of Video"): the
features are the 400 logits of I3D trained on Kinetics-400, before the softmax, in fp32. Windows of
16 frames at 25 frames per second, one after the other without overlap from the first frame; what
is left at the end and is shorter than a window does not count (a video of 3 s has four windows).
Whole frames, resized to 224 x 224 bilinearly, range -1..1. Covariances divided by N - 1.
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

WEIGHTS = "eval/i3d.safetensors"
WINDOW = 16
BATCH = 4  # windows; one alone takes a slower path through torch's convolutions
LOGITS = "logits"
PROTOCOL = f"I3D Kinetics-400 logits, windows of {WINDOW} without overlap, 224 px bilinear; 1"

FVD = FrechetMetric(
    name="fvd",
    extractor="i3d",
    array=LOGITS,
    column=Column(key="fvd", heading="FVD", digits=2, better="low"),
    samples="windows",
    none_because=f"fewer than {WINDOW} frames",
    protocol=f"I3D Kinetics-400, logits, windows of {WINDOW} frames without overlap",
)


class I3DExtractor:
    """I3D logits of windows that follow each other: `logits` [windows, 400]."""

    name = "i3d"
    wants_faces = False

    @cached_property
    def digest(self) -> str:
        """Raises: EmoError when the network was not downloaded."""
        return features_digest(PROTOCOL, downloaded_sha256(WEIGHTS))

    @cached_property
    def network(self) -> Any:
        from emo_cli.metrics.i3d import load_i3d

        return load_i3d(weights_path(WEIGHTS))

    def begin(self, info: VideoInfo) -> I3DReading:
        return I3DReading(self)


class I3DReading:
    """Holds at most a batch of windows, shrunk already."""

    def __init__(self, extractor: I3DExtractor) -> None:
        self._extractor = extractor
        self._frames: list[Any] = []
        self._features = [np.zeros((0, 400), np.float32)]

    def add(self, frames: Sequence[Frame]) -> None:
        from emo_cli.metrics.i3d import prepare_frame

        for frame in frames:
            self._frames.append(prepare_frame(frame.picture))
            if len(self._frames) == BATCH * WINDOW:
                self._run()

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        if len(self._frames) >= WINDOW:
            self._run()
        return {LOGITS: np.concatenate(self._features)}

    def _run(self) -> None:
        from emo_cli.metrics.i3d import window_logits

        starts = range(0, len(self._frames) - WINDOW + 1, WINDOW)
        windows = [self._frames[start : start + WINDOW] for start in starts]
        self._features.append(window_logits(self._extractor.network, windows))
        self._frames = []
