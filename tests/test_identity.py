"""F-SIM: which frames are compared with what, dlib's file and network, what a user hears."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_faces import made_face

from emo_cli.errors import EmoError
from emo_cli.faces import find_faces
from emo_cli.metrics import arcface, dlib_network
from emo_cli.metrics.contract import Frame, VideoFeatures, VideoInfo
from emo_cli.metrics.face_embedding import NETWORK, ArcFaceEmbedding, DlibEmbedding
from emo_cli.metrics.identity import ARCFACE, FSim, IdentityExtractor, compare
from emo_cli.picture import read_picture
from emo_cli.weights import weights_path

FACE = made_face((4.0, 4.0, 12.0, 12.0))
INFO = VideoInfo(path=Path("a.mp4"), fps=25, size=(16, 16), has_sound=False)


class ColourEmbedding:
    """Describes a face by the mean colour of its picture."""

    digest = "colour"

    def cut(self, picture: np.ndarray, face: object) -> np.ndarray:
        return picture

    def embed(self, faces: np.ndarray) -> np.ndarray:
        return faces.mean((1, 2)).astype(np.float32)


def frame(red: int, green: int, shows_face: bool = True) -> Frame:
    picture = np.full((16, 16, 3), (red, green, 0), np.uint8)
    return Frame(picture, FACE if shows_face else None)


def features(key: str, similarity: list[float], distance: list[float], reference: int = -1):
    arrays = {
        "similarity": np.array(similarity, np.float32),
        "distance": np.array(distance, np.float32),
        "reference": np.array(reference),
    }
    portrait = None if reference >= 0 else Path("p.png")
    info = VideoInfo(path=Path(key), fps=25, size=(8, 8), has_sound=False, portrait=portrait)
    return VideoFeatures(key=key, info=info, arrays=arrays)


def read(frames: list[Frame], chunk: int, info: VideoInfo = INFO) -> dict[str, np.ndarray]:
    reading = IdentityExtractor(ColourEmbedding()).begin(info)
    for start in range(0, len(frames), chunk):
        reading.add(frames[start : start + chunk])
    return reading.finish(None)


def test_cosine_and_distance_have_their_closed_form():
    cosine, distance = compare(np.array([[3.0, 0], [0, 4], [-3, 0]]), np.array([3.0, 0]))
    np.testing.assert_allclose(cosine, [1, 0, -1])
    np.testing.assert_allclose(distance, [0, 5, 6])


def test_without_a_portrait_the_first_face_is_compared_with_and_not_with_itself():
    found = read([frame(9, 9, False), frame(30, 40), frame(0, 50), frame(30, 40)], 2)
    assert found["reference"] == 1
    np.testing.assert_allclose(found["similarity"], [np.nan, np.nan, 0.8, 1.0], atol=1e-6)
    np.testing.assert_allclose(found["distance"][2:], [np.hypot(30, 10), 0], atol=1e-4)


def test_a_portrait_is_what_every_frame_is_compared_with(portrait: Path):
    mean = read_picture(portrait).mean((0, 1))
    info = VideoInfo(path=Path("a.mp4"), fps=25, size=(16, 16), has_sound=False, portrait=portrait)
    found = read([frame(200, 0), frame(0, 0, False)], 1, info)
    assert found["reference"] == -1
    assert found["similarity"][0] == pytest.approx(mean[0] / np.linalg.norm(mean), abs=1e-4)
    assert np.isnan(found["similarity"][1])


def test_a_portrait_without_a_face_is_an_error_that_names_it(tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (128, 128)).save(tmp_path / "wall.png")
    info = VideoInfo(
        path=Path("a.mp4"), fps=25, size=(16, 16), has_sound=False, portrait=tmp_path / "wall.png"
    )
    with pytest.raises(EmoError, match=r"no face found in the portrait wall\.png"):
        IdentityExtractor(ColourEmbedding()).begin(info)


def test_where_a_video_is_cut_into_chunks_changes_nothing():
    frames = [frame(i, 90 - i, i % 7 > 0) for i in range(80)]
    one, many = read(frames, 80), read(frames, 3)
    for name, values in one.items():
        np.testing.assert_array_equal(values, many[name])


def test_a_video_without_any_face_has_no_similarity():
    found = read([frame(1, 1, False)] * 3, 2)
    assert np.isnan(found["similarity"]).all() and found["reference"] == -1
    assert all(len(v) == 0 for k, v in read([], 1).items() if k != "reference")


def test_f_sim_is_the_mean_over_videos_whatever_their_order():
    videos = [
        features("a", [1.0, 0.5, np.nan, np.nan], [0.1, 0.7, np.nan, np.nan]),
        features("b", [np.nan, 0.25], [np.nan, 0.5], reference=0),
    ]
    score = FSim().score(videos, None)
    assert score.values["fsim"] == pytest.approx(0.5)
    assert score.values["face_distance"] == pytest.approx((0.4 + 0.5) / 2)
    assert score.values["same_person"] == pytest.approx((50 + 100) / 2)
    assert score.values["no_face"] == pytest.approx((50 + 0) / 2)
    assert score.per_video["fsim"] == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}
    assert score.notes == (
        "1 of 2 videos came without a portrait: their first frame with a face was taken",
    )
    assert FSim().score(reversed(videos), None).values == score.values


def test_a_video_without_a_face_is_counted_and_spoils_no_mean():
    videos = [features("a", [0.5], [0.4]), features("b", [np.nan] * 2, [np.nan] * 2)]
    score = FSim().score(videos, None)
    assert score.values["fsim"] == pytest.approx(0.5)
    assert score.values["no_face"] == pytest.approx(50)
    assert "1 of 2 videos show no face to compare" in score.notes
    alone = FSim().score(videos[1:], None)
    assert alone.values["fsim"] is None


def test_no_video_is_an_error():
    with pytest.raises(EmoError, match="no video"):
        FSim().score([], None)


def test_missing_weights_name_the_command_that_brings_them(monkeypatch, tmp_path: Path):
    pytest.importorskip("dlib")
    monkeypatch.setenv("EMO_HOME", str(tmp_path))
    with pytest.raises(EmoError) as caught:
        IdentityExtractor().digest  # noqa: B018
    assert "emo download eval" in caught.value.hint


def test_missing_dlib_names_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(EmoError) as caught:
        IdentityExtractor().digest  # noqa: B018
    assert "emo-cli[eval]" in caught.value.hint


def packed(value: int) -> bytes:
    size = max(1, (value.bit_length() + 7) // 8)
    return bytes([size]) + value.to_bytes(size, "little")


def made_file(network: dlib_network.DlibFaceNetwork) -> bytes:
    """dlib's file of a network, as far as it is read."""

    def layer(name: bytes, *parameters: torch.Tensor, widths: bytes = b"") -> bytes:
        values = torch.cat([p.detach().reshape(-1) for p in parameters]).numpy()
        sizes = packed(2) + packed(len(values)) + packed(1) * 3
        text = bytes([1, len(name)]) + name
        return text + widths + sizes + values.astype("<f4").tobytes() + b"\x01\x00 what follows"

    parts = [b"\x01\x0dloss_metric_2"]
    for module in network.modules():
        if isinstance(module, dlib_network.Convolution):
            parts.append(layer(b"con_4", module.conv.weight, module.conv.bias))
            parts.append(layer(b"affine_", module.gain, module.shift))
    head = network.head.weight.T
    parts.append(layer(b"fc_2", head, widths=packed(128) + packed(256)))
    return b"".join(parts)


