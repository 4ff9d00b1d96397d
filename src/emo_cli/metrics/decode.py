"""One pass over a video feeds all extractors that lack it; runs in a process of its own.

Frames are taken at 25 per second on the clock that the sound shares (`raw_video.py`):
other rates repeat or leave out frames, sizes stay as they are. Memory does not grow with length,
but for the sound: 230 MB an hour.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.faces import Face, FaceFinder
from emo_cli.metrics.cache import Entry, write_entry
from emo_cli.metrics.contract import Extractor, Frame, Reading, VideoInfo
from emo_cli.raw_video import read_frames, read_sound

PROTOCOL = "25 fps by ffmpeg's fps filter, own size up to 2560 px, 16 kHz mono; 1"
FACES = "largest face, MediaPipe face landmarker, IMAGE mode, whole frame; 1"
CHUNK_FRAMES = 16
CHUNK_BYTES = 32_000_000  # fewer frames where they are large
NO_END = 1_000_000_000  # frames


class Finder(Protocol):
    """What `faces.FaceFinder` does for a frame."""

    def find_in_frame(self, picture: np.ndarray) -> list[Face]:
        """Faces of one look at a picture, largest first."""
        ...


MakeFinder = Callable[[], AbstractContextManager[Finder]]
MakeExtractors = Callable[[], Sequence[Extractor]]


def face_finder() -> FaceFinder:
    """The one finder of all extractors: whichever are asked for, they see the same faces."""
    return FaceFinder(blendshapes=True)


@dataclass(frozen=True, kw_only=True)
class ReadingTask:
    """A video, and where the features that it lacks are to lie, by extractor."""

    info: VideoInfo
    missing: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """The video cannot be used."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a worker keeps from video to video."""

    extractors: Mapping[str, Extractor]
    find: Callable[[np.ndarray], Face | None]


@contextlib.contextmanager
def open_tools(
    make_extractors: MakeExtractors, make_finder: MakeFinder = face_finder
) -> Iterator[Tools]:
    """Extractors and face finder of one worker process; torch gets one thread there, so that
    results do not depend on the number of workers."""
    os.environ["OMP_NUM_THREADS"] = "1"  # torch, loaded by the first network, obeys it
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        finder: list[Finder] = []

        def find(picture: np.ndarray) -> Face | None:
            if not finder:  # not before a frame has to be looked at
                finder.append(stack.enter_context(make_finder()))
            return next(iter(finder[0].find_in_frame(picture)), None)

        extractors = {extractor.name: extractor for extractor in make_extractors()}
        yield Tools(extractors=extractors, find=find)


def read_video(task: ReadingTask, tools: Tools, beat: Callable[[], None]) -> Iterator[Skipped]:
    """Decode the video once and write what each missing extractor makes of it.

    Yields `Skipped` when it cannot be read; then nothing is written.
    """
    try:
        entries = _entries(task, tools, beat)
    except EmoError as problem:
        yield Skipped(reason=problem.message)
        return
    for name, path in task.missing.items():
        try:
            write_entry(path, entries[name])
        except OSError as error:
            yield Skipped(reason=f"its features cannot be kept: {error.strerror or error}")


def _entries(task: ReadingTask, tools: Tools, beat: Callable[[], None]) -> dict[str, Entry]:
    extractors = [tools.extractors[name] for name in task.missing]
    readings = [extractor.begin(task.info) for extractor in extractors]
    wants_faces = any(extractor.wants_faces for extractor in extractors)
    num_frames, num_faceless = _feed(task.info.path, readings, tools if wants_faces else None, beat)
    if num_frames == 0:
        raise EmoError("no frame can be decoded", "Convert or copy it again.")
    sound = read_sound(task.info.path, 0, num_frames) if task.info.has_sound else None
    beat()
    return {
        extractor.name: Entry(
            arrays=reading.finish(sound),
            num_frames=num_frames,
            num_faceless=num_faceless if wants_faces else None,
        )
        for extractor, reading in zip(extractors, readings, strict=True)
    }


def _feed(
    path: Path, readings: Sequence[Reading], tools: Tools | None, beat: Callable[[], None]
) -> tuple[int, int]:
    """Frames seen, and those without a face; `tools` where faces are wanted."""
    num_frames = num_faceless = 0
    for pictures in _chunks(read_frames(path, 0, NO_END)):
        faces = [tools.find(picture) if tools else None for picture in pictures]
        frames = [Frame(*pair) for pair in zip(pictures, faces, strict=True)]
        for reading in readings:
            reading.add(frames)
        num_frames += len(frames)
        num_faceless += sum(face is None for face in faces)
        beat()
    return num_frames, num_faceless


def _chunks(pictures: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    for first in pictures:
        count = min(CHUNK_FRAMES, max(1, CHUNK_BYTES // first.nbytes))
        yield [first, *islice(pictures, count - 1)]
