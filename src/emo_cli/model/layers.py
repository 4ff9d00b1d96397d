"""Building blocks shared by Backbone and ReferenceNet, with diffusers' parameter names.

Shapes: B batch (a multiple of it with guidance), F frames, C channels, H W latent size,
N = H*W tokens, S keys of a short context, D context width, h heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_KEYS = 32
SMALL_MAP = 1024  # pixels; torch's channels_last GroupNorm has another CPU kernel below
PIECE_ROWS = 2048  # tokens whose hidden values stay in a core's cache at `mini`'s widths


def fold_frames(x: Tensor) -> Tensor:
    """[B, F, ...] -> [B*F, ...]."""
    return x.flatten(0, 1)


def unfold_frames(x: Tensor, frames: int) -> Tensor:
    """[B*F, ...] -> [B, F, ...]."""
    return x.unflatten(0, (-1, frames))


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, N, C]; a view when x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_maps(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, N, C] -> [B, C, H, W] in channels_last; a view."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def sinusoid(positions: int, width: int, like: Tensor) -> Tensor:
    """[positions, width] of sines and cosines in turn, as AnimateDiff's `pe`; dtype as `like`."""
    place = torch.arange(positions, device=like.device)
    rates = torch.arange(0, width, 2, device=like.device) * (-math.log(10_000.0) / width)
    angle = place[:, None] * rates.exp()
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).to(like.dtype)


def timestep_features(timesteps: Tensor, width: int) -> Tensor:
    """Cosines, then sines of timesteps [B] -> [B, width], as SD 1.5 (flip_sin_to_cos, shift 0)."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=timesteps.device) * (-math.log(10_000.0) / half))
    angle = timesteps.float()[:, None] * rates
    return torch.cat([angle.cos(), angle.sin()], -1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of q [..., N, d] over k, v [..., S, d] -> [..., N, d]."""
    if q.device.type == "cpu" and (k.shape[-2] <= FEW_KEYS or q.requires_grad):
        # Frame attention has thousands of rows with 12 queries each: two batched products and a
        # softmax are faster on a CPU than its flash kernel, and so is their backward pass.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(-1) @ v
    if q.dim() == 5 and q.device.type != "cpu":  # fused kernels take four dimensions
        y = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        return y.unflatten(0, q.shape[:2])
    return F.scaled_dot_product_attention(q, k, v)


def add_branch(t: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """t + branch(t) for tokens [..., C] that the branch sees one by one; t may be overwritten."""
    if t.device.type != "cpu" or torch.is_grad_enabled():
        return t + branch(t)
    # What a branch holds at once is larger than t. Made whole it would lie in fresh pages, whose
    # first touch costs a CPU more than the arithmetic; a piece lies in its cache.
    rows = t.flatten(0, -2)
    for piece in rows.split(PIECE_ROWS):
        piece += branch(piece)
    return rows.view_as(t)


def zero_(layer: nn.Module) -> None:
    """New layers start silent: zero weights and bias (EMO inherits SD, sec. 3.3)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class GroupNorm(nn.GroupNorm):
    """torch's, around two faults of it on a CPU (2.13), both for channels_last inputs: its backward
    pass crashes when they need no gradient, as behind frozen layers, and in bf16 it is slow, in
    training always, else on small maps."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.weight.requires_grad and not x.requires_grad:
            x = x.detach().requires_grad_()
        autocast = self.weight.dtype == torch.float32  # as on CUDA
        small = x.device.type == "cpu" and x.shape[-2:].numel() < SMALL_MAP
        if x.dtype == torch.bfloat16 and (autocast or small):
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)
        return super().forward(x)


class Attention(nn.Module):
    """Multi-head attention from tokens [B, N, C] to a context [B, S, D]."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    @property
    def out(self) -> nn.Linear:
        layer = self.to_out[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def split(self, x: Tensor) -> Tensor:
        """[..., N, C] -> [..., h, N, d]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Context [B, S, D] -> keys and values [B, h, S, d]."""
        return self.split(self.to_k(context)), self.split(self.to_v(context))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Tokens [B, N, C] attend to keys and values [B, h, S, d] -> [B, N, C]."""
        y = attention(self.split(self.to_q(x)), keys, values)
        return self.out(y.transpose(-2, -3).flatten(-2))


class Folded(NamedTuple):
    """Keys and values of a short context, multiplied into the query and output weights."""

    scores: Tensor  # [B, S*h, C]: K W_q^T / sqrt(d)
    outputs: Tensor  # [B, S*h, C]: V W_o


class ShortAttention(Attention):
    """Attention to a handful of keys that stay for the clip (audio tokens, speed features).

    K W_q^T and V W_o are folded once per clip, exactly; a step then costs two thin products and
    a softmax, instead of two C x C projections.
    """

    def fold(self, context: Tensor) -> Folded:
        """Context [B, S, D] -> `Folded`."""
        keys, values = self.keys_values(context)  # [B, h, S, d]
        head = keys.shape[-1]
        to_q = self.to_q.weight.unflatten(0, (self.heads, head))  # [h, d, C]
        to_out = self.out.weight.unflatten(1, (self.heads, head))  # [C, h, d]
        scores = torch.einsum("hdc,bhsd->bshc", to_q, keys * head**-0.5).flatten(1, 2)
        outputs = torch.einsum("chd,bhsd->bshc", to_out, values).flatten(1, 2)
        return Folded(scores, outputs)

    def attend(self, x: Tensor, folded: Folded, offset: Tensor | None = None) -> Tensor:
        """Tokens [B, N, C] -> [B, N, C]; `offset` [B, S*h, N] is added to the scores."""
        scores = torch.bmm(folded.scores, x.transpose(1, 2))  # [B, S*h, N]
        if offset is not None:
            scores = scores + offset
        # Tokens lie last: a softmax over a handful of neighbours would leave vector units idle.
        weights = scores.unflatten(1, (-1, self.heads)).softmax(1).flatten(1, 2)
        return torch.baddbmm(self.out.bias, weights.transpose(1, 2), folded.outputs)


class GatedLinear(nn.Module):
    """GEGLU: half of the projection, gated by the GELU of the other half."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        # Two products, each with a contiguous result: halves of one are slow on a CPU.
        (w_value, w_gate), (b_value, b_gate) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        return F.linear(x, w_value, b_value) * F.gelu(F.linear(x, w_gate, b_gate))


class FeedForward(nn.Module):
    """GEGLU feed-forward; `net.1` is diffusers' dropout place, empty here."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        inner = width * factor
        self.net = nn.ModuleList(
            [GatedLinear(width, inner), nn.Identity(), nn.Linear(inner, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and, where there is a time embedding, its shift."""

    def __init__(self, in_width: int, out_width: int, time_width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_width, eps=1e-5)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, out_width) if time_width else None
        self.norm2 = GroupNorm(groups, out_width, eps=1e-5)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_width, out_width, 1) if in_width != out_width else None

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """x [B, C, H, W], time [B, T] already through SiLU, or None."""
        y = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            y = y + self.time_emb_proj(time)[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Stride-2 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbour x2, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimeEmbedding(nn.Module):
    """Timesteps [B] -> [B, T], the SiLU that every block would apply included."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.in_width = in_width
        self.linear_1 = nn.Linear(in_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timesteps: Tensor) -> Tensor:
        x = timestep_features(timesteps, self.in_width).to(self.linear_1.weight.dtype)
        return F.silu(self.linear_2(F.silu(self.linear_1(x))))
