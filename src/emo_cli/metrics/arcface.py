"""ArcFace's face network, for users who have its weights: an IResNet as InsightFace publishes it.

Deng et al., "ArcFace" (2019); the layout of `backbone.pth` in InsightFace's arcface_torch, of any
depth (r18 to r200): its depth is read off the file. Faces are turned and scaled until five points
(eyes, nose, corners of the mouth) lie where those networks were trained to have them.

Legend: B faces, S = 112 the side of a face picture, C channels, h w of a map.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from emo_cli.errors import EmoError
from emo_cli.metrics.deep3d import POINT_LANDMARKS

SIDE = 112
WIDTHS = (64, 128, 256, 512)
DESCRIPTOR = 512
# The five points in a face picture: pixels, of which (0, 0) is the middle of the first.
TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)


class Block(nn.Module):
    """Two convolutions between normalisations, added to the input; no nonlinearity behind."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != width:
            shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + shortcut


class IResNet(nn.Module):
    """InsightFace's network, parameter for parameter; `depths`: blocks of its four levels."""

    def __init__(self, depths: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        pairs = itertools.pairwise((WIDTHS[0], *WIDTHS))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                Block(channels, width, 2), *(Block(width, width, 1) for _ in range(depth - 1))
            )
            for (channels, width), depth in zip(pairs, depths, strict=True)
        )
        self.bn2 = nn.BatchNorm2d(WIDTHS[-1])
        self.fc = nn.Linear(WIDTHS[-1] * (SIDE // 16) ** 2, DESCRIPTOR)
        self.features = nn.BatchNorm1d(DESCRIPTOR)

    def forward(self, faces: Tensor) -> Tensor:
        """faces [B, 3, S, S] in 0..255 -> descriptors [B, 512]."""
        x = self.prelu(self.bn1(self.conv1(faces / 127.5 - 1)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


def load_arcface(path: Path) -> IResNet:
    """The network of a checkpoint, opened with `weights_only=True`.

    Raises: EmoError when the file holds anything but the tensors of an IResNet.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(values, dict):
            raise ValueError("it holds no weights by name")
        depths = [
            len({name.split(".")[1] for name in values if name.startswith(f"layer{level}.")})
            for level in range(1, 5)
        ]
        with torch.device("meta"):
            network = IResNet(depths)
        network.load_state_dict(values, assign=True)
    except (pickle.UnpicklingError, OSError, EOFError, ValueError, RuntimeError) as error:
        raise EmoError(
            f"{path} is no ArcFace network: {str(error).splitlines()[0]}",
            "It should be backbone.pth of an IResNet of InsightFace's arcface_torch.",
        ) from error
    return network.float().eval().requires_grad_(False)


def align_face(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The face [S, S, 3] uint8 of a picture [H, W, 3] uint8, given MediaPipe's [478, 3]."""
    points = [landmarks[list(group), :2].mean(0) for group in POINT_LANDMARKS]
    # PIL asks for each place in the result where it lies in the picture; pixels are squares to it.
    matrix = fit_similarity(TEMPLATE + 0.5, np.array(points, np.float64))
    image = Image.fromarray(np.ascontiguousarray(picture))
    place = image.transform(
        (SIDE, SIDE),
        Image.Transform.AFFINE,
        tuple(matrix.reshape(-1)),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(place)


def fit_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and shift [2, 3] that bring points [N, 2] nearest to others."""
    centre, goal = source.mean(0), target.mean(0)
    a, b = (source - centre) @ (1, 1j), (target - goal) @ (1, 1j)  # a turn and a scale: one factor
    factor = (a.conj() @ b) / (a.conj() @ a).real
    turn = np.array([(factor.real, -factor.imag), (factor.imag, factor.real)])
    return np.column_stack([turn, goal - turn @ centre])
