"""Coordinates along a mouth or an eye, and the shapes by which moves fade.

Shapes: B clips, F frames, S side of the picture in pixels; x right, y down.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from emo_cli.face_points import LEAST


class Axes(NamedTuple):
    """Coordinates along a line between two corners: 1 is half of it; and down from it in pixels."""

    centre: Tensor
    along: Tensor
    down: Tensor
    half: Tensor

    def places(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Where places [..., 2] lie, along, 1 at a corner, and down, in pixels."""
        beside = at - self.centre
        return (beside * self.along).sum(-1) / self.half, (beside * self.down).sum(-1)

    def height(self, point: Tensor) -> Tensor:
        """Down from the line between the corners, in pixels."""
        return ((point - self.centre) * self.down).sum(-1)


def axes_of(left: Tensor, right: Tensor, down: Tensor) -> Axes:
    """From the corners, each [..., 2]; down: about which way that is, towards the chin."""
    half = ((right - left).norm(dim=-1) / 2).clamp_min(LEAST)
    along = (right - left) / (2 * half)[..., None]
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    across = across * torch.where((across * down).sum(-1, keepdim=True) < 0, -1, 1)
    return Axes((left + right) / 2, along, across, half)


def bow_of(x: Tensor) -> Tensor:
    """1 in the middle of a mouth or an eye, 0 at its corners and beyond."""
    return (1 - x.square()).clamp_min(0)


def smooth(share: Tensor) -> Tensor:
    """From 0 to 1, level at both ends."""
    share = share.clamp(0, 1)
    return share * share * (3 - 2 * share)
