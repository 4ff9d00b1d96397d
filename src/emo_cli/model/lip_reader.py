"""How lips move, read from the sound, for models that are told it.

Not EMO's. A small model that samples in few steps draws brief shut lips as a ghost over open ones.
What is read here moves the lips of the portrait that it sees (`face_flow.py`), so that the lips are
to be finished rather than found.

Shapes: B clips, F frames, 2m+1 frames in a window, L*D all wav2vec layers side by side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAME_WIDTH, WINDOW_WIDTH = 48, 64
# What the network counts as one, of the eyes: about the standard deviations of people who talk.
LIP_UNITS = (0.05, 0.02)


class LipReader(nn.Module):
    """An MLP on windows of the sound's last wav2vec layer, of `width` numbers a frame."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width)
        self.frame = nn.Linear(width, FRAME_WIDTH)
        self.hidden = nn.Linear((2 * window + 1) * FRAME_WIDTH, WINDOW_WIDTH)
        self.out = nn.Linear(WINDOW_WIDTH, len(LIP_UNITS))

    def forward(self, windows: Tensor) -> Tensor:
        """[B, F, 2m+1, L*D] -> [B, F, 2], of the eyes (`face_points.py`): the gap between the lips,
        and how much wider than usually they are."""
        x = F.gelu(self.frame(self.norm(windows[..., -self.width :])))
        lips = self.out(F.gelu(self.hidden(x.flatten(2)))).unbind(-1)
        return torch.stack([unit * x for unit, x in zip(LIP_UNITS, lips, strict=True)], -1)
