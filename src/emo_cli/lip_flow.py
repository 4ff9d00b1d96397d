"""How a portrait's lips part and what is seen between them (`face_flow.py`).

Lips part along the line where they meet, the lower one takes the chin along; between them are the
teeth that the portrait shows, else drawn ones, tongue and dark (`mouth.py`).

Shapes: B clips, F frames, S side of the picture in pixels; x right, y down. "Of the eyes": in
distances of the eyes' outer corners.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from emo_cli.device import upload
from emo_cli.face_axes import Axes, bow_of, smooth
from emo_cli.face_points import LEAST
from emo_cli.mouth import drawn_teeth, inside_colours, shade

LOWER_SHARE = 0.75  # of the gap between the lips is the lower one's, whose jaw falls
SHOWS_INSIDE = 0.2  # of half a mouth's width: lips so far apart show an inside of their own
BEHIND_TEETH = 0.06  # of a mouth's width: lips are so much farther apart than points on teeth say
SHUT = 0.008  # of the eyes: so far apart are points of lips that meet
EDGE = 0.05  # of half a mouth's width: over that the inside begins
TEETH = drawn_teeth(0)
BITE = 0.028  # of the eyes: so far below the line where lips meet teeth end
OWN_BITE = 0.15  # of the gap of an open portrait: so far above its lower lip its own end
# How dark it is between lips that meet; lips so far apart let light in, and over so much of the
# lips it fades; of half a mouth's width.
SLIT, NARROW, SLIT_FADES = 0.55, 0.14, 0.06
WIDER = (0.6, 1.6)  # lips of a portrait are made narrower and wider so far


class Mouth(NamedTuple):
    """Places [B, F, S, S] against a mouth, and the mouth [B, F, 1, 1]; in pixels where not said."""

    u: Tensor  # along it, 1 is a corner
    v: Tensor  # down from its corners
    x: Tensor  # along it as `u`, where lips were before they grew wider or narrower
    middle: Tensor  # where lips meet, at the middle
    was: Tensor  # the gap in the portrait as its points say
    rims: Tensor  # the gap in the portrait between the rims of its lips
    gap: Tensor
    half: Tensor  # its width
    eyes: Tensor

    def beside_line(self, x: Tensor) -> Tensor:
        """Down from the bowed line along which lips meet."""
        return self.v - self.middle * bow_of(x)

    @property
    def parted(self) -> Tensor:
        """0..1: further than in the portrait."""
        return ((self.gap - self.rims) / (2 * EDGE * self.half)).clamp(0, 1)

    def edges(self, x: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Of the lower and the upper lip, against that line."""
        lens = gap * bow_of(x).sqrt()
        return LOWER_SHARE * lens, (LOWER_SHARE - 1) * lens


def mouth_at(
    at: Tensor,
    axes: Axes,
    lips: tuple[Tensor, Tensor],
    gap: Tensor,
    wider: Tensor,
    eyes: Tensor,
) -> Mouth:
    """Places `at` [B, F, S, S, 2] against the mouth with these axes, upper and lower lip.

    gap: between the lips, in pixels; wider: so many times as wide as in the portrait; eyes: their
    distance.
    """
    upper, lower = lips
    u, v = axes.places(at)
    middle = axes.height(torch.lerp(upper, lower, 1 - LOWER_SHARE))
    # Narrower or wider lips, which the cheeks beside them make up for.
    near = 1 - smooth(torch.hypot(u, (v - middle) / (1.3 * axes.half)) - 1)
    x = u * (1 + near * (1 / wider.clamp(*WIDER) - 1))
    was = (upper - lower).norm(dim=-1)
    # Of lips that show teeth the points lie on the teeth's edges; of lips that meet they do not,
    # and no line of teeth may be left.
    share = _shows(was, axes.half)
    closing = (1 - gap / was.clamp_min(LEAST)).clamp(0, 1)
    gap = (gap - share * closing * SHUT * eyes).clamp_min(0)
    rims, gap = (
        parted + share * _shows(parted, axes.half) * 2 * BEHIND_TEETH * axes.half
        for parted in (was, gap)
    )
    return Mouth(u, v, x, middle, was, rims, gap, axes.half, eyes)


def _shows(gap: Tensor, half: Tensor) -> Tensor:
    """0..1: how far lips so far apart show an inside."""
    return (gap / (SHOWS_INSIDE * half)).clamp(0, 1)


