"""How lips and eyes of a portrait move, for models that are shown it so (`UNetConfig.told_lips`).

Lips part along the line where they meet, the lower one takes the chin along; between them are the
teeth that the portrait shows, else drawn ones, tongue and dark (`mouth.py`); lids come down over
the eyes, irises move between them, brows rise. As with the head (`head_flow.py`) that is a hint
from which a network draws the frame.

Shapes: B clips, F frames, S side of the picture in pixels; x right, y down. "Of the eyes": in
distances of the eyes' outer corners, so that the size of a face does not count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from emo_cli.device import upload
from emo_cli.face_points import LEAST, LEFT_EYE, LEFT_IRIS, RIGHT_EYE
from emo_cli.mouth import Light, drawn_teeth, inside_colours, shade

LOWER_SHARE = 0.75  # of the gap between the lips is the lower one's, whose jaw falls
SHOWS_INSIDE = 0.2  # of half a mouth's width: lips so far apart show an inside of their own
BEHIND_TEETH = 0.06  # of a mouth's width: lips are so much farther apart than points on teeth say
SHUT = 0.008  # of the eyes: so far apart are points of lips that meet
EDGE = 0.05  # of half a mouth's width: over that the inside begins
TEETH = drawn_teeth(0)
BITE = 0.028  # of the eyes: so far below the line where lips meet teeth end
OWN_BITE = 0.15  # of the gap of an open portrait: so far above its lower lip its own end
WIDER = (0.6, 1.6)  # lips of a portrait are made narrower and wider so far
IRIS_SLOWS = 0.56  # of half an eye's width: so near to its corners irises stop
BROW = (0.9, 1.8)  # of half an eye's width from its middle: a brow as a whole; nothing follows it
# Of half an eye's width: how far an eye with its lids and its brow reaches to the sides, up and
# down; where the middle of that is, below the eye's; over how much of it it fades; and all of it.
EYE, EYE_FADES, EYE_REACH = (1.3, 1.2, -0.2), 0.5, 2.0
EVERY = 4  # pixels: so finely the parts of a picture that move are sought
FOREHEAD = 1.2  # of a brow's height above the eye: over that the forehead gathers


class FaceMoves(NamedTuple):
    """What a portrait's lips and eyes do in each frame."""

    points: Tensor  # [B, 18, 3], FACE_POINTS of the portrait in pixels
    lips: Tensor  # [B, F, 2], the gap between them and their width, of the eyes
    lids: Tensor  # [B, F], 0 open .. 1 shut
    brows: Tensor  # [B, F], how much higher than in the portrait, of the eyes
    gaze: Tensor  # [B, F, 2], moves of the irises along the eyes and down, of the eyes
    light: Light  # that falls on the portrait

    def part(self, frames: slice) -> FaceMoves:
        """The same in some of the frames."""
        return self._replace(
            lips=self.lips[:, frames],
            lids=self.lids[:, frames],
            brows=self.brows[:, frames],
            gaze=self.gaze[:, frames],
        )

    def in_picture(self, times: float) -> FaceMoves:
        """The same in a picture so many times as large."""
        return self._replace(points=times * self.points)


class Inside(NamedTuple):
    """What lies between the lips and is not the portrait's."""

    colour: Tensor  # [B, F, S, S, 3] RGB of 0..1, in the light of the portrait
    cover: Tensor  # [B, F, S, S] 0..1, how much of each place it takes


class _Axes(NamedTuple):
    """Coordinates along a line between two corners: 1 is half of it; and down from it in pixels."""

    centre: Tensor
    along: Tensor
    down: Tensor
    half: Tensor

    def height(self, point: Tensor) -> Tensor:
        return ((point - self.centre) * self.down).sum(-1)


