"""The training loop, one for every stage; read it from `train` downwards.

Schedules are pure functions of the step, data order and noise of (seed, step, sample): to resume,
run the same command again, and the result is that of the uninterrupted run (bit for bit on a CPU).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from emo_cli.errors import EmoError
from emo_cli.training.checkpoint import Checkpoints, check_same_options
from emo_cli.training.draws import Draw, Share, derive_seed, micro_batches
from emo_cli.training.ema import Ema
from emo_cli.training.run_log import RunLog
from emo_cli.training.stages import RunOptions, Stage

Batch = dict[str, Tensor]
Report = Callable[[int, dict[str, float]], None]  # steps done, what was measured


class Samples(Protocol):
    """A map-style dataset whose samples are pure functions of their draw."""

    def __len__(self) -> int: ...

    def __getitem__(self, drawn: Draw) -> Batch:
        """Tensors of one sample; with "seed", int64, where the loss draws noise."""


class Task(Protocol):
    """What a stage's row cannot say: its network and loss, data, measures and result."""

    @property
    def module(self) -> nn.Module:
        """Its forward(batch) gives {"loss": scalar, ...}; it holds all that trains."""

    @property
    def samples(self) -> Samples:
        """What it learns from."""

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measures on held-out data, computed with the averaged weights."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the result, a model folder or a part of one, from the averaged weights."""


def train(
    task: Task,
    stage: Stage,
    options: RunOptions,
    *,
    fingerprint: dict[str, Any] | None = None,
    report: Report = lambda step, values: None,
) -> Path:
    """Train one stage, or go on where the same command stopped; returns the result's folder.

    `fingerprint` is whatever else must be equal to resume: data, preset, starting weights.

    Raises: EmoError on other options than the run began with, a loss that is not finite (the last
    good checkpoint stays), a full disk, a device that is not there.
    """
    accelerator = start_accelerator(options)
    share = share_of_batch(stage, options, accelerator)
    if accelerator.is_main_process:
        check_same_options(options.out, binding_options(stage, options, fingerprint or {}))
    accelerator.wait_for_everyone()

    freeze_others(task.module, stage.trains)
    module, optimizer = accelerator.prepare(
        task.module, build_optimizer(task.module, stage, options)
    )
    bare = accelerator.unwrap_model(module)
    ema = Ema(bare, stage.ema_decay)
    checkpoints = Checkpoints(options.out, accelerator, ema)
    first_step = checkpoints.restore()
    log = RunLog(options.out, first_step, accelerator.is_main_process)
    batches = load_batches(task.samples, stage, options, share, first_step)

    for step in range(first_step, stage.steps):
        # For what draws from the global generator (dropout), and for nothing else.
        torch.manual_seed(derive_seed(options.seed, "step", step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, step)
        losses = train_step(accelerator, module, optimizer, batches, stage, options)
        ema.update(step)
        log.add(losses)

        done = step + 1
        values: dict[str, float] = {}
        if is_due(done, stage.report_every, stage.steps):
            values = log.averages(accelerator)
            check_finite(values, done, checkpoints)
            values["lr"] = learning_rate(stage, step)
        if is_due(done, stage.evaluate_every, stage.steps):
            values |= evaluate(task, bare, ema, accelerator)
        log.write(done, values)
        if is_due(done, stage.checkpoint_every, stage.steps):
            checkpoints.save(done)
        report(done, values)

    folder = options.out / "model"
    if accelerator.is_main_process:
        with ema.applied():
            task.export(bare, folder)
    accelerator.wait_for_everyone()
    return folder


def train_step(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: Any,
    batches: Iterator[Batch],
    stage: Stage,
    options: RunOptions,
) -> dict[str, Tensor]:
    """One step of the optimizer over all micro-batches; returns losses and the gradient's norm."""
    sums: dict[str, Tensor] = {}
    for _ in range(options.micro_batches):
        batch = {name: value.to(accelerator.device) for name, value in next(batches).items()}
        with accelerator.accumulate(module):
            losses = module(batch)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                parameters = [p for p in module.parameters() if p.requires_grad]
                norm = accelerator.clip_grad_norm_(parameters, stage.gradient_norm)
                if accelerator.scaler is None:  # fp16 meets infinities, and skips those steps
                    sums["gradient_norm"] = torch.as_tensor(norm)
            optimizer.step()
            optimizer.zero_grad()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach() / options.micro_batches
    return sums


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up to `lr`, then half a cosine down to `lr * final_lr` at the last step."""
    warmup = min(1.0, (step + 1) / max(1, stage.warmup_steps))
    rest = max(1, stage.steps - stage.warmup_steps)
    progress = min(1.0, max(0.0, (step + 1 - stage.warmup_steps) / rest))
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return stage.lr * warmup * (stage.final_lr + (1 - stage.final_lr) * cosine)


def is_due(done: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return done % every == 0 or done == steps


def start_accelerator(options: RunOptions) -> Accelerator:
    """accelerate's view of the devices; under `accelerate launch` it finds its peers."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(options.device, True):
        raise EmoError(
            f"--device {options.device}: there is none on this machine",
            "Leave --device out to use what there is.",
        )
    return Accelerator(
        mixed_precision=options.precision,
        gradient_accumulation_steps=options.micro_batches,
        cpu=options.device == "cpu",
    )


def share_of_batch(stage: Stage, options: RunOptions, accelerator: Accelerator) -> Share:
    """What this process computes of every batch."""
    parts = accelerator.num_processes * options.micro_batches
    if stage.batch % parts:
        raise EmoError(
            f"a batch of {stage.batch} does not divide into {accelerator.num_processes} "
            f"process(es) x {options.micro_batches} micro-batch(es)",
            "Choose --batch as a multiple of their product.",
        )
    return Share(
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        micro_batches=options.micro_batches,
    )


def binding_options(
    stage: Stage, options: RunOptions, fingerprint: dict[str, Any]
) -> dict[str, Any]:
    """All that must be equal for a run to be resumed; devices and workers may differ."""
    row = {n: v for n, v in dataclasses.asdict(stage).items() if not n.endswith("_every")}
    run = {"seed": options.seed, "precision": options.precision}
    return row | run | {"eight_bit_adam": options.eight_bit_adam} | fingerprint


def freeze_others(module: nn.Module, patterns: tuple[str, ...]) -> None:
    """Let the parameters train whose names match a pattern, and no other."""
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        assert fnmatch.filter(names, pattern), f"no parameter matches {pattern}"
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, p) for p in patterns))


