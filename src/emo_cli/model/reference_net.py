"""ReferenceNet: features of the portrait and of the motion frames (EMO sec. 3.2).

Same structure and SD weights as the Backbone, at timestep 0, without cross-attention. The
portrait's features are taken at the self-attention outputs, the motion frames' at the inputs of
the temporal layers. The pictures of a batch do not see each other, so the portrait's pass is made
once per video and the motion frames' once per clip; together they are the paper's one pass.

Shapes: B portraits, M motion frames, C channels, H W latent size, N = H*W tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from emo_cli.config import UNetConfig
from emo_cli.model.layers import fold_frames, unfold_frames
from emo_cli.model.spatial import ReferenceBlock, ReferenceTransformer
from emo_cli.model.unet import MIDDLE, Layers, UNet, Visit


class ReferenceFeatures(NamedTuple):
    """One entry per layer, in the order of the walk."""

    reference: list[Tensor]  # [B, N, C] at self-attention outputs
    motion: list[Tensor]  # [B, C, H, W] at temporal inputs


class ReferenceNet(UNet):
    """What lies behind its last tapped layer (conv_norm_out, conv_out) is left out."""

    def __init__(self, config: UNetConfig, latent_channels: int) -> None:
        layers = Layers(
            spatial=lambda level: _spatial(config, level),
            temporal=lambda level: nn.Identity() if has_temporal(config, level) else None,
        )
        super().__init__(config, latent_channels, layers, has_time=config.reference_time)

    def forward(self, latents: Tensor) -> ReferenceFeatures:
        """latents [B, C, H, W] -> features of every layer."""
        features = ReferenceFeatures([], [])

        def spatial(layer: nn.Module, x: Tensor) -> Tensor:
            x, feature = layer(x)
            features.reference.append(feature)
            return x

        def temporal(layer: nn.Module, x: Tensor) -> Tensor:
            features.motion.append(x)
            return x

        time = None
        if hasattr(self, "time_embedding"):
            time = self.time_embedding(torch.zeros(len(latents), device=latents.device))
        self.walk(latents, time, Visit(spatial, temporal))
        return features

    def portrait_features(self, latents: Tensor) -> list[Tensor]:
        """Portrait latents [B, C, H, W] -> reference features [B, N, C] per spatial layer."""
        return self(latents).reference

    def motion_features(self, latents: Tensor) -> list[Tensor]:
        """Motion latents [B, M, C, H, W] -> maps [B, M, C', H', W'] per temporal layer."""
        frames = latents.shape[1]
        maps = self(fold_frames(latents)).motion
        return [unfold_frames(x, frames) for x in maps]


def motion_only(config: UNetConfig, latent_channels: int) -> list[str]:
    """Names of the parameters behind the last reference feature: only motion frames need them."""
    side = 2 ** len(config.widths)
    with torch.device("meta"):  # shapes without values
        network = ReferenceNet(config, latent_channels)
        features = network.portrait_features(torch.empty(1, latent_channels, side, side))
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(
        features, list(parameters.values()), grad_outputs=features, allow_unused=True
    )
    return [name for name, seen in zip(parameters, gradients, strict=True) if seen is None]


def has_temporal(config: UNetConfig, level: int) -> bool:
    """Whether temporal modules stand on this level."""
    return config.temporal_in_middle if level == MIDDLE else config.temporal[level]


def has_spatial(config: UNetConfig, level: int) -> bool:
    """Whether a spatial transformer stands on this level; SD's middle always has one."""
    return level == MIDDLE or config.attention[level]


def _spatial(config: UNetConfig, level: int) -> nn.Module | None:
    if not has_spatial(config, level):
        return None
    width, heads = config.widths[level], config.heads[level]
    itself = level == MIDDLE or config.self_attention[level]
    block = ReferenceBlock(width, heads, config.feed_forward_factor, itself)
    return ReferenceTransformer(width, config.norm_groups, block)
