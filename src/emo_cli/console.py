"""What a person reads: notes, warnings, errors and progress on stderr. stdout is data."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from emo_cli.errors import EmoError

if TYPE_CHECKING:
    from rich.progress import Progress


def note(text: str) -> None:
    """One line of information."""
    print(text, file=sys.stderr)


def warn(text: str) -> None:
    """One line that starts with `warning:`."""
    _labelled("warning", "yellow", text)


def error(problem: EmoError) -> None:
    """One line that says what is wrong, and one hint."""
    _labelled("error", "red", _one_line(problem.message))
    if problem.hint:
        _labelled("hint", "cyan", _one_line(problem.hint))


@contextlib.contextmanager
def frame_progress(
    name: str, num_frames: int, done: int, *, quiet: bool
) -> Iterator[Callable[[int], None]]:
    """A progress bar of one video; call the result with the frames just finished."""
    with _bars("frames, {task.fields[rate]} fps, ETA", quiet=quiet) as progress:
        task = progress.add_task(_plain(name), total=num_frames, completed=done, rate="-")

        def advance(frames: int) -> None:
            progress.advance(task, frames)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:.2f}" if speed else "-")

        yield advance


@contextlib.contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that takes time; call the result with what, done and total."""
    tasks = {}
    with _bars("ETA", quiet=quiet) as progress:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(_plain(what), total=total)
            progress.update(tasks[what], completed=done)

        yield show


def _bars(before_time: str, *, quiet: bool) -> Progress:
    """Description, bar, how many of how many, a text, and the time that is left."""
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(before_time),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )


def _plain(text: str) -> str:
    """Text that is no markup."""
    from rich.markup import escape

    return escape(text)


def _labelled(label: str, colour: str, text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble((f"{label}: ", f"bold {colour}"), text)
    Console(stderr=True, soft_wrap=True).print(line)


def _one_line(text: str) -> str:
    return " ".join(text.split())
