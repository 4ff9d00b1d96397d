"""What a clip is made from besides noise: sound, motion frames, speed, eyelids, head and lips.

Shapes: G guidance branches, F frames, 2m+1 frames in a window, M motion frames, C latent channels,
H W latent size, S picture size, L frame size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from emo_cli.device import upload
from emo_cli.face_flow import FaceMoves
from emo_cli.face_points import eye_axes, lip_shape
from emo_cli.head_flow import HeadMoves, Moved, head_flow, moved_pictures, told_places
from emo_cli.model.emo_model import EmoModel
from emo_cli.model.gestures import Gestures, Head
from emo_cli.mouth import Light, light_on

if TYPE_CHECKING:
    from emo_cli.acting import Acting
    from emo_cli.clips import PlannedClip
    from emo_cli.engine import Video
    from emo_cli.portrait import Portrait

AtWork = Callable[[nn.Module], AbstractContextManager[None]]  # a part's weights are on the device


class ClipInputs(NamedTuple):
    """What `Backbone.prepare_clip` takes."""

    audio: Tensor  # [G, F, 2m+1, L*D]
    motion: list[Tensor]  # [G, M, C', H', W'] per temporal layer
    speed: Tensor  # [G, F, 2m+1]
    gestures: Gestures


class MovedPortrait(NamedTuple):
    """A portrait as a clip's frames are to show it, for a model that is told."""

    pictures: Tensor  # [F, 3, L, L] of -1..1
    made_up: Tensor  # [F, 1, L, L] 0..1, how much of them the portrait does not show
    latents: Tensor  # [F, C, H, W]
    step: Tensor | None  # [1, 1, C, H, W], fp32, of the latents from the frame before; if there is


class SeenPortrait(NamedTuple):
    """A portrait on the device."""

    picture: Tensor  # [1, 3, S, S] in -1..1
    shown: Tensor  # [1, 3, L, L], as large as the frames
    mask: Tensor  # [1, 1, S, S], 1 inside the face region
    points: Tensor  # [1, 18, 3], FACE_POINTS in pixels
    lips: Tensor  # [2], their usual gap, which is none, and width, of the eyes
    light: Light


