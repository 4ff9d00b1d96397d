"""Head motion: velocities from rotations, Table 2's three figures, the face's curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emo_cli.errors import EmoError
from emo_cli.faces import Face
from emo_cli.metrics.contract import Frame, VideoFeatures, VideoInfo
from emo_cli.metrics.motion import EYES, HeadMotion, MotionExtractor, eye_opening, velocities

INFO = VideoInfo(path=Path("a.mp4"), fps=25, size=(64, 64), has_sound=False)


def turned(degrees: float, axis: tuple[float, float, float] = (0, 1, 0)) -> np.ndarray:
    """Rotation matrix about an axis (Rodrigues)."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([(0, -z, y), (z, 0, -x), (-y, x, 0)])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def video(key: str, velocity: list[float]) -> VideoFeatures:
    return VideoFeatures(key=key, info=INFO, arrays={"velocity": np.array(velocity, np.float32)})


def test_velocity_is_the_angle_between_neighbouring_heads_about_any_axis():
    heads = [turned(d, (1, 2, -1)) for d in (0, 0.5, 2.5, -1)]
    np.testing.assert_allclose(velocities(heads), [np.nan, 0.5, 2.0, 3.5], atol=1e-4)


def test_velocity_is_unknown_on_both_sides_of_a_frame_without_a_face():
    heads = [turned(0), turned(1), None, turned(3), turned(4)]
    np.testing.assert_allclose(velocities(heads), [np.nan, 1, np.nan, np.nan, 1], atol=1e-4)
    assert len(velocities([])) == 0
    assert np.isnan(velocities([turned(0)])).all()


def test_a_head_that_turns_evenly_has_its_speed_and_no_variance():
    reading = MotionExtractor().begin(INFO)
    points = np.random.default_rng(0).random((478, 3)).astype(np.float32)
    for i in range(10):
        face = Face(box=(0, 0, 9, 9), landmarks=points, rotation=turned(1.3 * i))
        reading.add([Frame(np.zeros((8, 8, 3), np.uint8), face)])
    arrays = reading.finish(None)
    assert all(len(values) == 10 for values in arrays.values())
    score = HeadMotion().score([VideoFeatures(key="a", info=INFO, arrays=arrays)], None)
    assert score.values["velocity"] == pytest.approx(1.3, abs=1e-4)
    assert score.values["velocity_variance"] == pytest.approx(0, abs=1e-6)
    assert score.values["velocity_s"] == pytest.approx(32.5, abs=0.01)


def test_the_three_figures_of_table_2():
    videos = [
        video("a", [np.nan, 1, 3]),  # mean 2, variance 2
        video("b", [np.nan, 4, 4, 4]),  # mean 4, variance 0
        video("c", [np.nan, np.nan, 5, 7]),  # mean 6, variance 2
    ]
    values = HeadMotion().score(videos, None).values
    assert values["velocity"] == pytest.approx(4)
    assert values["velocity_variance"] == pytest.approx(4 / 3)
    assert values["vmv"] == pytest.approx(4)
    assert values["velocity_s"] == pytest.approx(25 * 4)
    assert values["velocity_variance_s"] == pytest.approx(625 * 4 / 3)
    assert values["vmv_s"] == pytest.approx(625 * 4)
    assert HeadMotion().score(reversed(videos), None).values == values


def test_one_video_has_no_vmv_and_says_so():
    score = HeadMotion().score([video("a", [np.nan, 1, 3])], None)
    assert score.values["vmv"] is None and score.values["vmv_s"] is None
    assert "VMV needs two videos at least" in score.notes


def test_frames_and_videos_without_faces_are_counted():
    videos = [video("a", [np.nan, 1, np.nan, np.nan, 1]), video("b", [np.nan, np.nan])]
    score = HeadMotion().score(videos, None)
    assert "head rotation is unknown in 3 of 5 steps: no face was found" in score.notes
    assert "1 of 2 videos have too few frames with faces" in score.notes
    assert score.per_video["velocity"] == {"a": pytest.approx(1)}


def test_no_video_is_an_error():
    with pytest.raises(EmoError, match="no video"):
        HeadMotion().score([], None)


def test_an_eye_is_as_open_as_it_is_high_for_its_width():
    points = np.zeros((478, 3), np.float32)
    for x, (outer, up_1, up_2, inner, low_2, low_1) in enumerate(EYES):
        points[[outer, inner], :2] = [(100 * x, 50), (100 * x + 30, 50)]
        points[[up_1, up_2], :2] = [(100 * x + 10, 47), (100 * x + 20, 47)]
        points[[low_1, low_2], :2] = [(100 * x + 10, 53), (100 * x + 20, 53)]
    assert eye_opening(points) == pytest.approx(6 / 30)


def test_curves_of_a_frame_without_a_face_are_unknown():
    reading = MotionExtractor().begin(INFO)
    reading.add([Frame(np.zeros((8, 8, 3), np.uint8), None)])
    assert all(np.isnan(values).all() for values in reading.finish(None).values())
