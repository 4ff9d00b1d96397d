"""What a person reads: notes, warnings, errors and progress on stderr. stdout is data."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from emo_cli.errors import EmoError


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
    if quiet:
        yield lambda frames: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(escape(name)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames, {task.fields[rate]} fps, ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=num_frames, completed=done, rate="-")

        def advance(frames: int) -> None:
            progress.advance(task, frames)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:.2f}" if speed else "-")

        yield advance


@contextlib.contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that takes time; call the result with what, done and total."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    tasks = {}
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(escape(what), total=total)
            progress.update(tasks[what], completed=done)

        yield show


def _labelled(label: str, colour: str, text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble((f"{label}: ", f"bold {colour}"), text)
    Console(stderr=True, soft_wrap=True).print(line)


def _one_line(text: str) -> str:
    return " ".join(text.split())
