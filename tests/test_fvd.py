"""I3D logits equal the original network's; `golden/make_i3d.py` wrote them with JAX.

The golden file holds logits of two windows that wander over examples/portrait.jpg and of the first
16 frames of a GRID clip. The weights come from `emo download eval`: tests that compute with them
are skipped where that was not run.
"""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from emo_cli.errors import EmoError
from emo_cli.metrics.contract import Frame, VideoFeatures, VideoInfo
from emo_cli.metrics.fvd import FVD, I3DExtractor
from emo_cli.weights import weights_path

GOLDEN = Path(__file__).parent / "golden" / "i3d.npz"
INFO = VideoInfo(path=Path("a.mp4"), fps=25.0, size=(224, 224), has_sound=False)


@pytest.fixture(scope="module")
def extractor() -> I3DExtractor:
    try:
        weights_path("eval/i3d.safetensors")
    except EmoError:
        pytest.skip("`emo download eval` was not run here")
    return I3DExtractor()


def wander(portrait: Path, step_y: int, step_x: int) -> list[np.ndarray]:
    """16 views of the portrait, 224 x 224."""
    picture = np.asarray(Image.open(portrait).convert("RGB"))
    corners = [(100 + step_y * t, 150 + step_x * t) for t in range(16)]
    return [picture[y : y + 224, x : x + 224] for y, x in corners]


def read(extractor: I3DExtractor, pictures: list[np.ndarray], chunk: int = 16) -> np.ndarray:
    reading = extractor.begin(INFO)
    for start in range(0, len(pictures), chunk):
        part = pictures[start : start + chunk]
        reading.add([Frame(picture=picture, face=None) for picture in part])
    return reading.finish(None)["logits"]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_logits_equal_the_original_network_on_moving_views_of_a_portrait(extractor, portrait):
    pictures = [*wander(portrait, 2, 5), *wander(portrait, 9, -3)]
    found = read(extractor, [*pictures, *pictures[:5]], chunk=7)
    assert found.shape == (2, 400)  # the five frames at the end fill no window
    for window, expected in zip(found, np.load(GOLDEN)["portrait"], strict=True):
        assert relative_error(window, expected) < 1e-3


def test_logits_equal_the_original_network_on_a_grid_clip_of_the_shared_data(
    extractor, shared_data
):
    with av.open(str(shared_data / "grid_s1" / "bbaf2n.mp4")) as video:
        frames = (frame.to_ndarray(format="rgb24") for frame in video.decode(video=0))
        pictures = [next(frames) for _ in range(16)]
    assert pictures[0].shape != (224, 224, 3)  # so that resizing is compared too
    assert relative_error(read(extractor, pictures)[0], np.load(GOLDEN)["grid"]) < 1e-3


def test_a_video_shorter_than_a_window_gives_no_features_and_is_said(extractor, portrait):
    short = read(extractor, wander(portrait, 1, 1)[:15])
    assert short.shape == (0, 400)
    rows = np.random.default_rng(0).standard_normal((6, 400)).astype(np.float32)
    sets = [
        VideoFeatures(key=str(i), info=INFO, arrays={"logits": r})
        for i, r in enumerate((short, rows))
    ]
    found = FVD.score(sets, sets)
    assert found.values["fvd"] <= 1e-3
    assert any("1 of 2 generated videos have fewer than 16 frames" in n for n in found.notes)


def test_a_missing_network_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_HOME", str(tmp_path))
    with pytest.raises(EmoError) as caught:
        _ = I3DExtractor().digest
    assert "emo download eval" in caught.value.hint


def test_a_file_of_another_network_is_refused(tmp_path):
    from emo_cli.metrics.i3d import load_i3d

    file = tmp_path / "i3d.safetensors"
    save_file({"params/Conv3d_1a_7x7/Conv_0/kernel": np.zeros((7, 7, 7, 3, 64), np.float32)}, file)
    with pytest.raises(EmoError, match="has no 'batch_stats/Conv3d_1a_7x7/BatchNorm_0/mean'"):
        load_i3d(file)
