"""The inside of a mouth that no picture shows: teeth, tongue, dark.

Legend: `B` pictures or frames, `P` places; `e` the distance of the outer eye corners, in which
everything here is measured, because teeth scale with the skull and not with the smile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from emo_cli.device import upload
from emo_cli.face_points import LEFT_EYE, RIGHT_EYE

Array = NDArray[np.floating]

CAVITY = (0.21, 0.075, 0.075)  # the dark, RGB of 0..1
TONGUE = (0.60, 0.30, 0.29)
GUMS = (0.62, 0.33, 0.32)
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
BRIGHT = 0.75  # skin in a light of 1
WHITES_SHADED = 0.06  # lids shade them
COLOURED = 0.1  # skin whose channels differ by so much of its brightness is in a coloured picture
SHADOW = (0.85, 1.03, 1.05)  # RGB: the darker, the warmer, for lips and tongue reflect the light


@dataclass(frozen=True, kw_only=True)
class Teeth:
    """Two rows of teeth, RGBA textures [h, w, 4] in 0..1, lit as by a light of 1.

    `edge` is where the upper row's biting edge lies: below the shut lips' line, in e; None for
    a picture's own teeth, which stay where it shows them.
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


def texture_places() -> Array:
    """[h * w, 2] places of a texture's pixels in e, rows first."""
    x = LEFT + (np.arange(TEXTURE_WIDTH) + 0.5) / TEXTURE_WIDTH * (RIGHT - LEFT)
    y = TOP + (np.arange(TEXTURE_HEIGHT) + 0.5) / TEXTURE_HEIGHT * (BOTTOM - TOP)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)


def inside_colours(rows: Sequence[tuple[Tensor, Tensor]], tongue: Tensor) -> Tensor:
    """Colours [B, P, 3] in 0..1 of a mouth's inside in full light.

    rows: from the back to the front, textures [h, w, 4] and the same places [B, P, 2] against the
    middle of their biting edges, y towards it; tongue: against the tip of the tongue.
    """
    colour = _constant(CAVITY, tongue)
    rise = tongue[..., 1] - 1.2 * tongue[..., 0] ** 2
    dome = torch.sigmoid(rise / 0.012)[..., None]
    lit = (0.45 + 3.0 * rise).clamp(0.35, 0.9)[..., None]
    colour = torch.lerp(colour, _constant(TONGUE, tongue) * lit, dome)
    for texture, at in rows:
        layer = _from_texture(texture, at)
        colour = torch.lerp(colour, layer[..., :3], layer[..., 3:])
    return colour


def shade(along: Tensor, over: Tensor, gap: Tensor) -> Tensor:
    """What light comes in, [B, P, 3]: less at the corners, below the upper lip and where the gap is
    narrow. along: 0..1 from corner to corner; over: from the upper lip down; both in widths."""
    corners = (along * (1 - along) * 9).clamp(0.15, 1)
    narrow = (gap / 0.10).clamp(0.25, 1)
    below_lip = (0.45 + over / 0.05).clamp(0.3, 1)
    return (corners * narrow * below_lip)[..., None] ** _constant(SHADOW, along)


class Light(NamedTuple):
    """What falls on a face, of B pictures."""

    tint: Tensor  # [B, 3] RGB, 1 is full light
    coloured: Tensor  # [B] 0..1, 0 in a grey picture

    def on(self, colours: Tensor) -> Tensor:
        """Colours [B, ..., 3] in 0..1 of full light, in this one."""
        tint, coloured = (
            x.view(len(x), *[1] * (colours.ndim - 2), -1) for x in (self.tint, self.coloured)
        )
        lit = (colours * tint).clamp(0, 1)
        return torch.lerp(lit.mean(-1, keepdim=True), lit, coloured)


def light_on(pictures: Tensor, points: Tensor) -> Light:
    """The light of a face: as bright and as warm as its lit skin, on dark skin as bright as the
    whites of its eyes; in a grey picture grey.

    pictures [B, 3, S, S] of -1..1; points [B, 18, 3] of the face in pixels (`face_points.py`).
    """
    side = pictures.shape[-1]
    first = points[..., :2].amin(1).long().clamp(0, side - 1)
    end = (points[..., :2].amax(1).long() + 1).clamp(1, side)
    tints, coloured = [], []
    for picture, (x0, y0), (x1, y1), whites in zip(
        pictures.float(), first.tolist(), end.tolist(), _whites(points), strict=True
    ):
        rgb = (picture + 1) / 2
        skin = rgb[:, y0:y1, x0:x1].flatten(1)
        x, y = whites.long().clamp(0, side - 1).unbind(-1)
        eyes = rgb[:, y, x].mean(0).quantile(0.85) + WHITES_SHADED
        bright = (torch.maximum(skin.mean(0).quantile(0.85), eyes) / BRIGHT).clamp(0.5, 1.1)
        warm = skin.quantile(0.8, dim=1) + 0.08
        tints.append(bright * ((warm / warm.mean()) ** 0.35).clamp(0.9, 1.1))
        spread = (skin.amax(0) - skin.amin(0)) / skin.mean(0).clamp_min(0.02)
        coloured.append((spread.median() / COLOURED).clamp(0, 1))
    return Light(torch.stack(tints), torch.stack(coloured))


def _whites(points: Tensor) -> Tensor:
    """Places [B, P, 2] between the lids, away from the middle, where most irises are."""
    places = []
    for eye in (LEFT_EYE, RIGHT_EYE):
        outer, inner, above, below = points[:, eye : eye + 4, :2].unbind(1)
        middle = (above + below) / 2
        places += [torch.lerp(middle, corner, share) for corner in (outer, inner)
                   for share in (0.35, 0.45, 0.55, 0.65)]  # fmt: skip
    return torch.stack(places, 1)


def _constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    return upload(torch.tensor(values, dtype=like.dtype), like.device)


def _from_texture(texture: Tensor, at: Tensor) -> Tensor:
    """texture [h, w, 4] at [B, P, 2] in e -> [B, P, 4], transparent outside."""
    corner, extent = _constant((LEFT, TOP), at), _constant((RIGHT - LEFT, BOTTOM - TOP), at)
    grid = ((at - corner) / extent * 2 - 1)[:, :, None]  # [B, P, 1, 2]
    image = texture.permute(2, 0, 1)[None].expand(len(at), -1, -1, -1)
    seen = F.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)
    return seen[..., 0].transpose(1, 2)


def _row(row: tuple[tuple[float, ...], ...], enamel: Array, rng: np.random.Generator) -> Array:
    """One row of teeth drawn downwards, [h, w, 4]."""
    x, y = texture_places().T
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
