"""`emo train image`, `video` and `speed` on the command line: the paper's three stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emo_cli.console import note
from emo_cli.errors import EmoError
from emo_cli.training.options import (
    Datasets,
    Device,
    LearningRate,
    MicroBatches,
    Model,
    NewModelFolder,
    PrecisionOfStage,
    Preview,
    RunFolder,
    Steps,
    Threads,
    Window,
    Workers,
    check_precision_of_stage,
    model_config,
)

if TYPE_CHECKING:
    from emo_cli.config import ModelConfig
    from emo_cli.training.distillation import Teaching
    from emo_cli.training.stages import RunOptions, Stage
    from emo_cli.training.variation import Variation


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a run learns from and starts from."""

    data: list[str]
    inits: list[Path]
    window: int | None  # side of the square at the face, in latent pixels
    variation: Variation


def denoising_command(name: str) -> Callable[..., None]:
    """The command of one stage."""

    def command(
        data: Datasets,
        init: Annotated[
            list[Path],
            typer.Option(help="Model folders to start from; the later one's parts win."),
        ],
        out: RunFolder,
        model: Model = "mini",
        steps: Steps = None,
        batch: Annotated[int | None, typer.Option(min=1, help="Samples per step.")] = None,
        lr: LearningRate = None,
        window: Window = None,
        augment: Annotated[
            bool,
            typer.Option(
                "--augment",
                help="Vary mirror, light, colour and crop; reads pictures, not cached latents.",
            ),
        ] = False,
        varied_references: Annotated[
            bool,
            typer.Option(
                "--varied-references",
                help="Reference frames whose mouth is shut, open and wide in equal shares.",
            ),
        ] = False,
        seed: Annotated[int, typer.Option(help="Of weights, order and noise.")] = 0,
        device: Device = "auto",
        precision: PrecisionOfStage = "no",
        micro_batches: MicroBatches = 1,
        eight_bit_adam: Annotated[
            bool, typer.Option("--eight-bit-adam", help="Optimizer states in 8 bits.")
        ] = False,
        gradient_checkpointing: Annotated[
            bool,
            typer.Option(
                "--gradient-checkpointing",
                help="Compute the Backbone twice instead of keeping what lies between.",
            ),
        ] = False,
        workers: Workers = 0,
        threads: Threads = None,
        preview: Preview = True,
    ) -> None:
        from emo_cli.training.stages import RunOptions, stage_row, with_options
        from emo_cli.training.variation import Variation

        config = model_config(model)
        check_precision_of_stage(precision)
        stage = with_options(stage_row(name, config.name), steps=steps, batch=batch, lr=lr)
        options = RunOptions(
            out=out,
            seed=seed,
            device=device,
            precision=precision,  # type: ignore[arg-type]
            micro_batches=micro_batches,
            eight_bit_adam=eight_bit_adam,
            gradient_checkpointing=gradient_checkpointing,
            workers=workers,
            threads=threads,
        )
        if augment and window is not None:
            raise EmoError(
                "--augment varies pictures, --window cuts cached latents",
                "Leave one of the two out.",
                exit_code=2,
            )
        variation = Variation(looks=augment, references=varied_references)
        sources = Sources(data=data, inits=init, window=window, variation=variation)
        typer.echo(run_stage(stage, options, config, sources, preview=preview))

    command.__name__ = name
    command.__doc__ = {
        "image": "Stage 1: Backbone, ReferenceNet and face locator, on single pictures.",
        "video": "Stage 2: adds temporal modules and sound, on clips.",
        "speed": "Stage 3: only temporal modules and speed layers.",
    }[name]
    return command


def newborn_command(
    out: NewModelFolder,
) -> None:
    """Write `full` before its first stage: the parents of `emo download full`, and new layers."""
    import torch

    from emo_cli.model.load import save_model
    from emo_cli.model.pretrained import downloaded_parents, model_from_parents
    from emo_cli.presets import FULL

    save_model(model_from_parents(FULL, downloaded_parents()), out, dtype=torch.float32)
    typer.echo(out)


def run_stage(
    stage: Stage,
    options: RunOptions,
    config: ModelConfig,
    sources: Sources,
    *,
    preview: bool,
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    teaching: Teaching | None = None,
) -> Path:
    """Train one stage as its command does; returns the model's folder.

    `watch` is called after every step with the steps done and what was measured. `teaching` is
    for the stage `distill`; None: the model's own guidance.

    Raises: EmoError as `loop.train` does, and for data or starting weights that will not do.
    """
    import torch

    from emo_cli.training import loop
    from emo_cli.training.clip_samples import open_datasets
    from emo_cli.training.commands import step_progress
    from emo_cli.training.denoising_stage import (
        DenoisingTask,
        loss_options,
        starting_model,
        within_reach,
    )
    from emo_cli.training.distillation import DistillationTask
    from emo_cli.training.start import find_processes

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # A distilled network's target follows its weights outside of a forward pass.
    shown = find_processes(options, may_part=stage.name != "distill").is_main_process
    say = note if shown else lambda line: None
    data, inits, window = sources.data, sources.inits, sources.window
    network = starting_model(stage, config, inits, options.seed)
    network.backbone.recompute = options.gradient_checkpointing
    stage = within_reach(stage, config)
    samples = open_datasets(data, stage, config, "train", inits, window, sources.variation)
    validation = open_datasets(data, stage, config, "val", inits, say=say)
    if samples is None:
        raise EmoError("the datasets hold no clip to train on", "Prepare more videos.")
    parts = (network, stage, loss_options(stage.name, config), samples, validation, inits)
    distils = stage.name == "distill"
    task = DistillationTask(*parts, teaching) if distils else DenoisingTask(*parts)
    taught = list(task.module.teaching) if isinstance(task, DistillationTask) else None
    digests = [dataset.digest for dataset in samples.datasets]
    fingerprint = learnt_from(config, sources) | {"data": digests, "teaching": taught}
    with step_progress(stage.name, stage.steps, shown=shown) as progress:

        def report(step: int, values: dict[str, float]) -> None:
            progress(step, values)
            watch(step, values)

        return loop.train(
            task,
            stage,
            options,
            fingerprint=fingerprint,
            report=report,
            show=task.preview if preview and validation is not None else None,
        )


def learnt_from(config: ModelConfig, sources: Sources) -> dict[str, Any]:
    """What a run's record says of sizes and sources; None, as older runs have it, where usual."""
    from emo_cli.files import sha256_of
    from emo_cli.model.load import SUMS
    from emo_cli.presets import PRESETS

    own = config != PRESETS[config.name]
    return {
        "preset": config.name,
        "config": dataclasses.asdict(config) if own else None,
        "window": sources.window,
        "init": [sha256_of(folder / SUMS) for folder in sources.inits],
        "augment": sources.variation.looks or None,
        "varied_references": sources.variation.references or None,
    }
