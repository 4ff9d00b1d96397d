"""Inception of 2015-12-05, the network of FID, up to its last average pooling (`pool3`).

TensorFlow's graph as Heusel et al. 2017 use it. It is not the Inception v3 of other libraries:
average pooling leaves the padding out of its mean, the last block pools by maximum, and batch
normalisation has no gamma (it is folded into the convolutions). Parameters have the names of the
file, without its prefix.

Legend: B pictures, C channels, H W height and width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emo_cli.metrics.frozen_network import NetworkFile, fold_batch_norm, to_tensor

SIZE = 299
WIDTH = 2048
PREFIX = "net.layers."

Kernel = int | tuple[int, int]
Layers = Sequence[tuple[int, Kernel]]  # output channels and kernel of each convolution


class ConvReLU(nn.Conv2d):
    """Convolution, folded normalisation, ReLU; keeps the size where it is padded."""

    def __init__(
        self, channels: int, width: int, kernel: Kernel, *, stride: int = 1, padded: bool = True
    ) -> None:
        height, breadth = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, breadth // 2) if padded else (0, 0)
        super().__init__(channels, width, (height, breadth), stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(super().forward(x))


def tower(channels: int, layers: Layers, *, halves: bool = False) -> nn.Sequential:
    """Convolutions one after the other, named conv, conv_1, conv_2 ... as in the file."""
    named: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (width, kernel) in enumerate(layers):
        name = f"conv_{index}" if index else "conv"
        last = halves and index == len(layers) - 1
        named[name] = ConvReLU(channels, width, kernel, stride=2 if last else 1, padded=not last)
        channels = width
    return nn.Sequential(named)


def average_pool(x: Tensor) -> Tensor:
    """TensorFlow's: padded places do not count."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Mixed(nn.Module):
    """Four branches side by side that keep the size."""

    def __init__(self, channels: int, direct: int, first: Layers, second: Layers, pooled: int):
        super().__init__()
        self.conv = ConvReLU(channels, direct, 1)
        self.tower = tower(channels, first)
        self.tower_1 = tower(channels, second)
        self.tower_2 = tower(channels, [(pooled, 1)])

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(average_pool(x))]
        return torch.cat(branches, 1)


class HalvingAfter35(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvReLU(channels, 384, 3, stride=2, padded=False)
        self.tower = tower(channels, [(64, 1), (96, 3), (96, 3)], halves=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), F.max_pool2d(x, 3, 2)], 1)


class HalvingAfter17(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tower = tower(channels, [(192, 1), (320, 3)], halves=True)
        layers: Layers = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]
        self.tower_1 = tower(channels, layers, halves=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tower(x), self.tower_1(x), F.max_pool2d(x, 3, 2)], 1)


class Forked(nn.Module):
    """The 8 x 8 blocks, two of whose branches end in a row and a column of three."""

    def __init__(self, channels: int, *, max_pooled: bool) -> None:
        super().__init__()
        self.max_pooled = max_pooled
        self.conv = ConvReLU(channels, 320, 1)
        self.tower_conv = ConvReLU(channels, 384, 1)
        self.tower_mixed_conv = ConvReLU(384, 384, (1, 3))
        self.tower_mixed_conv_1 = ConvReLU(384, 384, (3, 1))
        self.tower_1_conv = ConvReLU(channels, 448, 1)
        self.tower_1_conv_1 = ConvReLU(448, 384, 3)
        self.tower_1_mixed_conv = ConvReLU(384, 384, (1, 3))
        self.tower_1_mixed_conv_1 = ConvReLU(384, 384, (3, 1))
        self.tower_2_conv = ConvReLU(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.tower_conv(x)
        second = self.tower_1_conv_1(self.tower_1_conv(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pooled else average_pool(x)
        branches = [
            self.conv(x),
            self.tower_mixed_conv(first),
            self.tower_mixed_conv_1(first),
            self.tower_1_mixed_conv(second),
            self.tower_1_mixed_conv_1(second),
            self.tower_2_conv(pooled),
        ]
        return torch.cat(branches, 1)


def mixed_35(channels: int, pooled: int) -> Mixed:
    """35 x 35: 64 + 64 + 96 + `pooled` channels."""
    return Mixed(channels, 64, [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)], pooled)


def mixed_17(channels: int, inner: int) -> Mixed:
    """17 x 17: four times 192 channels, squares of seven taken apart into rows and columns."""
    row, column = (1, 7), (7, 1)
    first: Layers = [(inner, 1), (inner, row), (192, column)]
    second: Layers = [(inner, 1), (inner, column), (inner, row), (inner, column), (192, row)]
    return Mixed(channels, 192, first, second, 192)


class Inception(nn.Module):
    """Pictures [B, 3, 299, 299] in -1..1 -> pool3 features [B, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvReLU(3, 32, 3, stride=2, padded=False)
        self.conv_1 = ConvReLU(32, 32, 3, padded=False)
        self.conv_2 = ConvReLU(32, 64, 3)
        self.conv_3 = ConvReLU(64, 80, 1)
        self.conv_4 = ConvReLU(80, 192, 3, padded=False)
        self.mixed = mixed_35(192, 32)
        self.mixed_1 = mixed_35(256, 64)
        self.mixed_2 = mixed_35(288, 64)
        self.mixed_3 = HalvingAfter35(288)
        self.mixed_4 = mixed_17(768, 128)
        self.mixed_5 = mixed_17(768, 160)
        self.mixed_6 = mixed_17(768, 160)
        self.mixed_7 = mixed_17(768, 192)
        self.mixed_8 = HalvingAfter17(768)
        self.mixed_9 = Forked(1280, max_pooled=False)
        self.mixed_10 = Forked(2048, max_pooled=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_2(self.conv_1(self.conv(x)))  # [B, 64, 147, 147]
        x = F.max_pool2d(x, 3, 2)
        x = self.conv_4(self.conv_3(x))  # [B, 192, 71, 71]
        x = F.max_pool2d(x, 3, 2)
        x = self.mixed_2(self.mixed_1(self.mixed(x)))  # [B, 288, 35, 35]
        x = self.mixed_3(x)
        x = self.mixed_7(self.mixed_6(self.mixed_5(self.mixed_4(x))))  # [B, 768, 17, 17]
        x = self.mixed_10(self.mixed_9(self.mixed_8(x)))  # [B, 2048, 8, 8]
        return x.mean((2, 3))


def load_inception(path: Path) -> Inception:
    """The network with the weights of `eval/inception.safetensors`.

    Raises: EmoError when a tensor is missing, too many or of another shape.
    """
    with torch.device("meta"):
        network = Inception()
    file = NetworkFile(path)
    for name, layer in network.named_modules():
        if isinstance(layer, ConvReLU):
            parts = ("weight", "mean", "var", "beta")
            tensors = [file.take(f"{PREFIX}{name}.{part}") for part in parts]
            file.put(layer, *fold_batch_norm(*tensors))
    file.finish()
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def prepare_picture(picture: np.ndarray) -> Tensor:
    """uint8 RGB [H, W, 3] of any size -> [1, 3, 299, 299] in -1..1, as pytorch-fid does it.

    Bilinear between the centres of pixels, without a filter before shrinking; shapes that are not
    square are squeezed.
    """
    values = to_tensor(picture) / 255
    values = F.interpolate(values, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return 2 * values - 1


@torch.inference_mode()
def pool3_features(network: Inception, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Features [B, 2048] float32 of uint8 RGB pictures [H, W, 3] of any size, one or more."""
    batch = torch.cat([prepare_picture(picture) for picture in pictures])
    return network(batch.to(memory_format=torch.channels_last)).numpy()
