"""Face locator: where the face may move (EMO sec. 3.2). Shapes: B clips, C latent channels."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from emo_cli.model.layers import zero_


class FaceLocator(nn.Module):
    """Light convolutions from the region mask to the latents' shape; the last starts at zero."""

    def __init__(self, widths: tuple[int, ...], latent_channels: int, factor: int) -> None:
        super().__init__()
        if len(widths) != int(math.log2(factor)):
            raise ValueError(f"a factor of {factor} needs {int(math.log2(factor))} widths")
        ins = (1, *widths[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip(ins, widths, strict=True)
        )
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)
        zero_(self.conv_out)

    def forward(self, mask: Tensor) -> Tensor:
        """Union of the clip's face boxes [B, 1, S, S], 0 or 1 -> [B, C, H, W]."""
        x = mask
        for conv in self.convs:
            x = F.silu(conv(x))
        return self.conv_out(x)