@pytest.fixture(scope="module")
def random_network() -> dlib_network.DlibFaceNetwork:
    torch.manual_seed(0)
    network = dlib_network.DlibFaceNetwork()
    for module in network.modules():
        if isinstance(module, dlib_network.Convolution):
            torch.nn.init.normal_(module.gain)
            torch.nn.init.normal_(module.shift)
    return network


def test_weights_are_read_as_dlib_writes_them(random_network, tmp_path: Path):
    path = tmp_path / "network.dat"
    path.write_bytes(made_file(random_network))
    loaded = dlib_network.load_face_network(path).state_dict()
    assert loaded.keys() == random_network.state_dict().keys()
    for name, values in random_network.state_dict().items():
        assert torch.equal(loaded[name], values), name


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"\x01\x04fc_2", b"\x01\x04fc_1"),
        lambda data: data.replace(b"affine_" + packed(2), b"affine_" + packed(3), 1),
        lambda data: data.replace(b"affine_\x01\x02\x01\x40", b"affine_\x01\x02\x01\x3e", 1),
    ],
)
def test_another_file_is_refused(random_network, tmp_path: Path, damage):
    path = tmp_path / "network.dat"
    path.write_bytes(damage(made_file(random_network)))
    with pytest.raises(EmoError, match="is not dlib's face recognition network"):
        dlib_network.load_face_network(path)


def test_maps_of_unequal_size_are_added_as_if_padded_with_zeros():
    a, b = torch.ones(1, 2, 1, 3), torch.ones(1, 3, 2, 2)
    total = dlib_network.add_padded(a, b)
    assert total.shape == (1, 3, 2, 3)
    assert total[0, 0].tolist() == [[2, 2, 1], [1, 1, 0]]
    assert total[0, 2].tolist() == [[1, 1, 0], [1, 1, 0]]


def test_packed_integers_are_dlibs():
    assert dlib_network._integer(struct.pack("<BH", 2, 4736), 0) == (4736, 3)
    assert dlib_network._integer(b"\x81\x1c", 0) == (-28, 2)


@pytest.fixture(scope="module")
def embedding() -> DlibEmbedding:
    pytest.importorskip("dlib")
    try:
        weights_path(NETWORK)
    except EmoError:
        pytest.skip("needs `emo download eval`")
    return DlibEmbedding()


