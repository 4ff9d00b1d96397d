"""`emo train ...`: the command line of the stages. Heavy imports wait until a stage runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from emo_cli.console import note

app = typer.Typer(no_args_is_help=True, help="Train a model, or a part of one, on your own data.")


@app.callback()
def train() -> None:
    """Train a model, or a part of one, on your own data."""


@app.command()
def autoencoder(
    pictures: Annotated[
        list[Path],
        typer.Option(help="Folders of pictures and videos; each is drawn equally often."),
    ],
    out: Annotated[Path, typer.Option(help="The run's folder; run again to resume.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the optimizer.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Crops per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, crops and noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Train mini's autoencoder (pictures to latents and back)."""
    import torch
    from accelerate import PartialState

    from emo_cli.config import MINI
    from emo_cli.training import loop
    from emo_cli.training.autoencoder_stage import AutoencoderTask
    from emo_cli.training.pictures import open_picture_cache
    from emo_cli.training.stages import STAGES, RunOptions, with_options

    if threads is not None:
        torch.set_num_threads(threads)
    stage = with_options(STAGES["autoencoder"], steps=steps, batch=batch, lr=lr)
    options = RunOptions(out=out, seed=seed, device=device, threads=threads)
    process = PartialState(cpu=device == "cpu")  # one of several under `accelerate launch`
    with process.main_process_first():
        cache = open_picture_cache(pictures, out / "cache", note)
    task = AutoencoderTask(MINI.autoencoder, cache, seed)
    data = {"pictures": cache.digest}
    with _step_progress(stage.name, stage.steps, shown=process.is_main_process) as report:
        folder = loop.train(task, stage, options, fingerprint=data, report=report)
    if process.is_main_process:
        typer.echo(folder / "autoencoder.safetensors")


@contextlib.contextmanager
def _step_progress(
    name: str, steps: int, *, shown: bool
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A bar with the time left, and a line above it for every report."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("steps, ETA"))
    console = Console(stderr=True, quiet=not shown)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(name, total=steps, start=False)

        def report(step: int, values: dict[str, float]) -> None:
            if progress.tasks[0].started:
                progress.update(task, completed=step)
            else:  # a resumed run begins in the middle; its speed is not measured from 0
                progress.reset(task, completed=step)
            if values:
                figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
                progress.console.print(f"step {step}  {figures}", soft_wrap=True, highlight=False)

        yield report
