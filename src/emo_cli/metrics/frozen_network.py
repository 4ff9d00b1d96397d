"""Published networks as the metrics use them: read strictly, folded, never trained.

Every convolution of these networks is followed by a batch normalisation whose statistics are
fixed, so the two become one convolution when the file is read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emo_cli.errors import EmoError

BATCH_NORM_EPS = 1e-3  # of Inception and I3D alike


class NetworkFile:
    """The tensors of a safetensors file, each to be taken once."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self._path = path
        try:
            self._tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise EmoError(
                f"{path} cannot be read: {error}", "Run `emo download eval`: it fetches it again."
            ) from error

    def take(self, name: str) -> Tensor:
        """Raises: EmoError when the file has no such tensor, or gave it before."""
        if name not in self._tensors:
            raise self._wrong(f"has no '{name}'")
        return self._tensors.pop(name)

    def put(self, layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
        """Fill a convolution that was built on the meta device.

        Raises: EmoError when a shape does not fit.
        """
        for name, value in (("weight", weight), ("bias", bias)):
            expected = layer.get_parameter(name).shape
            if value.shape != expected:
                raise self._wrong(f"has {name}s of {list(value.shape)}, not {list(expected)}")
            if not value.isfinite().all():
                raise self._wrong("has values that are not finite")
            setattr(layer, name, nn.Parameter(value.contiguous(), requires_grad=False))

    def finish(self) -> None:
        """Raises: EmoError when a tensor was not taken."""
        if self._tensors:
            raise self._wrong(f"has '{min(self._tensors)}' too, which the network does not know")

    def _wrong(self, problem: str) -> EmoError:
        return EmoError(
            f"{self._path} is not the network it should be: it {problem}",
            "Run `emo download eval`: it fetches the file again.",
        )


def fold_batch_norm(
    kernel: Tensor, mean: Tensor, variance: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution for kernel [O, I, ...] and the normalisation after it.

    These networks have no gamma.
    """
    scale = (variance.double() + BATCH_NORM_EPS).rsqrt()
    weight = kernel.double() * scale.reshape(-1, *[1] * (kernel.ndim - 1))
    return weight.float(), (beta.double() - mean.double() * scale).float()


def to_tensor(picture: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float [1, 3, H, W] in 0..255."""
    return torch.tensor(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
