"""What a model looks like while it trains: held-out clips through the same Engine.

Shapes: S picture size, T frames of a clip, F frames of one round of the Engine, L*D width of the
sound features.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from emo_cli.config import GenerateOptions
from emo_cli.engine import Engine
from emo_cli.face_points import FACE_POINTS
from emo_cli.model.emo_model import EmoModel
from emo_cli.portrait import Portrait
from emo_cli.sound import SAMPLE_RATE_HZ, Sound
from emo_cli.training.dataset import ClipDataset
from emo_cli.training.face_parts import union_mask

NUM_EXAMPLES = 2
ROUNDS = 2  # of the Engine: the second shows how clips join
COLUMNS = 8
BACKGROUND = 128


class StoredFeatures:
    """Sound features [T, L*D] that were prepared, in the place of an encoder's."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def features(self, start_frame: int, stop_frame: int) -> Tensor:
        """Features of frames start..stop-1; frames beyond the clip repeat its first or last."""
        return self.values[torch.arange(start_frame, stop_frame).clamp(0, len(self.values) - 1)]


def contact_sheet(
    model: EmoModel, datasets: list[ClipDataset], *, hears: bool, device: torch.device
) -> np.ndarray:
    """Reference, real frames and generated frames of a few clips: uint8 RGB [H, W, 3].

    hears: the clip's own sound features go in; else the null condition. The weights are used as
    they are; no random generator is touched.
    """
    engine = Engine.of_model(model.eval(), device=device)
    rows = []
    for number in range(NUM_EXAMPLES):
        turn, which = divmod(number, len(datasets))
        dataset = datasets[which]
        index = turn * len(dataset) // NUM_EXAMPLES
        rows += _example(engine, dataset, index, hears=hears)
    return np.concatenate(rows)


def _example(engine: Engine, dataset: ClipDataset, index: int, *, hears: bool) -> list[np.ndarray]:
    """Two rows of pictures: reference and real frames; nothing and generated frames."""
    config, labels = engine.config, dataset.all_labels(index)
    # The first frame is the portrait, and those behind it are what is to come.
    count = min(labels.num_frames - 1, ROUNDS * config.clip_frames)
    shown = np.linspace(0, count - 1, COLUMNS).round().astype(int)
    reference, *real = _stills(engine, dataset, index, [0, *(1 + shown).tolist()])
    size = len(reference)
    portrait = Portrait(
        picture=reference,
        shown=reference,
        mask=union_mask(labels.boxes, size),
        face_box=cast(Any, tuple(labels.boxes[0].tolist())),
        face_points=labels.landmarks[0][FACE_POINTS],
        crop=(0, 0, size, size),
        num_faces=1,
        notes=(),
    )
    options = GenerateOptions(speed=float(labels.rotation.mean()))
    features = torch.zeros(count, config.audio_feature_width)
    if hears:
        features = dataset.all_features(index)[1:].float()
    video = engine.prepare_video(portrait, _silence(count, config.fps), options)
    stored = cast(Any, StoredFeatures(features.to(engine.device)))
    video = dataclasses.replace(video, features=stored)
    made = np.concatenate([clip.frames for clip in engine.clips(video)])
    blank = np.full_like(reference, BACKGROUND)
    return [
        np.concatenate([reference, *real], axis=1),
        np.concatenate([blank, *made[shown]], axis=1),
    ]


def _stills(
    engine: Engine, dataset: ClipDataset, index: int, wanted: list[int]
) -> list[np.ndarray]:
    """Frames of a clip, uint8 [S, S, 3]; where only latents travel, as the decoder shows them."""
    if dataset.has_pictures(index):
        return list(dataset.some_frames(index, wanted).numpy())
    latents = dataset.all_latents(index)[wanted].to(engine.device)
    return list(engine.decode(latents[None].float(), len(wanted)))


def _silence(num_frames: int, fps: int) -> Sound:
    samples = np.zeros(num_frames * SAMPLE_RATE_HZ // fps, np.float32)
    return Sound(
        samples=samples,
        sample_rate_hz=SAMPLE_RATE_HZ,
        duration_s=num_frames / fps,
        path=Path("silence"),
        start_s=0.0,
    )
