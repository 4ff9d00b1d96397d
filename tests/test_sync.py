"""Lip sync: what the networks hear and see, SyncNet's layout, the protocol, SyncNet-mini."""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from emo_cli.errors import EmoError
from emo_cli.faces import Face, FaceFinder
from emo_cli.fetch.convert import convert
from emo_cli.files import sha256_of
from emo_cli.metrics import sync, sync_audio, sync_crops, syncnet_mini
from emo_cli.metrics.contract import Frame, VideoFeatures, VideoInfo
from emo_cli.metrics.sync import SyncExtractor, SyncMetric, best_offset, offset_distances
from emo_cli.metrics.sync_crops import (
    EYES,
    MOUTH_HEIGHT,
    MOUTH_WIDTH,
    PLACES,
    STEADY,
    FaceCrops,
    MouthCrops,
)
from emo_cli.metrics.sync_streams import MiniNetwork, PublishedNetwork, SyncReading
from emo_cli.metrics.syncnet import SyncNet, load_syncnet
from emo_cli.metrics.syncnet_mini import SyncNetMini, load_syncnet_mini
from emo_cli.raw_video import read_frames, read_sound
from emo_cli.weights import LockEntry, load_manifest, write_lock

RATE = 16_000
INFO = VideoInfo(path=Path("a.mp4"), fps=25, size=(96, 96), has_sound=True)

# What python_speech_features 0.6 makes of `glide()` as 16-bit integers: mfcc(samples, 16000), and
# the logarithm of fbank(samples, 16000, nfilt=40).
MFCC_STEPS = (0, 5, 19, 20, 35)
MFCC = """
16.39664 20.34384 9.97683 2.86988 -4.0758 -11.48306 -17.19784 -22.11948 -24.32562 -24.5568 -21.77189 -17.96617 -13.3533
19.39515 24.03332 12.76795 2.6795 -7.6148 -17.20801 -22.95408 -25.3541 -22.93801 -17.30454 -8.8331 -1.044 5.05698
18.72819 -2.77966 -6.90005 -23.03856 -25.73607 -20.31378 -6.56855 4.798 11.01895 9.96237 5.99538 0.9703 -0.21833
20.03652 -2.37989 -9.10968 -29.42309 -35.40964 -29.89919 -12.21227 4.93107 15.32042 13.55252 4.24609 -7.70252 -14.46614
21.34391 15.03711 -15.64989 -32.12407 -22.10464 5.21401 26.58949 22.70151 -0.41803 -21.7537 -22.70595 -6.19581 11.62022
"""  # noqa: E501
LOG_BANDS_OF_STEP_10 = [11.09088, 16.56256, 12.6644, 11.68064, 11.14691]  # bands 0, 8, ... 32


def glide() -> np.ndarray:
    """A tone that rises, with a gap: 6000 samples of whole 16-bit steps."""
    time = np.arange(6000) / RATE
    tone = 0.4 * np.sin(2 * np.pi * (200 + 900 * time) * time) * np.minimum(1, 20 * time)
    tone[3000:3400] = 0
    return (np.round(tone * 32768) / 32768).astype(np.float32)


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0, 0.3, math.ceil(seconds * 25)), 640)
    return (rng.standard_normal(len(loudness)) * loudness).astype(np.float32)


def made_face(*, eyes: float = 40.0, turn: float = 0.0, place: complex = 48 + 30j) -> Face:
    """A mean face: its eyes that far apart, turned by that many radians, eyes at `place`."""
    points = np.zeros((478, 3), np.float32)
    found = PLACES * eyes * np.exp(1j * turn) + place
    points[STEADY, 0], points[STEADY, 1] = found.real, found.imag
    x, y = place.real, place.imag
    box = (x - eyes, y - eyes, x + eyes, y + 1.5 * eyes)
    return Face(box=box, landmarks=points, rotation=np.eye(3, dtype=np.float32))