class ClipConditions:
    """The conditions of a video's clips, on the device."""

    def __init__(
        self, model: EmoModel, device: torch.device, dtype: torch.dtype, at_work: AtWork
    ) -> None:
        self.model, self.config = model, model.config
        self.device, self.dtype, self.at_work = device, dtype, at_work

    def of_clip(
        self, video: Video, planned: PlannedClip, motion: Tensor | None
    ) -> tuple[ClipInputs, MovedPortrait | None]:
        """What a clip is made from, and what it is to look like, where a model is told that.

        motion: latents [1, M, C, H, W] that the clip before has left; None for the first.
        """
        config, count = self.config, len(video.branches)
        joined = motion is not None and config.diffusion.join_frames > 0
        before = int(joined and config.unet.told_head)
        window = 2 * config.window + 1
        speed = constant_speed(video.sampling.speed, config.clip_frames, window, self.device)
        heard = self.heard(video, planned.start - before, config.clip_frames + before)
        (lids, head), shown = self.gestures(video, planned.start - before, heard)
        moved = None
        if head is not None and shown is not None:
            latents = head.moved[0]
            step = (latents[1:2].float() - latents[:1].float())[None] if before else None
            pictures, made_up = shown.pictures[0, before:], shown.made_up[0, before:]
            moved = MovedPortrait(pictures, made_up, latents[before:], step)
            lids, head = lids[:, before:], Head(*(maps[:, before:] for maps in head))
        inputs = ClipInputs(
            audio=self.audio(video, heard[before:]),
            motion=self.motion(motion, count),
            speed=speed.expand(count, -1, -1),
            gestures=Gestures(lids, head),
        )
        return inputs, moved

    def heard(self, video: Video, start: int, frames: int) -> Tensor:
        """The audio features of so many frames in windows, [F, 2m+1, L*D]."""
        reach = self.config.window
        features = video.features.features(start - reach, start + frames + reach)
        return windows(features, 2 * reach + 1)

    def audio(self, video: Video, heard: Tensor) -> Tensor:
        """What each branch hears; silence of features where audio is null."""
        on = torch.tensor([float(branch.audio) for branch in video.branches], dtype=self.dtype)
        on = upload(on, heard.device)
        return on[:, None, None, None] * heard.to(self.dtype)

    def motion(self, motion: Tensor | None, branches: int) -> list[Tensor]:
        """Feature maps of the motion frames, the same for every branch; zero maps at first."""
        if motion is None:
            like = torch.empty(0, device=self.device, dtype=self.dtype)
            return self.model.backbone.zero_motion(branches, self.config.latent_size, like)
        with self.at_work(self.model.reference_net):
            latents = motion.to(self.device, self.dtype)
            maps = self.model.reference_net.motion_features(latents)
        return [x.expand(branches, -1, -1, -1, -1) for x in maps]

    def gestures(self, video: Video, start: int, heard: Tensor) -> tuple[Gestures, Moved | None]:
        """Eyelids, head and lips of the frames that are heard, the same for every branch; and the
        portrait moved so, as large as the frames."""
        acting = video.acting.part(slice(start, start + len(heard)))
        lids = self._put(acting.lids)[None]
        head, shown = None, None
        if self.config.unet.told_head:
            face = self._face(video, acting, lids, heard)
            head, shown = self._head(video, acting.head, face)
        return Gestures(lids.expand(len(video.branches), -1), head), shown

    def seen(self, portrait: Portrait) -> SeenPortrait:
        """What of a portrait all clips of a video share."""
        picture, shown = pixels(portrait.picture), pixels(portrait.shown)
        points = torch.from_numpy(portrait.face_points).float()[None]
        return SeenPortrait(
            picture=upload(picture, self.device),
            shown=upload(shown, self.device),
            mask=self._put(portrait.mask)[None, None],
            points=upload(points, self.device),
            # Of the portrait's own lips only the width is theirs to keep.
            lips=self._put(lip_shape(portrait.face_points) * [0, 1]),
            light=Light(*(upload(x, self.device) for x in light_on(picture, points))),
        )

    def _face(self, video: Video, acting: Acting, lids: Tensor, heard: Tensor) -> FaceMoves | None:
        """What the portrait's lips do to what is heard, and its eyes, for a model that is told."""
        reader, seen = self.model.lip_reader, video.seen
        if reader is None:
            return None
        with self.at_work(reader):
            lips = reader(heard[None])
        return FaceMoves(
            points=seen.points,
            lips=seen.lips + lips,
            lids=lids,
            brows=self._put(acting.brows)[None],
            gaze=self._put(acting.gaze @ eye_axes(video.portrait.face_points).T)[None],
            light=seen.light,
        )

    def _put(self, values: np.ndarray) -> Tensor:
        return upload(torch.from_numpy(values).float(), self.device)

    def _head(self, video: Video, moves: HeadMoves, face: FaceMoves | None) -> tuple[Head, Moved]:
        """Where the head is in some frames, for every branch; a null portrait stays null. And the
        portrait moved so, as large as the frames."""
        config, box = self.config, video.portrait.face_box
        field = head_flow(moves, box, config.picture_size, config.latent_size)
        flow = upload(torch.from_numpy(field), self.device)[None]
        picture, shown = video.seen.picture, video.seen.shown
        moved = moved_pictures(picture, flow, face)
        with self.at_work(self.model.autoencoder):
            latents = self.model.autoencoder.encode(moved.pictures[0].to(self.dtype))
        on = torch.tensor([float(branch.reference) for branch in video.branches])
        on = upload(on.to(self.dtype), self.device)[:, None, None, None, None]
        told = told_places(flow, picture.shape[-1], face)
        head = Head(flow.expand(len(on), -1, -1, -1, -1), on * latents, on * told)
        larger = shown.shape[-1] / picture.shape[-1]
        if larger != 1:
            moved = moved_pictures(shown, flow, face and face.in_picture(larger))
        return head, moved


def pixels(picture: np.ndarray) -> Tensor:
    """A picture [S, S, 3] of bytes as networks take it, [1, 3, S, S] in -1..1."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1


def windows(frames: Tensor, count: int) -> Tensor:
    """Neighbourhoods of `count` = 2m+1 frames: [F+2m, ...] -> [F, 2m+1, ...]."""
    return frames.unfold(0, count, 1).movedim(-1, 1)


def constant_speed(speed: float, frames: int, count: int, device: torch.device) -> Tensor:
    """One speed for every frame, as at inference (EMO sec. 4.1): [1, F, 2m+1]."""
    return torch.full((1, frames, count), speed, device=device)
