"""The loss of the stages image, video and speed (EMO sec. 3.3): one denoising step on a clip.

Shapes: B clips, F frames (1: single pictures), M motion frames, C latent channels, H W latent
size, S picture size, 2m+1 frames in a window, L*D all wav2vec layers side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from emo_cli.conditions import windows
from emo_cli.config import DiffusionConfig, ModelConfig
from emo_cli.face_flow import FaceMoves
from emo_cli.head_flow import moved_pictures, told_places
from emo_cli.model.backbone import Backbone
from emo_cli.model.emo_model import EmoModel
from emo_cli.model.gestures import Gestures, Head
from emo_cli.model.layers import fold_frames, unfold_frames
from emo_cli.mouth import light_on
from emo_cli.sampler import alphas_cumprod, build_scheduler
from emo_cli.training.cut import cut_clip, cut_video
from emo_cli.training.draws import FIRST_CLIP, derive_seed, sample_noise, sample_uniform

# Weights of a face's parts are for windows of 16x16; in a larger picture they count for as much.
WEIGHED_AREA = 16 * 16
ENCODE_SLICE = 8  # pictures a time through the frozen autoencoder


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """What a stage's loss is made of; probabilities are per clip."""

    clip: bool  # temporal layers and motion frames take part
    audio: bool
    drop_both: float  # null reference and null sound, as the unguided branch sees
    drop_audio: float  # null sound alone
    drop_motion: float  # as in a first clip: zero maps (EMO sec. 3.2)
    mean_speed: float  # see the clip's mean speed, as at inference
    motion_noise: float  # at most, share of the latents' std; sampled motion latents are not clean
    noisiest: float  # at the first timestep of sampling, where a clip's content is decided
    sampled_timesteps: float  # of the rest, drawn from the few timesteps that sampling uses
    noise_offset: float  # std of a constant that noise gets per clip and channel: dark, bright
    min_snr: float | None  # gamma; never with a zero terminal SNR, whose last step it would drop
    mouth_weight: float  # of the loss inside the mouth's box
    jaw_weight: float  # of the loss from the lips down over the chin
    eye_weight: float  # of the loss inside the eyes' boxes
    change_weight: (
        float  # of the error of what changes from frame to frame, which is seen as flicker
    )


class Conditions(NamedTuple):
    """What a Backbone's `prepare_video` and `prepare_clip` take."""

    features: list[Tensor]  # [B, N, C] per spatial layer
    face_region: Tensor  # [B, 1, S, S]
    portrait: Tensor  # [B, C, H, W] latents
    audio: Tensor  # [B, F, 2m+1, L*D]
    motion: list[Tensor]  # [B, M, C, H, W] per temporal layer; none for pictures
    speed: Tensor  # [B, F, 2m+1]
    gestures: Gestures


