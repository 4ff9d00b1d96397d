"""The command `emo`. Heavy imports wait until a command runs: `emo --help` stays instant."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emo_cli import __version__, console
from emo_cli.config import GenerateOptions
from emo_cli.download import download_command
from emo_cli.errors import EmoError
from emo_cli.files import is_disk_full
from emo_cli.metrics.command import eval_command
from emo_cli.quality import check_options, parse_interval
from emo_cli.training.commands import app as train_app

if TYPE_CHECKING:
    from emo_cli.engine import Engine
    from emo_cli.generate import Request

DEFAULTS = GenerateOptions()
RARE = "Rarely needed"
INTERRUPTED = 130
# typer carries click inside itself or beside it, by version; this is its UsageError either way.
UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="emo",
    help="One portrait and one sound in, one talking or singing video out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("download")(download_command)
app.command("eval")(eval_command)
app.add_typer(train_app, name="train")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"emo-cli {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """One portrait and one sound in, one talking or singing video out."""


@app.command()
def generate(
    portrait: Annotated[Path, typer.Argument(help="A picture with a face.")],
    audio: Annotated[list[Path], typer.Argument(help="Speech or song; one video for each.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Output .mp4, or a folder. [PORTRAIT_AUDIO.mp4]"),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=1.9, help="Head motion: 0.1 calm, 1 lively, 1.9 wild. [the model's]"
        ),
    ] = DEFAULTS.speed,
    model: Annotated[
        str, typer.Option(help="'mini', which is built in, or a folder made by `emo train`.")
    ] = "mini",
    quality: Annotated[
        str | None,
        typer.Option(help="paper, balanced or fast: steps, guidance, caching. [the model's own]"),
    ] = DEFAULTS.quality,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Denoising steps. [the model's]")
    ] = DEFAULTS.steps,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="How strongly portrait and sound rule; 1 is fastest."),
    ] = DEFAULTS.guidance,
    seed: Annotated[int, typer.Option(help="Same seed, same video.")] = DEFAULTS.seed,
    face_region: Annotated[
        str,
        typer.Option(help="Where the face may move: box, wide, tall, all, or X0,Y0,X1,Y1."),
    ] = DEFAULTS.face_region,
    face: Annotated[
        int | None, typer.Option(min=1, help="Which face, from the largest. [1]")
    ] = DEFAULTS.face,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a video instead of its path.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")] = False,
    dtype: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or fp16.", rich_help_panel=RARE)
    ] = "auto",
    solver: Annotated[
        str | None,
        typer.Option(help="ddim, dpm++ or unipc. [the model's]", rich_help_panel=RARE),
    ] = DEFAULTS.solver,
    audio_guidance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Guidance of the sound alone. [as --guidance, else the model's]",
            rich_help_panel=RARE,
        ),
    ] = DEFAULTS.audio_guidance,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Guide only at these timesteps, of 0 (picture) to 999 (noise). [all]",
            rich_help_panel=RARE,
        ),
    ] = None,
    guidance_rescale: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Against overexposure by guidance. [0: off]", rich_help_panel=RARE
        ),
    ] = DEFAULTS.guidance_rescale,
    cache_interval: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Run the deep layers only every so many steps. [1: always]",
            rich_help_panel=RARE,
        ),
    ] = DEFAULTS.cache_interval,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the denoising step: minutes at first, then faster, on a GPU.",
            rich_help_panel=RARE,
        ),
    ] = False,
    low_vram: Annotated[
        bool,
        typer.Option(
            "--low-vram",
            help="Weights stay in host memory while they do not work.",
            rich_help_panel=RARE,
        ),
    ] = False,
    start: Annotated[
        float, typer.Option(min=0, help="Begin here, in seconds.", rich_help_panel=RARE)
    ] = DEFAULTS.start_s,
    duration: Annotated[
        float | None,
        typer.Option(help="Only so many seconds, for a first look.", rich_help_panel=RARE),
    ] = DEFAULTS.duration_s,
    no_resume: Annotated[
        bool,
        typer.Option(
            "--no-resume",
            help="Start over instead of going on after an interruption.",
            rich_help_panel=RARE,
        ),
    ] = False,
) -> None:
    """Make the portrait speak or sing the sound."""
    if duration is not None and duration <= 0:
        raise EmoError("--duration must be above 0", "Give seconds: --duration 4", exit_code=2)
    options = GenerateOptions(
        speed=speed,
        quality=quality,  # type: ignore[arg-type]
        steps=steps,
        solver=solver,  # type: ignore[arg-type]
        guidance=guidance,
        audio_guidance=audio_guidance,
        guidance_interval=parse_interval(guidance_interval),
        guidance_rescale=guidance_rescale,
        cache_interval=cache_interval,
        seed=seed,
        face_region=face_region,
        face=face,
        start_s=start,
        duration_s=duration,
    )
    check_options(options)  # before anything is read or loaded
    outs = _outputs(portrait, audio, out)
    from emo_cli.generate import Request
    from emo_cli.video import check_output

    for sound, target in zip(audio, outs, strict=True):
        check_output(target, overwrite, [portrait, sound])  # before the model is loaded
    requests = [
        Request(
            portrait=portrait,
            audio=sound,
            out=target,
            options=options,
            overwrite=overwrite,
            resume=not no_resume,
            quiet=quiet,
        )
        for sound, target in zip(audio, outs, strict=True)
    ]
    how = {"device": device, "dtype": dtype, "compiled": compiled, "low_vram": low_vram}
    _generate(requests, model=model, how=how, as_json=as_json)


def _outputs(portrait: Path, audio: list[Path], out: Path | None) -> list[Path]:
    """One output for each sound; a folder takes the default names."""
    from emo_cli.video import default_output

    names = [default_output(portrait, sound) for sound in audio]
    if len(set(names)) < len(names):
        raise EmoError(
            "two sounds would make the same output", "Run them one by one with -o.", exit_code=2
        )
    if out is None:
        return names
    if out.is_dir():
        return [out / name for name in names]
    if len(audio) > 1:
        raise EmoError(
            f"{len(audio)} sounds do not fit into one output, {out}",
            "Give -o a folder that exists, or leave it out.",
            exit_code=2,
        )
    return [out]


def _load(model: str, how: dict[str, Any]) -> Engine:
    """The engine. Imports leave a lot that stays: to look for garbage in it costs half a second."""
    gc.disable()
    try:
        from emo_cli.engine import Engine

        return Engine(model, **how)
    finally:
        gc.freeze()
        gc.enable()


def _generate(requests: list[Request], *, model: str, how: dict[str, Any], as_json: bool) -> None:
    """All videos with one loaded engine; one that fails does not stop the others."""
    engine = _load(model, how)  # first: what it imports, all need
    from emo_cli.generate import make_video

    if engine.note:
        console.note(engine.note)
    failed = 0
    for request in requests:
        try:
            report = make_video(engine, request)
        except EmoError as problem:
            if len(requests) == 1:
                raise
            failed += 1
            console.error(problem)
            continue
        typer.echo(json.dumps(report) if as_json else request.out)
    if failed:
        raise EmoError(
            f"{failed} of {len(requests)} videos were not made", "The reasons stand above."
        )


def main() -> None:
    """Run the command line; the only place that catches errors."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run with `arguments` and return the exit code: 0, 1 bad input, 2 usage, 130 Ctrl-C."""
    try:
        return app(args=arguments, prog_name="emo", standalone_mode=False) or 0
    except EmoError as problem:
        if os.environ.get("EMO_DEBUG"):
            raise
        console.error(problem)
        return problem.exit_code
    except UsageError as problem:
        problem.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        console.note("interrupted; the same command goes on where this one stopped")
        return INTERRUPTED
    except Exception as problem:
        if os.environ.get("EMO_DEBUG") or not is_disk_full(problem):
            raise
        hint = "Make room and run the same command again: what was finished stays."
        console.error(EmoError(f"the disk is full: {problem}", hint))
        return 1


if __name__ == "__main__":
    main()
