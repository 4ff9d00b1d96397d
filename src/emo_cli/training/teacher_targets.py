"""What of the teacher's features a small encoder can and should learn.

Whisper's features tell where in its 30 s window they stand (a quarter to a half of their variance),
and spread what they heard over a few strong directions and many weak ones. So the mean of each
position is taken away, and the strongest directions of the rest are kept.

Legend: `T` rows, `L` layers, `D` the teacher's width, `K` directions kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emo_cli.training.audio_data import SoundCache, window_positions

DIRECTIONS = 64  # of 384: 77 and 70 % of the variance of Whisper tiny's layers 2 and 4
FEWEST_WINDOWS = 50  # with fewer, a position's mean would hold the speech as well
EVERY = 7  # rows from which directions are found; neighbours are alike
OUTLIER = 8.0


class TeacherTargets:
    """Teacher rows [T, L*D] -> targets [T, L*K] with a mean square of 1."""

    def __init__(self, cache: SoundCache) -> None:
        self.cache = cache
        self.num_layers, width = len(cache.layers), cache.teacher_width
        self.count = min(DIRECTIONS, width)
        self.width = self.num_layers * self.count
        self.middle = _position_means(cache)  # [P, L*D]
        rows = np.arange(0, cache.num_rows, EVERY)
        rows = rows[cache.is_sound(rows)]
        features = self._centred(rows).reshape(len(rows), self.num_layers, width)
        self.maps = [
            _directions(features[:, layer], self.count) for layer in range(self.num_layers)
        ]

    def __call__(self, first: int, last: int) -> NDArray[np.float32]:
        """Targets of rows first..last-1 of the cache's stream."""
        features = self._centred(np.arange(first, last))
        parts = np.split(features, self.num_layers, axis=1)
        targets = [part @ to for part, to in zip(parts, self.maps, strict=True)]
        return np.concatenate(targets, axis=1).clip(-OUTLIER, OUTLIER)

    def _centred(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        teacher = self.cache.targets["teacher"][rows].astype(np.float32)
        return teacher - self.middle[window_positions(rows)]


def _position_means(cache: SoundCache) -> NDArray[np.float32]:
    positions = window_positions(np.arange(cache.num_rows))
    num_positions = int(positions.max()) + 1
    teacher = cache.targets["teacher"]
    sums = np.zeros((num_positions, teacher.shape[1]), np.float64)
    # A window's positions run on without a gap.
    starts = [0, *(1 + np.flatnonzero(np.diff(positions) != 1)), cache.num_rows]
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        sums[positions[first] : positions[first] + last - first] += teacher[first:last]
    counts = np.bincount(positions, minlength=num_positions)[:, None]
    overall = sums.sum(axis=0) / cache.num_rows
    means = np.where(counts >= FEWEST_WINDOWS, sums / np.maximum(counts, 1), overall)
    return means.astype(np.float32)


def _directions(features: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """[D, K]: the strongest directions, halfway to equal strength."""
    variances, vectors = np.linalg.eigh(np.cov(features.T.astype(np.float64)))
    strongest = np.argsort(variances)[::-1][:count]
    variances = np.maximum(variances[strongest], 1e-12)
    scale = variances**-0.25
    scale /= np.sqrt(np.mean(variances * scale**2))
    return (vectors[:, strongest] * scale).astype(np.float32)
