"""One raw video to its training clips, step by step; what is dropped says at which step and why.

Runs in a process of its own (`VideoWorkers`); all it says goes through the events it yields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.portrait import ENLARGED
from emo_cli.raw_video import FPS, Crop, Probe, probe, read_frames, read_sound
from emo_cli.training.annotations import Span
from emo_cli.training.samples import Labels, PackedSample, Split, pack_sample
from emo_cli.training.shots import MIN_FRAMES, Stretch, divide, find_shots, within
from emo_cli.training.tracks import (
    LOOK_EVERY,
    LOST,
    Finder,
    Region,
    follow_face,
    labels_of,
    only_faces,
    stable_crop,
)
from emo_cli.video_workers import Alive

SILENT_RMS = 10 ** (-50 / 20)  # of full scale: an empty room
# Photographs reach 0.1 to 0.4, GRID 0.06 to 0.1, faces enlarged from a third of their size 0.005
# to 0.025.
LEAST_SHARPNESS = 0.015
SHARPNESS_EVERY = 10  # frames


@dataclass(frozen=True, kw_only=True)
class WantedSpan:
    """A span to use, and where its clips belong."""

    span: Span
    identity: str
    split: Split


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """A video to prepare; `shots` and `done` are what an earlier run has found out."""

    name: str
    path: Path
    spans: tuple[WantedSpan, ...]
    size: int
    shots: tuple[Stretch, ...] | None = None
    done: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Shots:
    """The video's shots have been found."""

    shots: tuple[Stretch, ...]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A clip, or with `key` None the whole video, is left out."""

    key: str | None
    step: str
    reason: str


Event = Shots | PackedSample | Dropped | Alive


def prepare_video(
    task: VideoTask, finder: Finder, beat: Callable[[], None] = lambda: None
) -> Iterator[Event]:
    """The events of one video; clips in `task.done` are not made again."""
    try:
        found = probe(task.path)
        shots = task.shots
        if shots is None:
            shots = tuple(find_shots(task.path, beat))
            yield Shots(shots=shots)
    except EmoError as problem:
        yield Dropped(key=None, step="probe", reason=problem.message)
        return
    for wanted in task.spans:
        inside = within(shots, wanted.span.start_s, wanted.span.stop_s)
        for stretch in (part for shot in inside for part in divide(shot)):
            key = f"{task.name}-{stretch.first:07d}"
            if key not in task.done:
                yield Alive()
                yield _clip(task, wanted, key, stretch, found, finder)


def _clip(
    task: VideoTask, wanted: WantedSpan, key: str, stretch: Stretch, found: Probe, finder: Finder
) -> PackedSample | Dropped:
    def drop(step: str, reason: str) -> Dropped:
        return Dropped(key=key, step=step, reason=reason)

    if stretch.count < MIN_FRAMES:
        return drop("shots", f"shorter than {MIN_FRAMES} frames")
    try:
        region = wanted.span.region_in(found.width, found.height)
        tracked = _track(task.path, stretch, finder, region, task.size)
        if isinstance(tracked, str):
            return drop("track", tracked)
        place, crop = tracked
        if crop.side < ENLARGED * task.size:
            return drop("size", f"the crop is smaller than {ENLARGED:g} x {task.size} px")
        frames = np.stack(
            list(read_frames(task.path, place.first, place.count, crop=crop, size=task.size))
        )
        first, faces = only_faces(frames, finder)
        if len(faces) < MIN_FRAMES:
            return drop("labels", LOST)
        frames, labels = frames[first : first + len(faces)], labels_of(faces)
        sharp = sharpness(frames, labels)
        if sharp < LEAST_SHARPNESS:
            return drop("sharpness", "blurred")
        start = place.first + first
        sound = read_sound(task.path, start, len(frames)) if found.has_sound else None
    except EmoError as problem:
        return drop("decode", problem.message)
    if sound is not None and np.sqrt(np.mean(np.square(sound))) < SILENT_RMS:
        return drop("silence", "silent")
    return pack_sample(
        key=key,
        identity=wanted.identity,
        split=wanted.split,
        frames=frames,
        labels=labels,
        sound=sound,
        source=_source(task.path, start, crop, labels, sharp),
    )


def _track(
    path: Path, stretch: Stretch, finder: Finder, region: Region | None, size: int
) -> tuple[Stretch, Crop] | str:
    pictures = read_frames(path, stretch.first, stretch.count, every=LOOK_EVERY)
    track = follow_face(pictures, stretch, finder, region)
    if isinstance(track, str):
        return track
    if track.stretch.count < MIN_FRAMES:
        return LOST
    return track.stretch, stable_crop(track, size)


def _source(path: Path, first: int, crop: Crop, labels: Labels, sharp: float) -> dict[str, Any]:
    return {
        "video": path.name,
        "start_s": first / FPS,
        "crop": [crop.x, crop.y, crop.side],
        "rotation_mean": round(float(labels.rotation.mean()), 4),
        "sharpness": round(sharp, 4),
        "labels": "MediaPipe face landmarker, IMAGE mode, on the crop",
    }


def sharpness(frames: np.ndarray, labels: Labels) -> float:
    """How much finest detail the faces show, the median over frames; 0: none.

    The mean square of the Laplacian over the variance of grey values within the face box, so that
    light and contrast do not matter.
    """
    values = []
    for i in range(0, len(frames), SHARPNESS_EVERY):
        x0, y0, x1, y1 = labels.boxes[i].round().astype(int).clip(0, frames.shape[1])
        grey = frames[i, y0:y1, x0:x1].astype(np.float32).mean(-1)
        if min(grey.shape) < 3:
            return 0.0
        laplacian = 4 * grey[1:-1, 1:-1]
        laplacian -= grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
        values.append(float(np.square(laplacian).mean() / max(grey.var(), 1.0)))
    return float(np.median(values))
