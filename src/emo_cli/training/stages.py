"""The stages of training, each a row of data for the one loop in `loop.py`.

Add a stage: a row here, and a `Task` (what it learns from, its loss, its measures, its result).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage trains; batch and learning rate are those of all processes together."""

    name: str
    trains: tuple[str, ...]  # patterns of parameter names; all others are frozen
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
    workers: int = 0  # processes that prepare samples
    threads: int | None = None


AUTOENCODER = Stage(
    name="autoencoder",
    trains=("*",),
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

AUDIO = Stage(
    name="audio",
    # All but the embedding of masked time, which nothing uses.
    trains=(
        "encoder.feature_extractor.*",
        "encoder.feature_projection.*",
        "encoder.encoder.*",
        "heads.*",
    ),
    starts_from=(),
    motion_frames=0,
    clip_frames=0,
    steps=1500,
    batch=8,
    lr=1.5e-3,
    warmup_steps=60,
    final_lr=0.01,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    gradient_norm=1.0,
    ema_decay=0.99,
    report_every=20,
    evaluate_every=200,
    checkpoint_every=100,
)

STAGES = {stage.name: stage for stage in (AUTOENCODER, AUDIO)}


def with_options(
    stage: Stage, *, steps: int | None = None, batch: int | None = None, lr: float | None = None
) -> Stage:
    """The row with the user's own numbers in place of those that are not None."""
    changes = {"steps": steps, "batch": batch, "lr": lr}
    return dataclasses.replace(stage, **{n: v for n, v in changes.items() if v is not None})  # type: ignore[arg-type]
