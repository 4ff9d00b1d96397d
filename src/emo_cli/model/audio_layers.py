"""Audio projector: a window of wav2vec features -> audio tokens (EMO sec. 3.2).

Shapes: B clips, F frames, 2m+1 frames in a window, L*D all wav2vec layers side by side,
A audio tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from emo_cli.config import AudioConfig


class AudioProjector(nn.Module):
    """An MLP over the concatenated window; its first layer is shared by the window's frames."""

    def __init__(self, config: AudioConfig, window: int) -> None:
        super().__init__()
        places = 2 * window + 1
        inputs = config.num_layers * config.hidden_width
        self.num_tokens = config.num_tokens
        self.norm_in = nn.LayerNorm(inputs)
        self.frame = nn.Linear(inputs, config.projector_frame_width)
        self.hidden = nn.Linear(places * config.projector_frame_width, config.projector_width)
        self.tokens = nn.Linear(config.projector_width, config.num_tokens * config.token_width)
        self.norm = nn.LayerNorm(config.token_width)

    def forward(self, windows: Tensor) -> Tensor:
        """[B, F, 2m+1, L*D] -> tokens [B*F, A, token width]."""
        x = F.gelu(self.frame(self.norm_in(windows))).flatten(2).flatten(0, 1)
        x = self.tokens(F.gelu(self.hidden(x)))
        return self.norm(x.unflatten(-1, (self.num_tokens, -1)))