def made_frames(count: int, seed: int = 0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 255, (count, 96, 96, 3), dtype=np.uint8)
    return [Frame(picture, made_face(eyes=36 + 4 * rng.random())) for picture in pictures]


@pytest.fixture(scope="module")
def mini() -> SyncNetMini:
    torch.manual_seed(0)
    return SyncNetMini().eval()


@pytest.fixture(scope="module")
def published() -> SyncNet:
    torch.manual_seed(0)
    network = SyncNet()
    for module in network.modules():  # running statistics that do something
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval().requires_grad_(False)


# --- what is heard


def test_mfcc_are_those_of_python_speech_features():
    expected = np.array([line.split() for line in MFCC.strip().splitlines()], np.float32)
    found = sync_audio.mfcc(glide())
    assert found.shape == (36, 13)
    np.testing.assert_allclose(found[list(MFCC_STEPS)], expected, atol=1e-3)
    bands = sync_audio.log_mel(glide(), 40)
    np.testing.assert_allclose(bands[10, ::8], LOG_BANDS_OF_STEP_10, atol=1e-3)


def test_features_of_long_sound_do_not_depend_on_the_parts_it_is_worked_on_in(monkeypatch):
    sound = speech_like(2)
    whole = sync_audio.mfcc(sound)
    monkeypatch.setattr(sync_audio, "PART", 7)
    np.testing.assert_array_equal(sync_audio.mfcc(sound), whole)


def test_there_are_windows_of_sound_for_all_frames_but_the_last_five():
    assert len(sync_audio.mfcc(np.zeros(75 * 640, np.float32))) >= 4 * 69 + 20


@pytest.mark.parametrize("gain", [0.01, 0.3, 3.0])
def test_loudness_is_the_same_however_loud_the_sound_was(gain):
    sound = speech_like(3)
    levelled = sync_audio.normalise_loudness(sound * gain)
    np.testing.assert_allclose(levelled, sync_audio.normalise_loudness(sound), rtol=1e-4)
    assert 10 * np.log10(np.mean(levelled**2)) == pytest.approx(-23, abs=0.5)


def test_pauses_do_not_make_speech_louder():
    sound = speech_like(3)
    with_pause = np.concatenate([sound, np.zeros(3 * RATE, np.float32)])
    levelled = sync_audio.normalise_loudness(with_pause)[: len(sound)]
    np.testing.assert_allclose(levelled, sync_audio.normalise_loudness(sound), rtol=0.1)


def test_silence_and_short_sounds_stay_finite():
    assert not sync_audio.normalise_loudness(np.zeros(RATE, np.float32)).any()
    for length in (0, 1, 300, 4000):
        levelled = sync_audio.normalise_loudness(glide()[:length])
        assert len(levelled) == length
        assert np.isfinite(sync_audio.mfcc(levelled)).all()


# --- what is seen


@pytest.mark.parametrize("eyes, turn, place", [(40, 0, 48 + 30j), (110, 0.4, 150 + 100j)])
def test_a_mouth_is_cut_upright_and_of_one_size(eyes, turn, place):
    face = made_face(eyes=eyes, turn=turn, place=place)
    mouth = place + 0.9j * eyes * np.exp(1j * turn)
    across, down = np.meshgrid(np.arange(320) + 0.5, np.arange(320) + 0.5)
    far = np.abs(across + 1j * down - mouth)
    picture = np.repeat(255 * np.exp(-((far / (0.1 * eyes)) ** 2))[..., None], 3, axis=2)
    crop = sync_crops.mouth_crop(picture.astype(np.uint8), face.landmarks).astype(float)
    assert crop.shape == (MOUTH_HEIGHT, MOUTH_WIDTH)
    row = (crop.sum(1) * (np.arange(MOUTH_HEIGHT) + 0.5)).sum() / crop.sum()
    column = (crop.sum(0) * (np.arange(MOUTH_WIDTH) + 0.5)).sum() / crop.sum()
    assert column == pytest.approx(MOUTH_WIDTH / 2, abs=0.3)
    assert row == pytest.approx(MOUTH_HEIGHT / 2 - 0.05 * EYES, abs=0.3)
    assert (crop > 128).sum() == pytest.approx(np.pi * np.log(2) * (0.1 * EYES) ** 2, rel=0.15)


