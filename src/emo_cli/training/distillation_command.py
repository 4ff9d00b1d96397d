"""`emo train distill` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emo_cli.errors import EmoError
from emo_cli.training.denoising_command import PRESETS, Sources, run_stage


def distill_command(
    data: Annotated[
        list[str],
        typer.Option(help="Datasets of `emo train prepare`; each is drawn equally often."),
    ],
    init: Annotated[
        list[Path],
        typer.Option(help="The teacher: a model that has gone through all stages."),
    ],
    out: Annotated[Path, typer.Option(help="The run's folder; run again to resume.")],
    model: Annotated[str, typer.Option(help="mini or full.")] = "mini",
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="The teacher's, which the student learns. [the preset's]"),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the optimizer.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    window: Annotated[
        int | None,
        typer.Option(min=4, help="Train on squares of so many latent pixels at the face."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of order and noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    micro_batches: Annotated[
        int, typer.Option(min=1, help="Parts of a batch, one after the other, for memory.")
    ] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read samples.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    preview: Annotated[
        bool, typer.Option(help="Draw held-out clips into OUT/previews when they are measured.")
    ] = True,
) -> None:
    """Teach a model to do with 4 unguided steps what it does with 40."""
    from emo_cli.training.stages import RunOptions, stage_row, with_options
    from emo_cli.training.variation import AS_IT_IS

    if model not in PRESETS:
        raise EmoError(f"'{model}' is no preset", "Use mini or full.", exit_code=2)
    if precision not in ("no", "bf16", "fp16"):
        raise EmoError(f"'{precision}' is no precision", "Use no, bf16 or fp16.", exit_code=2)
    stage = with_options(stage_row("distill", model), steps=steps, batch=batch, lr=lr)
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
    typer.echo(run_stage(stage, options, model, sources, preview=preview, guidance=guidance))
