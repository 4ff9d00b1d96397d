"""What a small model is told of each frame beside EMO's conditions: eyelids, head and lips.

Not EMO's. Sound foretells a blink badly, so a small model that samples in few steps draws the mean
of shut and open eyes: lids caught half way. Told when to blink (`blinks.py`), it has nothing to
average; and so it is with the head (`head_path.py`) and with the lips (`lip_reader.py`).

Shapes: B clips, F frames, T width of the time embedding, C latent channels, H W latent size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from emo_cli.model.layers import zero_


class Head(NamedTuple):
    """Where the head of each frame is, for a model that is told."""

    flow: Tensor  # [B, F, 2, H, W], `head_flow.py`'s field
    moved: Tensor  # [B, F, C, H, W], latents of the portrait moved by it, and its lips and eyes
    told: Tensor  # [B, F, 1, H, W] 0..1, where those latents are all that there is to draw


class Gestures(NamedTuple):
    """What a model may be told of each frame, beside EMO's conditions."""

    lids: Tensor  # [B, F], 0 open .. 1 shut
    head: Head | None


class EyelidEmbedding(nn.Module):
    """An MLP whose result is added to the time embedding of each frame; silent when new."""

    def __init__(self, time_width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, time_width)
        self.out = nn.Linear(time_width, time_width)
        zero_(self.out)

    def forward(self, lids: Tensor) -> Tensor:
        """[B, F], 0 open .. 1 shut -> [B*F, T]."""
        return self.out(F.silu(self.hidden(lids.reshape(-1, 1))))
