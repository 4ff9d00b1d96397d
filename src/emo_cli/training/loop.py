"""The training loop, one for every stage; read it from `train` downwards.

Schedules are pure functions of the step, data order and noise of (seed, step, sample): to resume,
run the same command again, and the result is that of the uninterrupted run (bit for bit on a CPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, default_collate

from emo_cli.errors import EmoError
from emo_cli.training import fsdp
from emo_cli.training.checkpoint import Checkpoints, check_same_options
from emo_cli.training.draws import Draw, Share, derive_seed, micro_batches
from emo_cli.training.ema import Ema
from emo_cli.training.run_log import RunLog
from emo_cli.training.stages import RunOptions, Stage
from emo_cli.training.start import (
    binding_options,
    prepare,
    share_of_batch,
    start_accelerator,
)

Batch = dict[str, Tensor]
Report = Callable[[int, dict[str, float]], None]  # steps done, what was measured
Show = Callable[[nn.Module], np.ndarray]  # module with averaged weights -> uint8 RGB [H, W, 3]


class Samples(Protocol):
    """A map-style dataset whose samples are pure functions of their draw."""

    def __len__(self) -> int: ...

    def __getitem__(self, drawn: Draw) -> Batch:
        """Tensors of one sample; the loop adds "seed", int64, for the loss's noise."""


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


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one process of a run works with."""

    task: Task
    stage: Stage
    options: RunOptions
    accelerator: Accelerator
    share: Share
    module: nn.Module  # what trains, as accelerate wraps it
    optimizer: Any
    ema: Ema
    checkpoints: Checkpoints
    log: RunLog
    show: Show | None
    first_step: int


def train(
    task: Task,
    stage: Stage,
    options: RunOptions,
    *,
    fingerprint: dict[str, Any] | None = None,
    report: Report = lambda step, values: None,
    show: Show | None = None,
) -> Path:
    """Train one stage, or go on where the same command stopped; returns the result's folder.

    `fingerprint` is whatever else must be equal to resume: data, preset, starting weights.
    `show` draws a preview whenever held-out data is measured; it changes nothing that is learnt.

    Raises: EmoError on other options than the run began with, a loss that is not finite (the last
    good checkpoint stays), a full disk, a device that is not there.
    """
    run = start_run(task, stage, options, fingerprint or {}, show)
    batches = load_batches(run)
    for step in range(run.first_step, stage.steps):
        losses = train_step(run, batches, step)
        run.ema.update(step)
        run.log.add(losses)
        done = step + 1
        values = measure(run, done)
        run.log.write(done, values)
        if is_due(done, stage.checkpoint_every, stage.steps):
            run.checkpoints.save(done)
        report(done, values)

    folder = options.out / "model"
    with averaged(run) as module:
        if module is not None:
            task.export(module, folder)
    run.accelerator.wait_for_everyone()
    return folder


def start_run(
    task: Task,
    stage: Stage,
    options: RunOptions,
    fingerprint: dict[str, Any],
    show: Show | None = None,
) -> Run:
    """Networks, optimizer and averages as the newest checkpoint, if there is one, has them."""
    # What is saved must have been seen to be finite.
    assert stage.checkpoint_every % stage.report_every == 0
    if len(task.samples) == 0:
        raise EmoError("there is nothing to train on", "Name folders with usable files.")
    accelerator = start_accelerator(options)
    share = share_of_batch(stage, options, accelerator)
    if accelerator.is_main_process:
        check_same_options(options.out, binding_options(stage, options, fingerprint))
    accelerator.wait_for_everyone()

    module, optimizer = prepare(accelerator, task.module, stage, options)
    ema = Ema(accelerator.unwrap_model(module), stage.ema_decay)
    checkpoints = Checkpoints(options.out, accelerator, ema)
    first_step = checkpoints.restore()
    return Run(
        task=task,
        stage=stage,
        options=options,
        accelerator=accelerator,
        share=share,
        module=module,
        optimizer=optimizer,
        ema=ema,
        checkpoints=checkpoints,
        log=RunLog(options.out, first_step, accelerator.is_main_process),
        show=show,
        first_step=first_step,
    )


def train_step(run: Run, batches: Iterator[Batch], step: int) -> dict[str, Tensor]:
    """One step of the optimizer over all micro-batches; returns losses and the gradient's norm."""
    accelerator, num_micro = run.accelerator, run.options.micro_batches
    # For what draws from the global generator (dropout), and for nothing else.
    torch.manual_seed(derive_seed(run.options.seed, "step", step, accelerator.process_index))
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.stage, step)
    sums: dict[str, Tensor] = {}
    for _ in range(num_micro):
        batch = {name: value.to(accelerator.device) for name, value in next(batches).items()}
        with accelerator.accumulate(run.module):
            losses = run.module(batch)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                norm = clip_gradients(run)
            run.optimizer.step()
            run.optimizer.zero_grad()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach() / num_micro
    if accelerator.scaler is None:  # fp16 meets infinities, and skips those steps
        sums["gradient_norm"] = norm
    return sums


