"""The face region: where it is known from, and how much of the face stays inside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_faces import made_face

from emo_cli.errors import EmoError
from emo_cli.metrics.contract import Frame, VideoFeatures, VideoInfo
from emo_cli.metrics.region import (
    SOURCES,
    FaceRegion,
    RegionExtractor,
    inside_region,
    reported_region,
)
from emo_cli.portrait import prepare_portrait

REGION = np.array([10, 10, 30, 30], np.float32)


def info(path: Path = Path("a.mp4"), portrait: Path | None = None, width: int = 64) -> VideoInfo:
    return VideoInfo(path=path, fps=25, size=(width, 64), has_sound=False, portrait=portrait)


def write_report(folder: Path, face_region: str, **changes: object) -> VideoInfo:
    report = {
        "size": [64, 64],
        "face_box": [20, 20, 40, 40],
        "crop": [100, 100, 228, 228],
        "options": {"face_region": face_region},
    }
    (folder / "a.json").write_text(json.dumps(report | changes), encoding="utf-8")
    return info(folder / "a.mp4")


def read(video: VideoInfo, *boxes: tuple[float, float, float, float] | None):
    reading = RegionExtractor().begin(video)
    picture = np.zeros((64, 64, 3), np.uint8)
    reading.add([Frame(picture, made_face(box) if box else None) for box in boxes])
    return reading.finish(None)


def test_boxes_count_whole_and_by_their_area():
    boxes = np.array([(10, 10, 20, 20), (25, 10, 35, 20), (np.nan,) * 4, (40, 40, 50, 50)])
    found = inside_region(boxes, REGION)
    assert found["region_inside"] == pytest.approx(100 / 3)
    assert found["region_area"] == pytest.approx(50)


def test_travel_is_counted_in_faces():
    boxes = np.array([(0, 0, 10, 20), (5, 0, 15, 20), (0, 5, 10, 25)], float)
    found = inside_region(boxes, REGION)
    assert found["swing"] == pytest.approx(0.5) and found["nod"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("face_region", "expected"),
    [
        ("box", (19, 19, 41, 41)),
        ("wide", (10, 19, 50, 41)),
        ("tall", (19, 14, 41, 46)),
        ("all", (0, 0, 64, 64)),
        ("110,120,200,220", (5, 10, 50, 60)),
    ],
)
def test_the_report_beside_a_video_says_its_region(tmp_path: Path, face_region: str, expected):
    video = write_report(tmp_path, face_region)
    np.testing.assert_allclose(reported_region(video), expected)
    inside = VideoFeatures(key="a", info=video, arrays=read(video, expected, (90, 0, 95, 5)))
    score = FaceRegion().score([inside], None)
    assert score.values["region_inside"] == pytest.approx(50)
    assert score.notes == ("face region from: report (1)",)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": [32, 32]},
        {"options": {}},
        {"face_box": None},
        {"crop": [1]},
        {"options": {"face_region": "left"}},
    ],
)
def test_another_programs_report_says_nothing(tmp_path: Path, changes: dict):
    video = write_report(tmp_path, "box", **changes)
    assert reported_region(video) is None
    found = read(video, None, (10, 10, 30, 30))
    np.testing.assert_allclose(found["region"], (9, 9, 31, 31))
    score = FaceRegion().score([VideoFeatures(key="a", info=video, arrays=found)], None)
    assert score.notes == ("face region from: first frame (1)",)


def test_a_report_that_is_no_json_says_nothing(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b"\xff{")
    assert reported_region(info(tmp_path / "a.mp4")) is None


def test_the_portraits_region_is_that_of_its_mask(portrait: Path):
    found = read(info(portrait=portrait), (1, 1, 9, 9))
    mask = prepare_portrait(portrait, size=64, face=None, face_region="box").mask
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inside = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    np.testing.assert_allclose(found["region"], inside, atol=1)
    assert SOURCES[int(found["source"])] == "portrait"


def test_a_video_of_another_shape_is_not_measured_by_the_portraits_crop(portrait: Path):
    found = read(info(portrait=portrait, width=80), (10, 10, 30, 30))
    assert SOURCES[int(found["source"])] == "first frame"


def test_a_video_without_a_face_is_counted():
    arrays = read(info(), None, None)
    assert np.isnan(arrays["boxes"]).all() and np.isnan(arrays["region"]).all()
    seen = read(info(), (10, 10, 30, 30), (12, 10, 32, 30))
    videos = [
        VideoFeatures(key="a", info=info(), arrays=arrays),
        VideoFeatures(key="b", info=info(), arrays=seen),
    ]
    score = FaceRegion().score(videos, None)
    assert score.values["region_inside"] == pytest.approx(50)
    assert score.notes == ("face region from: first frame (2)", "1 of 2 videos show no face")
    assert FaceRegion().score(videos[:1], None).values["region_area"] is None


def test_no_video_is_an_error():
    with pytest.raises(EmoError, match="no video"):
        FaceRegion().score([], None)
