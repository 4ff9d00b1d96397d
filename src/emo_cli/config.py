"""What describes a model and a video, and every default of `emo generate`, each written once.

A model is a folder: `config.json` (a `ModelConfig`) beside safetensors files. What training and
inference must agree on lives here and in `presets.py`, and is never a command-line option.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emo_cli.errors import EmoError

Solver = Literal["ddim", "dpm++", "unipc"]
Quality = Literal["paper", "balanced", "fast"]
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of Backbone and ReferenceNet, one entry per level from the finest to the coarsest."""

    widths: tuple[int, ...]
    layers_per_block: int  # residual blocks on the way down; one more on the way up
    attention: tuple[bool, ...]  # levels with a spatial transformer
    self_attention: tuple[bool, ...]  # levels whose spatial transformer attends to itself
    heads: tuple[int, ...]
    reference_pool: tuple[int, ...]  # reference K/V pooled by this factor
    temporal: tuple[bool, ...]  # levels with temporal modules
    temporal_in_middle: bool  # AnimateDiff v1.5-2 has a mid-block module, v1.5-3 has none
    temporal_self_attentions: int  # AnimateDiff: 2
    feed_forward_factor: int
    norm_groups: int
    time_width: int
    reference_time: bool  # ReferenceNet keeps SD's time embedding, at timestep 0
    concatenate_reference: bool  # reference latent beside the noisy latents at the input
    copy_reference: bool  # a gate at the output takes still places from the reference latent
    told_lids: bool  # how far the eyes are shut is said frame by frame, not left to the sound
    told_head: bool  # and so is how the head moves
    told_lips: bool  # lips are read from the sound; they and lids are shown moved with the head


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """`kl` is diffusers' AutoencoderKL of SD 1.5; `patch` our small one with its PCA path."""

    kind: Literal["kl", "patch"]
    latent_channels: int
    factor: int  # picture pixels per latent pixel
    scaling: float
    encoder_widths: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    decoder_blocks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Shape of the Wav2Vec2Model and of the projector that turns a window into tokens."""

    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    conv_bias: bool
    feature_norm: Literal["group", "layer"]
    stable_layer_norm: bool
    hidden_width: int
    num_layers: int
    num_heads: int
    feed_forward_width: int
    position_kernel: int
    position_groups: int
    window_s: float  # windowed encoding is our definition of the features
    context_s: float
    projector_frame_width: int
    projector_width: int
    num_tokens: int
    token_width: int


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Speed buckets in degrees of head rotation per frame at 25 fps (EMO sec. 3.2)."""

    centres: tuple[float, ...]
    radii: tuple[float, ...]
    width: int
    usual: float  # when the user names none: what the model does best
    gain: float  # of what is asked above `usual`, the share that the model is told: 1 is all

    def told(self, asked: float) -> float:
        """What the model sees for a speed that the user asks for.

        The paper's speeds order head motion rather than measure it: its model answers 0.1 with 0.88
        degrees a frame, 1.9 with 1.25 (EMO Table 2). A gain spreads the same speeds over what a
        small model can bear.
        """
        return asked if asked <= self.usual else self.usual + self.gain * (asked - self.usual)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Noise schedule, prediction type, and the sampling the model was made for."""

    prediction: Literal["epsilon", "v_prediction"]
    beta_schedule: Literal["scaled_linear", "linear"]
    beta_start: float
    beta_end: float
    zero_terminal_snr: bool
    spacing: Literal["leading", "trailing"]
    shift: float  # of the timesteps towards noise; 1: they are even (`sampler.trailing_timesteps`)
    shared_noise: float  # share of the noise variance common to all frames of a clip
    shared_temperature: float  # std of that shared noise when sampling; below 1: clips differ less
    join_frames: int  # of a clip, over which half of the step from the motion frames fades; 0: none
    solver: Solver
    steps: int
    guidance: float
    audio_guidance: float  # of the sound alone, where the user names no guidance


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All of `config.json`. Null conditions are zeros: reference maps (and the concatenated
    latent), audio features, motion maps; training drops to the same zeros."""

    format: int
    name: str
    picture_size: int  # side of what the networks see and draw
    frame_size: int  # side of the finished frames; larger where a model is shown its portrait moved
    fps: int
    clip_frames: int
    motion_frames: int
    window: int  # m: neighbours on each side in audio and speed windows
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    audio: AudioConfig
    speed: SpeedConfig
    diffusion: DiffusionConfig
    face_locator_widths: tuple[int, ...]
    untrained: bool
    trained_stages: tuple[str, ...]

    @property
    def latent_size(self) -> int:
        return self.picture_size // self.autoencoder.factor

    @property
    def audio_feature_width(self) -> int:
        """Width of A(f): all wav2vec layers side by side."""
        return self.audio.num_layers * self.audio.hidden_width


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What one video is made with; None means the model's own choice."""

    speed: float | None = None  # degrees of head rotation per frame at 25 fps
    quality: Quality | None = None  # a row of `quality.TABLE`, for all options below that are None
    steps: int | None = None
    solver: Solver | None = None
    guidance: float | None = None  # of reference and audio together; 1 costs one forward
    audio_guidance: float | None = None  # of audio alone; None: as `guidance`, else the model's
    guidance_interval: tuple[int, int] | None = None  # timesteps, lowest and highest guided ones
    guidance_rescale: float | None = None  # 0 (off) to 1; Lin et al. 2023, sec. 3.4
    cache_interval: int | None = None  # deep features are made every so many steps; 1: always
    seed: int = 0
    face_region: str = "box"  # box | wide | tall | all | X0,Y0,X1,Y1 in pixels of the portrait
    face: int | None = None  # which face, counted from 1, largest first
    start_s: float = 0.0
    duration_s: float | None = None


def to_json(config: Any) -> str:
    """A config dataclass as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(cls: type, values: Any, where: str) -> Any:
    """A config dataclass from plain JSON values, strictly.

    Raises: EmoError that names the key that is missing, unknown or of the wrong type.
    """
    if not isinstance(values, dict):
        raise EmoError(f"{where} should be an object", "Get the model folder again.")
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    for name in sorted(fields ^ values.keys()):
        problem = "is missing" if name in fields else "is not known"
        raise EmoError(
            f"{where}: '{name}' {problem}", "The folder was made by another version of emo."
        )
    return cls(**{name: _value(hints[name], values[name], f"{where}.{name}") for name in fields})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(typing.get_args(hint)[0], item, where) for item in value)
    if origin is Literal and value in typing.get_args(hint):
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _value(typing.get_args(hint)[0], value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise EmoError(f"{where}: {value!r} does not fit", "Get the model folder again.")


def read_model_config(path: Path) -> ModelConfig:
    """`config.json` of a model folder.

    Raises: EmoError when it is absent, not JSON, of another format, or has a wrong key.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EmoError(
            f"{path.parent} is no model: it has no config.json",
            "--model takes 'mini' or a folder made by `emo train`.",
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EmoError(f"cannot read {path}: {error}", "Get the model folder again.") from error
    if isinstance(values, dict) and values.get("format") != FORMAT:
        raise EmoError(
            f"{path} has format {values.get('format')!r}; this emo reads {FORMAT}",
            "Upgrade emo-cli, or train the model again.",
        )
    config: ModelConfig = from_dict(ModelConfig, values, path.name)
    if config.frame_size != config.picture_size and not config.unet.told_head:
        raise EmoError(
            f"{path.name}.frame_size is {config.frame_size}, picture_size {config.picture_size}",
            "Only frames of a model that is told its head can be larger than its pictures.",
        )
    return config