def test_lips_do_not_move_the_crop():
    picture = made_frames(1)[0].picture
    points = made_face().landmarks.copy()
    before = sync_crops.mouth_crop(picture, points)
    points[[13, 14, 17, 61, 291, 152]] += 9
    np.testing.assert_array_equal(sync_crops.mouth_crop(picture, points), before)


def test_a_margin_adds_to_the_crop_and_moves_nothing():
    frame = made_frames(1)[0]
    inner = sync_crops.mouth_crop(frame.picture, frame.face.landmarks)
    outer = sync_crops.mouth_crop(frame.picture, frame.face.landmarks, margin=8)
    assert np.abs(outer[8:-8, 8:-8].astype(int) - inner).max() <= 1


def test_faces_partly_outside_the_picture_are_cut():
    picture = np.full((96, 96, 3), 200, np.uint8)
    face = made_face(place=95 + 90j)
    assert sync_crops.mouth_crop(picture, face.landmarks).min() == 0
    crop = sync_crops.face_crop(picture, 90 + 90j, 30)
    assert crop.shape == (224, 224, 3)
    assert set(np.unique(crop[:20, :20])) == {200}
    assert set(np.unique(crop[-20:, -20:])) == {sync_crops.GREY}


def test_a_face_crop_reaches_as_far_as_syncnet_pythons():
    picture = np.zeros((400, 400, 3), np.uint8)
    picture[150:330, 130:270] = 255  # what centre 200 + 200j and half a side of 50 reach
    crop = sync_crops.face_crop(picture, 200 + 200j, 50)
    assert crop.min() == 255
    picture[149:331, 129:271] = 0
    assert sync_crops.face_crop(picture, 200 + 200j, 50).max() == 0


@pytest.mark.parametrize("count", [1, 5, 7, 13, 14, 30])
def test_face_crops_follow_the_median_of_thirteen_frames(count, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "emo_cli.metrics.sync_crops.face_crop",
        lambda picture, centre, half: asked.append((int(picture[0, 0, 0]), centre.real)),
    )
    rng = np.random.default_rng(0)
    places = rng.uniform(30, 60, count)
    crops = FaceCrops()
    for index, place in enumerate(places):
        picture = np.full((4, 4, 3), index, np.uint8)
        list(crops.add(Frame(picture, made_face(place=place + 30j))))
    list(crops.finish())
    medians = [np.median(places[max(0, i - 6) : i + 7]) for i in range(count)]
    assert [index for index, _ in asked] == list(range(count))
    np.testing.assert_allclose([place for _, place in asked], medians, rtol=1e-6)


@pytest.mark.parametrize("kind", [MouthCrops, FaceCrops])
def test_frames_without_a_face_repeat_a_neighbour_and_are_counted(kind):
    frames = [Frame(frame.picture, None if i in (0, 1, 4) else frame.face)
              for i, frame in enumerate(made_frames(6))]  # fmt: skip
    crops = kind()
    cut = [crop for frame in frames for crop in crops.add(frame)] + list(crops.finish())
    assert len(cut) == 6
    assert crops.faceless == 3
    if kind is MouthCrops:
        np.testing.assert_array_equal(cut[0], cut[2])
        np.testing.assert_array_equal(cut[4], cut[3])
        assert (cut[5] != cut[4]).any()


