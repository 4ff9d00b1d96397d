"""The conditions of a clip that are computed rather than learnt: windows of sound and speed.

Shapes: F frames, 2m+1 frames in a window.
"""

from __future__ import annotations

import torch
from torch import Tensor


def windows(frames: Tensor, count: int) -> Tensor:
    """Neighbourhoods of `count` = 2m+1 frames: [F+2m, ...] -> [F, 2m+1, ...]."""
    return frames.unfold(0, count, 1).movedim(-1, 1)


def constant_speed(speed: float, frames: int, count: int, device: torch.device) -> Tensor:
    """One speed for every frame, as at inference (EMO sec. 4.1): [1, F, 2m+1]."""
    return torch.full((1, frames, count), speed, device=device)
