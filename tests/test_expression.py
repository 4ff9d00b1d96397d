"""Expression coefficients: MediaPipe's blendshapes, and the reconstruction of Deng et al. 2019."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emo_cli.errors import EmoError
from emo_cli.faces import Face, FaceFinder
from emo_cli.metrics.contract import Frame, VideoFeatures, VideoInfo
from emo_cli.metrics.deep3d import (
    AVERAGE_POINTS,
    POINT_LANDMARKS,
    SIZE,
    UNIT_PIXELS,
    Deep3D,
    align_face,
    fit_average_head,
    load_deep3d,
)
from emo_cli.metrics.expression import EFID, EFID_DEEP3D, Deep3DExtractor, ExpressionExtractor

INFO = VideoInfo(path=Path("a.mp4"), fps=25.0, size=(512, 512), has_sound=False)
WIDTH = 2  # of the small reconstruction network; ResNet-50 has 64
JAW_OPEN = 25  # in MediaPipe's order
SMILES = (44, 45)


@pytest.fixture(scope="module")
def picture(portrait: Path) -> np.ndarray:
    return np.asarray(Image.open(portrait).convert("RGB"))


@pytest.fixture(scope="module")
def face(picture: np.ndarray) -> Face:
    with FaceFinder(blendshapes=True) as finder:
        return finder.find_in_frame(picture)[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights, in the layout of the published checkpoint."""
    torch.manual_seed(0)
    network = Deep3D(WIDTH)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            value.normal_(0.0, 0.1)
    path = tmp_path_factory.mktemp("deep3d") / "epoch_20.pth"
    torch.save({"net_recon": network.state_dict(), "opt_00": {"state": {}}}, path)
    return path


def test_blendshapes_of_the_smiling_portrait_smile(face):
    assert face.blendshapes.shape == (52,)
    assert face.blendshapes.min() >= 0.0 and face.blendshapes.max() <= 1.0
    assert min(face.blendshapes[list(SMILES)]) > 0.5 > face.blendshapes[JAW_OPEN]


def test_faces_carry_no_blendshapes_unless_asked_for(picture):
    with FaceFinder() as finder:
        assert finder.find_in_frame(picture)[0].blendshapes is None


def test_frames_without_a_face_are_left_out_and_counted(picture, face):
    reading = ExpressionExtractor().begin(INFO)
    reading.add([Frame(picture=picture, face=face), Frame(picture=picture, face=None)])
    reading.add([Frame(picture=picture, face=face)])
    arrays = reading.finish(None)
    np.testing.assert_array_equal(arrays["expression"], np.stack([face.blendshapes] * 2))
    assert arrays["frames_left_out"] == 1


def test_a_video_without_any_face_gives_no_rows(picture):
    reading = ExpressionExtractor().begin(INFO)
    reading.add([Frame(picture=picture, face=None)])
    assert reading.finish(None)["expression"].shape == (0, 52)


def test_a_finder_without_blendshapes_is_our_mistake(picture, face):
    with pytest.raises(ValueError, match="blendshapes=True"):
        ExpressionExtractor().begin(INFO).add([Frame(picture, replace(face, blendshapes=None))])


def test_results_name_their_extractor():
    rows = np.random.default_rng(0).random((200, 64)).astype(np.float32)
    for metric, width, name in ((EFID, 52, "blendshapes"), (EFID_DEEP3D, 64, "Deng")):
        sets = [VideoFeatures(key="a", info=INFO, arrays={"expression": rows[:, :width]})]
        found = metric.score(sets, sets)
        assert found.values[metric.name] <= 1e-3
        assert name in found.notes[0]
    assert EFID.columns[0].heading != EFID_DEEP3D.columns[0].heading
    assert EFID.columns[0].key != EFID_DEEP3D.columns[0].key


