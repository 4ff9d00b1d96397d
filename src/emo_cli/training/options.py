"""Options that several commands of `emo train` share: each help text stands here once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from emo_cli.config import ModelConfig, read_model_config
from emo_cli.errors import EmoError
from emo_cli.presets import PRESETS

Datasets = Annotated[
    list[str], typer.Option(help="Datasets of `emo train prepare`; each is drawn equally often.")
]
RunFolder = Annotated[Path, typer.Option(help="The run's folder; run again to resume.")]
NewModelFolder = Annotated[Path, typer.Option(help="The model folder to write.")]
Model = Annotated[
    str, typer.Option(help="mini, full, or a config.json with sizes of your own for one of them.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of the optimizer.")]
LearningRate = Annotated[float | None, typer.Option(help="Highest learning rate.")]
Window = Annotated[
    int | None, typer.Option(min=4, help="Train on squares of so many latent pixels at the face.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
PrecisionOfPart = Annotated[str, typer.Option(help="no or bf16.")]
PrecisionOfStage = Annotated[str, typer.Option(help="no, bf16 or fp16.")]
MicroBatches = Annotated[
    int, typer.Option(min=1, help="Parts of a batch, one after the other, for memory.")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read samples.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Preview = Annotated[
    bool, typer.Option(help="Draw held-out clips into OUT/previews when they are measured.")
]


def model_config(model: str) -> ModelConfig:
    """The sizes that --model names: a preset, a config.json, or the model folder that holds one.

    Its `name` is that of the preset whose stages and loss it takes.

    Raises: EmoError when it is none of them, cannot be read, or has another name.
    """
    if model in PRESETS:
        return PRESETS[model]
    path = Path(model)
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise EmoError(
            f"'{model}' is no preset and {file} does not exist",
            "Use mini, full, or the path of a config.json.",
            exit_code=2,
        )
    config = read_model_config(file)
    if config.name not in PRESETS:
        raise EmoError(
            f"{file} has the name '{config.name}', which is no preset's",
            "Name it mini or full: it takes that preset's stages and loss.",
        )
    return dataclasses.replace(config, untrained=True, trained_stages=())


def check_precision_of_part(name: str) -> None:
    """Raises: EmoError when mini's small networks cannot be trained in it."""
    if name not in ("no", "bf16"):
        raise EmoError(f"'{name}' is no precision", "Use no or bf16.", exit_code=2)


def check_precision_of_stage(name: str) -> None:
    """Raises: EmoError when the stages cannot be trained in it."""
    if name not in ("no", "bf16", "fp16"):
        raise EmoError(f"'{name}' is no precision", "Use no, bf16 or fp16.", exit_code=2)
