"""Mouths and sounds to learn lip sync from, decoded once and held in memory, and their disguises.

Legend: `T` frames, `H W` size of a crop with its margin, `h w` without, `S` samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emo_cli.metrics.sync_audio import normalise_loudness
from emo_cli.metrics.sync_crops import MOUTH_HEIGHT, MOUTH_WIDTH, mouth_crop
from emo_cli.training.dataset import ClipDataset, Needs
from emo_cli.training.samples import Split
from emo_cli.training.shard_reader import ShardReader

CLIP_FRAMES = 40  # of a sample: 36 windows, each told from the 35 others
MARGIN = 8  # pixels around a stored crop, into which it may be shifted

SHIFT, TURN, SCALE = 4.0, 0.08, 0.1  # pixels, radians, share
TREMBLE = 0.5  # pixels, from frame to frame
GAMMA = 0.5  # exponents from 1 / 1.5 to 1.5
BLUR_SHARE, BLUR = 0.4, 2.5  # of the samples; an area of up to so many pixels
GRAIN_SHARE, GRAIN = 0.4, 10.0  # levels of 255
SHADE = 0.3  # one side darker
VOICE = 0.12  # resonances of a longer or shorter vocal tract


@dataclass(frozen=True, kw_only=True)
class SpokenClip:
    """One clip: grey crops uint8 [T, H, W] and its sound float32 [640 T], loudness normalised."""

    key: str
    crops: np.ndarray
    sound: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SpokenClips:
    """The clips of some datasets, by the name of their dataset."""

    sources: dict[str, list[SpokenClip]]
    digest: list[str]


def read_spoken_clips(
    paths: Iterable[str], split: Split, size: int, say: Callable[[str], None] = lambda line: None
) -> SpokenClips:
    """All clips with sound of a split, `CLIP_FRAMES` long at least; 0.6 MB a clip of 3 s.

    Raises: EmoError when a dataset is missing or damaged, or has no such clip; one without any
    clip of the split is left out.
    """
    needs = Needs(motion_frames=0, clip_frames=CLIP_FRAMES, window=0, size=size, sound=True)
    sources: dict[str, list[SpokenClip]] = {}
    digests = []
    for path in paths:
        if split not in ShardReader(str(path)).splits:
            continue
        dataset = ClipDataset(path, split=split, needs=needs)
        say(f"cutting {len(dataset)} clips ({split}) of {path}")
        name = str(path).rstrip("/").rpartition("/")[2]
        sources[name] = [_read(dataset, index) for index in range(len(dataset))]
        digests.append(dataset.digest)
    return SpokenClips(sources=sources, digest=digests)


def _read(dataset: ClipDataset, index: int) -> SpokenClip:
    frames = dataset.all_frames(index).numpy()
    landmarks = dataset.all_labels(index).landmarks
    sound = dataset.sound(index)
    assert sound is not None  # Needs.sound
    crops = [mouth_crop(*pair, margin=MARGIN) for pair in zip(frames, landmarks, strict=True)]
    return SpokenClip(
        key=dataset.key(index), crops=np.stack(crops), sound=normalise_loudness(sound)
    )


def without_margin(crops: np.ndarray) -> np.ndarray:
    """[T, H, W] -> [T, h, w]."""
    return crops[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def disguised(crops: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Crops uint8 [T, H, W] as another camera would see another face: float32 0..255 [T, h, w].

    All frames are moved, lit and blurred alike; only the tremble and the grain differ.
    """
    pictures = torch.from_numpy(crops.astype(np.float32))[:, None] / 255  # [T, 1, H, W]
    grid = _moved_grid(len(crops), crops.shape[1:], rng)
    seen = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    seen = seen.clamp(1e-3, 1) ** float((1 + GAMMA) ** rng.uniform(-1, 1))
    seen = seen * _shade(rng)
    if rng.random() < BLUR_SHARE:
        area = 1 / rng.uniform(1, BLUR)
        size = (round(MOUTH_HEIGHT * area), round(MOUTH_WIDTH * area))
        small = functional.interpolate(seen, size, mode="bilinear", antialias=True)
        seen = functional.interpolate(small, (MOUTH_HEIGHT, MOUTH_WIDTH), mode="bilinear")
    if rng.random() < GRAIN_SHARE:
        grain = rng.standard_normal(seen.shape, dtype=np.float32)
        seen = seen + torch.from_numpy(grain) * float(rng.uniform(0, GRAIN) / 255)
    return 255 * seen[:, 0].clamp(0, 1)


def _moved_grid(num_frames: int, size: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Where each pixel of the cut comes from, for `grid_sample`: [T, h, w, 2] in -1..1."""
    height, width = size
    rows = np.arange(MOUTH_HEIGHT, dtype=np.float32) + 0.5 - MOUTH_HEIGHT / 2
    columns = np.arange(MOUTH_WIDTH, dtype=np.float32) + 0.5 - MOUTH_WIDTH / 2
    stretch = np.exp(rng.uniform(-SCALE, SCALE, 2) / (1, 2))  # together, and one side alone
    place = columns[None, :] * stretch[0] * stretch[1] + 1j * rows[:, None] * stretch[0]
    if rng.random() < 0.5:
        place = -place.conj()
    place = place * np.exp(1j * rng.uniform(-TURN, TURN))
    shift = rng.uniform(-SHIFT, SHIFT, 2)
    tremble = rng.normal(0, rng.uniform(0, TREMBLE), (num_frames, 2))
    shifts = (shift + tremble) @ np.array([1, 1j])
    place = place + shifts[:, None, None]
    grid = np.stack([place.real / (width / 2), place.imag / (height / 2)], axis=-1)
    return torch.from_numpy(grid.astype(np.float32))


def _shade(rng: np.random.Generator) -> Tensor:
    across = torch.linspace(-1, 1, MOUTH_WIDTH) * float(rng.uniform(-SHADE, SHADE))
    down = torch.linspace(-1, 1, MOUTH_HEIGHT)[:, None] * float(rng.uniform(-SHADE, SHADE))
    return 1 + across + down


def other_voice(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log mel bands [P, K] with all resonances moved up or down, as another speaker has them."""
    num_bands = mel.shape[1]
    place = (np.arange(num_bands) * np.exp(rng.uniform(-VOICE, VOICE))).clip(0, num_bands - 1)
    below = np.minimum(place.astype(int), num_bands - 2)
    share = (place - below).astype(np.float32)
    return mel[:, below] * (1 - share) + mel[:, below + 1] * share
