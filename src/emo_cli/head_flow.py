"""Where the head of a frame lies in the portrait: a field of moves, for models that are told.

A head is taken for half an ellipsoid that turns about its centre between the ears: what it shows
moves by its depth, hair and ears go along, the farther surroundings rest. The portrait moved by it
is a hint from which a network draws the frame, not the frame itself.

Shapes: B clips, T frames, S side of the picture in pixels, H W latent size; x right, y down, z
away from the camera.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from emo_cli.face_flow import FaceMoves, move_face
from emo_cli.faces import Box

Array = NDArray[np.floating]

# Of the face box's width and height, around its middle: how far the skull with its hair reaches,
# and the face's depth before the ears.
HALF_WIDTH, ABOVE, BELOW, DEPTH = 0.65, 0.75, 0.58, 0.55
FETCHED = 4  # frames at a time, whose pixels a CPU's caches hold
FADES_UNTIL = 1.3  # of the skull's radius: beyond it nothing follows the head


class HeadMoves(NamedTuple):
    """The head in each frame against the portrait.

    `turns` [T, 3, 3] rotations for columns; `scales` [T]; `shifts` [T, 2] pixels, of the centre.
    """

    turns: Array
    scales: Array
    shifts: Array


def head_flow(moves: HeadMoves, box: Box, size: int, latent_size: int) -> NDArray[np.float32]:
    """From each latent pixel of a frame to its source in the portrait, [T, 2, H, W] (x, y).

    box: of the portrait's face, in pixels of S; the field is in latent pixels.
    """
    centre = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    width, height = box[2] - box[0], box[3] - box[1]
    axis = (np.arange(latent_size) + 0.5) * (size / latent_size)
    grid = np.stack(np.meshgrid(axis, axis), -1)  # [H, W, 2]
    beside = grid - (centre + moves.shifts)[:, None, None]  # [T, H, W, 2]
    across = beside[..., 0] / (HALF_WIDTH * width)
    along = beside[..., 1] / (height * np.where(beside[..., 1] < 0, ABOVE, BELOW))
    radius = np.hypot(across, along)
    depth = -DEPTH * height * np.sqrt((1 - radius**2).clip(0))
    frame = np.concatenate([beside, depth[..., None]], -1)
    # The inverse of a rotation is its transpose: rows times the matrix.
    back = np.einsum("thwi,tij->thwj", frame, moves.turns[:, :, :2])
    back /= moves.scales[:, None, None, None]
    follows = 1 - ((radius - 1) / (FADES_UNTIL - 1)).clip(0, 1)
    follows = follows * follows * (3 - 2 * follows)
    flow = follows[..., None] * (centre + back - grid) * (latent_size / size)
    return np.ascontiguousarray(flow.transpose(0, 3, 1, 2), np.float32)


class Moved(NamedTuple):
    """Pictures that have been moved."""

    pictures: Tensor  # [B, T, 3, S, S] of -1..1
    eyes: Tensor  # [B, T, 1, H, W] 0..1, where the picture is all that there is to draw
    shown: Tensor  # [B, T, 3, L, L], as large as the frames


def moved_pictures(
    pictures: Tensor, flow: Tensor, face: FaceMoves | None = None, shown: Tensor | None = None
) -> Moved:
    """Each picture [B, 3, S, S] of -1..1 moved by its field [B, T, 2, H, W].

    face: what the face of each has done besides; shown: the same pictures [B, 3, L, L], if frames
    are of another size.
    """
    (batch, frames), size = flow.shape[:2], pictures.shape[-1]
    fine = F.interpolate(flow.flatten(0, 1).float(), (size, size), mode="bilinear")
    at = _grid(size, flow.device) + size / flow.shape[-1] * fine.movedim(1, -1)
    over, eyes = None, torch.zeros_like(flow[:, :, :1])
    if face is not None:
        moved = move_face(at.unflatten(0, (batch, frames)), face)
        at, inside = moved.at.flatten(0, 1), moved.inside
        colour = 2 * face.light.on(inside.colour) - 1
        over = torch.cat([colour, inside.cover[..., None]], -1).flatten(0, 1).movedim(-1, 1)
        height, width = flow.shape[-2:]
        eyes = F.adaptive_avg_pool2d(moved.eyes, (height, width))[:, :, None]

    def fetched(stills: Tensor) -> Tensor:
        """Each from where its places come from, with what lies over it."""
        stills = stills.float()
        low, high = stills.amin(), stills.amax()  # bicubic sampling overshoots at edges
        parts = []
        for index in range(batch):
            of_clip = range(index * frames, (index + 1) * frames)
            for start in of_clip[::FETCHED]:
                part = slice(start, min(start + FETCHED, of_clip.stop))
                found = _fetch(stills[index], at[part]).clamp(low, high)
                if over is not None:
                    colours, cover = _enlarged(over[part], found.shape[-1]).split((3, 1), 1)
                    found = torch.lerp(found, colours, cover)
                parts.append(found)
        return torch.cat(parts).unflatten(0, (batch, frames))

    small = fetched(pictures)
    return Moved(small, eyes, small if shown is None else fetched(shown))


def _fetch(still: Tensor, at: Tensor) -> Tensor:
    """A picture [3, L, L] at places [N, S, S, 2] of a smaller one, as large as it is."""
    size, side = at.shape[1], still.shape[-1]
    place = at
    if side != size:
        # Not smoothly: between lips, or lids, that lie on each other are teeth, or an eye.
        beside = (at - _grid(size, at.device)).movedim(-1, 1)
        beside = F.interpolate(beside, (side, side), mode="nearest-exact").movedim(1, -1)
        place = _grid(side, at.device) + side / size * beside
    stills, place = still.expand(len(at), -1, -1, -1), place * (2 / side) - 1
    return F.grid_sample(stills, place, "bicubic", padding_mode="border", align_corners=False)


def _grid(side: int, device: torch.device) -> Tensor:
    """The middles of pixels, [S, S, 2] (x, y)."""
    axis = torch.arange(side, device=device) + 0.5
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)


def _enlarged(maps: Tensor, side: int) -> Tensor:
    """Maps [N, C, S, S] as [N, C, side, side]."""
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, (side, side), mode="bilinear")
