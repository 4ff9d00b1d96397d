"""`emo train ...`: the command line of the stages. Heavy imports wait until a stage runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

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

    from emo_cli.config import MINI
    from emo_cli.training import loop
    from emo_cli.training.autoencoder_stage import AutoencoderTask
    from emo_cli.training.pictures import open_picture_cache
    from emo_cli.training.stages import STAGES, RunOptions, with_options

    if threads is not None:
        torch.set_num_threads(threads)
    stage = with_options(STAGES["autoencoder"], steps=steps, batch=batch, lr=lr)
    options = RunOptions(out=out, seed=seed, device=device, threads=threads)
    cache = open_picture_cache(pictures, out / "cache", _say)
    task = AutoencoderTask(MINI.autoencoder, cache, seed)
    folder = loop.train(
        task, stage, options, fingerprint={"pictures": cache.digest}, report=_report(stage.steps)
    )
    typer.echo(folder / "autoencoder.safetensors")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _report(steps: int):  # type: ignore[no-untyped-def]
    def report(step: int, values: dict[str, float]) -> None:
        if values:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            _say(f"step {step}/{steps}  {figures}")

    return report
