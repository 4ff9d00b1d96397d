"""From latents to finished frames, which a GPU decodes while the host already does other work.

Shapes: F frames, M motion frames, C latent channels, H W latent size, S picture size, L frame size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emo_cli.conditions import MovedPortrait
from emo_cli.device import download, part_seen
from emo_cli.model.autoencoder import KLAutoencoder, PatchAutoencoder

CPU_DECODE_SLICE = 3  # larger tensors are mapped into memory anew at each call
# Root mean squares over the latents' channels, whose std is about 1: nearer to the moved portrait
# than the first a place is the portrait's, farther than the second it is drawn.
SAME, DRAWN = 0.03, 0.2
LINE = 4  # pixels of S: lines are finer, shades are not
MADE_UP = 0.5  # lines that the portrait does not show itself, as of drawn teeth, count less by this
FAINT = 0.05  # sum of squares of RGB, of -1..1: weaker lines say little

Part = tuple[Any, ...]  # an index into latents, and all of them
EVERYWHERE: Part = (...,)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Some finished frames of a video."""

    index: int
    frames: np.ndarray  # uint8 RGB [F, L, L, 3]; fewer than F at the end of the sound
    motion: Tensor  # [1, M, C, H, W] fp32: what the next clip starts from
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MadeClip:
    """A clip that the device may still be decoding."""

    index: int
    frames: Callable[[], np.ndarray]
    motion: Callable[[], Tensor]
    started: float

    def finish(self, before: float) -> Clip:
        """Wait for it; `before`: when the clip before it was done."""
        frames, motion = self.frames(), self.motion()
        seconds = time.perf_counter() - max(self.started, before)
        return Clip(index=self.index, frames=frames, motion=motion, seconds=seconds)


@torch.inference_mode()
def start_decoding(
    autoencoder: KLAutoencoder | PatchAutoencoder,
    latents: Tensor,
    *,
    moved: MovedPortrait | None = None,
    slice_size: int | None = None,
) -> Callable[[], np.ndarray]:
    """Latents [F, C, H, W] -> a call that waits for the frames, uint8 [F, L, L, 3].

    moved: what they were to show, for others L is S; slice_size: so many frames at a time, None: as
    many as are fastest on the device.
    """
    if slice_size is None:
        slice_size = CPU_DECODE_SLICE if latents.device.type == "cpu" else len(latents)
    part, drawn, parts = EVERYWHERE, latents, []
    if moved is not None:
        drawn = _drawn((latents - moved.latents[: len(latents)]).float())
        part = _part_drawn(drawn, autoencoder.reach)
    for start in range(0, len(latents), slice_size):
        now = slice(start, min(start + slice_size, len(latents)))
        pictures = autoencoder.decode(latents[now][part]).float()
        if moved is not None:
            frames = moved.pictures[now].clone()
            shown, made_up = (_in_pictures(x, part, latents) for x in (frames, moved.made_up[now]))
            shown.copy_(with_detail(pictures, drawn[now][part], shown, made_up))
            pictures = frames
        parts.append((pictures.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8))
    arrived = download(torch.cat(parts).permute(0, 2, 3, 1).contiguous())
    return lambda: arrived().numpy()


def _drawn(beside: Tensor) -> Tensor:
    """0..1, [F, 1, H, W]: what is not the moved portrait any more, whose latents differ by so much,
    [F, C, H, W]."""
    far = beside.square().mean(1, keepdim=True).sqrt()
    return ((far - SAME) / (DRAWN - SAME)).clamp(0, 1)


def _part_drawn(drawn: Tensor, reach: int | None) -> Part:
    """The part of latents [F, 1, H, W] that has to be decoded for what was drawn in any frame.

    reach: so many latents around it count; None: all, as on a GPU, for which the host would wait.
    """
    if reach is None or not drawn.is_cpu:
        return EVERYWHERE
    return (..., *part_seen(drawn.amax((0, 1)) > 0, reach))


def _in_pictures(pictures: Tensor, part: Part, latents: Tensor) -> Tensor:
    """A part of latents, in pictures."""
    if part == EVERYWHERE:
        return pictures
    times = pictures.shape[-1] // latents.shape[-1]
    rows, columns = (slice(times * side.start, times * side.stop) for side in part[1:])
    return pictures[..., rows, columns]


def with_detail(pictures: Tensor, drawn: Tensor, shown: Tensor, made_up: Tensor) -> Tensor:
    """Decoded pictures [F, 3, S, S] where something was drawn, elsewhere what was to be shown, in
    its size, [F, 3, L, L].

    A small autoencoder smooths skin, hair and writing that the moved portrait has, a small network
    lips and teeth: what it draws keeps its shades, and its lines where they are not the portrait's.
    drawn: 0..1, [F, 1, H, W]; made_up: how much of what was to be shown the portrait does not
    show, [F, 1, L, L].
    """
    size, small_size = shown.shape[-2:], pictures.shape[-2:]
    small = F.interpolate(shown, small_size, mode="area")
    shades, shown_shades = _means(pictures), _means(small)
    lines, shown_lines = (
        x - F.interpolate(means, small_size, mode="bilinear")
        for x, means in ((pictures, shades), (small, shown_shades))
    )
    drawn, alike, lighter = (
        F.interpolate(x, size, mode="bilinear")
        for x in (drawn, _alike(lines, shown_lines), shades - shown_shades)
    )
    if small_size != size:
        pictures = F.interpolate(pictures, size, mode="bicubic")
    pictures = torch.lerp(pictures, shown + lighter, alike * (1 - MADE_UP * made_up))
    return torch.lerp(shown, pictures, drawn)


def _alike(lines: Tensor, others: Tensor) -> Tensor:
    """How far lines of pictures [F, 3, S, S] are those of others, 0..1, around places, as `_means`
    has them; where there are next to none, the others' do."""
    both, own, other = (
        _means((x * y).sum(1, keepdim=True))
        for x, y in ((lines, others), (lines, lines), (others, others))
    )
    explained = both.clamp_min(0).square() / other.clamp_min(1e-6)
    return ((explained + FAINT) / (own + FAINT)).clamp(0, 1)


def _means(x: Tensor) -> Tensor:
    """Means of maps [F, C, S, S] where no lines are left of them, one for LINE x LINE places."""
    return F.avg_pool2d(x, 2 * LINE, LINE, LINE // 2, count_include_pad=False)
