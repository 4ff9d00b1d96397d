"""The conditions of a clip, every shape written down once.

Shapes: B clips, F frames, M motion frames, C latent channels, H W latent size, S picture size,
2m+1 frames in a window, L*D all wav2vec layers side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class VideoConditions:
    """What stays for the whole video."""

    portrait: Tensor  # [B, C, H, W] latents of the portrait
    face_region: Tensor  # [B, 1, S, S], 0 or 1: union of the face boxes


@dataclass(frozen=True, kw_only=True)
class ClipConditions:
    """What changes from clip to clip."""

    motion: Tensor | None  # [B, M, C, H, W] last latents of the clip before; None: zero maps
    audio: Tensor  # [B, F, 2m+1, L*D]
    speed: Tensor  # [B, F, 2m+1] degrees of head rotation per frame at 25 fps


def windows(frames: Tensor, count: int) -> Tensor:
    """Neighbourhoods of `count` = 2m+1 frames: [F+2m, ...] -> [F, 2m+1, ...]."""
    return frames.unfold(0, count, 1).movedim(-1, 1)


def constant_speed(speed: float, frames: int, count: int, device: torch.device) -> Tensor:
    """One speed for every frame, as at inference (EMO sec. 4.1): [1, F, 2m+1]."""
    return torch.full((1, frames, count), speed, device=device)