# --- the published network


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict of syncnet_python's SyncNetModel, written down."""
    shapes: dict[str, tuple[int, ...]] = {}
    convolutions = {
        "netcnnaud": {0: (64, 1, 3, 3), 4: (192, 64, 3, 3), 8: (384, 192, 3, 3),
                      11: (256, 384, 3, 3), 14: (256, 256, 3, 3), 18: (512, 256, 5, 4)},
        "netcnnlip": {0: (96, 3, 5, 7, 7), 4: (256, 96, 1, 5, 5), 8: (256, 256, 1, 3, 3),
                      11: (256, 256, 1, 3, 3), 14: (256, 256, 1, 3, 3), 18: (512, 256, 1, 6, 6)},
        "netfcaud": {0: (512, 512), 3: (1024, 512)},
        "netfclip": {0: (512, 512), 3: (1024, 512)},
    }  # fmt: skip
    for stream, layers in convolutions.items():
        for place, shape in layers.items():
            shapes[f"{stream}.{place}.weight"] = shape
            shapes[f"{stream}.{place}.bias"] = shape[:1]
            if stream.startswith("netcnn") or place == 0:
                for name in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"{stream}.{place + 1}.{name}"] = shape[:1]
    return shapes


def test_syncnet_has_the_published_names_and_shapes():
    with torch.device("meta"):
        state = SyncNet().state_dict()
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    assert len(counters) == 14
    found = {name: tuple(t.shape) for name, t in state.items() if name not in counters}
    assert found == published_shapes()


def batch_norm(x, state, name):
    values = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return functional.batch_norm(x, *values)


def test_syncnet_computes_what_the_published_layers_compute(published):
    """Against the layers written out by hand from the published listing."""
    state = published.state_dict()
    torch.manual_seed(1)
    frames, sound = 255 * torch.rand(2, 3, 5, 224, 224), torch.randn(2, 1, 13, 20)

    def layer(x, stream, place, **how):
        convolve = functional.conv3d if stream == "netcnnlip" else functional.conv2d
        name = f"{stream}.{place}"
        x = convolve(x, state[f"{name}.weight"], state[f"{name}.bias"], **how)
        return batch_norm(x, state, f"{stream}.{place + 1}").relu()

    def head(x, stream):
        x = functional.linear(x.flatten(1), state[f"{stream}.0.weight"], state[f"{stream}.0.bias"])
        x = batch_norm(x, state, f"{stream}.1").relu()
        return functional.linear(x, state[f"{stream}.3.weight"], state[f"{stream}.3.bias"])

    x = layer(frames, "netcnnlip", 0, stride=(1, 2, 2))
    x = functional.max_pool3d(x, (1, 3, 3), (1, 2, 2))
    x = layer(x, "netcnnlip", 4, stride=(1, 2, 2), padding=(0, 1, 1))
    x = functional.max_pool3d(x, (1, 3, 3), (1, 2, 2), padding=(0, 1, 1))
    for place in (8, 11, 14):
        x = layer(x, "netcnnlip", place, padding=(0, 1, 1))
    x = functional.max_pool3d(x, (1, 3, 3), (1, 2, 2))
    lips = head(layer(x, "netcnnlip", 18), "netfclip")
    torch.testing.assert_close(published.embed_lips(frames), lips)

    x = layer(sound, "netcnnaud", 0, padding=1)
    x = functional.max_pool2d(layer(x, "netcnnaud", 4, padding=1), 3, (1, 2))
    for place in (8, 11, 14):
        x = layer(x, "netcnnaud", place, padding=1)
    x = functional.max_pool2d(x, 3, 2)
    heard = head(layer(x, "netcnnaud", 18), "netfcaud")
    torch.testing.assert_close(published.embed_sound(sound), heard)


