"""A small z-buffer in torch: which triangle each pixel shows, exactly, on any device.

Legend: `B` frames, `V` points, `N` triangles, `S` side of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

DEPTH_STEPS = 1 << 20  # of z, from DEEPEST picture sides before the picture to as far behind it
DEEPEST = 4.0
EDGE = 1e-4  # pixels on a shared edge belong to both its triangles, and are drawn by one


def rasterise(points: Tensor, triangles: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The nearest triangle at every pixel's centre, and where in it the centre lies.

    points [B, V, 3] pixels, z away; triangles [N, 3]. Returns the triangle's number, -1 for none
    [B, S, S] int64, and the weights of its corners [B, S, S, 3].
    """
    batch, count = len(points), len(triangles)
    corners = points[:, triangles].reshape(batch * count, 3, 3)  # [B * N, corner, xyz]
    low, high = corners[..., :2].amin(1), corners[..., :2].amax(1)
    first = (low - 0.5).ceil().clamp(0, size)
    span = ((high - 0.5).floor().clamp(-1, size - 1) - first + 1).amax(1)
    winner = torch.full((batch * size * size,), torch.iinfo(torch.int64).max, device=points.device)
    edge = 1
    while edge // 2 < size:  # triangles of like size together: 1, 2, 3..4, 5..8, ... pixels
        chosen = ((span > edge // 2) & (span <= edge)).nonzero()[:, 0]
        if len(chosen):
            pixels, keys = _candidates(corners[chosen], first[chosen], edge, size)
            owner = chosen[keys[1]]
            key = keys[0] * (batch * count) + owner
            place = owner // count * size * size + pixels
            winner.scatter_reduce_(0, place, key, "amin")
        edge *= 2
    shown = winner < torch.iinfo(torch.int64).max
    number = torch.where(shown, winner % (batch * count), 0)
    weights = _barycentric(corners[number], _centres(size, points).repeat(batch, 1))
    number = torch.where(shown, number % count, -1)
    return number.reshape(batch, size, size), weights.reshape(batch, size, size, 3)


def _candidates(
    corners: Tensor, first: Tensor, edge: int, size: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Pixels [P] inside triangles [K, 3, 3], their depth step [P] and triangle [P] (0..K-1)."""
    axis = torch.arange(edge, device=corners.device, dtype=corners.dtype)
    block = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, -1, 2)
    at = first[:, None] + block  # [K, edge * edge, 2]
    weights = _barycentric(corners[:, None], at + 0.5)
    inside = (weights.amin(-1) >= -EDGE) & (at.amax(-1) < size)
    triangle, cell = inside.nonzero(as_tuple=True)
    pixels = at[triangle, cell].long()
    depth = (weights[triangle, cell] * corners[triangle, :, 2]).sum(-1)
    step = (depth / (size * DEEPEST) + 1) / 2 * DEPTH_STEPS
    return pixels[:, 1] * size + pixels[:, 0], (step.clamp(0, DEPTH_STEPS).long(), triangle)


def _barycentric(corners: Tensor, at: Tensor) -> Tensor:
    """Weights of the corners [..., 3, 3] for places [..., 2], [..., 3]; all -1 where flat."""
    a, b, c = corners[..., :2].unbind(-2)
    ab, ac, ap = b - a, c - a, at - a
    area = ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0]
    flat = area.abs() < 1e-6
    area = torch.where(flat, 1, area)
    of_b = (ap[..., 0] * ac[..., 1] - ap[..., 1] * ac[..., 0]) / area
    of_c = (ab[..., 0] * ap[..., 1] - ab[..., 1] * ap[..., 0]) / area
    weights = torch.stack([1 - of_b - of_c, of_b, of_c], -1)
    return torch.where(flat[..., None], -1.0, weights)


def _centres(size: int, like: Tensor) -> Tensor:
    axis = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
