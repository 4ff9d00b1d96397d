"""The stages of training, each a row of data for the one loop in `loop.py`.

Add a stage: a row here, and a `Task` (what it learns from, its loss, its measures, its result).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage trains; batch and learning rate are those of all processes together."""

    name: str
    trains: tuple[str, ...]  # patterns of parameter names; all others are frozen
    freezes: tuple[str, ...]  # patterns that win over `trains`
    starts_from: tuple[str, ...]  # stages whose weights it needs
    motion_frames: int
    clip_frames: int  # 1: single pictures; 0: no pictures
    steps: int
    batch: int
    lr: float
    warmup_steps: int
    final_lr: float  # share of lr left after cosine decay; 1: constant
    betas: tuple[float, float]
    weight_decay: float
    gradient_norm: float  # clipped to this
    ema_decay: float
    report_every: int  # steps
    evaluate_every: int
    checkpoint_every: int  # a multiple of report_every: what is saved was seen to be finite


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a stage runs; none of it changes what is learnt, except seed and precision."""

    out: Path
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | mps
    precision: Precision = "no"
    micro_batches: int = 1  # gradients are accumulated over this many parts of a batch
    eight_bit_adam: bool = False
    gradient_checkpointing: bool = False  # less memory, a third more time
    workers: int = 0  # processes that prepare samples
    threads: int | None = None


AUTOENCODER = Stage(
    name="autoencoder",
    trains=("*",),
    freezes=(),
    starts_from=(),
    motion_frames=0,
    clip_frames=1,
    steps=4500,
    batch=8,
    lr=1e-3,
    warmup_steps=100,
    final_lr=0.01,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    gradient_norm=1.0,
    ema_decay=0.995,
    report_every=20,
    evaluate_every=300,
    checkpoint_every=100,
)

DECODER = dataclasses.replace(
    AUTOENCODER,
    name="decoder",
    trains=("autoencoder.decoder.*", "autoencoder.linear_decoder.*"),
    starts_from=("autoencoder",),
    steps=5000,
    lr=6e-4,
    betas=(0.5, 0.99),
)
# Few steps: a critic that has learnt more draws zigzags into hair, and specks.
CRITIC = dataclasses.replace(
    DECODER, name="critic", trains=(*DECODER.trains, "critic.*"), steps=700, lr=4e-4
)

AUDIO = Stage(
    name="audio",
    # All but the embedding of masked time, which nothing uses.
    trains=(
        "encoder.feature_extractor.*",
        "encoder.feature_projection.*",
        "encoder.encoder.*",
        "heads.*",
    ),
    freezes=(),
    starts_from=(),
    motion_frames=0,
    clip_frames=0,
    steps=1600,
    batch=4,
    lr=1e-3,
    warmup_steps=80,
    final_lr=0.01,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    gradient_norm=1.0,
    ema_decay=0.99,
    report_every=20,
    evaluate_every=200,
    checkpoint_every=100,
)

LIPS = dataclasses.replace(
    AUDIO,
    name="lips",
    trains=("*",),
    starts_from=("audio",),
    clip_frames=16,
    steps=1200,
    batch=24,
    warmup_steps=50,
    final_lr=0.05,
    betas=(0.9, 0.99),
)

SYNC = Stage(
    name="sync",
    trains=("*",),
    freezes=(),
    starts_from=(),
    motion_frames=0,
    clip_frames=40,
    steps=1600,
    batch=8,
    lr=1e-3,
    warmup_steps=50,
    final_lr=0.01,
    betas=(0.9, 0.98),
    weight_decay=0.05,
    gradient_norm=1.0,
    ema_decay=0.99,
    report_every=20,
    evaluate_every=200,
    checkpoint_every=100,
)

# EMO sec. 3.3 and 4.1: 48 pictures, then 4 clips of 4 + 12 frames, always at 1e-5.
SPEED_LAYERS = ("*.attn_speed.*", "*.norm_speed.*", "backbone.speed_encoder.*")
AUDIO_LAYERS = ("*.attn_audio.*", "*.norm_audio.*", "backbone.audio_projector.*")
TEMPORAL_MODULES = ("*.motion_modules.*",)

IMAGE = Stage(
    name="image",
    trains=("reference_net.*", "backbone.*"),
    freezes=(*AUDIO_LAYERS, *TEMPORAL_MODULES, "backbone.speed_encoder.*"),
    starts_from=("autoencoder", "audio"),
    motion_frames=0,
    clip_frames=1,
    steps=100_000,
    batch=48,
    lr=1e-5,
    warmup_steps=500,
    final_lr=1.0,
    betas=(0.9, 0.999),
    weight_decay=0.01,
    gradient_norm=1.0,
    ema_decay=0.9999,
    report_every=20,
    evaluate_every=1000,
    checkpoint_every=500,
)
VIDEO = dataclasses.replace(
    IMAGE,
    name="video",
    freezes=SPEED_LAYERS,
    starts_from=("image",),
    motion_frames=4,
    clip_frames=12,
    batch=4,
)
SPEED = dataclasses.replace(
    VIDEO,
    name="speed",
    trains=(*TEMPORAL_MODULES, "backbone.speed_encoder.*"),
    freezes=(),
    starts_from=("video",),
    steps=30_000,
)
# The Backbone of a finished model learns to do with few steps; ReferenceNet serves both.
DISTILL = dataclasses.replace(
    VIDEO,
    name="distill",
    trains=("backbone.*",),
    freezes=(),
    starts_from=("speed",),
    steps=10_000,
)

STAGES = {
    stage.name: stage
    for stage in (AUTOENCODER, DECODER, CRITIC, AUDIO, LIPS, SYNC, IMAGE, VIDEO, SPEED, DISTILL)
}

# A small model learns from scratch: larger steps, a decay to the end, a shorter average.
FROM_SCRATCH: dict[str, Any] = {
    "batch": 8,
    "lr": 5e-4,
    "final_lr": 0.05,
    "betas": (0.9, 0.99),
    "warmup_steps": 50,
    "ema_decay": 0.998,
    "evaluate_every": 100,
    "checkpoint_every": 20,
}
MINI_STAGES = {
    "image": dataclasses.replace(
        IMAGE, steps=600, starts_from=("autoencoder", "audio", "lips"), **FROM_SCRATCH
    ),
    "video": dataclasses.replace(VIDEO, steps=18_000, **FROM_SCRATCH),
    "speed": dataclasses.replace(SPEED, steps=1600, **FROM_SCRATCH),
    "distill": dataclasses.replace(DISTILL, steps=1500, **(FROM_SCRATCH | {"lr": 1e-4})),
}


def stage_row(name: str, preset: str) -> Stage:
    """The row of a stage; `mini` has numbers of its own."""
    return MINI_STAGES[name] if preset == "mini" and name in MINI_STAGES else STAGES[name]


def with_options(
    stage: Stage, *, steps: int | None = None, batch: int | None = None, lr: float | None = None
) -> Stage:
    """The row with the user's own numbers in place of those that are not None."""
    changes = {"steps": steps, "batch": batch, "lr": lr}
    return dataclasses.replace(stage, **{n: v for n, v in changes.items() if v is not None})  # type: ignore[arg-type]