def test_backbone_equals_transformers_resnet(checkpoint):
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(
        embedding_size=WIDTH,
        hidden_sizes=[4 * WIDTH << level for level in range(4)],
        depths=[3, 4, 6, 3],
        layer_type="bottleneck",
    )
    theirs, ours = ResNetModel(config).eval(), load_deep3d(checkpoint, width=WIDTH)
    values = iter(ours.backbone.state_dict().values())
    for part in [theirs.embedder, *theirs.encoder.stages]:
        for block in getattr(part, "layers", [part]):
            convolutions = [block.layer, block.shortcut] if hasattr(block, "shortcut") else [block]
            for module in convolutions:  # ours keeps the shortcut last, as theirs is listed here
                for parameter in module.state_dict().values():
                    parameter.copy_(next(values))
    assert next(values, None) is None
    faces = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        expected, found = theirs(faces).pooler_output, ours.backbone(faces)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_expression_is_the_second_head_of_257_coefficients(checkpoint, picture, face):
    network = load_deep3d(checkpoint, width=WIDTH)
    reading = Deep3DExtractor(checkpoint, width=WIDTH).begin(INFO)
    frame = Frame(picture=picture, face=face)
    reading.add([frame, Frame(picture=picture, face=None), frame])
    arrays = reading.finish(None)
    assert arrays["expression"].shape == (2, 64) and arrays["frames_left_out"] == 1
    crop = torch.tensor(align_face(picture, face.landmarks)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        features = network.backbone(crop)
        assert network(crop).shape == (1, 257)
        expected = network.final_layers[1](features).flatten()
    np.testing.assert_allclose(arrays["expression"][1], expected.numpy(), rtol=1e-4, atol=1e-6)


def test_the_average_head_is_found_where_it_was_put():
    points = AVERAGE_POINTS[:, :2] * (80, -80) + (300, 200)
    (x, y), scale = fit_average_head(points)
    assert (x, y, scale) == pytest.approx((300, 200, 80))


@pytest.mark.parametrize("scale", [40.0, 200.0])
def test_aligned_faces_have_their_points_at_one_place(scale):
    """A dot of each point's own colour is drawn and must be where the average head has it."""
    picture = np.zeros((1000, 1000, 3), np.uint8)
    landmarks = np.zeros((478, 3), np.float32)
    places = AVERAGE_POINTS[:, :2] * (scale, -scale) + (480, 520)
    for (x, y), which in zip(places, POINT_LANDMARKS, strict=True):
        landmarks[list(which), :2] = (x, y)
        radius = round(scale / 12)
        picture[round(y) - radius : round(y) + radius, round(x) - radius : round(x) + radius] = 255
    crop = align_face(picture, landmarks)
    assert crop.shape == (SIZE, SIZE, 3)
    expected = AVERAGE_POINTS[:, :2] * (UNIT_PIXELS, -UNIT_PIXELS) + SIZE / 2
    for x, y in expected:
        assert crop[round(y), round(x)].min() > 200


def test_a_face_at_the_edge_of_the_picture_gets_a_black_margin():
    landmarks = np.zeros((478, 3), np.float32)
    for (x, y), which in zip(
        AVERAGE_POINTS[:, :2] * (100, -100) + (0, 0), POINT_LANDMARKS, strict=True
    ):
        landmarks[list(which), :2] = (x, y)
    crop = align_face(np.full((300, 300, 3), 255, np.uint8), landmarks)
    assert crop[:100, :100].max() == 0 and crop[130:, 130:].min() == 255


def test_a_missing_checkpoint_names_its_source_and_licence(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_HOME", str(tmp_path))
    with pytest.raises(EmoError) as caught:
        _ = Deep3DExtractor().digest
    assert "research only" in caught.value.hint and "Deep3DFaceRecon" in caught.value.hint
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("content", ["text", "other", "code"])
def test_a_checkpoint_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "epoch_20.pth"
    if content == "text":
        path.write_text("no checkpoint")
    elif content == "other":
        torch.save({"net_recon": {"backbone.conv1.weight": torch.zeros(2, 3, 7, 7)}}, path)
    else:
        torch.save({"net_recon": Path("/")}, path)  # asks for more than tensors
    with pytest.raises(EmoError, match="no checkpoint of Deep3DFaceRecon_pytorch"):
        load_deep3d(path, width=WIDTH)
