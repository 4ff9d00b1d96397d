"""The one inference engine: per video, per clip, per step.

Shapes: G guidance branches, F frames, M motion frames, C latent channels, H W latent size,
S picture size.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emo_cli.audio import AudioFeatures, Sound, decode_sound
from emo_cli.clips import PlannedClip, count_clips, plan
from emo_cli.conditions import constant_speed, windows
from emo_cli.config import GenerateOptions, ModelConfig
from emo_cli.errors import EmoError
from emo_cli.model.backbone import VideoState
from emo_cli.model.emo_model import EmoModel
from emo_cli.model.load import load_model, model_digest, model_folder
from emo_cli.portrait import Portrait, prepare_portrait
from emo_cli.sampler import (
    Branch,
    build_scheduler,
    clip_generator,
    clip_noise,
    denoise,
    guidance_branches,
)

CPU_DECODE_SLICE = 3  # larger tensors are mapped into memory anew at each call
STAGES = ("image", "video", "speed")  # a model that speaks has gone through these
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Some finished frames of a video."""

    index: int
    frames: np.ndarray  # uint8 RGB [F, S, S, 3]; fewer than F at the end of the sound
    motion: Tensor  # [1, M, C, H, W] fp32: what the next clip starts from
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Video:
    """All that the clips of one video share, prepared once."""

    options: GenerateOptions
    portrait: Portrait
    sound: Sound
    num_frames: int
    num_clips: int
    features: AudioFeatures
    state: VideoState
    scheduler: Any
    branches: tuple[Branch, ...]


