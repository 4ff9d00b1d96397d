"""`emo train ...`: the command line of the stages. Heavy imports wait until a stage runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emo_cli.console import note
from emo_cli.files import sha256_of
from emo_cli.training.denoising_command import denoising_command, newborn_command
from emo_cli.training.distillation_command import distill_command
from emo_cli.training.options import (
    Datasets,
    Device,
    LearningRate,
    PrecisionOfPart,
    RunFolder,
    Steps,
    Threads,
    check_precision_of_part,
)
from emo_cli.training.pack import pack_command
from emo_cli.training.prepare_command import prepare_command
from emo_cli.training.stages import STAGES, RunOptions, Stage, with_options

if TYPE_CHECKING:
    from emo_cli.training.loop import Task

Pictures = Annotated[
    list[Path], typer.Option(help="Folders of pictures and videos; each is drawn equally often.")
]
Crops = Annotated[int | None, typer.Option(min=1, help="Crops per step.")]

app = typer.Typer(no_args_is_help=True, help="Train a model, or a part of one, on your own data.")
app.command("prepare")(prepare_command)
app.command("newborn")(newborn_command)
app.command("pack")(pack_command)
for _stage in ("image", "video", "speed"):
    app.command(_stage)(denoising_command(_stage))
app.command("distill")(distill_command)


@app.callback()
def train() -> None:
    """Train a model, or a part of one, on your own data."""


@app.command()
def autoencoder(
    pictures: Pictures,
    out: RunFolder,
    steps: Steps = None,
    batch: Crops = None,
    lr: LearningRate = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, crops and noise.")] = 0,
    device: Device = "auto",
    precision: PrecisionOfPart = "no",
    threads: Threads = None,
) -> None:
    """Train mini's autoencoder (pictures to latents and back)."""
    from emo_cli.presets import MINI
    from emo_cli.training.autoencoder_stage import AutoencoderTask
    from emo_cli.training.pictures import open_picture_cache

    def task() -> tuple[AutoencoderTask, dict[str, Any]]:
        cache = open_picture_cache(pictures, out / "cache", note)
        return AutoencoderTask(MINI.autoencoder, cache, seed), {"pictures": cache.digest}

    stage = with_options(STAGES["autoencoder"], steps=steps, batch=batch, lr=lr)
    _train_part(stage, "autoencoder", task, _run_options(out, seed, device, precision, threads))


@app.command()
def decoder(
    pictures: Pictures,
    init: Annotated[Path, typer.Option(help="The model folder whose autoencoder it is.")],
    out: RunFolder,
    critic: Annotated[
        bool,
        typer.Option("--critic", help="Sharpen it beside a critic: in a run of its own, last."),
    ] = False,
    steps: Steps = None,
    batch: Crops = None,
    lr: LearningRate = None,
    seed: Annotated[int, typer.Option(help="Of the critic, order, crops and noise.")] = 0,
    device: Device = "auto",
    precision: PrecisionOfPart = "no",
    threads: Threads = None,
) -> None:
    """Train on what draws in mini's autoencoder; latents stay what they are."""
    from emo_cli.presets import MINI
    from emo_cli.training.decoder_stage import DecoderTask
    from emo_cli.training.pictures import open_picture_cache

    def task() -> tuple[DecoderTask, dict[str, Any]]:
        cache = open_picture_cache(pictures, out / "cache", note)
        begun = DecoderTask(MINI.autoencoder, init, cache, seed, critic=critic)
        began = sha256_of(init / "autoencoder.safetensors")
        return begun, {"pictures": cache.digest, "init": began}

    row = STAGES["critic" if critic else "decoder"]
    stage = with_options(row, steps=steps, batch=batch, lr=lr)
    _train_part(stage, "autoencoder", task, _run_options(out, seed, device, precision, threads))


@app.command()
def speech(
    out: Annotated[Path, typer.Option(help="Folder for the sounds; run again to go on.")],
    utterances: Annotated[int, typer.Option(min=1, help="How many.")] = 900,
    seed: Annotated[int, typer.Option(help="Of words, voices, pitch and pace.")] = 0,
) -> None:
    """Synthesise speech whose phonemes are known, for `emo train audio`."""
    from rich.progress import track

    from emo_cli.training.speech_synthesis import synthesise

    for _ in track(synthesise(out, utterances, seed), "speech", total=utterances):
        pass
    typer.echo(out)