def test_our_network_equals_dlibs_own(embedding: DlibEmbedding, portrait: Path):
    import dlib

    picture = read_picture(portrait)
    face = embedding.cut(picture, find_faces(picture)[0])
    faces = np.stack([face, face[:, ::-1], face[::-1] // 2])
    theirs = dlib.face_recognition_model_v1(str(weights_path(NETWORK)))
    expected = [np.array(theirs.compute_face_descriptor(np.ascontiguousarray(f))) for f in faces]
    np.testing.assert_allclose(embedding.embed(faces), expected, atol=1e-5)


def test_people_of_the_shared_data_are_told_apart(embedding: DlibEmbedding, shared_data: Path):
    def describe(name: str) -> np.ndarray:
        picture = read_picture(shared_data / "portraits" / "london" / f"{name}.jpg")
        return embedding.embed(embedding.cut(picture, find_faces(picture)[0])[None])[0]

    one, other = describe("001_neutral"), describe("002_neutral")
    _, (same, different) = compare(np.stack([describe("001_smile"), other]), one)
    assert same < 0.4 and different > 0.6


@pytest.fixture(scope="module")
def arcface_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the published names, with one block a level."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("arcface") / "backbone.pth"
    torch.save(arcface.IResNet((1, 1, 1, 1)).state_dict(), path)
    return path


def test_arcface_has_the_published_size_and_names():
    with torch.device("meta"):
        network = arcface.IResNet((3, 4, 14, 3))  # r50
    assert sum(p.numel() for p in network.parameters()) == 43_590_848
    names = network.state_dict().keys()
    assert {"layer3.13.bn3.running_var", "layer1.0.downsample.1.weight", "prelu.weight"} <= names
    assert {"fc.bias", "features.running_mean", "layer4.2.prelu.weight"} <= names


def test_arcface_is_read_off_its_file_and_compares_faces(arcface_file: Path, portrait: Path):
    embedding = ArcFaceEmbedding(arcface_file)
    picture = read_picture(portrait)
    face = embedding.cut(picture, find_faces(picture)[0])
    assert face.shape == (112, 112, 3)
    one, other = embedding.embed(np.stack([face, 255 - face]))
    assert one.shape == (512,)
    np.testing.assert_allclose(embedding.embed(face[None])[0], one, atol=1e-4)
    assert np.abs(one - other).max() > 1e-3


def test_arcfaces_five_points_come_to_their_places():
    angle = np.radians(20)
    turn = 2.5 * np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    points = arcface.TEMPLATE @ turn.T + (130, 20)
    picture, landmarks = np.zeros((400, 400, 3), np.uint8), np.zeros((478, 3), np.float32)
    for (x, y), group in zip(points, arcface.POINT_LANDMARKS, strict=True):
        picture[round(y) - 4 : round(y) + 4, round(x) - 4 : round(x) + 4] = 255
        landmarks[list(group), :2] = (x, y)
    seen = arcface.align_face(picture, landmarks)[..., 0].astype(float)
    for x, y in arcface.TEMPLATE:
        rows, columns = slice(round(y) - 6, round(y) + 7), slice(round(x) - 6, round(x) + 7)
        spot = seen[rows, columns]
        assert (spot.sum(1) @ np.arange(13)) / spot.sum() + rows.start == pytest.approx(y, abs=0.5)
        assert (spot.sum(0) @ np.arange(13)) / spot.sum() + columns.start == pytest.approx(
            x, abs=0.5
        )


def test_a_similarity_is_found_exactly():
    angle = 0.3
    turn = 1.7 * np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    matrix = arcface.fit_similarity(arcface.TEMPLATE, arcface.TEMPLATE @ turn.T + (5, -9))
    np.testing.assert_allclose(matrix, np.column_stack([turn, (5, -9)]), atol=1e-9)


@pytest.mark.parametrize("values", [{"a": torch.zeros(1)}, {}, [1], None])
def test_what_is_no_arcface_network_is_refused(tmp_path: Path, values):
    path = tmp_path / "backbone.pth"
    path.write_bytes(b"nothing") if values is None else torch.save(values, path)
    with pytest.raises(EmoError, match="is no ArcFace network"):
        arcface.load_arcface(path)


def test_missing_arcface_says_where_it_belongs(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("EMO_HOME", str(tmp_path))
    with pytest.raises(EmoError, match=r"eval/arcface\.pth") as caught:
        IdentityExtractor(ArcFaceEmbedding(), name="arcface").digest  # noqa: B018
    assert "research only" in caught.value.hint


def test_arcface_has_a_column_of_its_own():
    score = ARCFACE.score([features("a", [0.5, 0.7], [1.0, 1.0])], None)
    assert score.values == {"fsim-arcface": pytest.approx(0.6)}
    assert score.per_video == {"fsim-arcface": {"a": pytest.approx(0.6)}}
