"""Videos that a model makes for an evaluation: one for each pair of portrait and sound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emo_cli import console
from emo_cli.config import GenerateOptions
from emo_cli.errors import EmoError
from emo_cli.metrics.pairing import by_key, open_portraits
from emo_cli.output_file import report_path
from emo_cli.raw_video import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from emo_cli.engine import Engine

SOUND_SUFFIXES = {".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav"}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A video to be made."""

    key: str
    portrait: Path
    sound: Path


def pairs_of(portraits: Mapping[str, Path], sounds: Mapping[str, Path]) -> list[Pair]:
    """Portrait and sound of one name; where no name is shared, every portrait with every sound."""
    shared = sorted(portraits.keys() & sounds.keys())
    if shared:
        return [Pair(key=key, portrait=portraits[key], sound=sounds[key]) for key in shared]
    return [
        Pair(key=f"{name}_{sound.replace('/', '_')}", portrait=portraits[name], sound=sounds[sound])
        for name in portraits
        for sound in sounds
    ]


def generate_set(folder: Path, *, model: str, portraits: Path, sounds: Path, quiet: bool) -> int:
    """Makes the videos that `folder` lacks; returns how many could not be made.

    A run that was stopped goes on, as `emo generate` does. Raises: EmoError when the model cannot
    be loaded, there is nothing to make, or a video in the folder was made otherwise.
    """
    speaking = by_key(sounds, SOUND_SUFFIXES | VIDEO_SUFFIXES)
    if not speaking:
        raise EmoError(f"there is no sound in {sounds}", "Name a folder of sounds or videos.")
    pairs = pairs_of(open_portraits(portraits), speaking)
    from emo_cli.engine import Engine

    engine = Engine(model)
    if engine.note:
        console.note(engine.note)
    failed = 0
    for pair in pairs:
        try:
            _make(engine, pair, folder / f"{pair.key}.mp4", quiet)
        except EmoError as problem:
            if problem.exit_code == 2:
                raise
            failed += 1
            console.error(problem)
    return failed


def _make(engine: Engine, pair: Pair, out: Path, quiet: bool) -> None:
    from emo_cli.generate import Request, make_video

    if out.exists():
        _check_same(out, engine.digest, pair)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    make_video(
        engine,
        Request(
            portrait=pair.portrait,
            audio=pair.sound,
            out=out,
            options=GenerateOptions(),
            overwrite=False,
            resume=True,
            quiet=quiet,
        ),
    )


def _check_same(out: Path, digest: str, pair: Pair) -> None:
    """Refuses a video that is not this model's: its figures would be another system's."""
    try:
        report = json.loads(report_path(out).read_text(encoding="utf-8"))
        same = report["model"]["digest"] == digest
        same = same and Path(report["portrait"]).name == pair.portrait.name
        same = same and Path(report["audio"]).name == pair.sound.name
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise EmoError(
            f"{out} was not made by this model of {pair.portrait.name} and {pair.sound.name}",
            "Name another folder, or leave --model out to score what lies there.",
            exit_code=2,
        )