class DenoisingLoss(nn.Module):
    """Backbone and ReferenceNet, and what they are judged by."""

    alphas: Tensor

    def __init__(self, model: EmoModel, options: DenoisingOptions) -> None:
        super().__init__()
        diffusion = model.config.diffusion
        if options.min_snr is not None and diffusion.zero_terminal_snr:
            raise ValueError("min-SNR gives the last step of a zero-terminal schedule no weight")
        self.config: ModelConfig = model.config
        self.options = options
        self.reference_net = model.reference_net
        self.backbone = model.backbone
        # In a list: frozen, not saved and not averaged with what trains.
        self.frozen = [model.autoencoder]
        self.register_buffer("alphas", alphas_cumprod(diffusion), persistent=False)
        few = build_scheduler(diffusion, diffusion.solver, diffusion.steps)
        self.sampled = few.timesteps.tolist()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One noisy clip per sample -> {"loss", "plain", "mouth"}.

        batch: `frames` uint8 [B, M+F, S, S, 3] or `latents` [B, M+F, C, H, W]; `reference`
        uint8 [B, S, S, 3] or `reference_latents` [B, C, H, W]; `mask` [B, S, S]; `mouth`,
        `jaw` and `eyes` [B, F, H, W] as `face_parts.seen_most` gives them; `lids` [B, F]; `seed`
        [B]; for clips also `audio` [B, F+2m, L*D], `speed` [B, F+2m] in degrees per frame; where
        the model is told its head `flow` [B, F, 2, H, W], and `reference` beside its latents if it
        is there; where it is told its lips `lips` [B, F, 2], `brows` [B, F], `gaze` [B, F, 2]
        and the reference's `face_points` [B, 18, 3], as `face_points.py` has them. With `corner`
        [B, 2] (y, x) latents and parts are windows of the picture that begin there; reference,
        mask and flow stay whole.
        """
        seeds = batch["seed"]
        latents = self._latents(batch, "latents", "frames")
        motion_frames = self.config.motion_frames if self.options.clip else 0
        motion, clean = latents[:, :motion_frames], latents[:, motion_frames:]
        noise = self._noise(seeds, clean)
        timesteps = self._timesteps(seeds)
        alpha = self.alphas[timesteps].to(clean).view(-1, 1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        prediction = self._predict(batch, noisy, timesteps, motion)
        target = noise
        if self.config.diffusion.prediction == "v_prediction":
            target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return self._losses(prediction.float(), target.float(), timesteps, batch)

    def _losses(
        self,
        prediction: Tensor,
        target: Tensor,
        timesteps: Tensor,
        batch: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        options, mouth = self.options, batch["mouth"]
        difference = prediction - target
        error = difference.square().mean(2)  # [B, F, H, W]
        seen = error
        if options.change_weight:  # the motion frames before the first one have no error
            change = torch.diff(difference, dim=1, prepend=torch.zeros_like(difference[:, :1]))
            seen = error + options.change_weight * change.square().mean(2)
        more = (
            (options.mouth_weight - 1) * mouth
            + (options.jaw_weight - 1) * batch["jaw"]
            + (options.eye_weight - 1) * batch["eyes"]
        )
        weight = 1 + more * (more[0, 0].numel() / WEIGHED_AREA)
        per_clip = (weight * seen).flatten(1).sum(1) / weight.flatten(1).sum(1)  # [B]
        scale = snr_weight(self.alphas[timesteps], self.config.diffusion, self.options.min_snr)
        inside = (mouth * error).sum() / mouth.sum().clamp_min(1e-6)
        return {"loss": (scale * per_clip).mean(), "plain": error.mean(), "mouth": inside}

    def _predict(
        self, batch: dict[str, Tensor], noisy: Tensor, timesteps: Tensor, motion: Tensor
    ) -> Tensor:
        conditions = self._conditions(batch, noisy, motion)
        return self._run(self.backbone, noisy, timesteps, batch, conditions)

    def _conditions(self, batch: dict[str, Tensor], noisy: Tensor, motion: Tensor) -> Conditions:
        """What portrait, sound, motion frames and speed give before the Backbone's own layers."""
        options, seeds = self.options, batch["seed"]
        portrait = self._latents(batch, "reference_latents", "reference")
        keep = self._keep(seeds, "conditions", options.drop_both, noisy)
        features = self.reference_net.portrait_features(portrait)
        return Conditions(
            features=[keep[:, None, None] * x for x in features],
            face_region=batch["mask"].to(noisy)[:, None],
            portrait=keep[:, None, None, None] * portrait,
            audio=self._audio(batch, noisy),
            motion=self._motion(seeds, motion),
            speed=self._speed(batch, noisy),
            gestures=Gestures(batch["lids"].to(noisy), self._head(batch, portrait, keep)),
        )

    def _run(
        self,
        backbone: Backbone,
        noisy: Tensor,
        timesteps: Tensor,
        batch: dict[str, Tensor],
        conditions: Conditions,
    ) -> Tensor:
        """One forward of a Backbone under these conditions."""
        c = conditions
        video = backbone.prepare_video(c.features, c.face_region, c.portrait)
        if "corner" in batch:
            video = cut_video(video, batch["corner"], noisy.shape[-1])
        clip = backbone.prepare_clip(c.audio, c.motion, c.speed, c.gestures)
        if "corner" in batch:
            clip = cut_clip(clip, batch["corner"], noisy.shape[-1])
        return backbone(noisy, timesteps, video, clip)

    @torch.no_grad()
    def _head(self, batch: dict[str, Tensor], portrait: Tensor, keep: Tensor) -> Head | None:
        """The reference moved as each frame's head and face are; null where the reference is."""
        if not self.config.unet.told_head:
            return None
        autoencoder = self.frozen[0].to(portrait.device)
        if "reference" in batch:
            pictures = batch["reference"].permute(0, 3, 1, 2).to(portrait) / 127.5 - 1
        else:
            pictures = autoencoder.decode(portrait)
        flow, face = batch["flow"].to(portrait), None
        if self.config.unet.told_lips:
            points = batch["face_points"]
            moves = {name: batch[name] for name in ("lips", "lids", "brows", "gaze")}
            face = FaceMoves(points=points, light=light_on(pictures, points), **moves)
        told = told_places(flow, pictures.shape[-1], face)
        frames = fold_frames(moved_pictures(pictures, flow, face).pictures).to(portrait)
        latents = torch.cat([autoencoder.encode(part) for part in frames.split(ENCODE_SLICE)])
        latents = unfold_frames(latents, flow.shape[1]).to(portrait)
        keep = keep[:, None, None, None, None]
        return Head(flow, keep * latents, keep * told)

    def _audio(self, batch: dict[str, Tensor], like: Tensor) -> Tensor:
        """Windows [B, F, 2m+1, L*D]; the null condition where sound does not take part."""
        count, frames = 2 * self.config.window + 1, like.shape[1]
        if not self.options.audio:
            shape = (len(like), frames, count, self.config.audio_feature_width)
            return like.new_zeros(shape)
        audio = torch.stack([windows(x, count) for x in batch["audio"].to(like)])
        # The same draw as the reference's: without reference there is never sound, as in guidance.
        drop = self.options.drop_both + self.options.drop_audio
        keep = self._keep(batch["seed"], "conditions", drop, like)
        return keep[:, None, None, None] * audio

    def _speed(self, batch: dict[str, Tensor], like: Tensor) -> Tensor:
        """Windows [B, F, 2m+1] of head rotation; some clips see their mean (EMO sec. 4.1)."""
        count, frames = 2 * self.config.window + 1, like.shape[1]
        if not self.options.clip:
            return like.new_zeros(len(like), frames, count)
        speed = batch["speed"].float()
        keep = self._keep(batch["seed"], "speed", self.options.mean_speed, speed)[:, None]
        speed = keep * speed + (1 - keep) * speed.mean(1, keepdim=True)
        return torch.stack([windows(x, count) for x in speed])

    def _motion(self, seeds: Tensor, motion: Tensor) -> list[Tensor]:
        """Motion features [B, M, C', H', W'] per temporal layer, zero maps for some clips."""
        if not self.options.clip:
            return []
        noise = sample_noise(seeds, "motion", tuple(motion.shape[1:]), motion)
        level = self.options.motion_noise * sample_uniform(seeds, "motion level", motion)
        maps = self.reference_net.motion_features(motion + level.view(-1, 1, 1, 1, 1) * noise)
        keep = self._keep(seeds, FIRST_CLIP, self.options.drop_motion, motion)
        return [keep[:, None, None, None, None] * x for x in maps]

    def _timesteps(self, seeds: Tensor) -> Tensor:
        """[B]: uniform over the schedule, or one of those that sampling will use."""
        steps = []
        for seed in seeds.tolist():
            if derive_seed(seed, "noisiest?") / 2**63 < self.options.noisiest:
                steps.append(self.sampled[0])
                continue
            among = derive_seed(seed, "sampled?") / 2**63 < self.options.sampled_timesteps
            choices = self.sampled if among else range(1000)
            steps.append(choices[derive_seed(seed, "timestep") % len(choices)])
        return torch.tensor(steps, device=self.alphas.device)

    def _noise(self, seeds: Tensor, clean: Tensor) -> Tensor:
        """The same prior as sampling: a share of the variance is common to all frames.

        An offset is added where noise never hides all: the network then learns to change the
        mean of a picture too ("Diffusion with offset noise", crosslabs.org, 2023).
        """
        shared, offset = self.config.diffusion.shared_noise, self.options.noise_offset
        own = sample_noise(seeds, "noise", tuple(clean.shape[1:]), clean)
        common = sample_noise(seeds, "shared noise", (1, *clean.shape[2:]), clean)
        constant = sample_noise(seeds, "noise offset", (1, clean.shape[2], 1, 1), clean)
        return shared**0.5 * common + (1 - shared) ** 0.5 * own + offset * constant

    def _keep(self, seeds: Tensor, purpose: str, drop: float, like: Tensor) -> Tensor:
        """[B]: 0 where a condition is dropped, else 1."""
        return (sample_uniform(seeds, purpose, like) >= drop).to(like.dtype)

    @torch.no_grad()
    def _latents(self, batch: dict[str, Tensor], ready: str, pictures: str) -> Tensor:
        """Latents from the batch, or of its uint8 pictures through the frozen autoencoder."""
        if ready in batch:
            return batch[ready].to(self.alphas)
        frames = batch[pictures]
        many = frames.dim() == 5
        flat = fold_frames(frames) if many else frames
        flat = flat.permute(0, 3, 1, 2).to(self.alphas) / 127.5 - 1
        autoencoder = self.frozen[0].to(self.alphas.device)
        latents = torch.cat([autoencoder.encode(part) for part in flat.split(ENCODE_SLICE)])
        return unfold_frames(latents, frames.shape[1]) if many else latents


def snr_weight(alpha: Tensor, config: DiffusionConfig, gamma: float | None) -> Tensor:
    """min-SNR weights [B] of samples at these alpha products; ones without a gamma."""
    if gamma is None:
        return torch.ones_like(alpha)
    snr = alpha / (1 - alpha)
    clipped = snr.clamp(max=gamma)
    return clipped / (snr + 1 if config.prediction == "v_prediction" else snr)
