"""Where a face may be, and where people look at it: mouth, jaw and eyes, as weights of a loss.

Shapes: F frames, V = 478 landmarks of MediaPipe, H W latent size; coordinates are pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emo_cli import face_points
from emo_cli.portrait import GROWTH
from emo_cli.training.draws import derive_seed

OUTER_LIPS = (61, 37, 0, 267, 291, 314, 17, 84)
LIP_MARGIN = (0.15, 0.35)  # of the lips' width and height: an open jaw moves what is around them
# The face's outline below the mouth, from one corner of the jaw over the chin to the other.
JAW = (172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397)
JAW_MARGIN = 0.1  # of the jaw's height below the lips: the outline itself, and what it uncovers
EYES = tuple(eye[:4] for eye in face_points.EYES)  # corners and lids
EYE_MARGIN = (0.2, 0.5)  # of an eye's width, around its corners: a shut eye is as large
LIDS_FALL = (0.2, 0.6)  # of an eye's height: where a blink begins and where it counts in full
LIDS_MOVE = (0.15, 0.8)  # the same, for a model that is told how far they have fallen
BLINK_WEIGHT = 2.0  # of eyes that shut, beside open ones: one frame in twenty is not learnt else


def seen_most(
    landmarks: Tensor, clip_frames: int, size: int, latent_size: int
) -> dict[str, Tensor]:
    """Landmarks [M+F, V, 3] in a picture of `size` pixels -> `mouth`, `jaw`, `eyes`, [F, H, W].

    The share of each latent pixel that lies in the part's box; that of the eyes is up to
    `BLINK_WEIGHT` times as much while they shut. The jaw begins at the lips.
    """
    clip = landmarks[-clip_frames:, :, :2].float()
    mouth = box_share(_mouth_box(clip), size, latent_size)
    jaw = box_share(_jaw_box(clip), size, latent_size)
    blink = lids_shut(landmarks)[-clip_frames:, None, None]
    eyes = eye_shares(landmarks[-clip_frames:], size, latent_size).amax(0)
    return {"mouth": mouth, "jaw": jaw, "eyes": eyes * (1 + (BLINK_WEIGHT - 1) * blink)}


def eye_shares(landmarks: Tensor, size: int, latent_size: int) -> Tensor:
    """Landmarks [F, V, 3] -> [2, F, H, W], each latent pixel's share in the box of each eye."""
    points = landmarks[..., :2].float()
    return torch.stack([box_share(_eye_box(points, *eye[:2]), size, latent_size) for eye in EYES])


def lids_shut(landmarks: Tensor, fall: tuple[float, float] = LIDS_FALL) -> Tensor:
    """Landmarks [F, V, 3] -> [F], 0: as open as these eyes usually are .. 1: in a blink."""
    points = landmarks[..., :2].float()
    heights = []
    for outer, inner, upper, lower in EYES:
        width = (points[:, outer] - points[:, inner]).norm(dim=-1).clamp_min(1e-3)
        heights.append((points[:, upper] - points[:, lower]).norm(dim=-1) / width)
    height = torch.stack(heights).mean(0)
    fallen = 1 - height / height.quantile(0.9).clamp_min(1e-3)
    begin, end = fall
    return ((fallen - begin) / (end - begin)).clamp(0, 1)


def blink_frames(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks [T, V, 3] of a clip -> numbers of the frames whose eyes are more shut than open."""
    return np.flatnonzero(lids_shut(torch.from_numpy(landmarks)).numpy() > 0.5)


def start_at_blink(landmarks: np.ndarray, num_frames: int, start: int, seed: int) -> int:
    """Where a sample of a clip begins so that eyes shut in it; `start` where none ever do."""
    shut = blink_frames(landmarks)
    if len(shut) == 0:
        return start
    blink = int(shut[derive_seed(seed, "which blink") % len(shut)])
    into = derive_seed(seed, "blink at") % num_frames
    return min(max(blink - into, 0), len(landmarks) - num_frames)


def held_lids(latents: Tensor, landmarks: Tensor, blink: Tensor, size: int, seed: int) -> Tensor:
    """Latents [F, C, H, W] whose eyes are drawn towards those of a `blink` [C, H, W].

    Each eye of the landmarks [F, V, 3] by its own share, the same in all frames. What a model has
    generated it must be able to leave: lids that were caught on their way.
    """
    rng = np.random.default_rng(derive_seed(seed, "held lids"))
    each = torch.from_numpy(rng.uniform(0, 1, (2, 1, 1, 1))).float()
    share = (each * eye_shares(landmarks, size, latents.shape[-1])).amax(0)
    return torch.lerp(latents.float(), blink.float(), share[:, None]).to(latents.dtype)


def box_share(boxes: Tensor, size: int, latent_size: int) -> Tensor:
    """Boxes [F, 4] (x0, y0, x1, y1 in pixels of S) -> [F, H, W], each latent pixel's share."""
    edges = torch.arange(latent_size + 1) * (size / latent_size)
    low, high = edges[:-1], edges[1:]

    def overlap(start: Tensor, stop: Tensor) -> Tensor:
        inside = torch.minimum(high, stop[:, None]) - torch.maximum(low, start[:, None])
        return inside.clamp_min(0) / (high - low)

    across, down = overlap(boxes[:, 0], boxes[:, 2]), overlap(boxes[:, 1], boxes[:, 3])
    return down[:, :, None] * across[:, None, :]


def union_mask(boxes: np.ndarray, size: int) -> np.ndarray:
    """Where the face may be: the union of boxes [T, 4], grown as `--face-region box` grows one.

    float32 [S, S], 0 or 1; a pixel counts by its centre, as in `portrait.py`.
    """
    (x0, y0), (x1, y1) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    grow_x, grow_y = ((x1 - x0) * GROWTH["box"][0], (y1 - y0) * GROWTH["box"][1])
    centres = np.arange(size) + 0.5
    inside_x = (centres >= x0 - grow_x) & (centres < x1 + grow_x)
    inside_y = (centres >= y0 - grow_y) & (centres < y1 + grow_y)
    return np.outer(inside_y, inside_x).astype(np.float32)


def _mouth_box(points: Tensor) -> Tensor:
    """Landmarks [F, V, 2] -> box [F, 4] around the lips and what they pull along."""
    lips = points[:, OUTER_LIPS]
    low, high = lips.amin(1), lips.amax(1)
    margin = (high - low) * torch.tensor(LIP_MARGIN)
    return torch.cat([low - margin, high + margin], 1)


def _jaw_box(points: Tensor) -> Tensor:
    """Landmarks [F, V, 2] -> box [F, 4] from the upper lip down over chin and jaw."""
    outline = points[:, JAW]
    (left, _), (right, bottom) = outline.amin(1).unbind(1), outline.amax(1).unbind(1)
    top = points[:, OUTER_LIPS, 1].amin(1)
    below = JAW_MARGIN * (bottom - top)
    return torch.stack([left - below, top, right + below, bottom + below], 1)


def _eye_box(points: Tensor, outer: int, inner: int) -> Tensor:
    """Landmarks [F, V, 2] -> box [F, 4] around an eye between these corners, open or shut."""
    corners = points[:, (outer, inner)]
    width = (corners[:, 0] - corners[:, 1]).norm(dim=-1, keepdim=True)
    margin = width * torch.tensor(EYE_MARGIN)
    return torch.cat([corners.amin(1) - margin, corners.amax(1) + margin], 1)
