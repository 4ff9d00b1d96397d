"""Processes that read videos side by side; one that dies takes only its own video with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from emo_cli.errors import EmoError

SILENT_S = 900.0  # a worker that says nothing for so long hangs
FRUITLESS_DEATHS = 20  # before anything has been finished: it is not the videos
# Both travel to the processes by name: functions at the top of a module, classes, or partials.
MakeTool = Callable[[], AbstractContextManager[Any]]
Work = Callable[[Any, Any, Callable[[], None]], Iterator[Any]]


@dataclass(frozen=True, kw_only=True)
class Alive:
    """A sign of life in between; nobody else hears of it."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The video could not be worked through; the next run tries it again."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """All clips of the video have been told."""


@dataclass(frozen=True, kw_only=True)
class _Unable:
    """The worker cannot work at all on this machine."""

    message: str
    hint: str


class VideoWorkers:
    """Runs tasks in `num` processes, no more at a time than there are; use it with `with`.

    `work(task, tool, beat)` yields a task's events; each process opens its own tool once; `beat`
    says that a long task is alive. Memory does not grow with the number of tasks: each is asked
    for when a worker is free.
    """

    def __init__(self, num: int, make_tool: MakeTool, work: Work) -> None:
        self._num = num
        self._make_tool = make_tool
        self._work = work
        self._workers: list[_Worker] = []

    def __enter__(self) -> VideoWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def run(self, tasks: Iterator[Any], *, proven: bool = False) -> Iterator[tuple[Any, Any]]:
        """Each task's events in their order, those of several tasks mixed; last `Finished`,
        or `Failed` when its worker has died or hangs.

        proven: such tasks have been finished here before. Raises: EmoError when workers cannot
        work at all.
        """
        free = [_Worker(self._make_tool, self._work) for _ in range(self._num)]
        self._workers = list(free)
        deaths = 0
        for worker in free:
            worker.give(next(tasks, None))
        while busy := [worker for worker in self._workers if worker.task is not None]:
            for worker in _ready(busy):
                task, event = worker.task, worker.receive()
                assert task is not None
                if isinstance(event, _Unable):
                    raise EmoError(event.message, event.hint)
                if not isinstance(event, Alive):
                    yield task, event
                proven |= isinstance(event, Finished)
                deaths += worker.dead
                if deaths >= FRUITLESS_DEATHS and not proven:
                    raise EmoError(
                        f"{deaths} workers died, and nothing has been finished",
                        "Use fewer --workers if memory is short.",
                    )
                if isinstance(event, Failed | Finished):
                    worker.give(next(tasks, None))


def _ready(busy: list[_Worker]) -> list[_Worker]:
    """The workers that have said something, have died, or have been silent for too long."""
    now = time.monotonic()
    patience = max(0.0, min(worker.heard + SILENT_S - now for worker in busy))
    spoke = wait([worker.connection for worker in busy], timeout=patience)
    if spoke:
        return [worker for worker in busy if worker.connection in spoke]
    for worker in busy:
        if worker.heard + SILENT_S <= time.monotonic():
            worker.hangs = True
            worker.process.kill()
    return [worker for worker in busy if worker.hangs]


class _Worker:
    """One process, started anew when it has died."""

    def __init__(self, make_tool: MakeTool, work: Work) -> None:
        self._make_tool = make_tool
        self._work = work
        self.task: Any = None
        self.dead = self.hangs = False
        self._start()

    def _start(self) -> None:
        # spawn: a fork would copy the threads' locks of MediaPipe and torch in any state.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, self._make_tool, self._work), daemon=True, name="emo-video"
        )
        self.process.start()
        theirs.close()
        self.dead = self.hangs = False
        self.heard = time.monotonic()

    def give(self, task: Any) -> None:
        """The next video; None: there is none."""
        if self.dead and task is not None:
            self._start()
        self.task, self.heard = task, time.monotonic()
        if task is not None:
            with contextlib.suppress(BrokenPipeError):  # it died: `receive` will say so
                self.connection.send(task)

    def receive(self) -> Any:
        """What the worker says next; `Failed` when it has died."""
        self.heard = time.monotonic()
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            self.dead = True
            if self.hangs:
                return Failed(reason=f"no progress for {SILENT_S:.0f} s")
            return Failed(reason=f"its worker died ({_how(self.process.exitcode)})")

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exitcode).name
    return f"exit status {exitcode}"


def _serve(connection: Connection, make_tool: MakeTool, work: Work) -> None:
    """The process: one task after the other, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with contextlib.suppress(EOFError, BrokenPipeError), contextlib.ExitStack() as stack:
        try:
            tool = stack.enter_context(make_tool())
        except EmoError as problem:
            connection.send(_Unable(message=problem.message, hint=problem.hint))
            return
        while True:
            task = connection.recv()
            connection.send(_run(task, tool, connection, work))


def _run(task: Any, tool: Any, connection: Connection, work: Work) -> Failed | Finished:
    try:
        for event in work(task, tool, lambda: connection.send(Alive())):
            connection.send(event)
    except BrokenPipeError:
        raise
    except Exception as error:  # whatever it is, one broken video never stops the run
        return Failed(reason=f"{type(error).__name__}: {error}")
    return Finished()