def put_into_weights_folder(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """As `emo download eval` leaves a published torch file there."""
    (folder / "eval").mkdir(parents=True)
    source, target = folder / "syncnet_v2.model", folder / sync.PUBLISHED_WEIGHTS
    torch.save(state, source)
    convert("torch", source, target)
    entry = LockEntry(
        commit="",
        source_sha256=sha256_of(source),
        sha256=sha256_of(target),
        bytes=target.stat().st_size,
    )
    write_lock(folder, {sync.PUBLISHED_WEIGHTS: entry})
    return target


def test_published_weights_arrive_through_the_manifest(published, tmp_path, monkeypatch):
    assert [f.convert for f in load_manifest().find(sync.PUBLISHED_WEIGHTS)] == ["torch"]
    state = published.state_dict()
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    target = put_into_weights_folder(tmp_path, old)
    monkeypatch.setenv("EMO_HOME", str(tmp_path))
    loaded = load_syncnet(target).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in old.items())
    extractor = SyncExtractor("SyncNet")
    assert extractor.digest != SyncExtractor().digest
    assert isinstance(extractor.begin(INFO), SyncReading)


def test_syncnet_that_was_not_downloaded_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_HOME", str(tmp_path))
    with pytest.raises(EmoError) as caught:
        SyncExtractor("SyncNet").digest  # noqa: B018
    assert "emo download eval" in caught.value.hint


def test_another_networks_weights_are_refused(published, tmp_path):
    state = published.state_dict()
    del state["netfclip.3.bias"]
    target = put_into_weights_folder(tmp_path, state)
    with pytest.raises(EmoError, match="netfclip.3.bias is missing"):
        load_syncnet(target)


# --- the protocol


def test_distances_are_those_of_syncnet_python():
    """Against torch's pairwise_distance over zero-padded sound, window by window."""
    rng = np.random.default_rng(0)
    lips, sound = rng.standard_normal((2, 20, 8)).astype(np.float32)
    padded = functional.pad(torch.from_numpy(sound), (0, 0, 15, 15))
    expected = [
        functional.pairwise_distance(torch.from_numpy(row).repeat(31, 1), padded[i : i + 31])
        for i, row in enumerate(lips)
    ]
    found = offset_distances(lips, sound, padded=True)
    np.testing.assert_allclose(found, torch.stack(expected).numpy(), rtol=1e-5)
    means = torch.stack(expected, 1).mean(1)
    least, index = means.min(0)
    synced = best_offset(found)
    assert synced.offset == 15 - index
    assert synced.distance == pytest.approx(least.item(), rel=1e-5)
    assert synced.confidence == pytest.approx((means.median() - least).item(), rel=1e-4)


@pytest.mark.parametrize("early", [-10, -1, 0, 7, 15])
@pytest.mark.parametrize("padded", [False, True])
def test_the_offset_is_that_by_which_the_sound_comes_too_early(early, padded):
    rng = np.random.default_rng(0)
    embedded = rng.standard_normal((120, 16)).astype(np.float32)
    lips, sound = embedded[20:100], embedded[20 + early : 100 + early]
    synced = best_offset(offset_distances(lips, sound, padded=padded))
    assert synced.offset == early
    assert synced.confidence > 1


def test_shifts_beyond_the_sound_count_only_where_it_is_padded():
    embedded = np.eye(8, dtype=np.float32)
    assert np.isnan(offset_distances(embedded, embedded)[:, 30]).all()
    padded = offset_distances(embedded, embedded, padded=True)
    assert padded[:, 30] == pytest.approx(1, abs=1e-4)
    assert best_offset(offset_distances(embedded, embedded)).offset == 0


# --- a video


@pytest.mark.parametrize("kind", ["mini", "published"])
def test_how_a_video_is_cut_into_parts_means_nothing(kind, request):
    count = 75 if kind == "mini" else 18
    network = request.getfixturevalue(kind)
    network = MiniNetwork(network) if kind == "mini" else PublishedNetwork(network)
    frames, sound = made_frames(count), speech_like(count / 25)
    at_once, one_by_one = SyncReading(network), SyncReading(network)
    at_once.add(frames)
    for frame in frames:
        one_by_one.add([frame])
    a, b = at_once.finish(sound), one_by_one.finish(sound)
    assert a["distances"].shape == (count - 5, 31)
    assert a["distances"].dtype == np.float32
    assert all(np.array_equal(a[name], b[name], equal_nan=name == "distances") for name in a)


