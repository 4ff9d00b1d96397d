"""The stages image, video and speed: what they start from, learn from, measure and leave behind.

Shapes: B clips, F frames, M motion frames, S picture size, H W latent size.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from emo_cli.config import ModelConfig, read_model_config
from emo_cli.errors import EmoError
from emo_cli.model.emo_model import PARTS, EmoModel, part_of, parts_of
from emo_cli.model.load import (
    SUMS,
    copy_part,
    load_parts,
    part_tensors,
    write_config,
    write_part,
)
from emo_cli.model.reference_net import motion_only
from emo_cli.training.denoising import DenoisingLoss, DenoisingOptions
from emo_cli.training.draws import Draw, derive_seed
from emo_cli.training.preview import contact_sheet
from emo_cli.training.stages import STAGES, Stage

if TYPE_CHECKING:
    from emo_cli.training.clip_samples import ClipSamples

VALIDATION_PICTURES, VALIDATION_CLIPS = 32, 8
VALIDATION_BATCH = 4  # fits into a laptop's memory

# The paper's loss, and what the field has found since for schedules like its own; a small model
# has to spend its capacity where people look.
PAPER = DenoisingOptions(
    clip=True,
    audio=True,
    drop_both=0.05,
    drop_audio=0.05,
    drop_motion=0.2,
    mean_speed=0.5,  # as at inference
    motion_noise=0.0,
    noisiest=0.0,
    sampled_timesteps=0.0,
    noise_offset=0.05,
    min_snr=5.0,  # Hang et al. 2023
    mouth_weight=1.0,
    jaw_weight=1.0,
    eye_weight=1.0,
    change_weight=0.0,
)
MINI_LOSS = dataclasses.replace(
    PAPER,
    drop_motion=0.3,
    motion_noise=0.3,
    noisiest=0.3,
    sampled_timesteps=0.5,
    mouth_weight=6.0,
    jaw_weight=3.0,
    eye_weight=6.0,
    change_weight=0.5,
)


def loss_options(stage: str, config: ModelConfig) -> DenoisingOptions:
    """How a stage of a model computes its loss."""
    options = MINI_LOSS if config.name == "mini" else PAPER
    if config.diffusion.zero_terminal_snr:  # where neither has a purpose
        options = dataclasses.replace(options, noise_offset=0.0, min_snr=None)
    if stage == "image":
        return dataclasses.replace(options, clip=False, audio=False)
    if stage == "distill":  # as inference: all conditions, one speed, its noise; the loss is of v
        return dataclasses.replace(
            options, drop_both=0.0, drop_audio=0.0, mean_speed=1.0, noise_offset=0.0, min_snr=None
        )
    return options


def starting_model(stage: Stage, config: ModelConfig, inits: list[Path], seed: int) -> EmoModel:
    """The model that a stage trains on: parts from `inits`, the later folder's win.

    Raises: EmoError when a folder holds no parts, or a part that an earlier stage makes is in none.
    """
    torch.manual_seed(derive_seed(seed, "weights"))
    model = EmoModel(config)
    found: set[str] = set()
    trained: list[str] = []
    for folder in inits:
        if not (folder / SUMS).exists():
            inside = folder / "model"
            name = f"Name {inside}." if (inside / SUMS).exists() else "Name RUN/model of a run."
            what = "holds no parts of a model" if folder.is_dir() else "does not exist"
            raise EmoError(f"--init {folder} {what}", name)
        found |= load_parts(model, folder)
        if (folder / "config.json").exists():
            trained += read_model_config(folder / "config.json").trained_stages
    model.config = dataclasses.replace(model.config, trained_stages=tuple(trained))
    needed = parts_of(config)
    if stage.name == "image" and config.name == "mini":  # whose networks learn from nothing
        needed = [part for part in needed if PARTS[part][1] in stage.starts_from]
    missing = [part for part in needed if part not in found]
    if missing:
        what, maker = PARTS[missing[0]]
        raise EmoError(
            f"stage '{stage.name}' needs {what}, which no --init folder has",
            f"Run `emo train {maker}` first and name its result with --init.",
        )
    return model


def within_reach(stage: Stage, config: ModelConfig) -> Stage:
    """The row without what pictures alone never reach: processes wait for all that trains."""
    if stage.clip_frames > 1:
        return stage
    unreached = motion_only(config.unet, config.autoencoder.latent_channels)
    return dataclasses.replace(
        stage, freezes=(*stage.freezes, *(f"reference_net.{name}" for name in unreached))
    )


class DenoisingTask:
    """All that these stages bring to the loop."""

    def __init__(
        self,
        model: EmoModel,
        stage: Stage,
        options: DenoisingOptions,
        samples: ClipSamples,
        validation: ClipSamples | None,
        inits: list[Path],
    ) -> None:
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.autoencoder.requires_grad_(False)
        self.stage = stage
        self.module = DenoisingLoss(model, options)
        self.samples = samples
        self.validation = validation
        self.inits = inits

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Mean squared errors on held-out clips, always the same noise: whole frame and mouth."""
        if self.validation is None:
            return {}
        device = next(module.parameters()).device
        sums = {"val_plain": 0.0, "val_mouth": 0.0}
        wanted = VALIDATION_CLIPS if self.stage.clip_frames > 1 else VALIDATION_PICTURES
        count = min(wanted, len(self.validation))
        starts = range(0, count, VALIDATION_BATCH)
        for start in starts:
            losses = module(self._validation_batch(start, count, device))
            sums["val_plain"] += losses["plain"].item() / len(starts)
            sums["val_mouth"] += losses["mouth"].item() / len(starts)
        return sums

    def preview(self, module: nn.Module) -> np.ndarray:
        """Held-out clips as the model shows them now, uint8 RGB [H, W, 3]."""
        assert self.validation is not None
        device = next(module.parameters()).device
        hears = self.stage.clip_frames > 1
        return contact_sheet(self.model, self.validation.datasets, hears=hears, device=device)

    def _validation_batch(self, start: int, count: int, device: torch.device) -> dict[str, Tensor]:
        assert self.validation is not None
        places = self.validation.spread(count)
        numbers = range(start, min(start + VALIDATION_BATCH, count))
        seeds = [derive_seed("validation", number) for number in numbers]
        rows = [
            self.validation[Draw(places[number], seed)]
            for number, seed in zip(numbers, seeds, strict=True)
        ]
        batch = {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}
        return batch | {"seed": torch.tensor(seeds)}

    def export(self, module: nn.Module, folder: Path) -> None:
        """A whole model folder, which `emo generate --model` and the next stage's --init take."""
        assert isinstance(module, DenoisingLoss)
        config = self.model.config
        folder.mkdir(parents=True, exist_ok=True)
        trains = {part_of(n) for n, p in module.named_parameters() if p.requires_grad}
        dtype = torch.float16 if config.name == "mini" else torch.bfloat16
        for part in parts_of(config):
            sources = [init for init in self.inits if (init / f"{part}.safetensors").exists()]
            if part in trains or not sources:
                tensors = part_tensors(self.model, part)
                write_part(folder, part, tensors, dtype=dtype)
            else:
                copy_part(sources[-1], folder, part)
        stages = {*self.stage.starts_from, *config.trained_stages, self.stage.name}
        trained = tuple(name for name in STAGES if name in stages)
        write_config(folder, dataclasses.replace(config, trained_stages=trained, untrained=False))
