"""The name of the finished video: the default one, and which ones are refused."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emo_cli.errors import EmoError
from emo_cli.work_folder import work_path


def default_output(portrait: Path, audio: Path) -> Path:
    """`PORTRAIT_AUDIO.mp4` in the current folder."""
    return Path(f"{portrait.stem}_{audio.stem}.mp4")


def report_path(out: Path) -> Path:
    """Where the options and timings of a video are kept: OUT.json."""
    return out.with_suffix(".json")


def check_output(out: Path, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuses, before any work is done, an output that could not or must not be written.

    Raises: EmoError when it is a folder, no .mp4, an input, there already (without `overwrite`),
    or in a folder that is missing or cannot be written.
    """
    name_it = "Name another file with -o, such as -o video.mp4."
    try:
        if out.is_dir():
            raise EmoError(f"the output {out} is a folder", name_it)
        if out.suffix.lower() != ".mp4":
            raise EmoError(f"the output {out} is not an .mp4 file", name_it)
        if not out.parent.is_dir():
            raise EmoError(f"the folder {out.parent} does not exist", "Make it, or change -o.")
        for target in (out, report_path(out)):
            _check_target(target, overwrite, inputs)
        with contextlib.suppress(FileNotFoundError):
            os.lstat(work_path(out))  # refuses a name that is too long
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise EmoError(f"cannot write {out}: {error.strerror}", name_it) from error


def _check_target(target: Path, overwrite: bool, inputs: Sequence[Path]) -> None:
    if not os.path.lexists(target):
        return
    if target.exists() and any(path.exists() and target.samefile(path) for path in inputs):
        raise EmoError(f"{target} is an input", "Name another output with -o.")
    if not overwrite:
        raise EmoError(f"{target} exists", "Use --overwrite, or name another output with -o.")
    if not (target.is_file() or target.is_symlink()):
        raise EmoError(f"{target} is not a plain file", "Name another output with -o.")
