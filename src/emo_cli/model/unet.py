"""The U-Net walk of SD 1.5, shared by Backbone and ReferenceNet, with diffusers' key names.

The two networks differ only in what stands behind a residual block: the Backbone's layers read
the conditions of their place, ReferenceNet's hand out features. Each network says how to build
its layers (`Layers`) and, at every walk, how to run them (`Visit`).

Shapes: B pictures (frames folded in), C channels, H W latent size, T time width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emo_cli.config import UNetConfig
from emo_cli.model.layers import Downsample, ResnetBlock, TimeEmbedding, Upsample

MIDDLE = -1  # the level of the middle block: as wide as the coarsest one


class Layers(NamedTuple):
    """Builds what stands behind a residual block of a level, or nothing."""

    spatial: Callable[[int], nn.Module | None]
    temporal: Callable[[int], nn.Module | None]


class Visit(NamedTuple):
    """Runs a layer on x [B, C, H, W] with what belongs to its place."""

    spatial: Callable[[nn.Module, Tensor], Tensor]
    temporal: Callable[[nn.Module, Tensor], Tensor]


def _present(layers: list[nn.Module | None]) -> nn.ModuleList:
    return nn.ModuleList(layer for layer in layers if layer is not None)


class Block(nn.Module):
    """Residual blocks of one level, each with its spatial and its temporal layer."""

    def __init__(
        self,
        widths: list[tuple[int, int]],
        level: int,
        layers: Layers,
        groups: int,
        time_width: int,
        resample: nn.Module | None,
        *,
        up: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(i, o, time_width, groups) for i, o in widths)
        self.attentions = _present([layers.spatial(level) for _ in widths])
        self.motion_modules = _present([layers.temporal(level) for _ in widths])
        if resample is not None:
            setattr(self, "upsamplers" if up else "downsamplers", nn.ModuleList([resample]))

    def __len__(self) -> int:
        return len(self.resnets)

    def layer(self, index: int, x: Tensor, time: Tensor | None, visit: Visit) -> Tensor:
        """Residual block `index` and the layers behind it."""
        x = self.resnets[index](x, time)
        if len(self.attentions):
            x = visit.spatial(self.attentions[index], x)
        if len(self.motion_modules):
            x = visit.temporal(self.motion_modules[index], x)
        return x


class MiddleBlock(nn.Module):
    """Residual, attention, temporal, residual: the order of SD 1.5 and AnimateDiff."""

    def __init__(self, width: int, layers: Layers, groups: int, time_width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(width, width, time_width, groups) for _ in range(2)
        )
        self.attentions = _present([layers.spatial(MIDDLE)])
        self.motion_modules = _present([layers.temporal(MIDDLE)])

    def forward(self, x: Tensor, time: Tensor | None, visit: Visit) -> Tensor:
        x = self.resnets[0](x, time)
        x = visit.spatial(self.attentions[0], x)
        for module in self.motion_modules:
            x = visit.temporal(module, x)
        return self.resnets[1](x, time)


class UNet(nn.Module):
    """Down, middle, up. Subclasses add conditions and output.

    recompute: for training in less memory, layers are computed again on the way back (gradient
    checkpointing); only for visits that leave nothing behind, as the Backbone's do.
    """

    recompute = False

    def __init__(
        self, config: UNetConfig, in_channels: int, layers: Layers, *, has_time: bool
    ) -> None:
        super().__init__()
        widths, count, groups = config.widths, config.layers_per_block, config.norm_groups
        time_width = config.time_width if has_time else 0
        if has_time:
            self.time_embedding = TimeEmbedding(widths[0], time_width)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)

        last = len(widths) - 1
        self.down_blocks = nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            shapes = [(width, out)] + [(out, out)] * (count - 1)
            down = Downsample(out) if level < last else None
            block = Block(shapes, level, layers, groups, time_width, down, up=False)
            self.down_blocks.append(block)
            skips += [out] * (count + (level < last))
            width = out

        self.mid_block = MiddleBlock(width, layers, groups, time_width)

        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            shapes = []
            for _ in range(count + 1):
                shapes.append((width + skips.pop(), widths[level]))
                width = widths[level]
            up = Upsample(width) if level > 0 else None
            self.up_blocks.append(Block(shapes, level, layers, groups, time_width, up, up=True))

    def _layer(
        self, block: Block, index: int, x: Tensor, time: Tensor | None, visit: Visit
    ) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(
                block.layer, index, x, time, visit, use_reentrant=False, preserve_rng_state=False
            )
        return block.layer(index, x, time, visit)

    @staticmethod
    def _blocks(blocks: nn.ModuleList) -> list[Block]:
        return cast(list[Block], list(blocks))

    def walk(self, x: Tensor, time: Tensor | None, visit: Visit) -> Tensor:
        """x [B, C, H, W] and time [B, T] -> [B, widths[0], H, W]."""
        return self.walk_keeping(x, time, visit, layers=0)[0]

    def walk_keeping(
        self, x: Tensor, time: Tensor | None, visit: Visit, *, layers: int
    ) -> tuple[Tensor, Tensor]:
        """The whole walk, and what went into its last `layers` layers: the deep feature."""
        skips = list(self._down(x, time, visit))
        x = self.mid_block(skips[-1], time, visit)
        deep = self._up(x, skips[layers:], time, visit, behind=layers)
        return self._up(deep, skips[:layers], time, visit), deep

    def walk_reusing(
        self, x: Tensor, time: Tensor | None, visit: Visit, deep: Tensor, *, layers: int
    ) -> Tensor:
        """The last `layers` layers alone and what they take from the way down (DeepCache)."""
        skips = list(islice(self._down(x, time, visit), layers))
        return self._up(deep, skips, time, visit)

    def _down(self, x: Tensor, time: Tensor | None, visit: Visit) -> Iterator[Tensor]:
        """What each step down leaves for the way up, made as it is asked for."""
        x = self.conv_in(x)
        yield x
        for block in self._blocks(self.down_blocks):
            for index in range(len(block)):
                x = self._layer(block, index, x, time, visit)
                yield x
            for down in getattr(block, "downsamplers", ()):
                x = down(x)
                yield x

    def _up(
        self, x: Tensor, skips: list[Tensor], time: Tensor | None, visit: Visit, behind: int = 0
    ) -> Tensor:
        """As many layers of the way up as there are skips, in front of the `behind` last ones."""
        places = [(b, i) for b in self._blocks(self.up_blocks) for i in range(len(b))]
        last = len(places) - behind
        for block, index in places[last - len(skips) : last]:
            x = self._layer(block, index, torch.cat([x, skips.pop()], 1), time, visit)
            if index == len(block) - 1:
                for up in getattr(block, "upsamplers", ()):
                    x = up(x)
        return x