def lip_moves(mouth: Mouth, axes: Axes, chin: Tensor, nose: Tensor) -> Tensor:
    """From places to their sources, [B, F, S, S, 2]: lips so far apart, so many times as wide."""
    x, rims, gap = mouth.x, mouth.rims, mouth.gap
    below, lens = mouth.beside_line(x), bow_of(x).sqrt()
    jaw, face = axes.height(chin) - mouth.middle, mouth.middle - axes.height(nose)
    jaw, face = jaw.clamp_min(LEAST), face.clamp_min(LEAST)
    low, high = mouth.edges(x, gap)
    was_low, was_high = mouth.edges(x, rims)
    under, over = below - low, high - below
    whole = 1 - smooth((x.abs() - 0.8) / 1.6)  # the jaw falls as a whole
    falls = torch.lerp(lens, whole, smooth(under / (0.8 * jaw)))
    falls = falls * (1 - smooth((below - jaw) / (0.8 * jaw)))
    rises = lens * (1 - smooth(over / (0.8 * face)))
    lower = torch.maximum(below - LOWER_SHARE * (gap - rims) * falls, was_low)
    upper = torch.minimum(below + (1 - LOWER_SHARE) * (gap - rims) * rises, was_high)
    # Teeth rest while lips move; where the upper lip rises above what was seen, more of the same.
    own = torch.lerp(rims, mouth.was, mouth.parted)
    rest, (rest_low, rest_high) = mouth.beside_line(mouth.u), mouth.edges(mouth.u, own)
    highest = rest_high * (1 - 0.4 * mouth.parted)
    teeth = torch.minimum(torch.maximum(rest, highest), rest_low)
    between = (under < 0) & (over < 0)
    downwards = torch.where(between, teeth - rest, torch.where(under >= 0, lower, upper) - below)
    sideways = torch.where(between, 0, (x - mouth.u) * mouth.half)
    return sideways[..., None] * axes.along + downwards[..., None] * axes.down


def inside_reach(axes: Axes, gap: Tensor) -> Tensor:
    """So far around the middle between the corners there may be anything between the lips."""
    return 1.2 * torch.maximum(WIDER[1] * axes.half, gap.amax())


def inside_of(mouth: Mouth) -> tuple[Tensor, Tensor]:
    """Colours [B, F, S, S, 3] of 0..1 in full light and how much they cover [B, F, S, S]: teeth
    that rest, a tongue that falls by half of what the jaw does."""
    below, (low, high) = mouth.beside_line(mouth.x), mouth.edges(mouth.x, mouth.gap)
    begins = EDGE * mouth.half
    shows = _shows(mouth.was, mouth.half)
    teeth = mouth.edges(mouth.u, (1 - OWN_BITE / LOWER_SHARE) * mouth.was)[0]
    own = teeth - mouth.beside_line(mouth.u)
    cover = (torch.minimum(low - below, below - high) / begins).clamp(0, 1)
    cover = cover * (1 - shows * (own / begins).clamp(0, 1)) * (1 - shows * (1 - mouth.parted))
    bite = torch.lerp(BITE * mouth.eyes, (LOWER_SHARE - OWN_BITE) * mouth.was, shows)
    down, fallen = mouth.v - mouth.middle, LOWER_SHARE * mouth.gap / 2 + 0.02 * mouth.eyes
    across = mouth.u * mouth.half / mouth.eyes
    upper_at, tongue_at = (
        torch.stack([across, (down - edge) / mouth.eyes], -1).flatten(0, 1).flatten(1, 2)
        for edge in (bite, fallen)
    )
    row = upload(torch.from_numpy(TEETH.upper), down.device), upper_at
    colour = inside_colours([row], tongue_at).view(*down.shape, 3)
    width = 2 * mouth.half
    colour = colour * shade((mouth.x + 1) / 2, (below - high) / width, mouth.gap / width)
    dark = shows * _dark(mouth, torch.maximum(below - low, high - below))
    both = cover + dark - cover * dark
    return colour * (cover * (1 - dark) / both.clamp_min(1e-6))[..., None], both


def _dark(mouth: Mouth, beyond: Tensor) -> Tensor:
    """0..1: the shadow between lips that nearly meet, which a portrait that shows teeth has not.

    beyond: the slit, in pixels.
    """
    narrow = 1 - smooth(mouth.gap / (NARROW * mouth.half))
    near = 1 - smooth(beyond / (SLIT_FADES * mouth.half))
    return SLIT * narrow * near * (3 * bow_of(mouth.x)).clamp(0, 1)
