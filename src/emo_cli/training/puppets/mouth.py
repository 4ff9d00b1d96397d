"""What shows between parted lips: teeth fixed to the skull or the jaw, tongue, dark.

Legend: `B` frames, `P` pixels of a window; `e` the distance of the outer eye corners, in which
everything here is measured, because teeth scale with the skull and not with the smile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emo_cli.face_flow import CAVITY
from emo_cli.face_motion import LOWER_LIP, UPPER_LIP
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

# A teeth texture covers x -0.4..0.4 e and y -0.16..0.08 e around the middle of the biting edge.
LEFT, TOP, RIGHT, BOTTOM = -0.4, -0.16, 0.4, 0.08
TEXTURE_WIDTH, TEXTURE_HEIGHT = 160, 48
# From the middle outwards, in e = 88 mm: width, length, how far the edge stays behind.
# fmt: off
UPPER_ROW = ((0.094, 0.115, 0.0), (0.073, 0.100, 0.008), (0.070, 0.108, 0.002),
             (0.058, 0.09, 0.012), (0.048, 0.08, 0.022), (0.045, 0.07, 0.035))
LOWER_ROW = ((0.058, 0.09, 0.0), (0.062, 0.09, 0.001), (0.068, 0.10, -0.004),
             (0.062, 0.08, 0.012), (0.052, 0.07, 0.022), (0.045, 0.06, 0.03))
# fmt: on
TONGUE = (0.60, 0.30, 0.29)
GUMS = (0.62, 0.33, 0.32)


@dataclass(frozen=True, kw_only=True)
class Teeth:
    """Two rows of teeth, RGBA textures [h, w, 4] in 0..1, lit as by a light of 1.

    `edge` is where the upper row's biting edge lies: below the shut lips' line, in e; None for
    the still's own teeth, which stay where the still shows them.
    """

    upper: Array
    lower: Array
    edge: float | None


def drawn_teeth(seed: int) -> Teeth:
    """Teeth of nobody: widths, colour and irregularities by the seed."""
    rng = np.random.default_rng(seed)
    bright = rng.uniform(0.74, 0.95)
    enamel = bright * np.array([1.0, rng.uniform(0.92, 0.96), rng.uniform(0.82, 0.93)])
    return Teeth(
        upper=_row(UPPER_ROW, enamel, rng),
        lower=_row(LOWER_ROW, 0.88 * enamel, rng),
        edge=float(rng.uniform(0.01, 0.045)),
    )


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
    at = torch.from_numpy(_texture_grid()) * distance(still.shut, EYE_CORNERS)
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
    colour = _like(np.array(CAVITY), skull)[:, None]
    rise = tongue_at[..., 1] - 1.2 * tongue_at[..., 0] ** 2
    dome = torch.sigmoid(rise / 0.012)[:, None]
    lit = (0.45 + 3.0 * rise).clamp(0.35, 0.9)[:, None]
    colour = torch.lerp(colour, _like(np.array(TONGUE), skull)[:, None] * lit, dome)
    lower_at = lower_at * _like(np.array([1, -1]), skull)  # drawn hanging, as the upper row
    for texture, at in ((teeth.lower, lower_at), (teeth.upper, upper_at)):
        layer = _from_texture(_like(texture, skull), at)
        colour = torch.lerp(colour, layer[:, :3], layer[:, 3:])
    along = slit.along
    corners = (along * (1 - along) * 9).clamp(0.15, 1)
    narrow = (slit.gap / (0.10 * slit.width)).clamp(0.25, 1)
    below_lip = (0.45 + slit.over / (0.05 * slit.width)).clamp(0.3, 1)
    shade = (corners * narrow * below_lip)[:, None]
    # What light comes in has been reflected by lips and tongue: shadow in a mouth is warm.
    tint = shade ** _like(np.array([0.85, 1.03, 1.05]), skull)[:, None]
    return colour * tint * (face_light(still) * _like(cast_of(still), skull))[:, None]


def cast_of(still: Still) -> Array:
    """[3], about 1: how warm this picture is where it is brightest, a part of which teeth take."""
    brightest = np.quantile(still.picture.reshape(-1, 3), 0.8, axis=0) + 20.0
    return np.clip((brightest / brightest.mean()) ** 0.35, 0.9, 1.1)


def _from_texture(texture: Tensor, at: Tensor) -> Tensor:
    """texture [h, w, 4] at [B, P, 2] in e -> [B, 4, P], transparent outside."""
    corner = _like(np.array([LEFT, TOP]), at)
    extent = _like(np.array([RIGHT - LEFT, BOTTOM - TOP]), at)
    grid = ((at - corner) / extent * 2 - 1)[:, :, None]  # [B, P, 1, 2]
    image = texture.permute(2, 0, 1)[None].expand(len(at), -1, -1, -1)
    return F.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)[..., 0]


def _row(row: tuple[tuple[float, ...], ...], enamel: Array, rng: np.random.Generator) -> Array:
    """One row of teeth drawn downwards, [h, w, 4]."""
    x, y = _texture_grid().T
    texture = np.zeros((len(x), 4))
    stretch = rng.uniform(0.93, 1.07, 2)
    for side in (-1, 1):
        start = 0.0
        for width, length, behind in np.array(row) * [stretch[0], stretch[1], 1.0]:
            across = (side * x - start) / width * 2 - 1  # -1..1 over the tooth
            edge = -behind + rng.normal() * 0.002 - 0.014 * np.abs(across) ** 4
            _draw_tooth(texture, across, y - edge, length, enamel * rng.uniform(0.96, 1.03))
            start += width
    far = np.clip(1 - 0.75 * (np.abs(x) / 0.4) ** 1.6, 0.1, 1)
    texture[:, :3] *= far[:, None]
    return texture.reshape(TEXTURE_HEIGHT, TEXTURE_WIDTH, 4).astype(np.float32)


def _draw_tooth(texture: Array, across: Array, above: Array, length: float, enamel: Array) -> None:
    """One tooth into texture [n, 4]; `above` is below 0 on the tooth, in e."""
    here = np.abs(across) <= 1
    root = np.clip((-above - length * (1 - 0.25 * across**2)) / 0.01, 0, 1)[:, None]
    rounding = 1 - 0.16 * np.abs(across) ** 3 - 0.30 * np.clip((np.abs(across) - 0.86) / 0.14, 0, 1)
    towards_gum = 1 - 0.12 * np.clip(-above / length, 0, 1)
    tooth = enamel * (rounding * towards_gum)[:, None]
    texture[here, :3] = (tooth + root * (np.array(GUMS) - tooth))[here]
    texture[here, 3] = 1 / (1 + np.exp(np.clip(above / 0.004, -30, 30)))[here]


def _texture_grid() -> Array:
    """[h * w, 2] places of a texture's pixels in e, rows first."""
    x = LEFT + (np.arange(TEXTURE_WIDTH) + 0.5) / TEXTURE_WIDTH * (RIGHT - LEFT)
    y = TOP + (np.arange(TEXTURE_HEIGHT) + 0.5) / TEXTURE_HEIGHT * (BOTTOM - TOP)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)


def _like(values: Array, like: Tensor) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values), dtype=like.dtype, device=like.device)