class _Mouth(NamedTuple):
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
        return self.v - self.middle * _bow(x)

    @property
    def parted(self) -> Tensor:
        """0..1: further than in the portrait."""
        return ((self.gap - self.rims) / (2 * EDGE * self.half)).clamp(0, 1)

    def edges(self, x: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Of the lower and the upper lip, against that line."""
        lens = gap * _bow(x).sqrt()
        return LOWER_SHARE * lens, (LOWER_SHARE - 1) * lens


class MovedFace(NamedTuple):
    """A portrait whose lips, eyes and brows have moved."""

    at: Tensor  # [B, F, S, S, 2], where its places come from in the portrait, in pixels
    inside: Inside  # what lies over it
    eyes: Tensor  # [B, F, S, S] 0..1, where there is nothing left to draw: eyes, lids and brows


def move_face(at: Tensor, face: FaceMoves) -> MovedFace:
    """Face moves on top of those that `at` [B, F, S, S, 2] has, the head's."""
    deep = face.points[:, None, None, None].unbind(-2)
    eyes = (deep[LEFT_EYE] - deep[RIGHT_EYE]).norm(dim=-1)
    gap, width = (eyes * lips for lips in face.lips[:, :, None, None].unbind(-1))  # in pixels
    wider = width / (deep[0] - deep[1]).norm(dim=-1).clamp_min(LEAST)
    points = [point[..., :2] for point in deep]  # each [B, 1, 1, 1, 2]
    left, right, upper, lower, chin, nose = points[:6]
    down, lids = chin - nose, face.lids[:, :, None, None]
    lift = eyes * face.brows[:, :, None, None]
    gaze = eyes[..., None] * face.gaze[:, :, None, None]
    inside = Inside(at.new_zeros(*at.shape[:-1], 3), at.new_zeros(at.shape[:-1]))
    moved, eyes_at, axes = at.clone(), at.new_zeros(at.shape[:-1]), _axes(left, right, down)
    part = _around(at, axes.centre, 2.4 * torch.maximum(axes.half, axes.height(chin) / 1.3))
    mouth = _mouth(at[part], axes, (upper, lower), gap, wider, eyes)
    moved[part] += _lips(mouth, axes, chin, nose)
    colour, inside.cover[part] = _inside(mouth)
    inside.colour[part] = face.light.on(colour)
    left_eye, right_eye = points[LEFT_EYE:RIGHT_EYE], points[RIGHT_EYE:LEFT_IRIS]
    for corners, (above, below, brow) in (
        (left_eye[:2], left_eye[2:]),
        (right_eye[1::-1], right_eye[2:]),
    ):
        eye = _axes(corners[0], corners[1], down)
        reach = torch.maximum(EYE_REACH * eye.half, (1 + FOREHEAD) * -eye.height(brow))
        part = _around(at, eye.centre, reach)
        moved[part] += _eye(at[part], eye, (above, below, brow), lids, gaze)
        moved[part] += _brow(at[part], eye, (above, brow), lift)
        eyes_at[part] = torch.maximum(eyes_at[part], _near(at[part], eye))
    return MovedFace(moved, inside, eyes_at)


def _around(at: Tensor, centre: Tensor, reach: Tensor) -> tuple[slice, ...]:
    """The part of the picture whose places lie so near to a centre in any frame; beyond it nothing
    moves. A GPU moves the whole picture sooner than the host has asked it for that part."""
    if not at.is_cpu:
        return (slice(None),) * 4
    few = at[:, :, ::EVERY, ::EVERY]
    near = ((few - centre).abs().amax(-1) <= reach).flatten(0, 1).any(0)
    sides = []
    for lines in (near.any(1), near.any(0)):
        seen = EVERY * lines.nonzero()
        first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (0, -2 * EVERY)
        sides.append(slice(max(0, first - EVERY), max(0, last + EVERY)))
    return (slice(None), slice(None), *sides)


def _axes(left: Tensor, right: Tensor, down: Tensor) -> _Axes:
    half = ((right - left).norm(dim=-1) / 2).clamp_min(LEAST)
    along = (right - left) / (2 * half)[..., None]
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    across = across * torch.where((across * down).sum(-1, keepdim=True) < 0, -1, 1)
    return _Axes((left + right) / 2, along, across, half)


def _mouth(
    at: Tensor,
    axes: _Axes,
    lips: tuple[Tensor, Tensor],
    gap: Tensor,
    wider: Tensor,
    eyes: Tensor,
) -> _Mouth:
    upper, lower = lips
    beside = at - axes.centre
    u, v = (beside * axes.along).sum(-1) / axes.half, (beside * axes.down).sum(-1)
    middle = axes.height(torch.lerp(upper, lower, 1 - LOWER_SHARE))
    # Narrower or wider lips, which the cheeks beside them make up for.
    near = 1 - _smooth(torch.hypot(u, (v - middle) / (1.3 * axes.half)) - 1)
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
    return _Mouth(u, v, x, middle, was, rims, gap, axes.half, eyes)


def _shows(gap: Tensor, half: Tensor) -> Tensor:
    """0..1: how far lips so far apart show an inside."""
    return (gap / (SHOWS_INSIDE * half)).clamp(0, 1)


def _lips(mouth: _Mouth, axes: _Axes, chin: Tensor, nose: Tensor) -> Tensor:
    """From places to their sources, [B, F, S, S, 2]: lips so far apart, so many times as wide."""
    x, rims, gap = mouth.x, mouth.rims, mouth.gap
    below, lens = mouth.beside_line(x), _bow(x).sqrt()
    jaw, face = axes.height(chin) - mouth.middle, mouth.middle - axes.height(nose)
    jaw, face = jaw.clamp_min(LEAST), face.clamp_min(LEAST)
    low, high = mouth.edges(x, gap)
    was_low, was_high = mouth.edges(x, rims)
    under, over = below - low, high - below
    whole = 1 - _smooth((x.abs() - 0.8) / 1.6)  # the jaw falls as a whole
    falls = torch.lerp(lens, whole, _smooth(under / (0.8 * jaw)))
    falls = falls * (1 - _smooth((below - jaw) / (0.8 * jaw)))
    rises = lens * (1 - _smooth(over / (0.8 * face)))
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


def _inside(mouth: _Mouth) -> tuple[Tensor, Tensor]:
    """As in `Inside`: teeth that rest, a tongue that falls by half of what the jaw does."""
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
    return colour * shade((mouth.x + 1) / 2, (below - high) / width, mouth.gap / width), cover


def _eye(at: Tensor, axes: _Axes, points: tuple[Tensor, ...], shut: Tensor, gaze: Tensor) -> Tensor:
    """From places to their sources, [B, F, S, S, 2]: the upper lid comes down to the lower one,
    the iris moves between them."""
    beside = at - axes.centre
    u, v = (beside * axes.along).sum(-1) / axes.half, (beside * axes.down).sum(-1)
    bow = _bow(u)
    above, below, brow = (axes.height(point) for point in points)
    edge = above * bow
    fallen = edge + shut * (below - above).clamp_min(0) * bow
    top = torch.minimum(brow, above - 0.3 * axes.half)  # what lies between stretches
    share = ((v - top) / (fallen - top)).clamp(0, 1)
    downwards = torch.where(v < fallen, share * (edge - fallen), 0)
    seen = (torch.minimum(v - fallen, below * bow - v)).clamp(0, 1)  # within a pixel
    moves = _smooth((1 - u.abs()) / IRIS_SLOWS)
    across = -moves * gaze[..., 0]
    opening = _bow(u + across / axes.half)
    looked = torch.minimum(
        torch.maximum(v - moves * gaze[..., 1], above * opening), below * opening
    )
    downwards = downwards + seen * (looked - v)
    return (seen * across)[..., None] * axes.along + downwards[..., None] * axes.down


def _brow(at: Tensor, axes: _Axes, points: tuple[Tensor, ...], lift: Tensor) -> Tensor:
    """From places to their sources, [B, F, S, S, 2]: the brow rises, lid and forehead give way."""
    beside = at - axes.centre
    u, v = (beside * axes.along).sum(-1) / axes.half, (beside * axes.down).sum(-1)
    above, brow = (axes.height(point) for point in points)
    lid = above - brow
    share = torch.where(
        v > brow,
        _smooth((above - v) / lid.clamp_min(LEAST)),
        1 - _smooth((brow - v) / (-FOREHEAD * brow).clamp_min(LEAST)),
    )
    share = share * (1 - _smooth((u.abs() - BROW[0]) / (BROW[1] - BROW[0])))
    return (lift * share)[..., None] * axes.down


def _near(at: Tensor, axes: _Axes) -> Tensor:
    """0..1, [B, F, S, S]: places at an eye, its lids and its brow."""
    beside = at - axes.centre
    u, v = ((beside * along).sum(-1) / axes.half for along in (axes.along, axes.down))
    return 1 - _smooth((torch.hypot(u / EYE[0], (v - EYE[2]) / EYE[1]) - 1) / EYE_FADES)


def _bow(x: Tensor) -> Tensor:
    """1 in the middle of a mouth or an eye, 0 at its corners and beyond."""
    return (1 - x.square()).clamp_min(0)


def _smooth(share: Tensor) -> Tensor:
    """From 0 to 1, level at both ends."""
    share = share.clamp(0, 1)
    return share * share * (3 - 2 * share)
