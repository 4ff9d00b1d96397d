"""Inception features and FID equal pytorch-fid's; `golden/make_inception.py` wrote its numbers.

The golden file holds pytorch-fid's features of three pictures cut from examples/portrait.jpg and
its distance between two sets of crops. The weights come from `emo download eval`: tests that
compute with them are skipped where that was not run.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from emo_cli.errors import EmoError
from emo_cli.metrics.contract import Frame, VideoFeatures, VideoInfo
from emo_cli.metrics.fid import FID, InceptionExtractor
from emo_cli.weights import weights_path

GOLDEN = Path(__file__).parent / "golden" / "inception.npz"
INFO = VideoInfo(path=Path("a.mp4"), fps=25.0, size=(512, 512), has_sound=False)


@pytest.fixture(scope="module")
def extractor() -> InceptionExtractor:
    try:
        weights_path("eval/inception.safetensors")
    except EmoError:
        pytest.skip("`emo download eval` was not run here")
    return InceptionExtractor()


@pytest.fixture(scope="module")
def picture(portrait: Path) -> np.ndarray:
    return np.asarray(Image.open(portrait).convert("RGB"))


def features(extractor: InceptionExtractor, pictures: list[np.ndarray]) -> np.ndarray:
    from emo_cli.metrics.inception import pool3_features

    return np.concatenate([pool3_features(extractor.network, [picture]) for picture in pictures])


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def read(extractor: InceptionExtractor, frames: list[Frame], chunk: int) -> np.ndarray:
    reading = extractor.begin(INFO)
    for start in range(0, len(frames), chunk):
        reading.add(frames[start : start + chunk])
    return reading.finish(None)["pool3"]


def test_features_equal_pytorch_fid_on_pictures_of_any_size(extractor, picture):
    pictures = [picture, picture[100:356, 120:476], picture[:, ::-1][::2, ::2]]
    expected = np.load(GOLDEN)["features"]
    for found, golden in zip(features(extractor, pictures), expected, strict=True):
        assert relative_error(found, golden) < 1e-3


def test_fid_of_two_sets_equals_pytorch_fid(extractor, picture):
    crops = [picture[y : y + 150, x : x + 150] for y in (0, 120, 240) for x in (0, 110, 220, 330)]
    coarse = [crop[::3, ::3] for crop in crops]
    sets = [
        [VideoFeatures(key="a", info=INFO, arrays={"pool3": features(extractor, pictures)})]
        for pictures in (crops, coarse)
    ]
    found = FID.score(*sets)
    assert found.values["fid"] == pytest.approx(float(np.load(GOLDEN)["fid"]), rel=1e-3)
    assert any("singular" in note for note in found.notes)  # 12 pictures, 2048 features


def test_every_fifth_frame_counts_whatever_the_chunks(extractor, picture):
    views = [picture[t : t + 64, 200:264] for t in range(0, 220, 20)]
    frames = [Frame(picture=view, face=None) for view in views]
    whole, parts = read(extractor, frames, 11), read(extractor, frames, 4)
    assert whole.shape == (3, 2048)  # frames 0, 5 and 10
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
    alone = features(extractor, [views[5]])[0]
    assert relative_error(whole[1], alone) < 1e-5


def test_a_video_without_frames_gives_no_features(extractor):
    assert read(extractor, [], 1).shape == (0, 2048)


def test_a_missing_network_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_HOME", str(tmp_path))
    with pytest.raises(EmoError) as caught:
        _ = InceptionExtractor().digest
    assert "emo download eval" in caught.value.hint


def test_a_file_of_another_network_is_refused(tmp_path):
    from emo_cli.metrics.inception import load_inception

    file = tmp_path / "inception.safetensors"
    save_file({"net.layers.conv.weight": np.zeros((32, 3, 3, 3), np.float32)}, file)
    with pytest.raises(EmoError, match="has no 'net.layers.conv.mean'"):
        load_inception(file)
    file.write_bytes(b"no safetensors at all")
    with pytest.raises(EmoError, match="cannot be read"):
        load_inception(file)
