"""Training on a square of each picture: what lies beside its latents is cut as they are.

Shapes: B clips, H W latent size; a corner is (y, x) in latent pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emo_cli.model.backbone import ClipState, VideoState
from emo_cli.model.gestures import Head


def cut_window(maps: Tensor, corner: Tensor, side: int) -> Tensor:
    """The square of `side` latent pixels of maps [..., H, W] that begins at corner [2] (y, x)."""
    y, x = corner.tolist()
    return maps[..., y : y + side, x : x + side]


def cut_video(video: VideoState, corners: Tensor, side: int) -> VideoState:
    """What lies beside the latents, cut as they are; keys and values of the reference stay."""
    portrait = None if video.portrait is None else _cut(video.portrait, corners, side)
    return video._replace(face=_cut(video.face, corners, side), portrait=portrait)


def cut_clip(clip: ClipState, corners: Tensor, side: int) -> ClipState:
    """The head of each frame, cut as the latents are; sound and speed have no places."""
    head = clip.head and Head(*(_cut(maps, corners, side) for maps in clip.head))
    return clip._replace(head=head)


def _cut(maps: Tensor, corners: Tensor, side: int) -> Tensor:
    return torch.stack([cut_window(*pair, side) for pair in zip(maps, corners, strict=True)])
