"""How far the eyes are shut, said frame by frame.

Not EMO's. Sound foretells a blink badly, so a small model that samples in few steps draws the mean
of shut and open eyes: lids caught half way. Told when to blink, it has nothing to average.

Shapes: B clips, F frames, T width of the time embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from emo_cli.model.layers import zero_


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