def test_syncnet_sees_blue_first_and_whole_windows(published):
    frames, sound = made_frames(9), speech_like(9 / 25)
    reading = SyncReading(PublishedNetwork(published))
    reading.add(frames)
    found = reading.finish(sound)["distances"]
    crops = FaceCrops()
    cut = [crop for frame in frames for crop in crops.add(frame)] + list(crops.finish())
    bgr = torch.from_numpy(np.stack(cut)[..., ::-1].copy()).float().permute(3, 0, 1, 2)
    lips = published.embed_lips(torch.stack([bgr[:, i : i + 5] for i in range(4)]))
    coefficients = torch.from_numpy(sync_audio.mfcc(sync_audio.normalise_loudness(sound))).T
    windows = torch.stack([coefficients[:, 4 * i : 4 * i + 20] for i in range(4)])[:, None]
    heard = published.embed_sound(windows)
    expected = offset_distances(lips.numpy(), heard.numpy(), padded=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "count, faces, seconds, reason",
    [(30, True, None, "no sound"), (30, False, 2, "no face"), (5, True, 2, "shorter than 6"),
     (30, True, 0.2, "shorter than 6"), (0, True, 2, "no face"), (6, True, 2, "")],
)  # fmt: skip
def test_videos_that_cannot_be_judged_say_why(mini, count, faces, seconds, reason):
    reading = SyncReading(MiniNetwork(mini))
    reading.add([frame if faces else Frame(frame.picture, None) for frame in made_frames(count)])
    arrays = reading.finish(None if seconds is None else speech_like(seconds))
    assert str(arrays["left_out"]).startswith(reason)
    assert bool(str(arrays["left_out"])) == bool(reason)
    assert len(arrays["distances"]) == (0 if reason else 1)
    assert int(arrays["frames"]) == count


# --- the metric


@dataclass
class Made:
    offset: int = 0
    depth: float = 0.4
    network: str = "SyncNet-mini"
    left_out: str = ""
    faceless: int = 0

    def features(self, key: str) -> VideoFeatures:
        distances = np.full((50, 31), 1.4, np.float32)
        distances[:, 15 - self.offset] -= self.depth
        arrays = {
            "distances": distances[:0] if self.left_out else distances,
            "network": np.array(self.network),
            "left_out": np.array(self.left_out),
            "frames": np.array(55),
            "faceless": np.array(self.faceless),
        }
        return VideoFeatures(key=key, info=INFO, arrays=arrays)


def made_set(*videos: Made) -> list[VideoFeatures]:
    return [video.features(f"v{i}") for i, video in enumerate(videos)]


def test_the_metric_is_the_mean_over_videos_and_the_median_of_offsets():
    videos = made_set(Made(0, 0.2), Made(1, 0.4), Made(-7, 0.6))
    score = SyncMetric().score(videos, None)
    assert score.values == pytest.approx({"confidence": 0.4, "distance": 1.0, "offset": 0.0})
    assert score.per_video["offset"] == {"v0": 0, "v1": 1, "v2": -7}
    assert SyncMetric().score(videos[::-1], None).values == score.values


def test_the_network_is_named_in_headings_and_notes():
    assert all("SyncNet-mini" in column.heading for column in SyncMetric().columns)
    assert not any("mini" in column.heading for column in SyncMetric("SyncNet").columns)
    assert SyncMetric().score(made_set(Made()), None).notes[0].startswith("network: SyncNet-mini")
    assert (SyncMetric().name, SyncMetric("SyncNet").name) == ("sync", "syncnet")
    for network in ("SyncNet-mini", "SyncNet"):
        assert SyncMetric(network).extractor == SyncExtractor(network).name


