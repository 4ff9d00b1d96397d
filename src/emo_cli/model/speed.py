"""Speed encoder: head rotation per frame -> speed features (EMO sec. 3.2).

Shapes: B clips, F frames, d buckets, l = speed width; a window has 2m+1 frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emo_cli.config import SpeedConfig
from emo_cli.device import upload
from emo_cli.model.layers import sinusoid


class SpeedEncoder(nn.Module):
    """s_i = tanh((w - c_i) / r_i * 3), windows side by side, an MLP, and the time positions."""

    def __init__(self, config: SpeedConfig, window: int) -> None:
        super().__init__()
        self.config = config
        inputs = (2 * window + 1) * len(config.centres)
        self.mlp = nn.Sequential(
            nn.Linear(inputs, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )

    def buckets(self, speed: Tensor) -> Tensor:
        """Speed [...] in degrees per frame -> [..., d] in -1..1."""
        both = torch.tensor([self.config.centres, self.config.radii])  # [2, d]
        centres, radii = upload(both, speed.device)
        return torch.tanh((speed.float()[..., None] - centres) / radii * 3)

    def forward(self, windows: Tensor, motion_frames: int) -> Tensor:
        """Speed windows [B, F, 2m+1], degrees per frame -> features [B, F, l].

        The features carry the clip's time positions, which start behind the motion frames:
        without them attention could not pair frame f with S(f).
        """
        dtype = next(self.mlp.parameters()).dtype
        x = self.mlp(self.buckets(windows).flatten(2).to(dtype))  # from [B, F, (2m+1)d]
        frames, width = x.shape[-2:]
        return x + sinusoid(motion_frames + frames, width, like=x)[motion_frames:]
