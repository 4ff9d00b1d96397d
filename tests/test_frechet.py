"""Fréchet distance against closed forms, and what FrechetMetric says about its sets."""

from pathlib import Path

import numpy as np
import pytest

from emo_cli.errors import EmoError
from emo_cli.metrics.contract import Column, VideoFeatures, VideoInfo
from emo_cli.metrics.frechet import FRAMES_LEFT_OUT, FrechetMetric, Gaussian, frechet_distance

METRIC = FrechetMetric(
    name="made",
    extractor="made",
    array="rows",
    column=Column(key="made", heading="MADE", digits=2, better="low"),
    samples="frames",
    none_because="no frames",
    protocol="made up",
)


def gaussian(rows: np.ndarray, *, parts: int = 1) -> Gaussian:
    found = Gaussian(rows.shape[1])
    for part in np.array_split(rows, parts):
        found.add(part)
    return found


def samples(count: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(seed + 100).standard_normal((width, width))
    return rng.standard_normal((count, width)) @ mixing + rng.standard_normal(width)


def videos(rows: np.ndarray, *, count: int = 3, left_out: int = 0) -> list[VideoFeatures]:
    info = VideoInfo(path=Path("a.mp4"), fps=25.0, size=(8, 8), has_sound=False)
    parts = np.array_split(rows, count)
    extra = {FRAMES_LEFT_OUT: np.array(left_out)} if left_out else {}
    return [
        VideoFeatures(key=str(i), info=info, arrays={"rows": part.astype(np.float32), **extra})
        for i, part in enumerate(parts)
    ]


def test_moments_are_those_of_numpy_however_samples_come_in():
    rows = samples(5000, 12) + 1e3  # a mean far from zero, where sums of squares would fail
    whole = gaussian(rows)
    np.testing.assert_allclose(whole.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(rows, rowvar=False), rtol=1e-9)
    shuffled = gaussian(np.random.default_rng(1).permutation(rows), parts=700)
    np.testing.assert_allclose(shuffled.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(shuffled.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_samples_are_not_kept(monkeypatch):
    kept = Gaussian(4)
    for seed in range(50):
        kept.add(samples(100, 4, seed))
        assert sum(len(part) for part in kept._waiting) < 1024
    assert kept.count == 5000


def test_equal_covariances_leave_the_squared_mean_difference():
    rows = samples(400, 6)
    shift = np.arange(6.0)
    distance = frechet_distance(gaussian(rows), gaussian(rows + shift))
    assert distance == pytest.approx(shift @ shift, rel=1e-9)


def test_scaled_samples_have_the_closed_form():
    rows = samples(400, 6) - samples(400, 6).mean(0)
    distance = frechet_distance(gaussian(rows), gaussian(3 * rows))
    assert distance == pytest.approx(4 * np.trace(np.cov(rows, rowvar=False)), rel=1e-9)


def test_general_covariances_equal_the_eigenvalues_of_their_product():
    a, b = samples(300, 10, 1), samples(200, 10, 2)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(expected, rel=1e-9)


def test_distance_is_symmetric_and_zero_to_itself():
    a, b = gaussian(samples(300, 10, 1)), gaussian(samples(200, 10, 2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) <= 1e-6


@pytest.mark.parametrize("count", [2, 40, 300])
def test_singular_covariances_are_handled(count):
    rows = 20 * samples(count, 200)
    rows[:, 7] = 1.0  # constant
    assert frechet_distance(gaussian(rows), gaussian(rows[::-1])) <= 1e-3
    # Samples of rank 1 that lie on one line: the distance of two one-dimensional Gaussians.
    line = np.zeros((4, 200))
    line[:, 3] = (-1, 1, -1, 1)
    wider = frechet_distance(gaussian(line), gaussian(5 * line))
    assert wider == pytest.approx(16 * line[:, 3].var(ddof=1), rel=1e-9)


def test_score_is_independent_of_order_and_of_the_number_of_videos():
    a, b = samples(90, 5, 1), samples(80, 5, 2)
    whole = METRIC.score(videos(a, count=1), videos(b, count=1)).values["made"]
    parts = METRIC.score(reversed(videos(a, count=30)), videos(b, count=7)).values["made"]
    assert parts == pytest.approx(whole, rel=1e-9)


def test_videos_against_themselves_give_zero():
    rows = samples(90, 5)
    assert METRIC.score(videos(rows), videos(rows)).values["made"] <= 1e-3


def test_too_few_samples_for_the_dimensions_are_said():
    few = METRIC.score(videos(samples(5, 8)), videos(samples(90, 8))).notes
    assert any("singular" in note and "8" in note for note in few)
    enough = METRIC.score(videos(samples(60, 8)), videos(samples(90, 8))).notes
    assert not any("singular" in note for note in enough)


def test_counts_and_left_out_frames_are_said():
    empty = [*videos(samples(30, 4), count=2, left_out=3), *videos(np.zeros((0, 4)), count=1)]
    notes = METRIC.score(empty, videos(samples(40, 4))).notes
    assert "30 generated and 40 real frames" in notes[0] and "made up" in notes[0]
    assert any("1 of 3 generated videos have no frames" in note for note in notes)
    assert any("6 frames of generated videos were left out" in note for note in notes)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_refused(count):
    with pytest.raises(EmoError, match="two frames or more of real videos"):
        METRIC.score(videos(samples(30, 4)), videos(samples(30, 4)[:count], count=1))


def test_no_videos_and_no_real_videos_are_refused():
    with pytest.raises(EmoError, match="0 videos gave 0"):
        METRIC.score([], videos(samples(30, 4)))
    with pytest.raises(EmoError, match="none were given"):
        METRIC.score(videos(samples(30, 4)), None)
