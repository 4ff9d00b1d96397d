"""I3D (Carreira & Zisserman 2017) on RGB, trained on Kinetics-400: the network of FVD.

TensorFlow's SAME padding puts one place more at the end where the sum is odd. With sides of 224 and
a multiple of 8 frames, that is: the stem pads 2 before and 3 after, poolings with a stride reach
one place beyond the end (ceil_mode), everything else is symmetric. Batch normalisation has no
gamma and is folded into the convolutions.

Legend: B windows, C channels, T frames, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emo_cli.metrics.frozen_network import NetworkFile, fold_batch_norm, to_tensor

SIZE = 224
NUM_CLASSES = 400

Widths = tuple[int, int, int, int, int, int]

# Output channels of a block's branches: 1x1 | 1x1, 3x3 | 1x1, 3x3 | pooling, 1x1.
BLOCKS: dict[str, tuple[int, Widths]] = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


class Unit(nn.Conv3d):
    """Convolution, folded normalisation, ReLU; keeps the size unless it has a stride."""

    def __init__(self, channels: int, width: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(channels, width, kernel, stride, kernel // 2 if stride == 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1, 1):  # as a matrix product: it leaves the channels last
            x = F.linear(x.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias)
            return F.relu_(x).permute(0, 4, 1, 2, 3)
        # torch computes small convolutions channels first; pooling that is ten times slower.
        return F.relu_(super().forward(x)).contiguous(memory_format=torch.channels_last_3d)


class Block(nn.Module):
    """Four branches side by side that keep the size."""

    def __init__(self, channels: int, widths: Widths) -> None:
        super().__init__()
        direct, narrow_first, first, narrow_second, second, pooled = widths
        self.direct = Unit(channels, direct)
        self.narrow_first = Unit(channels, narrow_first)
        self.first = Unit(narrow_first, first, kernel=3)
        self.narrow_second = Unit(channels, narrow_second)
        self.second = Unit(narrow_second, second, kernel=3)
        self.pooled = Unit(channels, pooled)

    def units(self) -> dict[str, Unit]:
        """By their names in the file."""
        return {
            "Branch_0/Conv3d_0a_1x1": self.direct,
            "Branch_1/Conv3d_0a_1x1": self.narrow_first,
            "Branch_1/Conv3d_0b_3x3": self.first,
            "Branch_2/Conv3d_0a_1x1": self.narrow_second,
            "Branch_2/Conv3d_0b_3x3": self.second,
            "Branch_3/Conv3d_0b_1x1": self.pooled,
        }

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(self.narrow_first(x))
        second = self.second(self.narrow_second(x))
        pooled = self.pooled(F.max_pool3d(x, 3, stride=1, padding=1))
        return torch.cat([self.direct(x), first, second, pooled], 1)


class I3D(nn.Module):
    """Windows [B, 3, T, 224, 224] in -1..1 -> logits [B, 400], their mean over time.

    T is a multiple of 8, and 16 or more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Unit(3, 64, kernel=7, stride=2)
        self.narrow = Unit(64, 64)
        self.widen = Unit(64, 192, kernel=3)
        self.blocks = nn.ModuleDict({name: Block(*shape) for name, shape in BLOCKS.items()})
        self.logits = nn.Conv3d(1024, NUM_CLASSES, 1)

    def units(self) -> dict[str, Unit]:
        """By their names in the file."""
        found = {
            "Conv3d_1a_7x7": self.stem,
            "Conv3d_2b_1x1": self.narrow,
            "Conv3d_2c_3x3": self.widen,
        }
        for block_name, block in self.blocks.items():
            assert isinstance(block, Block)
            found |= {f"{block_name}/{name}": unit for name, unit in block.units().items()}
        return found

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(F.pad(x, (2, 3, 2, 3, 2, 3)))  # [B, 64, T/2, 112, 112]
        x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), ceil_mode=True)
        x = self.widen(self.narrow(x))  # [B, 192, T/2, 56, 56]
        x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), ceil_mode=True)  # [B, 192, T/2, 28, 28]
        for name, block in self.blocks.items():
            if name == "Mixed_4b":
                x = F.max_pool3d(x, 3, 2, ceil_mode=True)  # [B, 480, T/4, 14, 14]
            if name == "Mixed_5b":
                x = F.max_pool3d(x, 2, 2)  # [B, 832, T/8, 7, 7]
            x = block(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)  # [B, 1024, T/8 - 1, 1, 1]
        return self.logits(x).mean((2, 3, 4))


def load_i3d(path: Path) -> I3D:
    """The network with the weights of `eval/i3d.safetensors`.

    Raises: EmoError when a tensor is missing, too many or of another shape.
    """
    with torch.device("meta"):
        network = I3D()
    file = NetworkFile(path)
    for name, unit in network.units().items():
        weight, bias = fold_batch_norm(
            _channels_first(file.take(f"params/{name}/Conv_0/kernel")),
            file.take(f"batch_stats/{name}/BatchNorm_0/mean").flatten(),
            file.take(f"batch_stats/{name}/BatchNorm_0/var").flatten(),
            file.take(f"params/{name}/BatchNorm_0/bias"),
        )
        file.put(unit, weight, bias)
    last = "params/Logits/Conv3d_0c_1x1/Conv_0"
    file.put(
        network.logits, _channels_first(file.take(f"{last}/kernel")), file.take(f"{last}/bias")
    )
    file.finish()
    return network.eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _channels_first(kernel: Tensor) -> Tensor:
    return kernel.permute(4, 3, 0, 1, 2)  # flax: T, H, W, in, out


def prepare_frame(picture: np.ndarray) -> Tensor:
    """uint8 RGB [H, W, 3] of any size -> [3, 224, 224] in -1..1.

    Bilinear between the centres of pixels, without a filter before shrinking; shapes that are not
    square are squeezed.
    """
    values = F.interpolate(to_tensor(picture), (SIZE, SIZE), mode="bilinear", align_corners=False)
    return values[0] * (2 / 255) - 1


@torch.inference_mode()
def window_logits(network: I3D, windows: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """Logits [B, 400] float32 of windows of equally many prepared frames."""
    batch = torch.stack([torch.stack(list(window), 1) for window in windows])
    return network(batch.to(memory_format=torch.channels_last_3d)).numpy()