def build_optimizer(module: nn.Module, stage: Stage, options: RunOptions) -> torch.optim.Optimizer:
    """AdamW over what trains; with 8-bit states where bitsandbytes is installed and asked for."""
    trained = [p for p in module.parameters() if p.requires_grad]
    kind: Any = torch.optim.AdamW
    if options.eight_bit_adam:
        try:
            import bitsandbytes
        except ImportError as error:
            raise EmoError(
                "8-bit Adam needs bitsandbytes, which is not installed",
                "pip install bitsandbytes, or leave --eight-bit-adam out.",
            ) from error
        kind = bitsandbytes.optim.AdamW8bit
    return kind(trained, lr=stage.lr, betas=stage.betas, weight_decay=stage.weight_decay)


def load_batches(
    samples: Samples, stage: Stage, options: RunOptions, share: Share, first_step: int
) -> Iterator[Batch]:
    """This process's micro-batches from `first_step` to the end, each sample with its seed."""
    if len(samples) == 0:
        raise EmoError("there is nothing to train on", "Name folders with usable files.")
    draws = micro_batches(options.seed, first_step, stage.steps, stage.batch, len(samples), share)
    loader: DataLoader[Batch] = DataLoader(
        SeededSamples(samples),
        batch_sampler=draws,  # type: ignore[arg-type]
        num_workers=options.workers,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


class SeededSamples(Dataset[Batch]):
    """Samples with their draw's seed beside them, for the noise that the loss draws."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, drawn: Draw) -> Batch:
        return self.samples[drawn] | {"seed": torch.tensor(drawn.seed)}


def evaluate(task: Task, module: nn.Module, ema: Ema, accelerator: Accelerator) -> dict[str, float]:
    """The task's measures on the main process, with the averaged weights."""
    measures: dict[str, float] = {}
    if accelerator.is_main_process:
        module.eval()
        with ema.applied(), torch.no_grad():
            measures = task.evaluate(module)
        module.train()
    accelerator.wait_for_everyone()
    return measures


def check_finite(values: dict[str, float], done: int, checkpoints: Checkpoints) -> None:
    """Stop before a bad weight is saved.

    Raises: EmoError that names what is not finite and the checkpoint that stays.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        return
    last = checkpoints.latest()
    kept = f"the last good checkpoint is {last}" if last else "nothing was saved yet"
    raise EmoError(
        f"{bad[0]} is {values[bad[0]]} by step {done}; {kept}",
        "Lower --lr (with another --out), or look for broken samples.",
    )
