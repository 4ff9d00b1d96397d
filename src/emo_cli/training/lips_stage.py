"""Stage `lips`: what lips do to a sound, learnt from the clips that the Backbone learns from.

Shapes: B clips, F frames, 2m+1 frames in a window, L*D all wav2vec layers side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emo_cli.conditions import windows
from emo_cli.config import ModelConfig
from emo_cli.errors import EmoError
from emo_cli.face_points import FACE_POINTS, lip_shape
from emo_cli.model.lip_reader import LIP_UNITS, LipReader
from emo_cli.training.clip_samples import features_of
from emo_cli.training.dataset import ClipDataset, Needs
from emo_cli.training.draws import Draw, derive_seed
from emo_cli.training.samples import Split
from emo_cli.training.shard_reader import ShardReader
from emo_cli.training.stages import LIPS

HELD_OUT_CLIPS = 40  # of each dataset


def open_heard_lips(
    paths: Iterable[str], audio_model: str, config: ModelConfig, split: Split
) -> dict[str, ClipDataset]:
    """By name, the datasets that have clips of a split, with the features of that model's encoder.

    Raises: EmoError when a dataset is missing, has no such features, or no long enough clip.
    """
    found = {}
    for path in paths:
        if split not in ShardReader(str(path)).splits:
            continue
        needs = Needs(
            motion_frames=0,
            clip_frames=LIPS.clip_frames,
            window=config.window,
            size=config.picture_size,
            sound=True,
            features=features_of(path, audio_model),
            pictures=False,
        )
        name = str(path).rstrip("/").rpartition("/")[2]
        found[name] = ClipDataset(path, split=split, needs=needs)
    return found


class LipSamples:
    """Parts of clips, each dataset drawn equally often: what is heard and what lips do."""

    def __init__(self, datasets: list[ClipDataset]) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return len(self.datasets) * max(map(len, self.datasets), default=0)

    def __getitem__(self, drawn: Draw) -> dict[str, Tensor]:
        place, which = divmod(drawn.index, len(self.datasets))
        dataset = self.datasets[which]
        sample = dataset[Draw(place % len(dataset), drawn.seed)]
        return {name: sample[name] for name in ("audio", "lips", "lip_width")}


class LipsLoss(nn.Module):
    """The reader, and how far it is from the lips of a clip."""

    def __init__(self, reader: LipReader, window: int) -> None:
        super().__init__()
        self.reader = reader
        self.window = window

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"audio": [B, F+2m, L*D], "lips": [B, F, 2], "lip_width": [B]} -> mean absolute errors,
        of the gap and of the width, in `LIP_UNITS`.

        Least is the median of what lips do to a sound: unlike in the mean, shut ones are shut.
        """
        count = 2 * self.window + 1
        heard = torch.stack([windows(x, count) for x in batch["audio"].float()])
        gap, wider = self.reader(heard).unbind(-1)
        errors = (
            gap - batch["lips"][..., 0],
            wider - (batch["lips"][..., 1] - batch["lip_width"][:, None]),
        )
        gap, width = (e.abs().mean() / u for e, u in zip(errors, LIP_UNITS, strict=True))
        return {"loss": gap + width, "gap": gap, "width": width}


class LipsTask:
    """All that stage `lips` brings to the loop."""

    def __init__(
        self,
        config: ModelConfig,
        datasets: dict[str, ClipDataset],
        held_out: dict[str, ClipDataset],
        seed: int,
    ) -> None:
        self.samples = LipSamples(list(datasets.values()))
        if len(self.samples) == 0:
            raise EmoError("the datasets hold no clip to train on", "Prepare more videos.")
        self.held_out = held_out
        torch.manual_seed(derive_seed(seed, "weights"))
        reader = LipReader(config.audio.hidden_width, config.window)
        self.module = LipsLoss(reader, config.window)
        self.module.train()

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """How far gaps that are read go along with real ones: the mean correlation over held-out
        clips, per dataset."""
        assert isinstance(module, LipsLoss)
        measures = {}
        for name, dataset in self.held_out.items():
            clips = range(min(len(dataset), HELD_OUT_CLIPS))
            found = [_agreement(module, dataset, index) for index in clips]
            measures[f"r_{name}"] = float(np.nanmean(found))
        return measures

    def export(self, module: nn.Module, folder: Path) -> None:
        """`lip_reader.safetensors` in fp16."""
        from emo_cli.model.load import write_part  # imports every network

        assert isinstance(module, LipsLoss)
        folder.mkdir(parents=True, exist_ok=True)
        write_part(folder, "lip_reader", module.reader.state_dict(), dtype=torch.float16)


def _agreement(module: LipsLoss, dataset: ClipDataset, index: int) -> float:
    """The correlation of read and real gaps of a whole clip; NaN where lips do not move."""
    device = next(module.parameters()).device
    features = dataset.all_features(index).to(device).float()
    read = module.reader(windows(features, 2 * module.window + 1)[None])[0, :, 0].cpu().numpy()
    real = lip_shape(dataset.all_labels(index).landmarks[:, FACE_POINTS])[:, 0]
    real = real[module.window : module.window + len(read)]
    return float(np.corrcoef(read, real)[0, 1]) if real.std() > 0 else float("nan")
