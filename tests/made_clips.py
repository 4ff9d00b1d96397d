"""A dataset of made clips, with the sound features and latents of a small model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emo_cli.training import precompute
from emo_cli.training.samples import Labels, pack_sample
from emo_cli.training.shards import ShardWriter

FRAMES = 20


def made_labels(rng: np.random.Generator, size: int) -> Labels:
    """A face that stays where it is, in pictures of `size` px."""
    landmarks = np.tile(rng.uniform(0.35, 0.63, (1, 478, 3)) * size, (FRAMES, 1, 1))
    return Labels(
        boxes=np.tile(np.array([[0.27, 0.27, 0.74, 0.82]]) * size, (FRAMES, 1)),
        poses=np.tile(np.eye(4), (FRAMES, 1, 1)),
        rotation=rng.uniform(0, 1, FRAMES),
        landmarks=landmarks,
        opening=rng.uniform(0, 0.5, FRAMES),
    )


def write_clips(
    folder: Path,
    model: Path,
    *,
    size: int,
    splits: Sequence[str] = ("train", "train", "train", "val"),
    silent: Sequence[str] = (),
    latents: bool = False,
) -> Path:
    """Clips of noise, one a split; those of the splits `silent` have no sound."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, {"size": size, "fps": 25}) as writer:
        for number, split in enumerate(splits):
            sound = rng.normal(0, 0.1, FRAMES * 640).astype(np.float32)
            writer.add(
                pack_sample(
                    key=f"clip-{number}",
                    identity=f"person/{number}",
                    split=split,
                    frames=rng.integers(0, 255, (FRAMES, size, size, 3), np.uint8),
                    labels=made_labels(rng, size),
                    sound=None if split in silent else sound,
                    source={},
                )
            )
    precompute.add_sound_features(folder, model)
    if latents:
        precompute.add_latents(folder, model)
    return folder
