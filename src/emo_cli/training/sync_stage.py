"""Stage `sync`: SyncNet-mini learns which sound belongs to which five frames of a mouth.

Each window of a clip is to be told from all others of the same clip, in both directions: the face,
the voice and the room are the same in all of them, so only time can tell (Chung and others,
"Perfect match", 2019, sec. 3).

Legend: `B` batch, `T` frames, `N = T - 4` windows, `D` width of an embedding, `S` samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from emo_cli.errors import EmoError
from emo_cli.metrics.sync import best_offset, offset_distances
from emo_cli.metrics.sync_audio import HEARD, STEP, log_mel
from emo_cli.metrics.syncnet_mini import NUM_BANDS, WINDOW, SyncNetMini
from emo_cli.training.audio_noise import disturbed
from emo_cli.training.draws import Draw, derive_seed
from emo_cli.training.sync_data import (
    CLIP_FRAMES,
    SpokenClip,
    SpokenClips,
    disguised,
    other_voice,
    without_margin,
)

FRAME_SAMPLES = 640
FIRST_SCALE = 10.0  # cosines are multiplied by this; it is learnt
CLEAN_SHARE = 0.3  # of the sounds
SHIFTS = range(-10, 11)  # frames, of held-out sounds
NEAR = 1  # an offset this near is right
HELD_OUT_CLIPS = 40  # of each dataset


class SyncSamples:
    """Disguised parts of clips with their disturbed sound; datasets are drawn equally often."""

    def __init__(self, clips: SpokenClips) -> None:
        self.sources = [found for found in clips.sources.values() if found]

    def __len__(self) -> int:
        return len(self.sources) * max(map(len, self.sources), default=0)

    def __getitem__(self, drawn: Draw) -> dict[str, Tensor]:
        """`crops` float32 [T, h, w] 0..255 and `mel` float32 [4 T, K] of the same 1.6 s."""
        place, source = divmod(drawn.index, len(self.sources))
        clips = self.sources[source]
        clip = clips[place % len(clips)]
        rng = np.random.default_rng(derive_seed(drawn.seed, "sync"))
        start = int(rng.integers(len(clip.crops) - CLIP_FRAMES + 1))
        crops = disguised(clip.crops[start : start + CLIP_FRAMES], rng)
        sound = clip_sound(clip, start, CLIP_FRAMES)
        if rng.random() >= CLEAN_SHARE:
            sound = disturbed([sound], rng)
        mel = log_mel(sound, NUM_BANDS)
        return {"crops": crops, "mel": torch.from_numpy(other_voice(mel, rng))}


def clip_sound(clip: SpokenClip, start: int, num_frames: int) -> np.ndarray:
    """The sound that four steps a frame of a part of the clip hear; silence behind its end."""
    first = start * FRAME_SAMPLES
    length = num_frames * FRAME_SAMPLES - STEP + HEARD
    part = clip.sound[first : first + length]
    return np.pad(part, (0, length - len(part)))


class SyncLoss(nn.Module):
    """The network, and how sharply it must tell."""

    def __init__(self, network: SyncNetMini) -> None:
        super().__init__()
        self.network = network
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"crops": [B, T, h, w], "mel": [B, 4 T, K]} -> losses; `right` is the share of windows
        whose own sound is the nearest of their clip's, or next to it."""
        crops = batch["crops"]
        frames = self.network.embed_frames(crops.flatten(0, 1))
        lips = self.network.embed_lips(frames.unflatten(0, crops.shape[:2]))  # [B, N, D]
        sound = self.network.embed_sound(batch["mel"])  # [B, N, D]
        cosines = lips @ sound.mT  # [B, N, N]
        number = cosines.shape[1]
        target = torch.arange(number, device=cosines.device).repeat(len(cosines))
        logits = self.log_scale.exp() * cosines
        to_sound = functional.cross_entropy(logits.flatten(0, 1), target)
        to_lips = functional.cross_entropy(logits.mT.flatten(0, 1), target)
        nearest = cosines.detach().flatten(0, 1).argmax(dim=1)
        right = ((nearest - target).abs() <= NEAR).float().mean()
        return {
            "loss": (to_sound + to_lips) / 2,
            "right": right,
            "scale": self.log_scale.exp(),
        }


class SyncTask:
    """All that stage `sync` brings to the loop."""

    def __init__(self, clips: SpokenClips, held_out: SpokenClips, seed: int) -> None:
        self.samples = SyncSamples(clips)
        if len(self.samples) == 0:
            raise EmoError("the datasets hold no clip to train on", "Prepare more videos.")
        self.held_out = held_out
        torch.manual_seed(derive_seed(seed, "weights"))
        self.module = SyncLoss(SyncNetMini())
        self.module.train()

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """On undisguised held-out clips, per dataset: share of offsets -10..10 found within one
        frame, and the confidence with the clip's own sound and with another clip's."""
        assert isinstance(module, SyncLoss)
        measures: dict[str, float] = {}
        for name, clips in self.held_out.sources.items():
            pairs = [embedded(module.network, clip) for clip in clips[:HELD_OUT_CLIPS]]
            others = [*pairs[1:], pairs[0]]
            found = [near for pair in pairs for near in _found(*pair)]
            measures[f"found_{name}"] = float(np.mean(found))
            measures[f"own_{name}"] = _mean_confidence((p[0], p[1]) for p in pairs)
            swapped = ((p[0], o[1]) for p, o in zip(pairs, others, strict=True))
            measures[f"other_{name}"] = _mean_confidence(swapped)
        return measures

    def export(self, module: nn.Module, folder: Path) -> None:
        """`syncnet_mini.safetensors` in fp16."""
        from emo_cli.model.load import write_part  # imports every network

        assert isinstance(module, SyncLoss)
        folder.mkdir(parents=True, exist_ok=True)
        write_part(folder, "syncnet_mini", module.network.state_dict(), dtype=torch.float16)


def embedded(network: SyncNetMini, clip: SpokenClip) -> tuple[np.ndarray, np.ndarray]:
    """Windows of the mouth and of the sound of a whole clip, each [N, D]."""
    device = next(network.parameters()).device
    crops = torch.from_numpy(without_margin(clip.crops)).to(device)
    mel = torch.from_numpy(log_mel(clip_sound(clip, 0, len(crops)), NUM_BANDS)).to(device)
    lips = network.embed_lips(network.embed_frames(crops)[None])[0]
    sound = network.embed_sound(mel[None])[0]
    assert len(lips) == len(sound) == len(crops) - WINDOW + 1
    return lips.cpu().numpy(), sound.cpu().numpy()


def _found(lips: np.ndarray, sound: np.ndarray) -> Iterator[bool]:
    """Whether each shift of the sound is found, within one frame."""
    for shift in SHIFTS:
        late = sound[: len(sound) - shift] if shift >= 0 else sound[-shift:]
        seen = lips[shift:] if shift >= 0 else lips[: len(lips) + shift]
        # Of the two cut so, sound i belongs to lips i - shift.
        offset = best_offset(offset_distances(seen, late)).offset
        yield abs(offset - -shift) <= NEAR


def _mean_confidence(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> float:
    found = []
    for lips, sound in pairs:
        number = min(len(lips), len(sound))
        found.append(best_offset(offset_distances(lips[:number], sound[:number])).confidence)
    return float(np.mean(found))
