"""From latents to finished frames, which a GPU decodes while the host already does other work.

Shapes: F frames, M motion frames, C latent channels, H W latent size, S picture size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emo_cli.device import download
from emo_cli.model.autoencoder import KLAutoencoder, PatchAutoencoder

CPU_DECODE_SLICE = 3  # larger tensors are mapped into memory anew at each call


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
    autoencoder: KLAutoencoder | PatchAutoencoder, latents: Tensor, *, slice_size: int | None = None
) -> Callable[[], np.ndarray]:
    """Latents [F, C, H, W] -> a call that waits for the frames, uint8 [F, S, S, 3].

    slice_size: so many frames at a time; None: as many as are fastest on the device.
    """
    if slice_size is None and latents.device.type == "cpu":
        slice_size = CPU_DECODE_SLICE
    pictures = autoencoder.decode(latents, slice_size=slice_size)
    pixels = (pictures.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    arrived = download(pixels.permute(0, 2, 3, 1).contiguous())
    return lambda: arrived().numpy()
