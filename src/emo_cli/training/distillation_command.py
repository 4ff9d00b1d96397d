"""`emo train distill` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emo_cli.training.denoising_command import Sources, run_stage
from emo_cli.training.options import (
    Datasets,
    Device,
    LearningRate,
    MicroBatches,
    Model,
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


def distill_command(
    data: Datasets,
    init: Annotated[
        list[Path],
        typer.Option(help="The teacher: a model that has gone through all stages."),
    ],
    out: RunFolder,
    model: Model = "mini",
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="The teacher's, which the student learns. [the preset's]"),
    ] = None,
    audio_guidance: Annotated[
        float | None,
        typer.Option(min=0, help="Of the sound alone. [--guidance, else the preset's]"),
    ] = None,
    teacher_steps: Annotated[
        int, typer.Option(min=1, help="Of the teacher; a multiple of the student's.")
    ] = 40,
    student_steps: Annotated[
        int, typer.Option(min=1, help="Of the student; as many: it learns the guidance alone.")
    ] = 4,
    steps: Steps = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips per step.")] = None,
    lr: LearningRate = None,
    window: Window = None,
    seed: Annotated[int, typer.Option(help="Of order and noise.")] = 0,
    device: Device = "auto",
    precision: PrecisionOfStage = "no",
    micro_batches: MicroBatches = 1,
    workers: Workers = 0,
    threads: Threads = None,
    preview: Preview = True,
) -> None:
    """Teach a model to do with few unguided steps what it does with more."""
    from emo_cli.training.distillation import Teaching, check_steps
    from emo_cli.training.stages import RunOptions, stage_row, with_options
    from emo_cli.training.variation import AS_IT_IS

    config = model_config(model)
    check_precision_of_stage(precision)
    check_steps(teacher_steps, student_steps, config.diffusion)
    stage = with_options(stage_row("distill", config.name), steps=steps, batch=batch, lr=lr)
    options = RunOptions(
        out=out,
        seed=seed,
        device=device,
        precision=precision,  # type: ignore[arg-type]
        micro_batches=micro_batches,
        workers=workers,
        threads=threads,
    )
    sources = Sources(data=data, inits=init, window=window, variation=AS_IT_IS)
    usual = config.diffusion
    reference = usual.guidance if guidance is None else guidance
    audio = audio_guidance if audio_guidance is not None else guidance
    heard = usual.audio_guidance if audio is None else audio
    teaching = Teaching(reference, heard, teacher_steps, student_steps)
    typer.echo(run_stage(stage, options, config, sources, preview=preview, teaching=teaching))
