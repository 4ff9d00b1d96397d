"""SyncNet as published: Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016.

The network and the names of its tensors are those of `syncnet_v2.model`; ReLUs, pools and batch
norms stand at the places that the names count.

Legend: `B` windows.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from emo_cli.metrics.sync_audio import MFCC_NUMBER
from emo_cli.metrics.sync_crops import FACE_SIZE

WIDTH = 512  # of both streams' ends
EMBEDDED = 1024
COUNTER = "num_batches_tracked"


class SyncNet(nn.Module):
    """Embeds five frames of a face and 0.2 s of sound; near means in time."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = _sound_stream()
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = _face_stream()

    def embed_lips(self, frames: Tensor) -> Tensor:
        """BGR pictures 0..255, float32 [B, 3, 5, 224, 224] -> [B, 1024]."""
        assert frames.shape[1:] == (3, 5, FACE_SIZE, FACE_SIZE)
        return self.netfclip(self.netcnnlip(frames).flatten(1))

    def embed_sound(self, coefficients: Tensor) -> Tensor:
        """MFCCs float32 [B, 1, 13, 20] -> [B, 1024]."""
        assert coefficients.shape[1:] == (1, MFCC_NUMBER, 20)
        return self.netfcaud(self.netcnnaud(coefficients).flatten(1))


def _sound_stream() -> nn.Sequential:
    """[B, 1, 13, 20] -> [B, 512, 1, 1]."""
    return nn.Sequential(
        *_conv2d(1, 64, 3, padding=1),
        nn.MaxPool2d(1, 1),
        *_conv2d(64, 192, 3, padding=1),
        nn.MaxPool2d(3, (1, 2)),  # [B, 192, 11, 9]
        *_conv2d(192, 384, 3, padding=1),
        *_conv2d(384, 256, 3, padding=1),
        *_conv2d(256, 256, 3, padding=1),
        nn.MaxPool2d(3, 2),  # [B, 256, 5, 4]
        *_conv2d(256, WIDTH, (5, 4)),
    )


def _face_stream() -> nn.Sequential:
    """[B, 3, 5, 224, 224] -> [B, 512, 1, 1, 1]; the first layer takes all five frames."""
    return nn.Sequential(
        *_conv3d(3, 96, (5, 7, 7), stride=(1, 2, 2)),  # [B, 96, 1, 109, 109]
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),  # 54
        *_conv3d(96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1)),  # 26
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),  # 13
        *_conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)),
        *_conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)),
        *_conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),  # 6
        *_conv3d(256, WIDTH, (1, 6, 6)),
    )


def _head() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, EMBEDDED)
    )


def _conv2d(
    before: int, width: int, kernel: int | tuple[int, int], *, padding: int = 0
) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, width, kernel, padding=padding)
    return convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)


def _conv3d(
    before: int,
    width: int,
    kernel: tuple[int, int, int],
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
) -> tuple[nn.Module, ...]:
    convolution = nn.Conv3d(before, width, kernel, stride, padding)
    return convolution, nn.BatchNorm3d(width), nn.ReLU(inplace=True)


def load_syncnet(path: Path) -> SyncNet:
    """The published weights, verified by `weights_path`, as safetensors; in evaluation mode.

    Raises: EmoError when a tensor is missing, unknown, misshapen or not finite.
    """
    from safetensors.torch import load_file

    from emo_cli.model.load import check_finite, check_keys

    # Old files of torch lack the counters of batches, which only training uses.
    tensors = {n: t.float() for n, t in load_file(path).items() if not n.endswith(COUNTER)}
    with torch.device("meta"):
        network = SyncNet()
    expected = {n: t for n, t in network.state_dict().items() if not n.endswith(COUNTER)}
    check_keys(expected, tensors, path)
    check_finite(tensors, path)
    counters = {
        name: torch.zeros((), dtype=torch.int64)
        for name in network.state_dict()
        if name.endswith(COUNTER)
    }
    network.load_state_dict(tensors | counters, assign=True)
    return network.eval().requires_grad_(False)
