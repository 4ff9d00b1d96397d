"""Temporal modules: AnimateDiff self-attention over frames, with motion frames and speed.

EMO sec. 3.2. Shapes: B batch, M motion frames, F frames, C channels, N = H*W tokens,
S = F speed features of width l, h heads. GroupNorm works per frame, as the original AnimateDiff.
Time positions are 0..M-1 for motion frames and M..M+F-1 for the clip.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from emo_cli.model.layers import (
    Attention,
    FeedForward,
    Folded,
    GroupNorm,
    ShortAttention,
    add_branch,
    attention,
    fold_frames,
    sinusoid,
    to_maps,
    to_tokens,
    unfold_frames,
    zero_,
)


class TemporalState(NamedTuple):
    """What a temporal module keeps for one clip."""

    motion: Tensor  # [B, M, N, C] tokens of the motion frames
    projected: tuple[Tensor, ...]  # their queries, keys, values in the first attention
    speed: Folded
    speed_offset: Tensor  # [B, S*h, F, 1] scores of the time positions
    positions: Tensor  # [M+F, 1, C]

    def first(self) -> TemporalState:
        """The first clip of the batch alone; views."""
        return TemporalState(
            self.motion[:1],
            tuple(x[:1] for x in self.projected),
            Folded(*(x[:1] for x in self.speed)),
            self.speed_offset[:1],
            self.positions,
        )


class FrameAttention(Attention):
    """Self-attention over frames, projected in the spatial layout so that nothing is permuted."""

    def project(self, y: Tensor) -> tuple[Tensor, ...]:
        """[B, F, N, C] -> queries, keys, values of the same shape."""
        return self.to_q(y), self.to_k(y), self.to_v(y)

    def over_frames(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, F, N, C] attends to k, v [B, M+F, N, C] at the same place -> [B, F, N, C]."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1, 4) for x in (q, k, v))
        y = attention(q, k, v)  # [B, N, h, F, d]
        return self.out(y.permute(0, 3, 1, 2, 4).flatten(-2))


class TemporalBlock(nn.Module):
    """One or two self-attentions over frames, speed cross-attention, feed-forward."""

    def __init__(
        self, width: int, heads: int, factor: int, self_attentions: int, speed_width: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = FrameAttention(width, width, heads)
        if self_attentions == 2:
            self.norm2 = nn.LayerNorm(width)
            self.attn2 = FrameAttention(width, width, heads)
        self.norm_speed = nn.LayerNorm(width)
        self.attn_speed = ShortAttention(width, speed_width, heads)
        zero_(self.attn_speed.to_out)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, factor)
        self.self_attentions = self_attentions

    def attend_to_frames(self, tokens: Tensor, state: TemporalState) -> Tensor:
        """Self-attention over M + F frames; the motion frames are sliced off at the end."""
        motion, (motion_q, motion_k, motion_v) = state.motion, state.projected
        positions = state.positions
        count = motion.shape[1]
        q, k, v = self.attn1.project(self.norm1(tokens) + positions[count:])
        k, v = torch.cat([motion_k, k], 1), torch.cat([motion_v, v], 1)
        if self.self_attentions == 1:
            return tokens + self.attn1.over_frames(q, k, v)
        both = torch.cat([motion, tokens], 1)
        both = both + self.attn1.over_frames(torch.cat([motion_q, q], 1), k, v)
        q, k, v = self.attn2.project(self.norm2(both) + positions)
        return both[:, count:] + self.attn2.over_frames(q[:, count:], k, v)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        return self.ff(self.norm3(tokens))

    def forward(self, tokens: Tensor, state: TemporalState) -> Tensor:
        """tokens [B, F, N, C] -> the same shape."""
        tokens = self.attend_to_frames(tokens, state)
        y, (_, frames, places, _) = self.norm_speed(tokens), tokens.shape
        offset = state.speed_offset.expand(-1, -1, frames, places).flatten(2)
        tokens = tokens + self.attn_speed.attend(y.flatten(1, 2), state.speed, offset).view_as(y)
        return add_branch(tokens, self.feed_forward)


class TemporalModule(nn.Module):
    """A temporal layer of the Backbone; the parameter names are AnimateDiff's in diffusers."""

    place: int  # among the Backbone's temporal layers, in the order of the walk

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        groups: int,
        factor: int,
        self_attentions: int,
        speed_width: int,
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        block = TemporalBlock(width, heads, factor, self_attentions, speed_width)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(width, width)
        zero_(self.proj_out)

    @property
    def block(self) -> TemporalBlock:
        block = self.transformer_blocks[0]
        assert isinstance(block, TemporalBlock)
        return block

    def enter(self, x: Tensor, frames: int) -> Tensor:
        """[B*F, C, H, W] -> tokens [B, F, N, C]."""
        return unfold_frames(self.proj_in(to_tokens(self.norm(x))), frames)

    def prepare(self, motion: Tensor, speed: Tensor) -> TemporalState:
        """Motion features [B, M, C, H, W] and speed features [B, F, l], once per clip."""
        block, count = self.block, motion.shape[1]
        tokens = self.enter(fold_frames(motion), count)
        positions = sinusoid(count + speed.shape[1], tokens.shape[-1], like=tokens)[:, None]
        projected = block.attn1.project(block.norm1(tokens) + positions[:count])
        folded = block.attn_speed.fold(speed)
        offset = torch.matmul(folded.scores, positions[count:, 0].T)[..., None]  # [B, S*h, F, 1]
        return TemporalState(tokens, projected, folded, offset, positions)

    def forward(self, x: Tensor, state: TemporalState) -> Tensor:
        """x [B*F, C, H, W] -> the same shape."""
        tokens = self.enter(x, state.positions.shape[0] - state.motion.shape[1])
        tokens = self.proj_out(self.block(tokens, state))
        return x + to_maps(fold_frames(tokens), *x.shape[-2:])