class Engine:
    """A loaded model that turns a portrait and a sound into clips.

    model: `mini`, or a folder made by `emo train`. device: `auto`, `cpu`, `cuda`, `cuda:N`,
    `mps`. dtype: `auto` (bf16 on CUDA, else fp32), `fp32`, `bf16`, `fp16`.

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
    ) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.folder = model_folder(model)
        with out_of_memory_hint():
            self.model: EmoModel = load_model(self.folder, device=self.device, dtype=self.dtype)
        self.digest = model_digest(self.folder)
        self.note = _training_note(self.config, allow_untrained)

    @classmethod
    def of_model(cls, model: EmoModel, *, device: torch.device) -> Engine:
        """An engine around a model in memory, fp32 on `device`, such as one that still trains."""
        engine = cls.__new__(cls)
        engine.device, engine.dtype = device, torch.float32
        engine.folder, engine.digest, engine.note = Path(), "", ""
        engine.model = model
        model.autoencoder.to(device)
        return engine

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
            face=options.face,
            face_region=options.face_region,
        )
        sound = decode_sound(audio, folder, start_s=options.start_s, duration_s=options.duration_s)
        return self.prepare_video(picture, sound, options)

    def prepare_video(self, portrait: Portrait, sound: Sound, options: GenerateOptions) -> Video:
        """The part of `prepare` that needs the networks."""
        config, diffusion = self.config, self.config.diffusion
        guidance = diffusion.guidance if options.guidance is None else options.guidance
        audio_guidance = guidance if options.audio_guidance is None else options.audio_guidance
        branches = guidance_branches(guidance, audio_guidance)
        scheduler = build_scheduler(
            diffusion, options.solver or diffusion.solver, options.steps or diffusion.steps
        )
        num_frames = sound.num_frames(config.fps)
        with out_of_memory_hint():
            state = self._video_state(portrait, branches)
        return Video(
            options=options,
            portrait=portrait,
            sound=sound,
            num_frames=num_frames,
            num_clips=count_clips(num_frames, config.clip_frames),
            features=AudioFeatures(
                sound, self.model.audio_encoder, config=config.audio, fps=config.fps
            ),
            state=state,
            scheduler=scheduler,
            branches=branches,
        )

    @torch.inference_mode()
    def _video_state(self, portrait: Portrait, branches: tuple[Branch, ...]) -> VideoState:
        """ReferenceNet on the portrait, its keys and values, the face feature: once per video."""
        picture = torch.from_numpy(portrait.picture).to(self.device).permute(2, 0, 1)[None]
        latents = self.model.autoencoder.encode((picture.float() / 127.5 - 1).to(self.dtype))
        features = self.model.reference_net.portrait_features(latents)
        # A branch without reference sees zero features and a zero latent: the null condition.
        on = torch.tensor([float(b.reference) for b in branches]).to(latents)
        features = [on[:, None, None] * x for x in features]
        mask = torch.from_numpy(portrait.mask).to(latents)[None, None]
        return self.model.backbone.prepare_video(
            features, mask.expand(len(branches), -1, -1, -1), on[:, None, None, None] * latents
        )

    def clips(self, video: Video, first: int = 0, motion: Tensor | None = None) -> Iterator[Clip]:
        """The clips from number `first` on, given the motion latents that clip `first - 1` left."""
        config = self.config
        for planned in plan(video.num_frames, config.clip_frames, first):
            started = time.perf_counter()
            with out_of_memory_hint():
                latents = self._denoise_clip(video, planned, motion)
                frames = self.decode(latents, planned.num_frames)
            motion = latents[:, -config.motion_frames :]
            yield Clip(
                index=planned.index,
                frames=frames,
                motion=motion.cpu(),
                seconds=time.perf_counter() - started,
            )

    @torch.inference_mode()
    def _denoise_clip(self, video: Video, planned: PlannedClip, motion: Tensor | None) -> Tensor:
        """Latents [1, F, C, H, W] of one clip: conditions once, then the denoising steps."""
        config, backbone, branches = self.config, self.model.backbone, video.branches
        size, channels = config.latent_size, config.autoencoder.latent_channels
        state = backbone.prepare_clip(
            self._audio(video, planned),
            self._motion_features(motion, len(branches)),
            constant_speed(
                video.options.speed, config.clip_frames, 2 * config.window + 1, self.device
            ).expand(len(branches), -1, -1),
        )
        noise = clip_noise(
            (1, config.clip_frames, channels, size, size),
            clip_generator(video.options.seed, planned.index),
            config.diffusion.shared_noise,
            torch.float32,
        ).to(self.device)
        predict = partial(backbone, video=video.state, clip=state)
        return denoise(predict, noise, video.scheduler, branches, self.dtype)

    def _audio(self, video: Video, planned: PlannedClip) -> Tensor:
        """Windows of audio features [G, F, 2m+1, L*D]; silence of features where audio is null."""
        reach = self.config.window
        features = video.features.features(
            planned.start - reach, planned.start + self.config.clip_frames + reach
        )
        audio = windows(features.to(self.dtype), 2 * reach + 1)
        on = torch.tensor([float(branch.audio) for branch in video.branches]).to(audio)
        return on[:, None, None, None] * audio

    def _motion_features(self, motion: Tensor | None, branches: int) -> list[Tensor]:
        """Feature maps of the motion frames, the same for every branch; zero maps at first."""
        if motion is None:
            like = torch.empty(0, device=self.device, dtype=self.dtype)
            return self.model.backbone.zero_motion(branches, self.config.latent_size, like)
        latents = motion.to(self.device, self.dtype)
        maps = self.model.reference_net.motion_features(latents)
        return [x.expand(branches, -1, -1, -1, -1) for x in maps]

    @torch.inference_mode()
    def decode(self, latents: Tensor, num_frames: int) -> np.ndarray:
        """Latents [1, F, C, H, W] -> uint8 [num_frames, S, S, 3]."""
        slice_size = CPU_DECODE_SLICE if self.device.type == "cpu" else None
        pictures = self.model.autoencoder.decode(
            latents[0, :num_frames].to(self.dtype), slice_size=slice_size
        )
        pixels = (pictures.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes CUDA, then MPS, then the CPU.

    Raises: EmoError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EmoError(f"'{name}' is no device", "--device takes auto, cpu, cuda, cuda:N or mps.",
                       exit_code=2) from error  # fmt: skip
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise EmoError(
            f"there is no {name} on this machine",
            "Use --device cpu, or install a torch build for your GPU.",
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format; `auto`: bf16 on CUDA, else fp32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise EmoError(f"'{name}' is no dtype", "--dtype takes auto, fp32, bf16 or fp16.",
                       exit_code=2)  # fmt: skip
    return DTYPES[name]


@contextlib.contextmanager
def out_of_memory_hint() -> Iterator[None]:
    """Turns a full device memory into an EmoError that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EmoError(
            "the device is out of memory",
            "Close other programs on it, use --dtype bf16, --guidance 1, or --device cpu.",
        ) from error


def _training_note(config: ModelConfig, allow_untrained: bool) -> str:
    """One line about an unfinished model, or nothing.

    Raises: EmoError when stages are missing: their output would look finished and be noise.
    """
    if config.untrained:
        return (
            f"the model '{config.name}' is not fully trained yet: expect a rough picture "
            f"(done: {', '.join(config.trained_stages) or 'nothing'})"
        )
    missing = [stage for stage in STAGES if stage not in config.trained_stages]
    if missing and not allow_untrained:
        raise EmoError(
            f"the model '{config.name}' has not gone through the stage '{missing[0]}'",
            f"Train it: emo train {missing[0]} --init MODEL --data DATASET --out RUN",
        )
    return ""
