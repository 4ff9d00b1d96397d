"""The spatial transformer of one layer: self-, reference- and audio-attention (EMO sec. 3.2).

Shapes: B batch, F frames, C channels, H W latent size, N = H*W tokens, A audio tokens.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from emo_cli.model.layers import (
    Attention,
    FeedForward,
    Folded,
    GroupNorm,
    ShortAttention,
    add_branch,
    to_maps,
    to_tokens,
    zero_,
)

KeysValues = tuple[Tensor, Tensor]


class SelfAttentionBlock(nn.Module):
    """What Backbone and ReferenceNet share: self-attention and feed-forward of SD's block."""

    def __init__(self, width: int, heads: int, factor: int, self_attention: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if self_attention else None
        self.attn1 = Attention(width, width, heads) if self_attention else None
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, factor)

    def attend_to_self(self, t: Tensor) -> Tensor:
        if self.attn1 is None or self.norm1 is None:
            return t
        y = self.norm1(t)
        return t + self.attn1(y, *self.attn1.keys_values(y))

    def feed_forward(self, t: Tensor) -> Tensor:
        return self.ff(self.norm3(t))


class ReferenceBlock(SelfAttentionBlock):
    """ReferenceNet's block: no cross-attention, so SD's `norm2` normalises what is handed out."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, C] -> (tokens, reference feature), both [B, N, C]."""
        t = self.attend_to_self(t)
        feature = self.norm2(t)
        return add_branch(t, self.feed_forward), feature


class BackboneBlock(SelfAttentionBlock):
    """Backbone's block: text cross-attention became reference-attention, audio follows it."""

    def __init__(
        self, width: int, heads: int, factor: int, self_attention: bool, audio_width: int
    ) -> None:
        super().__init__(width, heads, factor, self_attention)
        self.attn2 = Attention(width, width, heads)
        self.norm_audio = nn.LayerNorm(width)
        self.attn_audio = ShortAttention(width, audio_width, heads)
        zero_(self.attn2.to_out)
        zero_(self.attn_audio.to_out)

    def forward(self, t: Tensor, reference: KeysValues, audio: Folded) -> Tensor:
        """Tokens [B*F, N, C], reference keys/values [B, h, N', d], audio folded [B*F, ...]."""
        t = self.attend_to_self(t)
        clips = reference[0].shape[0]
        # All frames of a clip ask the same keys: their queries lie side by side, [B, F*N, C].
        queries = self.norm2(t).reshape(clips, -1, t.shape[-1])
        t = t + self.attn2(queries, *reference).view_as(t)
        t = t + self.attn_audio.attend(self.norm_audio(t), audio)
        return add_branch(t, self.feed_forward)


class SpatialTransformer(nn.Module):
    """GroupNorm, projection, one block, projection, residual: the frame around a block."""

    def __init__(self, width: int, groups: int, block: nn.Module) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(width, width)

    def enter(self, x: Tensor) -> Tensor:
        return self.proj_in(to_tokens(self.norm(x)))

    def leave(self, x: Tensor, t: Tensor) -> Tensor:
        return x + to_maps(self.proj_out(t), *x.shape[-2:])


class ReferenceTransformer(SpatialTransformer):
    """Of ReferenceNet."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W] -> (x, reference feature [B, N, C])."""
        t, feature = self.transformer_blocks[0](self.enter(x))
        return self.leave(x, t), feature


class BackboneTransformer(SpatialTransformer):
    """Of the Backbone; `reference_pool` averages the reference map before its keys are made."""

    place: int  # among the Backbone's spatial layers, in the order of the walk

    def __init__(self, width: int, groups: int, block: BackboneBlock, reference_pool: int) -> None:
        super().__init__(width, groups, block)
        self.reference_pool = reference_pool

    @property
    def block(self) -> BackboneBlock:
        block = self.transformer_blocks[0]
        assert isinstance(block, BackboneBlock)
        return block

    def reference_keys_values(self, feature: Tensor) -> KeysValues:
        """Reference feature [B, N, C] -> keys and values [B, h, N', d]; once per video."""
        if self.reference_pool > 1:
            side = math.isqrt(feature.shape[1])
            feature = to_tokens(F.avg_pool2d(to_maps(feature, side, side), self.reference_pool))
        return self.block.attn2.keys_values(feature)

    def fold_audio(self, tokens: Tensor) -> Folded:
        """Audio tokens [B*F, A, D] -> folded; once per clip."""
        return self.block.attn_audio.fold(tokens)

    def forward(self, x: Tensor, reference: KeysValues, audio: Folded) -> Tensor:
        """x [B*F, C, H, W] -> the same shape."""
        return self.leave(x, self.block(self.enter(x), reference, audio))
