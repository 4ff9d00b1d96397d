"""The one inference engine: per video, per clip, per step.

Shapes: G guidance branches, F frames, M motion frames, C latent channels, H W latent size,
S picture size.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emo_cli.acting import Acting, act
from emo_cli.audio import AudioFeatures, Sound, decode_sound
from emo_cli.clips import PlannedClip, count_clips, plan
from emo_cli.conditions import ClipConditions, MovedPortrait, SeenPortrait
from emo_cli.config import GenerateOptions, ModelConfig
from emo_cli.denoiser import BackboneSteps, ClipDenoiser
from emo_cli.device import (
    Offload,
    choose_device,
    choose_dtype,
    download,
    keep_freed_memory,
    out_of_memory_hint,
    upload,
)
from emo_cli.frames import Clip, MadeClip, start_decoding
from emo_cli.model.backbone import VideoState
from emo_cli.model.emo_model import EmoModel
from emo_cli.model.load import load_model, model_digest, model_folder, training_note
from emo_cli.portrait import Portrait, prepare_portrait
from emo_cli.quality import Sampling, resolve
from emo_cli.sampler import (
    Branch,
    build_scheduler,
    clip_generator,
    clip_noise,
    denoise,
    ease_in,
    guidance_branches,
)


@dataclass(frozen=True, kw_only=True)
class Video:
    """All that the clips of one video share, prepared once."""

    options: GenerateOptions
    portrait: Portrait
    seen: SeenPortrait
    sound: Sound
    num_frames: int
    num_clips: int
    features: AudioFeatures
    acting: Acting  # of num_clips * F frames
    state: VideoState
    sampling: Sampling
    scheduler: Any
    branches: tuple[Branch, ...]


class Engine:
    """A loaded model that turns a portrait and a sound into clips.

    model: `mini`, or a folder made by `emo train`. device: `auto`, `cpu`, `cuda`, `cuda:N`,
    `mps`. dtype: `auto` (bf16 on CUDA and on CPUs that multiply it, else fp32), `fp32`, `bf16`,
    `fp16`. compiled: the denoising step by torch.compile, equal to eager within rounding.
    low_vram: weights are on the device only while they work, and frames are decoded one by one.

    Raises: EmoError for an absent or damaged model, a device that is not there, and for a model
    that has not gone through all stages, unless `allow_untrained`.
    """

    def __init__(
        self,
        model: str | Path = "mini",
        *,
        device: str = "auto",
        dtype: str = "auto",
        allow_untrained: bool = False,
        compiled: bool = False,
        low_vram: bool = False,
    ) -> None:
        to_device = choose_device(device)
        numbers = choose_dtype(dtype, to_device)
        if to_device.type == "cpu":
            keep_freed_memory()
        self.folder = model_folder(model)
        with out_of_memory_hint():
            loaded = load_model(self.folder, device="cpu" if low_vram else to_device, dtype=numbers)
        self._set_up(loaded, to_device, numbers, compiled=compiled, low_vram=low_vram)
        self.digest = model_digest(self.folder)
        self.note = training_note(self.config, allow_untrained)

    @classmethod
    def of_model(
        cls,
        model: EmoModel,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
        low_vram: bool = False,
    ) -> Engine:
        """An engine around a model in memory, on `device`, such as one that still trains."""
        engine = cls.__new__(cls)
        engine.folder, engine.digest, engine.note = Path(), "", ""
        if not low_vram:
            model.autoencoder.to(device)
            if model.lip_reader is not None:
                model.lip_reader.to(device)
        engine._set_up(model, device, dtype, compiled=compiled, low_vram=low_vram)
        return engine

    def _set_up(
        self,
        model: EmoModel,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compiled: bool,
        low_vram: bool,
    ) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.compiled, self.low_vram = compiled, low_vram
        self.steps = BackboneSteps(model.backbone, compiled=compiled)
        self.conditions = ClipConditions(model, device, dtype, self._at_work)
        self.overlap = device.type == "cuda"  # a clip is decoded and encoded while the next begins

    def _at_work(self, part: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Inside `with` the part's weights are on the device."""
        return Offload(self.device).at_work(part) if self.low_vram else contextlib.nullcontext()

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def generate(
        self, portrait: str | Path, audio: str | Path, options: GenerateOptions | None = None
    ) -> Iterator[Clip]:
        """Clips of a talking portrait, one after the other, as long as the sound."""
        with tempfile.TemporaryDirectory(prefix="emo-") as folder:
            video = self.prepare(Path(portrait), Path(audio), Path(folder), options)
            yield from self.clips(video)

    def prepare(
        self, portrait: Path, audio: Path, folder: Path, options: GenerateOptions | None = None
    ) -> Video:
        """Read the inputs and do what is done once per video; `folder` takes the decoded sound."""
        options = options or GenerateOptions()
        picture = prepare_portrait(
            portrait,
            size=self.config.picture_size,
            shown_size=self.config.frame_size,
            face=options.face,
            face_region=options.face_region,
        )
        sound = decode_sound(audio, folder, start_s=options.start_s, duration_s=options.duration_s)
        return self.prepare_video(picture, sound, options)

    def prepare_video(self, portrait: Portrait, sound: Sound, options: GenerateOptions) -> Video:
        """The part of `prepare` that needs the networks."""
        config, sampling = self.config, resolve(options, self.config)
        branches = guidance_branches(
            sampling.guidance,
            sampling.audio_guidance,
            conditional=bool(sampling.guidance_interval or sampling.guidance_rescale),
        )
        scheduler = build_scheduler(config.diffusion, sampling.solver, sampling.steps)
        num_frames = sound.num_frames(config.fps)
        num_clips = count_clips(num_frames, config.clip_frames)
        loudness = sound.loudness(num_clips * config.clip_frames, config.fps)
        with out_of_memory_hint():
            seen = self.conditions.seen(portrait)
            state = self._video_state(seen, branches)
        return Video(
            options=options,
            portrait=portrait,
            seen=seen,
            sound=sound,
            num_frames=num_frames,
            num_clips=num_clips,
            features=AudioFeatures(
                sound,
                self.model.audio_encoder,
                config=config.audio,
                fps=config.fps,
                at_work=self._at_work,
            ),
            acting=act(portrait, loudness, options.seed, sampling.speed),
            state=state,
            sampling=sampling,
            scheduler=scheduler,
            branches=branches,
        )

    @torch.inference_mode()
    def _video_state(self, seen: SeenPortrait, branches: tuple[Branch, ...]) -> VideoState:
        """ReferenceNet on the portrait, its keys and values, the face feature: once per video."""
        model = self.model
        with self._at_work(model.autoencoder):
            latents = model.autoencoder.encode(seen.picture.to(self.dtype))
        with self._at_work(model.reference_net):
            features = model.reference_net.portrait_features(latents)
        # A branch without reference sees zero features and a zero latent: the null condition.
        on = torch.tensor([float(b.reference) for b in branches]).to(latents)
        features = [on[:, None, None] * x for x in features]
        mask = seen.mask.to(latents.dtype)
        with self._at_work(model.backbone):
            return model.backbone.prepare_video(
                features, mask.expand(len(branches), -1, -1, -1), on[:, None, None, None] * latents
            )

    def clips(self, video: Video, first: int = 0, motion: Tensor | None = None) -> Iterator[Clip]:
        """The clips from number `first` on, given the motion latents that clip `first - 1` left."""
        config = self.config
        last: MadeClip | None = None
        finished = 0.0
        for planned in plan(video.num_frames, config.clip_frames, first):
            started = time.perf_counter()
            with out_of_memory_hint():
                latents, moved = self._denoise_clip(video, planned, motion)
                motion = latents[:, -config.motion_frames :]
                frames = self._start_decoding(latents, planned.num_frames, moved)
            made = MadeClip(
                index=planned.index, frames=frames, motion=download(motion), started=started
            )
            if last is not None:
                yield last.finish(finished)
                finished = time.perf_counter()
            last = made
            if not self.overlap:
                yield last.finish(finished)
                last, finished = None, time.perf_counter()
        if last is not None:
            yield last.finish(finished)

    @torch.inference_mode()
    def _denoise_clip(
        self, video: Video, planned: PlannedClip, motion: Tensor | None
    ) -> tuple[Tensor, MovedPortrait | None]:
        """Latents [1, F, C, H, W] of one clip: conditions once, then the denoising steps. And the
        portrait that they were to show, where the model is told."""
        config, sampling = self.config, video.sampling
        size, channels = config.latent_size, config.autoencoder.latent_channels
        noise = clip_noise(
            (1, config.clip_frames, channels, size, size),
            clip_generator(video.options.seed, planned.index),
            config.diffusion.shared_noise,
            config.diffusion.shared_temperature,
        )
        conditions, moved = self.conditions.of_clip(video, planned, motion)
        with self._at_work(self.model.backbone):
            predict = ClipDenoiser(
                self.steps,
                video.state,
                self.model.backbone.prepare_clip(*conditions),
                branches=len(video.branches),
                frames=config.clip_frames,
                layers=sampling.cache_layers if sampling.cache_interval > 1 else 0,
            )
            latents = denoise(
                predict,
                upload(noise, self.device),
                video.scheduler,
                video.branches,
                self.dtype,
                guidance_interval=sampling.guidance_interval,
                guidance_rescale=sampling.guidance_rescale,
                cache_interval=sampling.cache_interval,
            )
        if motion is None or config.diffusion.join_frames == 0:
            return latents, moved
        before, step = motion[:, -1:].to(latents), moved and moved.step
        return ease_in(latents, before, config.diffusion.join_frames, step), moved

    def decode(self, latents: Tensor, num_frames: int) -> np.ndarray:
        """Latents [1, F, C, H, W] -> uint8 [num_frames, S, S, 3]."""
        return self._start_decoding(latents, num_frames)()

    def _start_decoding(
        self, latents: Tensor, num_frames: int, moved: MovedPortrait | None = None
    ) -> Callable[[], np.ndarray]:
        with self._at_work(self.model.autoencoder):
            return start_decoding(
                self.model.autoencoder,
                latents[0, :num_frames].to(self.dtype),
                moved=moved,
                slice_size=1 if self.low_vram else None,
            )
