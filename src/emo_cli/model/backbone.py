"""Backbone: denoises the frames of a clip under all conditions (EMO sec. 3.2).

Three speeds of work: `prepare_video` once per video, `prepare_clip` once per clip, `forward` at
every denoising step.

Shapes: B clips (a multiple of it with guidance), F frames, M motion frames, C latent channels,
H W latent size, N = H*W tokens, S picture size, A audio tokens.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emo_cli.config import DiffusionConfig, ModelConfig
from emo_cli.model.audio_layers import AudioProjector
from emo_cli.model.face_locator import FaceLocator
from emo_cli.model.gestures import EyelidEmbedding, Gestures, Head
from emo_cli.model.layers import Folded, GroupNorm, fold_frames, unfold_frames
from emo_cli.model.reference_net import has_spatial, has_temporal
from emo_cli.model.spatial import BackboneBlock, BackboneTransformer, KeysValues
from emo_cli.model.speed import SpeedEncoder
from emo_cli.model.temporal import TemporalModule, TemporalState
from emo_cli.model.unet import MIDDLE, Layers, UNet, Visit
from emo_cli.sampler import alphas_cumprod

GATE_SCALE = 8.0  # a gate learns slowly at a learning rate that suits the rest


class VideoState(NamedTuple):
    """Kept for a video."""

    reference: list[KeysValues]  # per spatial layer
    face: Tensor  # [B, C, H, W] added to the noisy latents
    portrait: Tensor | None  # [B, C, H, W] beside the noisy latents, where the model wants it
    alphas: Tensor | None  # [1000] of the schedule, where the portrait is copied

    def first(self) -> VideoState:
        """The first clip of the batch alone; views."""
        portrait = None if self.portrait is None else self.portrait[:1]
        keys_values = [(k[:1], v[:1]) for k, v in self.reference]
        return self._replace(reference=keys_values, face=self.face[:1], portrait=portrait)


class ClipState(NamedTuple):
    """Kept for a clip."""

    audio: list[Folded]  # per spatial layer
    temporal: list[TemporalState]  # per temporal layer; empty: a picture, not a clip
    lids: Tensor | None  # [B*F, T] beside the time embedding, where the model is told
    head: Head | None  # beside the noisy latents, where the model is told

    def first(self, frames: int) -> ClipState:
        """The first clip of the batch, of so many frames, alone; views."""
        audio = [Folded(*(x[:frames] for x in folded)) for folded in self.audio]
        lids = None if self.lids is None else self.lids[:frames]
        head = None if self.head is None else Head(*(x[:1] for x in self.head))
        return ClipState(audio, [state.first() for state in self.temporal], lids, head)


class Backbone(UNet):
    """SD 1.5's U-Net with reference-, audio- and temporal layers, face locator and speed."""

    def __init__(self, config: ModelConfig) -> None:
        unet, channels = config.unet, config.autoencoder.latent_channels
        layers = Layers(
            spatial=lambda level: _spatial(config, level),
            temporal=lambda level: _temporal(config, level),
        )
        inputs = channels * (2 if unet.concatenate_reference else 1) + (2 if unet.told_head else 0)
        super().__init__(unet, inputs, layers, has_time=True)
        self.conv_norm_out = GroupNorm(unet.norm_groups, unet.widths[0], eps=1e-5)
        # The last output channel is the gate that copies the portrait.
        outputs = channels + (1 if unet.copy_reference else 0)
        self.conv_out = nn.Conv2d(unet.widths[0], outputs, 3, padding=1)
        self.face_locator = FaceLocator(
            config.face_locator_widths, channels, config.autoencoder.factor
        )
        self.audio_projector = AudioProjector(config.audio, config.window)
        self.speed_encoder = SpeedEncoder(config.speed, config.window)
        self.eyelids = EyelidEmbedding(unet.time_width) if unet.told_lids else None
        self.told_head = unet.told_head
        self.motion_frames = config.motion_frames
        self.takes_portrait = unet.concatenate_reference or unet.copy_reference
        self.concatenate_reference = unet.concatenate_reference
        self.copy = CopyGate(config.diffusion) if unet.copy_reference else None
        for place, spatial in enumerate(self.spatial_layers()):
            spatial.place = place
        for place, temporal in enumerate(self.temporal_layers()):
            temporal.place = place

    def spatial_layers(self) -> list[BackboneTransformer]:
        """In the order of the walk."""
        return [m for m in self._walk_order() if isinstance(m, BackboneTransformer)]

    def temporal_layers(self) -> list[TemporalModule]:
        """In the order of the walk."""
        return [m for m in self._walk_order() if isinstance(m, TemporalModule)]

    def _walk_order(self) -> list[nn.Module]:
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [m for block in blocks for m in block.modules()]

    def prepare_video(
        self, reference: list[Tensor], face_region: Tensor, portrait: Tensor
    ) -> VideoState:
        """Project what the portrait gives.

        reference: ReferenceNet's features [B, N, C] per spatial layer; face_region
        [B, 1, S, S]; portrait latents [B, C, H, W].
        """
        layers = self.spatial_layers()
        keys_values = [
            layer.reference_keys_values(x) for layer, x in zip(layers, reference, strict=True)
        ]
        face = self.face_locator(face_region)
        alphas = None if self.copy is None else self.copy.alphas(portrait.device)
        return VideoState(keys_values, face, portrait if self.takes_portrait else None, alphas)

    def prepare_clip(
        self, audio: Tensor, motion: list[Tensor], speed: Tensor, gestures: Gestures
    ) -> ClipState:
        """Project what sound, motion frames, speed and gestures give.

        audio [B, F, 2m+1, L*D]; motion features [B, M, C, H, W] per temporal layer, or an
        empty list for single pictures; speed [B, F, 2m+1] degrees per frame. A model that is
        not told passes over the gestures.
        """
        tokens = self.audio_projector(audio)
        folded = [layer.fold_audio(tokens) for layer in self.spatial_layers()]
        eyes = None if self.eyelids is None else self.eyelids(gestures.lids.to(audio))
        head = None
        if self.told_head:
            assert gestures.head is not None  # who tells the one model tells the other nothing
            head = Head(*(x.to(audio) for x in gestures.head))
        if not motion:
            return ClipState(folded, [], eyes, head)
        features = self.speed_encoder(speed, self.motion_frames)
        layers = self.temporal_layers()
        states = [layer.prepare(x, features) for layer, x in zip(layers, motion, strict=True)]
        return ClipState(folded, states, eyes, head)

    def zero_motion(self, batch: int, latent_size: int, like: Tensor) -> list[Tensor]:
        """Zero feature maps for a first clip, [B, M, C, H, W] per temporal layer."""
        maps = []
        for block, level in self._levels():
            side = latent_size // 2**level
            for module in block.modules():
                if isinstance(module, TemporalModule):
                    shape = (batch, self.motion_frames, module.proj_in.in_features, side, side)
                    maps.append(like.new_zeros(shape))
        return maps

    def _levels(self) -> list[tuple[nn.Module, int]]:
        """Blocks in the order of the walk, with the level that gives their resolution."""
        down = list(enumerate(self.down_blocks))
        last = len(down) - 1
        up = [(block, last - index) for index, block in enumerate(self.up_blocks)]
        return [(block, level) for level, block in down] + [(self.mid_block, last)] + up

    def forward(
        self, latents: Tensor, timesteps: Tensor, video: VideoState, clip: ClipState
    ) -> Tensor:
        """Noisy latents [B, F, C, H, W] at timesteps [B] -> predicted noise, or v, same shape."""
        x, time = self._enter(latents, timesteps, video, clip)
        x = self.walk(x, time, self._visit(video, clip))
        return self._leave(x, latents, timesteps, video, clip)

    def forward_keeping(
        self, latents: Tensor, timesteps: Tensor, video: VideoState, clip: ClipState, layers: int
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and the deep feature [B*F, C', H, W] for `forward_reusing`."""
        x, time = self._enter(latents, timesteps, video, clip)
        x, deep = self.walk_keeping(x, time, self._visit(video, clip), layers=layers)
        return self._leave(x, latents, timesteps, video, clip), deep

    def forward_reusing(
        self,
        latents: Tensor,
        timesteps: Tensor,
        video: VideoState,
        clip: ClipState,
        layers: int,
        deep: Tensor,
    ) -> Tensor:
        """`forward` with the deep feature of a neighbouring step; 1 <= `layers`, as kept."""
        x, time = self._enter(latents, timesteps, video, clip)
        x = self.walk_reusing(x, time, self._visit(video, clip), deep, layers=layers)
        return self._leave(x, latents, timesteps, video, clip)

    def _enter(
        self, latents: Tensor, timesteps: Tensor, video: VideoState, clip: ClipState
    ) -> tuple[Tensor, Tensor]:
        """What the walk takes: maps [B*F, C', H, W] and time [B*F, T]."""
        x = latents + video.face[:, None]
        if self.concatenate_reference:
            x = torch.cat([x, _portrait(video, clip).expand_as(latents)], 2)
        if clip.head is not None:
            x = torch.cat([x, clip.head.flow], 2)
        x = fold_frames(x).contiguous(memory_format=torch.channels_last)
        time = self.time_embedding(timesteps).repeat_interleave(latents.shape[1], 0)
        return x, time if clip.lids is None else time + clip.lids

    def _visit(self, video: VideoState, clip: ClipState) -> Visit:
        def spatial(layer: nn.Module, x: Tensor) -> Tensor:
            place = cast(BackboneTransformer, layer).place
            return layer(x, video.reference[place], clip.audio[place])

        def over_time(layer: nn.Module, x: Tensor) -> Tensor:
            place = cast(TemporalModule, layer).place
            return layer(x, clip.temporal[place]) if clip.temporal else x

        return Visit(spatial, over_time)

    def _leave(
        self,
        x: Tensor,
        latents: Tensor,
        timesteps: Tensor,
        video: VideoState,
        clip: ClipState,
    ) -> Tensor:
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        x = unfold_frames(x, latents.shape[1])
        if self.copy is None:
            return x
        assert video.alphas is not None  # prepare_video keeps them
        told = None if clip.head is None else clip.head.told
        return self.copy(x, latents, video.alphas[timesteps.long()], _portrait(video, clip), told)


class CopyGate(nn.Module):
    """Where nothing moves, a video shows its portrait: a small network need not draw it anew.

    Not EMO's: `mini` is too small to take all the noise from 16 channels, and what it leaves crawls
    in still backgrounds and changes with every clip. Beside the lower face, where all that moves is
    told, it need not either: it would draw people whom it has never seen less clearly.
    """

    def __init__(self, diffusion: DiffusionConfig) -> None:
        super().__init__()
        if diffusion.prediction != "v_prediction":
            raise ValueError("only v-prediction can copy the portrait")
        self.diffusion = diffusion

    def alphas(self, device: torch.device) -> Tensor:
        """Cumulative alphas of all timesteps, fp32, once a video: a step copies nothing over."""
        return alphas_cumprod(self.diffusion).to(device)

    def forward(
        self,
        x: Tensor,
        latents: Tensor,
        alpha: Tensor,
        portrait: Tensor,
        told: Tensor | None = None,
    ) -> Tensor:
        """v [B, F, C, H, W] of a Backbone's v and gate [B, F, C + 1, H, W].

        latents: the noisy ones [B, F, C, H, W] at alpha [B]; portrait [B, F or 1, C, H, W]; told
        [B, F, 1, H, W] 0..1, where the gate is open at least so far.
        """
        v, gate = x[:, :, :-1].float(), (GATE_SCALE * x[:, :, -1:].float()).sigmoid()
        gate = gate if told is None else torch.maximum(gate, told.float())
        alpha = alpha.view(-1, 1, 1, 1, 1)
        copied = (alpha.sqrt() * latents - portrait) / (1 - alpha).sqrt()  # leads to the portrait
        return torch.lerp(v, copied, gate).to(x.dtype)


def _portrait(video: VideoState, clip: ClipState) -> Tensor:
    """The portrait's latents [B, 1, C, H, W], or, moved with the head, [B, F, C, H, W]."""
    if clip.head is not None:
        return clip.head.moved
    assert video.portrait is not None  # prepare_video keeps it for who takes it
    return video.portrait[:, None]


def _spatial(config: ModelConfig, level: int) -> nn.Module | None:
    unet = config.unet
    if not has_spatial(unet, level):
        return None
    width, heads = unet.widths[level], unet.heads[level]
    itself = level == MIDDLE or unet.self_attention[level]
    block = BackboneBlock(width, heads, unet.feed_forward_factor, itself, config.audio.token_width)
    return BackboneTransformer(width, unet.norm_groups, block, unet.reference_pool[level])


def _temporal(config: ModelConfig, level: int) -> nn.Module | None:
    unet = config.unet
    if not has_temporal(unet, level):
        return None
    return TemporalModule(
        unet.widths[level],
        heads=unet.heads[level],
        groups=unet.norm_groups,
        factor=unet.feed_forward_factor,
        self_attentions=unet.temporal_self_attentions,
        speed_width=config.speed.width,
    )
