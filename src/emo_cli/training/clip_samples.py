"""What the stages image, video and speed learn from: prepared clips as the loss takes them.

Shapes: F frames, H W latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emo_cli.config import ModelConfig
from emo_cli.console import note
from emo_cli.errors import EmoError
from emo_cli.face_points import FACE_POINTS
from emo_cli.head_flow import head_flow
from emo_cli.training.cut import cut_window
from emo_cli.training.dataset import ClipDataset, Needs, NoUsableClip
from emo_cli.training.denoising_stage import MINI_LOSS
from emo_cli.training.draws import Draw, derive_seed
from emo_cli.training.face_parts import seen_most
from emo_cli.training.head_moves import head_moves
from emo_cli.training.precompute import features_name, latents_name
from emo_cli.training.samples import Split
from emo_cli.training.shard_reader import ShardReader, open_storage
from emo_cli.training.stages import Stage
from emo_cli.training.variation import AS_IT_IS, Variation

WANDER = 4  # latent pixels that a window strays from the middle of the face
HELD_LIDS = 0.3  # of `mini`'s clips continue after eyes that were caught half shut
BLINKS = 0.3  # of `mini`'s clips are sought where eyes shut: rare, and never learnt else
ANYWHERE = 0.2  # of the windows lie anywhere: clothes and background have to hold still too


class ClipSamples:
    """Clips of several datasets, each drawn equally often, as the loss takes them.

    window: side in latent pixels of the square around the face that is cut from each clip: most
    of what a stage has to learn happens there. None: whole pictures.
    """

    def __init__(
        self, datasets: list[ClipDataset], config: ModelConfig, window: int | None = None
    ) -> None:
        self.datasets = datasets
        self.config = config
        self.window = window

    def __len__(self) -> int:
        return len(self.datasets) * max(len(dataset) for dataset in self.datasets)

    def __getitem__(self, drawn: Draw) -> dict[str, Tensor]:
        place, which = divmod(drawn.index, len(self.datasets))
        dataset = self.datasets[which]
        sample = dataset[Draw(place % len(dataset), drawn.seed)]
        size = self.config.picture_size, self.config.latent_size
        parts = seen_most(sample["landmarks"], dataset.needs.clip_frames, *size)
        pictures = ("frames", "reference", "latents", "reference_latents", "mask")
        wanted = (*pictures, "audio", "speed", "lids", "lips", "brows", "gaze")
        item = {name: sample[name] for name in wanted if name in sample}
        item |= parts
        if self.config.unet.told_head:
            item["flow"] = self._flow(sample, dataset.needs.clip_frames)
        if self.config.unet.told_lips:
            item["face_points"] = sample["reference_landmarks"][FACE_POINTS]
        if self.window is None:
            return item
        corner = self._corner(sample["boxes"].float().mean(0), drawn.seed)
        cut = {n: cut_window(item[n], corner, self.window) for n in ("latents", *parts)}
        return item | cut | {"corner": corner}

    def _flow(self, sample: dict[str, Tensor], frames: int) -> Tensor:
        """The field [F, 2, H, W] by which a model is told how the head has moved."""
        landmarks, still = sample["landmarks"].numpy(), sample["reference_landmarks"].numpy()
        moves, box = head_moves(landmarks[-frames:], still)
        flow = head_flow(moves, box, self.config.picture_size, self.config.latent_size)
        return torch.from_numpy(flow)

    def spread(self, count: int) -> list[int]:
        """So many indices, evenly over the datasets and along each."""
        turns = math.ceil(count / len(self.datasets))
        indices = []
        for number in range(count):
            turn, which = divmod(number, len(self.datasets))
            place = turn * len(self.datasets[which]) // turns
            indices.append(place * len(self.datasets) + which)
        return indices

    def _corner(self, face: Tensor, seed: int) -> Tensor:
        """Where the window begins (y, x): around the middle of the face box, at random."""
        assert self.window is not None
        rng = np.random.default_rng(derive_seed(seed, "window"))
        middle = (
            np.array([face[1] + face[3], face[0] + face[2]]) / 2 / self.config.autoencoder.factor
        )
        start = np.rint(middle - self.window / 2) + rng.integers(-WANDER, WANDER + 1, 2)
        farthest = self.config.latent_size - self.window
        if rng.random() < ANYWHERE:
            start = rng.integers(0, farthest + 1, 2)
        return torch.from_numpy(start.clip(0, farthest).astype(np.int64))


def open_datasets(
    paths: Iterable[str],
    stage: Stage,
    config: ModelConfig,
    split: Split,
    inits: list[Path],
    window: int | None = None,
    variation: Variation = AS_IT_IS,
    say: Callable[[str], None] = note,
) -> ClipSamples | None:
    """The datasets at `paths`, with features and latents by the encoders that `inits` end with.

    None where none of them holds a clip of this split. Held-out clips that the stage cannot use
    are left out, and said. With a window every dataset must have latents: pictures are not cut.

    Raises: EmoError when a stage with sound finds no sound features, a window no latents, or a
    dataset no clip to train on.
    """
    clip = stage.clip_frames > 1
    small_clip = clip and config.name == "mini"
    datasets = []
    paths = list(paths)
    # Told where the head is, a model sees the reference moved; a packed dataset has no pictures.
    drawn = config.unet.told_head and all(_has_pictures(path) for path in paths)
    for path in paths:
        if split not in ShardReader(str(path)).splits:
            continue
        features = features_of(path, _last_with("audio_encoder", inits)) if clip else None
        latents = None
        if not variation.looks:  # of which the cache holds none
            latents = _prepared(path, latents_name(_last_with("autoencoder", inits)))
        if window is not None and latents is None:
            raise EmoError(
                f"{path} has no latents of this model's autoencoder, which --window cuts",
                f"Run `emo train prepare --out {path} --latents MODEL`.",
            )
        needs = Needs(
            motion_frames=stage.motion_frames,
            clip_frames=stage.clip_frames,
            window=config.window,
            size=config.picture_size,
            sound=clip,
            features=features,
            latents=latents,
            pictures=latents is None,
            reference_picture=drawn,
            # A small model is spared the search for the first frame's pose: it is the portrait's.
            first_clips=MINI_LOSS.drop_motion if small_clip else 0.0,
            blinks=BLINKS if small_clip and split == "train" else 0.0,
            held_lids=HELD_LIDS if small_clip and split == "train" else 0.0,
        )
        try:
            datasets.append(ClipDataset(path, split=split, needs=needs, variation=variation))
        except NoUsableClip as problem:
            if split == "train":
                raise
            say(f"held-out clips are not measured: {problem.message}")
    return ClipSamples(datasets, config, window) if datasets else None


def features_of(path: str, audio_model: str | Path) -> str:
    """The pass of a dataset that made its sound features by that model's encoder.

    Raises: EmoError when there was none.
    """
    features = _prepared(path, features_name(audio_model))
    if features is None:
        raise EmoError(
            f"{path} has no sound features of this model's encoder",
            f"Run `emo train prepare --out {path} --audio-model MODEL`.",
        )
    return features


def _has_pictures(path: str) -> bool:
    clips = ShardReader(str(path))
    return bool(clips.keys) and clips.has(0, "mp4")


def _last_with(part: str, inits: list[Path]) -> Path:
    return [folder for folder in inits if (folder / f"{part}.safetensors").exists()][-1]


def _prepared(path: str, name: str) -> str | None:
    files, folder = open_storage(f"{path}/{name}")
    return name if files.exists(folder) else None