def test_extractors_go_to_worker_processes():
    sent = pickle.loads(pickle.dumps(SyncExtractor("SyncNet")))
    assert (sent.name, sent.network, sent.wants_faces) == ("syncnet", "SyncNet", True)


def test_figures_of_two_networks_are_never_mixed():
    videos = made_set(Made(), Made(network="SyncNet"))
    with pytest.raises(EmoError, match="v1 was measured by SyncNet"):
        SyncMetric().score(videos, None)


def test_videos_left_out_and_frames_without_faces_are_counted_and_said():
    videos = made_set(Made(faceless=3), Made(left_out="no sound"), Made(left_out="no sound"))
    score = SyncMetric().score(videos, None)
    assert "2 videos left out: no sound" in score.notes
    assert any(note.startswith("3 of 165 frames show no face") for note in score.notes)
    assert score.values["confidence"] == pytest.approx(0.4)
    nothing = SyncMetric().score(made_set(Made(left_out="no sound")), None)
    assert set(nothing.values.values()) == {None}
    assert set(nothing.values) == {column.key for column in SyncMetric().columns}


# --- SyncNet-mini as shipped


def test_the_shipped_weights_are_small_and_verified(tmp_path):
    assert syncnet_mini.WEIGHTS.stat().st_size <= 2 << 20
    load_syncnet_mini()
    broken = tmp_path / syncnet_mini.WEIGHTS.name
    broken.write_bytes(syncnet_mini.WEIGHTS.read_bytes()[:-1] + b"\0")
    with pytest.raises(EmoError, match="damaged"):
        load_syncnet_mini(broken)
    with pytest.raises(EmoError, match="missing"):
        load_syncnet_mini(tmp_path / "absent.safetensors")


def test_an_embedding_depends_on_its_own_window_alone(mini):
    torch.manual_seed(0)
    crops, mel = 255 * torch.rand(12, MOUTH_HEIGHT, MOUTH_WIDTH), torch.randn(1, 48, 40)
    with torch.no_grad():
        lips, sound = mini.embed_lips(mini.embed_frames(crops)[None]), mini.embed_sound(mel)
        part = mini.embed_lips(mini.embed_frames(crops[3:8])[None])
        torch.testing.assert_close(part[0, 0], lips[0, 3], rtol=1e-4, atol=1e-5)
        part = mini.embed_sound(mel[:, 12:32])
        torch.testing.assert_close(part[0, 0], sound[0, 3], rtol=1e-4, atol=1e-5)
    assert lips.shape == sound.shape == (1, 8, 128)
    torch.testing.assert_close(lips.norm(dim=-1), torch.ones(1, 8))


def test_shifts_of_held_out_grid_clips_in_shared_data_are_found(shared_data):
    """Two unseen clips, their sound shifted by -10 ... 10 frames; and confidence falls with
    another order of the same sound."""
    right, own, other = [], [], []
    with FaceFinder() as finder:
        for name in ("lgam1a", "swiu7a"):
            path = shared_data / "grid_s1" / f"{name}.mp4"
            reading = SyncExtractor().begin(INFO)
            for picture in read_frames(path, 0, 75):
                faces = finder.find_in_frame(picture)
                reading.add([Frame(picture, faces[0] if faces else None)])
            sound = read_sound(path, 0, 75)
            for late in range(-10, 11):
                silence = np.zeros(abs(late) * 640, np.float32)
                shifted = (
                    np.append(silence, sound)[: len(sound)]
                    if late > 0
                    else np.append(sound[-late * 640 :], silence)
                )
                synced = best_offset(reading.finish(shifted)["distances"])
                right.append(abs(synced.offset + late) <= 1)
            own.append(best_offset(reading.finish(sound)["distances"]).confidence)
            pieces = sound.reshape(15, -1)[np.random.default_rng(0).permutation(15)].ravel()
            other.append(best_offset(reading.finish(pieces)["distances"]).confidence)
    assert np.mean(right) >= 0.9
    assert np.mean(own) > 1.5 * np.mean(other)
