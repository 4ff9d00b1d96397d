"""How lips and lids of a portrait move, for models that are shown it so (`UNetConfig.told_lips`).

Lips part along the line where they meet, the lower one takes the chin along, and it is dark between
them; lids come down over the eyes. As with the head (`head_flow.py`) that is a hint from which a
network draws the frame: the inside of a mouth that was shut is not in the portrait.

Shapes: B clips, F frames, S side of the picture in pixels; x right, y down. "Of the eyes": in
distances of the eyes' outer corners, so that the size of a face does not count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from emo_cli.face_points import LEAST, LEFT_EYE, RIGHT_EYE

LOWER_SHARE = 0.75  # of the gap between the lips is the lower one's, whose jaw falls
SHOWS_INSIDE = 0.2  # of half a mouth's width: lips so far apart show an inside of their own
CAVITY = (0.21, 0.075, 0.075)  # where they do not: RGB of 0..1
EDGE = 0.05  # of half a mouth's width: over that the dark begins
WIDER = (0.6, 1.6)  # lips of a portrait are made narrower and wider so far


class FaceMoves(NamedTuple):
    """What a portrait's lips and lids do in each frame."""

    points: Tensor  # [B, 16, 3], FACE_POINTS of the portrait in pixels
    lips: Tensor  # [B, F, 2], the gap between them and their width, of the eyes
    lids: Tensor  # [B, F], 0 open .. 1 shut


class _Axes(NamedTuple):
    """Coordinates along a line between two corners: 1 is half of it; and down from it in pixels."""

    centre: Tensor
    along: Tensor
    down: Tensor
    half: Tensor

    def height(self, point: Tensor) -> Tensor:
        return ((point - self.centre) * self.down).sum(-1)


def move_face(at: Tensor, face: FaceMoves) -> tuple[Tensor, Tensor]:
    """Where places [B, F, S, S, 2] of the moved portrait come from in the portrait, in pixels; and
    how much of each is the dark between parted lips, [B, F, S, S], 0..1."""
    deep = face.points[:, None, None, None].unbind(-2)
    eyes = (deep[LEFT_EYE] - deep[RIGHT_EYE]).norm(dim=-1)
    gap, width = (eyes * lips for lips in face.lips[:, :, None, None].unbind(-1))  # in pixels
    wider = width / (deep[0] - deep[1]).norm(dim=-1).clamp_min(LEAST)
    points = [point[..., :2] for point in deep]  # each [B, 1, 1, 1, 2]
    left, right, upper, lower, chin, nose = points[:6]
    down, lids = chin - nose, face.lids[:, :, None, None]
    moved, dark = at.clone(), torch.zeros_like(at[..., 0])
    mouth = _axes(left, right, down)
    part = _around(at, mouth.centre, 2.4 * torch.maximum(mouth.half, mouth.height(chin) / 1.3))
    move, dark[part] = _mouth(at[part], mouth, (upper, lower, chin, nose), gap, wider)
    moved[part] += move
    for outer, inner, above, below, brow in (points[LEFT_EYE:RIGHT_EYE], points[RIGHT_EYE:]):
        eye = _axes(outer, inner, down)
        part = _around(at, eye.centre, torch.maximum(eye.half, -eye.height(brow)))
        moved[part] += _eye(at[part], eye, (above, below, brow), lids)
    return moved, dark


def _around(at: Tensor, centre: Tensor, reach: Tensor) -> tuple[slice, ...]:
    """The part of the picture whose places lie so near to a centre in any frame."""
    near = ((at - centre).abs().amax(-1) <= reach).flatten(0, 1).any(0)
    sides = []
    for lines in (near.any(1), near.any(0)):
        seen = lines.nonzero()
        sides.append(slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 0))
    return (slice(None), slice(None), *sides)


def _axes(left: Tensor, right: Tensor, down: Tensor) -> _Axes:
    half = ((right - left).norm(dim=-1) / 2).clamp_min(LEAST)
    along = (right - left) / (2 * half)[..., None]
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    across = across * torch.where((across * down).sum(-1, keepdim=True) < 0, -1, 1)
    return _Axes((left + right) / 2, along, across, half)


def _mouth(
    at: Tensor, axes: _Axes, points: tuple[Tensor, ...], gap: Tensor, wider: Tensor
) -> tuple[Tensor, Tensor]:
    """From places to their sources, [B, F, S, S, 2]: lips so far apart, so many times as wide; and
    how dark it is there."""
    upper, lower, chin, nose = points
    beside = at - axes.centre
    u, v = (beside * axes.along).sum(-1) / axes.half, (beside * axes.down).sum(-1)
    middle = axes.height((upper + lower) / 2)
    was, gap = (upper - lower).norm(dim=-1), gap.clamp_min(0)
    # Narrower or wider lips, which the cheeks beside them make up for.
    near = 1 - _smooth(torch.hypot(u, (v - middle) / (1.3 * axes.half)) - 1)
    x = u * (1 + near * (1 / wider.clamp(*WIDER) - 1))
    bow = (1 - x.square()).clamp_min(0)
    lens = bow.sqrt()  # lips part like this, more in the middle
    below = v - middle * bow  # the line where they meet
    jaw, face = axes.height(chin) - middle, middle - axes.height(nose)
    jaw, face = jaw.clamp_min(LEAST), face.clamp_min(LEAST)
    whole = 1 - _smooth((x.abs() - 0.8) / 1.6)  # the jaw falls as a whole
    low, high = LOWER_SHARE * lens, (LOWER_SHARE - 1) * lens  # the lips' edges, of the gap
    under, over = below - low * gap, high * gap - below
    falls = torch.lerp(lens, whole, _smooth(under / (0.8 * jaw)))
    falls = falls * (1 - _smooth((below - jaw) / (0.8 * jaw)))
    rises = lens * (1 - _smooth(over / (0.8 * face)))
    inside = was / gap.clamp_min(1e-3) * below
    source = torch.where(
        under >= 0,
        torch.maximum(below - LOWER_SHARE * (gap - was) * falls, low * was),
        torch.where(
            over >= 0,
            torch.minimum(below + (1 - LOWER_SHARE) * (gap - was) * rises, high * was),
            inside,
        ),
    )
    sideways, downwards = (x - u) * axes.half, source + middle * bow - v
    new = (1 - was / (SHOWS_INSIDE * axes.half)).clamp_min(0)
    dark = new * (torch.minimum(-under, -over) / (EDGE * axes.half)).clamp(0, 1)
    return sideways[..., None] * axes.along + downwards[..., None] * axes.down, dark


def _eye(at: Tensor, axes: _Axes, points: tuple[Tensor, ...], shut: Tensor) -> Tensor:
    """From places to their sources, [B, F, S, S, 2]: the upper lid comes down to the lower one."""
    beside = at - axes.centre
    u, v = (beside * axes.along).sum(-1) / axes.half, (beside * axes.down).sum(-1)
    bow = (1 - u.square()).clamp_min(0)
    above, below, brow = (axes.height(point) for point in points)
    edge = above * bow
    fallen = edge + shut * (below - above).clamp_min(0) * bow
    top = torch.minimum(brow, above - 0.3 * axes.half)  # what lies between stretches
    share = ((v - top) / (fallen - top)).clamp(0, 1)
    downwards = torch.where(v < fallen, share * (edge - fallen), 0)
    return downwards[..., None] * axes.down


def _smooth(share: Tensor) -> Tensor:
    """From 0 to 1, level at both ends."""
    share = share.clamp(0, 1)
    return share * share * (3 - 2 * share)
