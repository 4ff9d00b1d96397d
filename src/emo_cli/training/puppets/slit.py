"""Openings between two rows of points: where pixels lie in a mouth or an eye.

Legend: `B` frames, `K` points of a row, corner to corner, `P` places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InSlit:
    """`along` 0..1 from corner to corner; `over` pixels below the upper row, `under` above the
    lower row, each negative outside; all [B, P]. `width` [B, 1] from corner to corner; `across`
    [B, 1, 2] the unit vector downwards."""

    along: Tensor
    over: Tensor
    under: Tensor
    width: Tensor
    across: Tensor

    @property
    def gap(self) -> Tensor:
        return (self.over + self.under).clamp_min(0)

    def mask(self, softness: float) -> Tensor:
        """1 inside, 0 outside, [B, P]; softness in pixels."""
        between = torch.sigmoid(torch.minimum(self.over, self.under) / softness)
        return between * ((self.along > 0) & (self.along < 1))


def locate(upper: Tensor, lower: Tensor, at: Tensor) -> InSlit:
    """Where places [P, 2] or [B, P, 2] lie between two rows [B, K, 2] with the same corners."""
    start, axis = upper[:, :1], upper[:, -1:] - upper[:, :1]
    width = axis.norm(dim=-1, keepdim=True).clamp_min(1e-3)
    along = axis / width
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    u = ((at - start) * along).sum(-1) / width[..., 0]
    height = ((at - start) * across).sum(-1)
    rows = []
    for row in (upper, lower):
        places = ((row - start) * along).sum(-1) / width[..., 0]
        rows.append(_interpolate(places, ((row - start) * across).sum(-1), u))
    return InSlit(u, height - rows[0], rows[1] - height, width[..., 0], across)


def _interpolate(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Piecewise linear through (x, y) [B, K], ends held, at [B, P]."""
    value = y[:, :1].expand_as(at)
    for i in range(x.shape[1] - 1):
        step = (x[:, i + 1] - x[:, i]).clamp_min(1e-3)[:, None]
        value = (
            value + ((at - x[:, i : i + 1]) / step).clamp(0, 1) * (y[:, i + 1] - y[:, i])[:, None]
        )
    return value
