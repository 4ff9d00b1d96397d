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

from emo_cli.face_flow import FaceMoves, move_face, speaks
from emo_cli.faces import Box

Array = NDArray[np.floating]

# Of the face box's width and height, around its middle: how far the skull with its hair reaches,
# and the face's depth before the ears.
HALF_WIDTH, ABOVE, BELOW, DEPTH = 0.65, 0.75, 0.58, 0.55
FADES_UNTIL = 1.3  # of the skull's radius: beyond it nothing follows the head

FRAMES_AT_ONCE = 2  # whose pixels a CPU's caches hold


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
    made_up: Tensor  # [B, T, 1, S, S] 0..1, how much of them the picture does not show


def moved_pictures(pictures: Tensor, flow: Tensor, face: FaceMoves | None = None) -> Moved:
    """Each picture [B, 3, S, S] of -1..1, mirrored at its borders, moved by its field
    [B, T, 2, H, W].

    face: what the face of each has done besides, in pixels of S.
    """
    pictures, count = pictures.float(), flow.shape[1]
    at_once = FRAMES_AT_ONCE if flow.is_cpu else count
    parts = []
    for start in range(0, count, at_once):
        frames = slice(start, start + at_once)
        moves = None if face is None else face.part(frames)
        parts.append(_moved(pictures, flow[:, frames], moves))
    return Moved(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def told_places(flow: Tensor, size: int, face: FaceMoves | None) -> Tensor:
    """0..1, [B, T, 1, H, W]: where moved pictures are all that there is to draw, which is beside
    the lower face; nowhere without a face that moves. size: S."""
    if face is None:
        return torch.zeros_like(flow[:, :, :1])
    return 1 - speaks(_sources(flow.float(), size), face)[:, :, None]


def _sources(flow: Tensor, size: int) -> Tensor:
    """Where places come from in a picture so large, in its pixels: fields [..., 2, H, W] in their
    own -> [..., H, W, 2]."""
    height, width = flow.shape[-2:]
    x, y = (torch.arange(n, device=flow.device) + 0.5 for n in (width, height))
    at = torch.stack([x + flow[..., 0, :, :], y[:, None] + flow[..., 1, :, :]], -1)
    return size / width * at


def _moved(pictures: Tensor, flow: Tensor, face: FaceMoves | None) -> Moved:
    (batch, frames), size = flow.shape[:2], pictures.shape[-1]
    times = size / flow.shape[-1]
    fine = F.interpolate(flow.flatten(0, 1).float(), (size, size), mode="bilinear")
    at, moved = _sources(times * fine, size), None
    if face is not None:
        moved = move_face(at.unflatten(0, (batch, frames)), face)
        at = moved.at.flatten(0, 1)
    still = pictures.repeat_interleave(frames, 0)
    place = at * (2 / size) - 1
    fetched = F.grid_sample(
        still, place, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    low, high = still.amin(), still.amax()  # bicubic sampling overshoots at edges
    fetched = fetched.clamp(low, high).unflatten(0, (batch, frames))
    if moved is None:
        return Moved(fetched, torch.zeros_like(fetched[:, :, :1]))
    colour, cover = (2 * moved.over.colour - 1).movedim(-1, 2), moved.over.cover[:, :, None]
    return Moved(torch.lerp(fetched, colour, cover), cover)
