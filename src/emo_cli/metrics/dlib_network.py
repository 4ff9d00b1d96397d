"""dlib's face recognition network in torch, for many faces at once: 29 convolutions, 128 numbers.

The network and its weights are Davis King's (CC0): see dlib's dnn_face_recognition_ex.cpp. dlib's
own runs one face in 0.1 s on a CPU core; this one reads the same file and takes a fraction of it.

Legend: `B` faces, `S` = 150 the side of a face picture, `C` channels, `h w` of a map.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from emo_cli.errors import EmoError

SIDE = 150  # px: faces that the network takes
WIDTH = 128  # numbers that describe a face
MEAN = (122.782, 117.001, 104.298)  # of R, G, B in its training pictures
SCALE = 256.0
# Residual blocks of each width, in order; the first of a later width halves the map.
LEVELS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
# The layers that hold weights, as dlib's file names them: a byte 1, the length, the text.
NAMES = re.compile(rb"\x01(?:\x05(?=con_4)|\x07(?=affine_)|\x04(?=fc_2))(con_4|affine_|fc_2)")
TENSOR_VERSION = 2


class DlibFaceNetwork(nn.Module):
    """Faces as dlib's chips show them -> descriptors that lie within 0.6 for the same person."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, size=7, stride=2)
        blocks: list[Residual] = []
        width = 32
        for number, (level_width, count) in enumerate(LEVELS):
            for place in range(count):
                down = number > 0 and place == 0
                blocks.append(Residual(width, level_width, down=down))
                width = level_width
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, WIDTH, bias=False)

    def forward(self, faces: Tensor) -> Tensor:
        """faces [B, 3, S, S] in 0..255 -> descriptors [B, 128]."""
        x = (faces - faces.new_tensor(MEAN)[:, None, None]) / SCALE
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Convolution(nn.Module):
    """A convolution and the scale and shift that dlib keeps of its batch normalisation."""

    def __init__(self, inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        padding = size // 2 if stride == 1 else 0  # dlib's rule
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding)
        self.gain = nn.Parameter(torch.empty(outputs))
        self.shift = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        return self.conv(x) * self.gain[:, None, None] + self.shift[:, None, None]


class Residual(nn.Module):
    """Two convolutions beside the input itself, or beside its 2x2 means where the map halves."""

    def __init__(self, inputs: int, outputs: int, *, down: bool) -> None:
        super().__init__()
        self.first = Convolution(inputs, outputs, stride=2 if down else 1)
        self.second = Convolution(outputs, outputs)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        y = self.second(functional.relu(self.first(x)))
        beside = functional.avg_pool2d(x, 2, 2) if self.down else x
        return functional.relu(add_padded(y, beside))


def add_padded(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two maps, each with zeros behind its last channel, row and column as needed."""
    size = [max(pair) for pair in zip(a.shape[1:], b.shape[1:], strict=True)]
    return _padded(a, size) + _padded(b, size)


def _padded(x: Tensor, size: list[int]) -> Tensor:
    channels, height, width = (want - have for want, have in zip(size, x.shape[1:], strict=True))
    return functional.pad(x, (0, width, 0, height, 0, channels))


def load_face_network(path: Path) -> DlibFaceNetwork:
    """The network with the weights of `dlib_face_recognition_resnet_model_v1.dat`.

    Raises: EmoError when the file holds other layers than this network has.
    """
    network = DlibFaceNetwork()
    convolutions = [m for m in network.modules() if isinstance(m, Convolution)]
    try:
        layers = list(read_layers(path.read_bytes()))
        names = [name for name, _ in layers]
        if names != [b"con_4", b"affine_"] * len(convolutions) + [b"fc_2"]:
            raise ValueError(f"its {len(names)} layers are not those of the network")
        values = [torch.from_numpy(weights) for _, weights in layers]
        for convolution, weights, affine in zip(
            convolutions, values[:-1:2], values[1::2], strict=True
        ):
            _fill([convolution.conv.weight, _bias(convolution.conv)], weights)
            _fill([convolution.gain, convolution.shift], affine)
        # dlib multiplies rows by a [256, 128] matrix.
        _fill([network.head.weight], values[-1].view(-1, WIDTH).T.reshape(-1))
    except (ValueError, IndexError, RuntimeError) as error:
        raise EmoError(
            f"{path.name} is not dlib's face recognition network: {error}",
            "Run `emo download eval`: it fetches the file again.",
        ) from error
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _fill(parameters: list[Tensor], values: Tensor) -> None:
    counts = [parameter.numel() for parameter in parameters]
    with torch.no_grad():
        for parameter, part in zip(parameters, values.split(counts), strict=True):
            parameter.copy_(part.view_as(parameter))


def read_layers(data: bytes) -> Iterator[tuple[bytes, np.ndarray]]:
    """Names and weights (flat, float32) of a dlib network's layers, from the input on.

    dlib writes a layer's name, for `fc_2` its two widths, and then all its weights as one tensor.
    What lies between the layers (rates, gradients, the state of a training) is passed over.
    Raises: ValueError or IndexError when something else follows a name.
    """
    position = 0
    while found := NAMES.search(data, position):
        position = found.end()
        for _ in range(2 if found[1] == b"fc_2" else 0):
            _, position = _integer(data, position)
        weights, position = _tensor(data, position)
        yield found[1], weights


def _integer(data: bytes, position: int) -> tuple[int, int]:
    """dlib's packed integer: a byte with the sign and the count, and so many bytes, low first."""
    control = data[position]
    end = position + 1 + (control & 0x0F)
    value = int.from_bytes(data[position + 1 : end], "little")
    return (-value if control & 0x80 else value), end


def _tensor(data: bytes, position: int) -> tuple[np.ndarray, int]:
    version, position = _integer(data, position)
    if version != TENSOR_VERSION:
        raise ValueError(f"a tensor of version {version}")
    count = 1
    for _ in range(4):
        size, position = _integer(data, position)
        count *= size
    end = position + 4 * count
    if count < 1 or end > len(data):
        raise ValueError(f"a tensor of {count} numbers does not fit")
    return np.frombuffer(data[position:end], "<f4").astype(np.float32), end
