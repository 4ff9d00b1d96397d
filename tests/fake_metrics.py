"""Extractors and metrics that fulfil the contract and cost nothing; they log what they begin."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.metrics.contract import Column, Frame, Score, VideoFeatures, VideoInfo

LOG = "EMO_TEST_LOG"  # names a file that gets a line for each video begun
DIE_AT = "EMO_TEST_DIE_AT"  # the worker is killed when it begins a video of this name


class Tint:
    """The mean colour of each frame [T, 3], and the loudness of the sound."""

    name = "tint"
    wants_faces = False

    def __init__(self, version: str = "1") -> None:
        self.digest = f"tint {version}"

    def begin(self, info: VideoInfo) -> _TintReading:
        if os.environ.get(DIE_AT) == info.path.name:
            os.kill(os.getpid(), 9)
        if log := os.environ.get(LOG):
            with Path(log).open("a") as stream:
                stream.write(f"{info.path.name}\n")
        return _TintReading()


class _TintReading:
    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def add(self, frames: Sequence[Frame]) -> None:
        self.rows += [frame.picture.mean((0, 1)) for frame in frames]

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        loud = np.nan if sound is None else float(np.sqrt(np.square(sound).mean()))
        return {"tint": np.stack(self.rows), "loudness": np.array(loud)}


class Place:
    """Where the face's left edge is [T]; NaN without a face."""

    name = "place"
    wants_faces = True
    digest = "place 1"

    def begin(self, info: VideoInfo) -> _PlaceReading:
        return _PlaceReading()


class _PlaceReading:
    def __init__(self) -> None:
        self.places: list[float] = []

    def add(self, frames: Sequence[Frame]) -> None:
        self.places += [frame.face.box[0] if frame.face else np.nan for frame in frames]

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        return {"place": np.array(self.places)}


class Missing(Tint):
    """An extractor whose network is not here."""

    name = "missing"

    @property
    def digest(self) -> str:
        raise EmoError("the weights eval/x are not here", "Run `emo download eval` first.")

    def __init__(self) -> None:
        pass


class TintDistance:
    """Distance between the mean colours of two sets; needs two videos of each."""

    name = "fid"
    extractor = "tint"
    columns = (Column(key="fid", heading="Tint distance", digits=2, better="low"),)
    needs_real = True

    def score(
        self, generated: Iterable[VideoFeatures], real: Iterable[VideoFeatures] | None
    ) -> Score:
        assert real is not None
        ours, theirs = ([v.arrays["tint"].mean(0) for v in side] for side in (generated, real))
        if min(len(ours), len(theirs)) < 2:
            raise EmoError("needs two videos", "Give more.")
        distance = np.linalg.norm(np.mean(ours, 0) - np.mean(theirs, 0))
        return Score(values={"fid": float(distance)})


class Drift:
    """How far the face goes in a video, the mean; nearer to real videos is better."""

    name = "fsim"
    extractor = "place"
    columns = (Column(key="drift", heading="Drift", digits=1, better="real", unit="px"),)
    needs_real = False

    def score(
        self, generated: Iterable[VideoFeatures], real: Iterable[VideoFeatures] | None
    ) -> Score:
        per_video = {v.key: float(np.nanmax(v.arrays["place"]) - 20) for v in generated}
        mean = float(np.mean([per_video[key] for key in sorted(per_video)]))
        return Score(values={"drift": mean}, per_video={"drift": per_video})


def fake_extractors() -> list[Tint | Place]:
    return [Tint(), Place()]


def newer_extractors() -> list[Tint | Place]:
    return [Tint("2"), Place()]


def missing_extractors() -> list[Tint]:
    return [Missing()]


def tint_only(names: Sequence[str]) -> list[Tint]:
    return [Tint()]
