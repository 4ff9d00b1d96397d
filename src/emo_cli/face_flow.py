"""How lips and eyes of a portrait move, for models that are shown it so (`UNetConfig.told_lips`).

Lips part and the chin falls (`lip_flow.py`), lids come down over the eyes, irises move between
them, brows rise (`eye_flow.py`). As with the head (`head_flow.py`) that is a hint from which a
network draws the frame; beside the lower face it is the frame.

Shapes: B clips, F frames, S side of the picture in pixels; x right, y down. "Of the eyes": in
distances of the eyes' outer corners, so that the size of a face does not count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from emo_cli.device import part_seen
from emo_cli.eye_flow import brow_moves, eye_moves, eye_reach, lid_shadow
from emo_cli.face_axes import axes_of, smooth
from emo_cli.face_points import LEAST, LEFT_EYE, LEFT_IRIS, RIGHT_EYE
from emo_cli.lip_flow import inside_of, inside_reach, lip_moves, mouth_at
from emo_cli.mouth import Light

# The lower face, around the middle between chin and nose: how far it reaches to the sides, of the
# eyes, and up and down, of chin to nose; over how much of that it fades.
LOWER_FACE, LOWER_FACE_FADES = (0.5, 0.7), 0.4
EVERY = 4  # pixels: so finely the parts of a picture that move are sought


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


class Overlay(NamedTuple):
    """What the portrait does not show: a mouth's inside, shadows of lids and lips that close."""

    colour: Tensor  # [B, F, S, S, 3] RGB of 0..1, in the light of the portrait; shadows are black
    cover: Tensor  # [B, F, S, S] 0..1, how much of each place it takes


class MovedFace(NamedTuple):
    """A portrait whose lips, eyes and brows have moved."""

    at: Tensor  # [B, F, S, S, 2], where its places come from in the portrait, in pixels
    over: Overlay  # what lies over it


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
    over = Overlay(at.new_zeros(*at.shape[:-1], 3), at.new_zeros(at.shape[:-1]))
    moved, axes = at.clone(), axes_of(left, right, down)
    part = _around(at, axes.centre, 2.4 * torch.maximum(axes.half, axes.height(chin) / 1.3))
    mouth = mouth_at(at[part], axes, (upper, lower), gap, wider, eyes)
    moved[part] += lip_moves(mouth, axes, chin, nose)
    part = _around(at, axes.centre, inside_reach(axes, gap))  # smaller: an inside is dear
    mouth = mouth_at(at[part], axes, (upper, lower), gap, wider, eyes)
    colour, over.cover[part] = inside_of(mouth)
    over.colour[part] = face.light.on(colour) * (over.cover[part] > 0)[..., None]
    left_eye, right_eye = points[LEFT_EYE:RIGHT_EYE], points[RIGHT_EYE:LEFT_IRIS]
    for corners, (above, below, brow) in (
        (left_eye[:2], left_eye[2:]),
        (right_eye[1::-1], right_eye[2:]),
    ):
        eye = axes_of(corners[0], corners[1], down)
        part = _around(at, eye.centre, eye_reach(eye, brow))
        moved[part] += eye_moves(at[part], eye, (above, below, brow), lids, gaze)
        over.cover[part] += lid_shadow(at[part], eye, (above, below), lids)
        moved[part] += brow_moves(at[part], eye, (above, brow), lift)
    return MovedFace(moved, over)


def speaks(at: Tensor, face: FaceMoves) -> Tensor:
    """0..1, [B, F, H, W]: places that come from the lower face, where lips, cheeks and jaw move.

    at: as for `move_face`, [B, F, H, W, 2], as finely as wanted.
    """
    points = face.points[:, None, None, None, :, :2].unbind(-2)
    left, right, _, _, chin, nose = points[:6]
    axes, (sides, ends) = axes_of(left, right, chin - nose), LOWER_FACE
    eyes = (points[LEFT_EYE] - points[RIGHT_EYE]).norm(dim=-1)
    (u, v), low, high = axes.places(at), axes.height(chin), axes.height(nose)
    across = u * axes.half / (sides * eyes).clamp_min(LEAST)
    along = (v - (low + high) / 2) / (ends * (low - high)).clamp_min(LEAST)
    return 1 - smooth((torch.hypot(across, along) - 1) / LOWER_FACE_FADES)


def _around(at: Tensor, centre: Tensor, reach: Tensor) -> tuple[slice, ...]:
    """The part of the picture whose places lie so near to a centre in any frame; beyond it nothing
    moves. On a GPU all of it is moved: the host would wait for that part."""
    if not at.is_cpu:
        return (slice(None),) * 4
    few = at[:, :, ::EVERY, ::EVERY]
    near = ((few - centre).abs().amax(-1) <= reach).flatten(0, 1).any(0)
    return (slice(None), slice(None), *part_seen(near, 1, times=EVERY))