@app.command()
def audio(
    sounds: Annotated[
        list[Path],
        typer.Option(help="Folders of sounds and videos, by whose lips it is also taught."),
    ],
    teacher: Annotated[
        Path, typer.Option(help="Folder of a Whisper model (transformers or CTranslate2).")
    ],
    out: RunFolder,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for decoded sounds and features. [OUT/cache]")
    ] = None,
    steps: Steps = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sounds of 5 s per step.")] = None,
    lr: LearningRate = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, pieces and noise.")] = 0,
    device: Device = "auto",
    precision: PrecisionOfPart = "no",
    threads: Threads = None,
) -> None:
    """Train mini's audio encoder: it learns to hear what moves lips."""
    from emo_cli.presets import MINI
    from emo_cli.training.audio_data import open_sound_cache
    from emo_cli.training.audio_stage import TEACHER_LAYERS, AudioTask
    from emo_cli.training.teacher import load_teacher

    def task() -> tuple[AudioTask, dict[str, Any]]:
        folder = cache or out / "cache"
        stored = open_sound_cache(sounds, folder, load_teacher(teacher), TEACHER_LAYERS, note)
        return AudioTask(MINI.audio, stored, seed), {"sounds": stored.digest}

    stage = with_options(STAGES["audio"], steps=steps, batch=batch, lr=lr)
    _train_part(stage, "audio_encoder", task, _run_options(out, seed, device, precision, threads))


@app.command()
def lips(
    data: Datasets,
    audio_model: Annotated[
        str, typer.Option(help="By which the features were made: 'mini' or a model folder.")
    ],
    out: RunFolder,
    steps: Steps = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Parts of clips per step.")] = None,
    lr: LearningRate = None,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    device: Device = "auto",
    precision: PrecisionOfPart = "no",
    threads: Threads = None,
) -> None:
    """Train mini's lips' reader: from what is heard to what lips do."""
    from emo_cli.presets import MINI
    from emo_cli.training.lips_stage import LipsTask, open_heard_lips

    def task() -> tuple[LipsTask, dict[str, Any]]:
        clips = open_heard_lips(data, audio_model, MINI, "train")
        held_out = open_heard_lips(data, audio_model, MINI, "val")
        digests = [dataset.digest for dataset in clips.values()]
        return LipsTask(MINI, clips, held_out, seed), {"data": digests}

    stage = with_options(STAGES["lips"], steps=steps, batch=batch, lr=lr)
    _train_part(stage, "lip_reader", task, _run_options(out, seed, device, precision, threads))


@app.command()
def sync(
    data: Datasets,
    out: RunFolder,
    steps: Steps = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Parts of clips per step.")] = None,
    lr: LearningRate = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, disguises and noise.")] = 0,
    device: Device = "auto",
    precision: PrecisionOfPart = "no",
    threads: Threads = None,
) -> None:
    """Train SyncNet-mini, by which `emo eval` judges lip sync."""
    from emo_cli.presets import MINI
    from emo_cli.training.sync_data import read_spoken_clips
    from emo_cli.training.sync_stage import SyncTask

    def task() -> tuple[SyncTask, dict[str, Any]]:
        clips = read_spoken_clips(data, "train", MINI.picture_size, note)
        held_out = read_spoken_clips(data, "val", MINI.picture_size, note)
        return SyncTask(clips, held_out, seed), {"data": clips.digest}

    stage = with_options(STAGES["sync"], steps=steps, batch=batch, lr=lr)
    _train_part(stage, "syncnet_mini", task, _run_options(out, seed, device, precision, threads))


def _run_options(
    out: Path, seed: int, device: str, precision: str, threads: int | None
) -> RunOptions:
    """What the commands of mini's small networks leave to the user.

    Raises: EmoError when they cannot be trained in this precision.
    """
    check_precision_of_part(precision)
    return RunOptions(
        out=out,
        seed=seed,
        device=device,
        precision=precision,  # type: ignore[arg-type]
        threads=threads,
    )


def _train_part(
    stage: Stage, part: str, build: Callable[[], tuple[Task, dict[str, Any]]], options: RunOptions
) -> None:
    """One of mini's small networks through the loop; `build`: its task and what it learns from."""
    import torch

    from emo_cli.training import loop
    from emo_cli.training.start import find_processes

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    process = find_processes(options)
    with process.main_process_first():
        task, data = build()
    with step_progress(stage.name, stage.steps, shown=process.is_main_process) as report:
        folder = loop.train(task, stage, options, fingerprint=data, report=report)
    if process.is_main_process:
        typer.echo(folder / f"{part}.safetensors")


@contextlib.contextmanager
def step_progress(
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
