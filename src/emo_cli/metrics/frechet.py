"""Fréchet distance between the Gaussians of two sets of features: what FID, FVD and E-FID share.

Heusel et al. 2017: d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). Count, mean and scatter are
kept in float64 and merged exactly, so features are never all in memory, and neither their order
nor the way they come in matters beyond rounding.

Legend: N samples, D features of one sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.metrics.contract import Column, Score, VideoFeatures

BLOCK_ROWS = 1024  # samples gathered before the D x D scatter is touched

# How many frames of a video had nothing to measure (no face): an array that an extractor may add.
FRAMES_LEFT_OUT = "frames_left_out"


class Gaussian:
    """Count, mean [D] and scatter [D, D] of samples that come in parts."""

    def __init__(self, width: int) -> None:
        self._count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))
        self._waiting: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """More samples [N, D]; N may be 0."""
        if rows.ndim != 2 or rows.shape[1] != len(self._mean):
            raise ValueError(f"samples of shape {rows.shape}, not [N, {len(self._mean)}]")
        self._waiting.append(rows)
        if sum(len(part) for part in self._waiting) >= BLOCK_ROWS:
            self._fold()

    @property
    def count(self) -> int:
        self._fold()
        return self._count

    @property
    def mean(self) -> np.ndarray:
        self._fold()
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased: divided by N - 1."""
        return self._scatter / (self.count - 1)

    def _fold(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting).astype(np.float64)
        self._waiting = []
        if not len(rows):
            return
        mean = rows.mean(0)
        centred = rows - mean
        shift = mean - self._mean
        total = self._count + len(rows)
        self._scatter += centred.T @ centred
        self._scatter += np.outer(shift, shift) * (self._count * len(rows) / total)
        self._mean += shift * (len(rows) / total)
        self._count = total


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians of two samples or more each; never negative.

    tr (Ca Cb)^(1/2) is the sum of the singular values of La' Lb, where C = L L': unlike a matrix
    square root this holds, to rounding, for singular covariances as well.
    """
    shift = a.mean - b.mean
    roots = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False)
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots.sum()
    return max(0.0, float(shift @ shift + spread))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L [D, rank] with L L' = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


@dataclass(frozen=True, kw_only=True)
class FrechetMetric:
    """A metric that is the Fréchet distance between an extractor's features of two sets."""

    name: str
    extractor: str
    array: str  # the extractor's features [N, D] of a video
    column: Column
    samples: str  # what a row is: frames | windows
    none_because: str  # why a video may have no sample at all
    protocol: str  # said with every result
    needs_real: bool = True

    @property
    def columns(self) -> tuple[Column, ...]:
        return (self.column,)

    def score(
        self, generated: Iterable[VideoFeatures], real: Iterable[VideoFeatures] | None
    ) -> Score:
        """The distance between generated and real videos.

        Raises: EmoError without real videos, or with fewer than two samples on either side.
        """
        heading = self.column.heading
        if real is None:
            raise EmoError(
                f"{heading} compares generated videos with real ones, and none were given",
                "Name a folder of real videos with --real.",
            )
        ours, theirs = self._gather(generated, "generated"), self._gather(real, "real")
        counts = f"{ours.gaussian.count} generated and {theirs.gaussian.count} real {self.samples}"
        notes = [f"{heading}: {counts}; {self.protocol}", *ours.notes, *theirs.notes]
        width = len(ours.gaussian.mean)
        if min(ours.gaussian.count, theirs.gaussian.count) <= width:
            notes.append(
                f"{heading}: {width} features need more than {width} {self.samples} on each side; "
                "the covariance is singular, so compare only with figures from equally many"
            )
        distance = frechet_distance(ours.gaussian, theirs.gaussian)
        return Score(values={self.column.key: distance}, notes=tuple(notes))

    def _gather(self, videos: Iterable[VideoFeatures], side: str) -> _Side:
        gaussian: Gaussian | None = None
        num_videos = num_empty = num_left_out = 0
        for video in videos:
            rows = video.arrays[self.array]
            gaussian = gaussian or Gaussian(rows.shape[1])
            gaussian.add(rows)
            num_videos += 1
            num_empty += not len(rows)
            num_left_out += int(video.arrays.get(FRAMES_LEFT_OUT, 0))
        if gaussian is None or gaussian.count < 2:
            found = gaussian.count if gaussian else 0
            raise EmoError(
                f"{self.column.heading} needs two {self.samples} or more of {side} videos, and "
                f"{num_videos} videos gave {found}",
                f"Videos give none when they have {self.none_because}.",
            )
        heading, notes = self.column.heading, []
        if num_empty:
            notes.append(
                f"{heading}: {num_empty} of {num_videos} {side} videos have {self.none_because}"
            )
        if num_left_out:
            notes.append(f"{heading}: {num_left_out} frames of {side} videos were left out")
        return _Side(gaussian=gaussian, notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class _Side:
    gaussian: Gaussian
    notes: tuple[str, ...]
