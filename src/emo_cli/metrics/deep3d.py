"""3D face reconstruction of Deng et al. 2019: a ResNet-50 that reads 257 coefficients off a face.

"Accurate 3D Face Reconstruction with Weakly-Supervised Learning", in the layout of the authors'
PyTorch checkpoint `epoch_20.pth` (key `net_recon`): `backbone`, a ResNet-50 with its stride in the
3 x 3 convolutions, and `final_layers`, seven 1 x 1 convolutions for identity 80, expression 64,
texture 80, angles 3, light 27, shift 2 and depth 1. Coefficients 80..144 are the expression.

Faces are put in place as the authors do it: five points (eyes, nose, corners of the mouth) are
fitted to those of an average head by a scaled orthographic projection, whose scale and shift set a
crop of 224 x 224. The points come from MediaPipe's landmarks, where the authors use a detector of
their own.

Legend: B faces, C channels, H W height and width.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from emo_cli.errors import EmoError

SIZE = 224
HEADS = (80, 64, 80, 3, 27, 2, 1)
EXPRESSION_HEAD = 1
EXPANSION = 4

# Eye, eye, nose, mouth corner, mouth corner, from left to right in the picture: x right, y up, z
# towards the viewer, in the reconstruction's unit (about a decimetre).
AVERAGE_POINTS = np.array(
    [
        (-0.311, 0.290, 0.134),
        (0.310, 0.290, 0.132),
        (0.003, -0.046, 0.552),
        (-0.252, -0.381, 0.224),
        (0.248, -0.381, 0.222),
    ]
)
UNIT_PIXELS = 102.0  # one such unit in a crop
# MediaPipe's landmarks of each point: the mean of an eye's two corners, tip, corner, corner.
POINT_LANDMARKS = ((33, 133), (362, 263), (1,), (61,), (291,))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1, beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != out:
            shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def stage(channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    """Blocks of one size; the first may halve the picture."""
    rest = [Bottleneck(width * EXPANSION, width, 1) for _ in range(count - 1)]
    return nn.Sequential(Bottleneck(channels, width, stride), *rest)


class ResNet50(nn.Module):
    """Pictures [B, 3, H, W] -> [B, 32 * width, 1, 1], without a classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(width, width, 3, stride=1)
        self.layer2 = stage(4 * width, 2 * width, 4, stride=2)
        self.layer3 = stage(8 * width, 4 * width, 6, stride=2)
        self.layer4 = stage(16 * width, 8 * width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3), keepdim=True)


class Deep3D(nn.Module):
    """Aligned faces [B, 3, 224, 224] in 0..1 -> coefficients [B, 257]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.backbone = ResNet50(width)
        self.final_layers = nn.ModuleList(nn.Conv2d(32 * width, size, 1) for size in HEADS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)
        return torch.cat([layer(x) for layer in self.final_layers], 1).flatten(1)


def load_deep3d(path: Path, *, width: int = 64) -> Deep3D:
    """The network with the weights of a checkpoint, read with `weights_only=True`.

    Raises: EmoError when the file is of another kind, or a tensor is missing, too many or of
    another shape.
    """
    network = Deep3D(width)
    try:
        network.load_state_dict(torch.load(path, weights_only=True)["net_recon"], strict=True)
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise EmoError(
            f"{path} is no checkpoint of Deep3DFaceRecon_pytorch: {str(error).splitlines()[0]}",
            "Its file epoch_20.pth is the one: a dict with 'net_recon'.",
        ) from error
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def align_face(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Crop [224, 224, 3] uint8 of a picture [H, W, 3], around landmarks [478, 3] in its pixels.

    What lies outside the picture is black.
    """
    points = np.array([landmarks[list(which), :2].mean(0) for which in POINT_LANDMARKS])
    (x, y), scale = fit_average_head(points)
    side = SIZE * scale / UNIT_PIXELS
    left, top = x - side / 2, y - side / 2
    x0, y0 = math.floor(left), math.floor(top)
    part = Image.fromarray(picture).crop((x0, y0, math.ceil(left + side), math.ceil(top + side)))
    box = (left - x0, top - y0, left - x0 + side, top - y0 + side)
    return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box))


def fit_average_head(points: np.ndarray) -> tuple[tuple[float, float], float]:
    """Where the average head's origin falls for five points [5, 2] in pixels, y down, and how many
    pixels its unit has: least squares of a projection by two free rows."""
    model = np.column_stack([AVERAGE_POINTS * (1, -1, 1), np.ones(len(AVERAGE_POINTS))])
    rows = np.linalg.lstsq(model, points, rcond=None)[0]  # [4, 2]
    scale = np.linalg.norm(rows[:3], axis=0).mean()
    return (float(rows[3, 0]), float(rows[3, 1])), float(scale)


@torch.inference_mode()
def expression_coefficients(network: Deep3D, crops: Sequence[np.ndarray]) -> np.ndarray:
    """Expression [B, 64] float32 of aligned faces, uint8 [224, 224, 3] each."""
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    coefficients = network(batch.contiguous(memory_format=torch.channels_last))
    first = sum(HEADS[:EXPRESSION_HEAD])
    return coefficients[:, first : first + HEADS[EXPRESSION_HEAD]].numpy()
