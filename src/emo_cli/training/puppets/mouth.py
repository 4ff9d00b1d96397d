"""What shows between a puppet's parted lips: teeth fixed to the skull or the jaw, tongue, dark.

Legend: `B` frames, `P` pixels of a window; `e` the distance of the outer eye corners, in which
everything here is measured, because teeth scale with the skull and not with the smile.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emo_cli import mouth
from emo_cli.face_motion import LOWER_LIP, UPPER_LIP
from emo_cli.mouth import TEXTURE_HEIGHT, TEXTURE_WIDTH, Teeth, texture_places
from emo_cli.training.puppets.mesh import (
    EYE_CORNERS,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LEFT_EYE,
    OVAL,
    RIGHT_EYE,
    Array,
    distance,
)
from emo_cli.training.puppets.slit import InSlit, locate
from emo_cli.training.puppets.still import Still


def own_teeth(still: Still, drawn: Teeth) -> Teeth:
    """The teeth that a smiling still shows, with drawn ones where it shows none."""
    seen = _seen_row(still)
    alpha = seen[..., 3:]
    colour = np.sum(seen * alpha, (0, 1))[:3] / max(float(alpha.sum()), 1e-6)
    shown = drawn.upper[..., 3:]
    hidden = drawn.upper.copy()
    hidden[..., :3] *= colour / (np.sum(drawn.upper * shown, (0, 1))[:3] / shown.sum())
    upper = hidden + alpha * (seen - hidden)
    upper[..., 3] = np.maximum(hidden[..., 3], seen[..., 3])
    return Teeth(upper=upper.astype(np.float32), lower=drawn.lower, edge=None)


def _seen_row(still: Still) -> Array:
    """The upper row as a smiling still shows it, [h, w, 4], transparent where it does not."""
    at = torch.from_numpy(texture_places()) * distance(still.shut, EYE_CORNERS)
    upright = torch.cat([at, torch.zeros_like(at[:, :1])], 1) + torch.from_numpy(own_edge(still))
    rotation = torch.from_numpy(still.rotation)
    place = (upright @ rotation.T + torch.from_numpy(still.centre))[:, :2]
    points = torch.from_numpy(still.points)[None, :, :2]
    slit = locate(points[:, INNER_UPPER_LIP], points[:, INNER_LOWER_LIP], place)
    pixel = still.size / 256
    alpha = torch.sigmoid((torch.minimum(slit.over, slit.under) - 1.2 * pixel) / (0.6 * pixel))
    alpha = alpha * ((slit.along > 0.04) & (slit.along < 0.96))
    picture = torch.from_numpy(still.picture).permute(2, 0, 1)[None].float() / 255
    colour = sample(picture, place.T[None, :, :, None], "bicubic")[0, ..., 0]
    colour = colour / torch.from_numpy(face_light(still) * cast_of(still))[:, None]
    texture = torch.cat([colour.clamp(0, 1.2), alpha]).T.float()
    return texture.reshape(TEXTURE_HEIGHT, TEXTURE_WIDTH, 4).numpy()


def own_edge(still: Still) -> Array:
    """Upright place [3] of the biting edge that a smiling still shows."""
    upright = still.upright(still.points)
    edge = upright[LOWER_LIP].copy()
    edge[1] -= 0.15 * (upright[LOWER_LIP, 1] - upright[UPPER_LIP, 1])
    return edge


def face_light(still: Still) -> float:
    """How much light falls on the face, about 1: teeth in the dark are dark, on dark skin bright.

    The lit skin tells, or the whites of the eyes, whichever are brighter.
    """
    x0, y0 = np.maximum(still.points[OVAL, :2].min(0), 0).astype(int)
    x1, y1 = still.points[OVAL, :2].max(0).astype(int)
    grey = still.picture.mean(-1)
    whites = [grey[y0:y1, x0:x1].min()]
    for upper, lower in (RIGHT_EYE, LEFT_EYE):
        rows = zip(still.points[upper[1:-1]], still.points[lower[1:-1]], strict=True)
        for at in (high + share * (low - high) for high, low in rows for share in (0.4, 0.6)):
            x, y = np.clip(at[:2].astype(int), 0, still.size - 1)
            whites.append(grey[y, x])
    brightest = max(np.quantile(grey[y0:y1, x0:x1], 0.85), np.quantile(whites, 0.85) + 15)
    return float(np.clip(brightest / 190, 0.5, 1.1))


def sample(picture: Tensor, at: Tensor, mode: str = "bilinear") -> Tensor:
    """picture [B, C, H, W] at pixel places [B, 2, h, w] -> [B, C, h, w]; beyond it, mirrored."""
    size = torch.tensor([picture.shape[3], picture.shape[2]], device=at.device).view(1, 2, 1, 1)
    grid = (at / size * 2 - 1).permute(0, 2, 3, 1).expand(len(picture), -1, -1, -1)
    return F.grid_sample(picture, grid, mode, "reflection", align_corners=False)


def inside_colours(still: Still, teeth: Teeth, slit: InSlit, skull: Tensor, jaw: Tensor) -> Tensor:
    """Colours [B, 3, P] of the mouth's inside at `skull` [B, P, 2], upright places on the skull.

    `jaw` [B, 1, 2] is the jaw's move, by which the lower teeth and the tongue lie lower.
    """
    unit = distance(still.shut, EYE_CORNERS)
    lips = still.shut[[UPPER_LIP, LOWER_LIP]].mean(0)
    edge = own_edge(still) if teeth.edge is None else lips + [0, teeth.edge * unit, 0]
    upper_at, lips_at = ((skull - _like(place[:2], skull)) / unit for place in (edge, lips))
    lower_at = lips_at - jaw / unit - _like(np.array([0, 0.005]), skull)
    # The tongue stays back where the jaw falls.
    tongue_at = lips_at - 0.5 * jaw / unit - _like(np.array([0, 0.02]), skull)
    lower_at = lower_at * _like(np.array([1, -1]), skull)  # drawn hanging, as the upper row
    rows = [(teeth.lower, lower_at), (teeth.upper, upper_at)]
    layers = [(_like(texture, skull), at) for texture, at in rows]
    colour = mouth.inside_colours(layers, tongue_at)
    colour = colour * mouth.shade(slit.along, slit.over / slit.width, slit.gap / slit.width)
    return (colour * _like(face_light(still) * cast_of(still), skull)).transpose(1, 2)


def cast_of(still: Still) -> Array:
    """[3], about 1: how warm this picture is where it is brightest, a part of which teeth take."""
    brightest = np.quantile(still.picture.reshape(-1, 3), 0.8, axis=0) + 20.0
    return np.clip((brightest / brightest.mean()) ** 0.35, 0.9, 1.1)


def _like(values: Array, like: Tensor) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values), dtype=like.dtype, device=like.device)
