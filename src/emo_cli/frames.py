"""From latents to finished frames, which a GPU decodes while the host already does other work.

Shapes: F frames, M motion frames, C latent channels, H W latent size, S picture size, L frame size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emo_cli.conditions import MovedPortrait
from emo_cli.device import download
from emo_cli.model.autoencoder import KLAutoencoder, PatchAutoencoder

CPU_DECODE_SLICE = 3  # larger tensors are mapped into memory anew at each call
# Root mean squares over the latents' channels, whose std is about 1: nearer to the moved portrait
# than the first a place is the portrait's, farther than the second it is drawn.
SAME, DRAWN = 0.03, 0.2


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Some finished frames of a video."""

    index: int
    frames: np.ndarray  # uint8 RGB [F, S, S, 3]; fewer than F at the end of the sound
    motion: Tensor  # [1, M, C, H, W] fp32: what the next clip starts from
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MadeClip:
    """A clip that the device may still be decoding."""

    index: int
    frames: Callable[[], np.ndarray]
    motion: Callable[[], Tensor]
    started: float

    def finish(self, before: float) -> Clip:
        """Wait for it; `before`: when the clip before it was done."""
        frames, motion = self.frames(), self.motion()
        seconds = time.perf_counter() - max(self.started, before)
        return Clip(index=self.index, frames=frames, motion=motion, seconds=seconds)


@torch.inference_mode()
def start_decoding(
    autoencoder: KLAutoencoder | PatchAutoencoder,
    latents: Tensor,
    *,
    moved: MovedPortrait | None = None,
    slice_size: int | None = None,
) -> Callable[[], np.ndarray]:
    """Latents [F, C, H, W] -> a call that waits for the frames, uint8 [F, L, L, 3].

    moved: what they were to show, for others L is S; slice_size: so many frames at a time, None: as
    many as are fastest on the device.
    """
    if slice_size is None:
        slice_size = CPU_DECODE_SLICE if latents.device.type == "cpu" else len(latents)
    parts = []
    for start in range(0, len(latents), slice_size):
        part = latents[start : start + slice_size]
        pictures = autoencoder.decode(part).float()
        if moved is not None:
            told, shown = (x[start : start + len(part)] for x in (moved.latents, moved.pictures))
            pictures = with_detail(pictures, (part - told).float(), shown)
        parts.append((pictures.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8))
    arrived = download(torch.cat(parts).permute(0, 2, 3, 1).contiguous())
    return lambda: arrived().numpy()


def with_detail(pictures: Tensor, beside: Tensor, shown: Tensor) -> Tensor:
    """Decoded pictures [F, 3, S, S] where something was drawn, elsewhere what was to be shown, in
    its size, [F, 3, L, L].

    A small autoencoder smooths hair, skin and writing that the moved portrait has; what the network
    has drawn, as lips that speak, stays as it is. beside: by how much the latents differ from the
    portrait's, [F, C, H, W].
    """
    far = beside.square().mean(1, keepdim=True).sqrt()
    drawn = ((far - SAME) / (DRAWN - SAME)).clamp(0, 1)
    drawn = F.interpolate(drawn, shown.shape[-2:], mode="bilinear")
    if shown.shape[-1] != pictures.shape[-1]:
        pictures = F.interpolate(pictures, shown.shape[-2:], mode="bicubic")
    return torch.lerp(shown, pictures, drawn)
