"""wav2vec's convolutions, whose activations on a long sound are its largest by far.

Shapes: B sounds, S samples at 16 kHz, T hidden time steps, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PIECE_STEPS = 100  # 2 s: what a piece holds stays in a core's cache at `mini`'s widths


class FeatureEncoder(nn.Module):
    """transformers' convolutions under their own names: sounds [B, S] -> features [B, C, T].

    Without gradients a sound goes through piece by piece, equal within rounding. stride, field:
    between two steps and of one step, in samples. whole: never in pieces, because the first layer
    normalises over all time (wav2vec2-base's "group").
    """

    def __init__(self, conv_layers: nn.ModuleList, *, stride: int, field: int, whole: bool) -> None:
        super().__init__()
        self.conv_layers = conv_layers
        self.stride, self.field, self.whole = stride, field, whole

    def forward(self, samples: Tensor) -> Tensor:
        num_steps = (samples.shape[-1] - self.field) // self.stride + 1
        if self.whole or torch.is_grad_enabled() or num_steps <= PIECE_STEPS:
            return self._convolved(samples)
        firsts = range(0, num_steps, PIECE_STEPS)
        return torch.cat([self._piece(samples, first, num_steps) for first in firsts], -1)

    def _piece(self, samples: Tensor, first: int, num_steps: int) -> Tensor:
        """Steps first..first+PIECE_STEPS-1, from just the samples that they hear."""
        last = min(first + PIECE_STEPS, num_steps) - 1
        heard = samples[:, first * self.stride : last * self.stride + self.field]
        return self._convolved(heard)

    def _convolved(self, samples: Tensor) -> Tensor:
        x = samples[:, None]  # [B, 1, S]
        for layer in self.conv_layers:
            x = layer(x)
        return x  # [B, C, T]
