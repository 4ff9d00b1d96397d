"""How a portrait's lids fall, its irises move and its brows rise (`face_flow.py`).

Shapes: B clips, F frames, S side of the picture in pixels; x right, y down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emo_cli.face_axes import Axes, bow_of, smooth
from emo_cli.face_points import LEAST

IRIS_SLOWS = 0.56  # of half an eye's width: so near to its corners irises stop
BROW = (0.9, 1.8)  # of half an eye's width from its middle: a brow as a whole; nothing follows it
LID_OVER = 0.06  # of half an eye's width: so far over the lower lid a shut one comes
LASHES, LASHES_REACH = 0.5, 0.15  # the shadow of a lid that falls; of half an eye's width
EYE_REACH = 2.0  # of half an eye's width: beyond that it moves nothing
FOREHEAD = 1.2  # of a brow's height above the eye: over that the forehead gathers


def eye_reach(axes: Axes, brow: Tensor) -> Tensor:
    """So far around its middle an eye with its brow moves anything."""
    return torch.maximum(EYE_REACH * axes.half, (1 + FOREHEAD) * -axes.height(brow))


def eye_moves(
    at: Tensor, axes: Axes, points: tuple[Tensor, ...], shut: Tensor, gaze: Tensor
) -> Tensor:
    """From places to their sources, [B, F, S, S, 2]: the upper lid comes down to the lower one,
    the iris moves between them."""
    u, v = axes.places(at)
    bow = bow_of(u)
    above, below, brow = (axes.height(point) for point in points)
    edge, fallen = above * bow, _fallen(axes, bow, above, below, shut)
    top = torch.minimum(brow, above - 0.3 * axes.half)  # what lies between stretches
    share = ((v - top) / (fallen - top)).clamp(0, 1)
    downwards = torch.where(v < fallen, share * (edge - fallen), 0)
    seen = (torch.minimum(v - fallen, below * bow - v)).clamp(0, 1)  # within a pixel
    moves = smooth((1 - u.abs()) / IRIS_SLOWS)
    across = -moves * gaze[..., 0]
    opening = bow_of(u + across / axes.half)
    looked = torch.minimum(
        torch.maximum(v - moves * gaze[..., 1], above * opening), below * opening
    )
    downwards = downwards + seen * (looked - v)
    return (seen * across)[..., None] * axes.along + downwards[..., None] * axes.down


def _fallen(axes: Axes, bow: Tensor, above: Tensor, below: Tensor, shut: Tensor) -> Tensor:
    """Where the upper lid's edge has come to, down from the eye's corners."""
    falls = (below - above).clamp_min(0) + shut * LID_OVER * axes.half
    return (above + shut * falls) * bow


def lid_shadow(at: Tensor, axes: Axes, lids: tuple[Tensor, Tensor], shut: Tensor) -> Tensor:
    """0..1, [B, F, S, S]: how dark it is along the edge of a lid that falls, lashes and shadow."""
    u, v = axes.places(at)
    above, below = (axes.height(point) for point in lids)
    under = v - _fallen(axes, bow_of(u), above, below, shut)
    dark = LASHES * (2 * shut).clamp(0, 1) * (3 * bow_of(u)).clamp(0, 1)
    far = under.abs() / (LASHES_REACH * axes.half * torch.where(under < 0, 0.5, 1))
    return dark * (1 - smooth(far))


def brow_moves(at: Tensor, axes: Axes, points: tuple[Tensor, ...], lift: Tensor) -> Tensor:
    """From places to their sources, [B, F, S, S, 2]: the brow rises, lid and forehead give way."""
    u, v = axes.places(at)
    above, brow = (axes.height(point) for point in points)
    lid = above - brow
    share = torch.where(
        v > brow,
        smooth((above - v) / lid.clamp_min(LEAST)),
        1 - smooth((brow - v) / (-FOREHEAD * brow).clamp_min(LEAST)),
    )
    share = share * (1 - smooth((u.abs() - BROW[0]) / (BROW[1] - BROW[0])))
    return (lift * share)[..., None] * axes.down