def clip_gradients(run: Run) -> Tensor:
    """Scale all gradients down to the stage's norm; returns the norm before."""
    parameters = [p for p in run.module.parameters() if p.requires_grad]
    norm = run.accelerator.clip_grad_norm_(parameters, run.stage.gradient_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)


def measure(run: Run, done: int) -> dict[str, float]:
    """Losses since the last report and measures on held-out data, where they are due.

    Raises: EmoError when one is not finite.
    """
    values: dict[str, float] = {}
    if is_due(done, run.stage.report_every, run.stage.steps):
        values = run.log.averages(run.accelerator)
        check_finite(values, done, run.checkpoints)
        values["lr"] = learning_rate(run.stage, done - 1)
    if is_due(done, run.stage.evaluate_every, run.stage.steps):
        values |= evaluate(run, done)
    return values


def evaluate(run: Run, done: int) -> dict[str, float]:
    """The task's measures and preview, by the main process, with the averaged weights."""
    measures: dict[str, float] = {}
    with averaged(run) as module, torch.no_grad():
        if module is not None:
            module.eval()
            measures = run.task.evaluate(module)
            if run.show is not None:
                run.log.picture(done, run.show(module))
            module.train()
    run.accelerator.wait_for_everyone()
    return measures


@contextmanager
def averaged(run: Run) -> Iterator[nn.Module | None]:
    """The task's module with the averaged weights for the main process, nothing for the others.

    Every process enters: with FSDP each of them has a part of the averages.
    """
    accelerator, whole = run.accelerator, run.task.module
    main = accelerator.is_main_process
    if not main:
        run.ema.state(keep=False)
        yield None
    elif accelerator.is_fsdp2:
        with fsdp.measured(accelerator, whole, run.ema.state()):
            yield whole
    else:
        with run.ema.applied():
            yield whole


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


def load_batches(run: Run) -> Iterator[Batch]:
    """This process's micro-batches from the first step to the end, each sample with its seed.

    Raises: EmoError for a sample that cannot be read, in a worker process as well.
    """
    stage, num_samples = run.stage, len(run.task.samples)
    draws = micro_batches(
        run.options.seed, run.first_step, stage.steps, stage.batch, num_samples, run.share
    )
    loader: DataLoader[Batch | EmoError] = DataLoader(
        SeededSamples(run.task.samples),
        batch_sampler=draws,  # type: ignore[arg-type]
        num_workers=run.options.workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate,
    )
    return map(readable, iter(loader))


def collate(samples: list[Batch | EmoError]) -> Batch | EmoError:
    """A batch of samples, or what is wrong with the first that could not be read."""
    wrong = [sample for sample in samples if isinstance(sample, EmoError)]
    return wrong[0] if wrong else default_collate(samples)


def readable(batch: Batch | EmoError) -> Batch:
    """The batch.

    Raises: EmoError where there is none.
    """
    if isinstance(batch, EmoError):
        raise batch
    return batch


class SeededSamples(Dataset[Batch | EmoError]):
    """Samples with their draw's seed beside them, for the noise that the loss draws.

    An error is handed on, not raised: from a worker process it would come as a traceback.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, drawn: Draw) -> Batch | EmoError:
        try:
            return self.samples[drawn] | {"seed": torch.tensor(drawn.seed)}
        except EmoError as error:
            return error


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
