"""What `emo eval` is made of: extractors read videos, metrics compare what they found.

Videos are decoded once, at 25 frames per second, and every extractor sees the same frames and the
same found faces. What an extractor makes of a video is kept on disk under its digest, so a metric
is a pure function of features, whatever the order and number of videos.

Legend: T frames of a video, H W its size in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from emo_cli.faces import Face

FPS = 25
SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """One video as it is on disk."""

    path: Path
    fps: float  # its own; frames reach extractors at 25 per second
    size: tuple[int, int]  # width, height in pixels
    has_sound: bool
    portrait: Path | None = None  # the picture it was made of


class Frame(NamedTuple):
    """One frame, and its largest face."""

    picture: np.ndarray  # uint8 RGB [H, W, 3]
    face: Face | None


class Reading(Protocol):
    """An extractor at work on one video; holds no more than it needs of frames gone by."""

    def add(self, frames: Sequence[Frame]) -> None:
        """The next frames, in order; where a video is cut into parts means nothing."""
        ...

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        """Features of the whole video, given its sound: float32 mono at 16 kHz, or None."""
        ...


class Extractor(Protocol):
    """Makes features of videos. Built once per worker process; networks load at the first use."""

    @property
    def name(self) -> str:
        """inception | i3d | expression | sync | identity | motion | region."""
        ...

    @property
    def wants_faces(self) -> bool:
        """Whether frames must come with their faces."""
        ...

    @property
    def digest(self) -> str:
        """Changes with the network's weights and with the protocol: features are kept under it."""
        ...

    def begin(self, info: VideoInfo) -> Reading:
        """Start on a video."""
        ...


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """What one extractor made of one video."""

    key: str  # the video's place in its folder, without the ending: pairs generated with real
    info: VideoInfo
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure in the tables."""

    key: str
    heading: str
    digits: int
    better: Literal["low", "high", "real", "none"]  # real: the closer to the real videos' value
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Figures of one set of videos; None where one cannot be had, with a note that says why."""

    values: dict[str, float | None]  # by column
    notes: tuple[str, ...] = ()
    per_video: dict[str, dict[str, float]] = field(default_factory=dict)  # column -> video -> value


class Metric(Protocol):
    """Figures of a set of videos, from the features of one extractor."""

    @property
    def name(self) -> str:
        """fid | fvd | efid | sync | fsim | motion | region."""
        ...

    @property
    def extractor(self) -> str:
        """Whose features it reads."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its figures."""
        ...

    @property
    def needs_real(self) -> bool:
        """Whether it cannot be had from generated videos alone."""
        ...

    def score(
        self, generated: Iterable[VideoFeatures], real: Iterable[VideoFeatures] | None
    ) -> Score:
        """Both are read once, in any order, and are never all in memory.

        Raises: EmoError when there are too few videos or frames for this metric.
        """
        ...
