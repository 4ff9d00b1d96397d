"""Stage `sync`: clips in memory, their disguises, the loss, measures, the command."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emo_cli.errors import EmoError
from emo_cli.files import sha256_of
from emo_cli.metrics.sync_audio import log_mel
from emo_cli.metrics.sync_crops import MOUTH_HEIGHT, MOUTH_WIDTH, PLACES, STEADY
from emo_cli.metrics.syncnet_mini import NUM_BANDS, SyncNetMini, load_syncnet_mini
from emo_cli.training import commands, loop
from emo_cli.training.draws import Draw
from emo_cli.training.samples import Labels, pack_sample
from emo_cli.training.shards import ShardWriter
from emo_cli.training.stages import SYNC, RunOptions
from emo_cli.training.sync_data import (
    CLIP_FRAMES,
    SpokenClip,
    SpokenClips,
    disguised,
    other_voice,
    read_spoken_clips,
    without_margin,
)
from emo_cli.training.sync_stage import SyncLoss, SyncSamples, SyncTask, clip_sound

SIZE, EYES, PLACE = 256, 70, 128 + 100j
TINY = dataclasses.replace(
    SYNC, steps=4, batch=2, report_every=1, checkpoint_every=2, evaluate_every=4
)


def talking(num_frames: int, seed: int) -> tuple[np.ndarray, Labels, np.ndarray]:
    """A grey face whose dark mouth is as open as the noise that it makes is loud."""
    rng = np.random.default_rng(seed)
    loudness = np.convolve(rng.uniform(0, 1, num_frames + 2), (0.3, 0.4, 0.3), "valid")
    down, across = np.mgrid[:SIZE, :SIZE]
    mouth = PLACE + 0.9j * EYES
    frames = np.full((num_frames, SIZE, SIZE, 3), 170, np.uint8)
    for frame, opening in zip(frames, loudness, strict=True):
        high = 2 + 16 * opening
        inside = ((across - mouth.real) / 20) ** 2 + ((down - mouth.imag) / high) ** 2 < 1
        frame[inside] = 40
    sound = rng.standard_normal(640 * num_frames) * np.repeat(loudness**2, 640) * 0.3
    points = np.zeros((num_frames, 478, 3), np.float32)
    found = PLACES * EYES + PLACE
    points[:, STEADY, 0], points[:, STEADY, 1] = found.real, found.imag
    labels = Labels(
        boxes=np.tile(np.float32([60, 60, 200, 220]), (num_frames, 1)),
        poses=np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1)),
        rotation=np.zeros(num_frames, np.float32),
        landmarks=points,
        opening=loudness.astype(np.float32),
    )
    return frames, labels, sound.astype(np.float32).clip(-1, 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Three clips to learn from, one of them mute and one too short, and two held out."""
    folder = tmp_path_factory.mktemp("data") / "talkers"
    kinds = {"a": (48, "train"), "b": (44, "train"), "mute": (44, "train"), "short": (20, "train"),
             "v": (60, "val"), "w": (60, "val")}  # fmt: skip
    with ShardWriter(folder, {"size": SIZE, "fps": 25, "sample_rate_hz": 16_000}) as writer:
        for seed, (key, (count, split)) in enumerate(kinds.items()):
            frames, labels, sound = talking(count, seed)
            writer.add(
                pack_sample(
                    key=key,
                    identity=key,
                    split=split,  # type: ignore[arg-type]
                    frames=frames,
                    labels=labels,
                    sound=None if key == "mute" else sound,
                    source={},
                )
            )
    return folder


@pytest.fixture(scope="module")
def clips(dataset) -> SpokenClips:
    return read_spoken_clips([str(dataset)], "train", SIZE)


@pytest.fixture(scope="module")
def held_out(dataset) -> SpokenClips:
    return read_spoken_clips([str(dataset)], "val", SIZE)


# --- data


def test_clips_with_sound_are_cut_and_levelled_and_all_others_left_out(clips):
    (found,) = clips.sources.values()
    assert list(clips.sources) == ["talkers"]
    assert [clip.key for clip in found] == ["a", "b"]
    assert found[0].crops.shape == (48, MOUTH_HEIGHT + 16, MOUTH_WIDTH + 16)
    assert found[0].crops.dtype == np.uint8
    assert len(found[0].sound) == 48 * 640
    levels = [10 * np.log10(np.mean(clip.sound**2)) for clip in found]
    assert levels == pytest.approx([-23, -23], abs=1.5)


def test_the_stored_mouth_opens_with_its_sound(clips):
    clip = clips.sources["talkers"][0]
    dark = (without_margin(clip.crops) < 100).sum((1, 2))
    loud = np.sqrt((clip.sound.reshape(-1, 640) ** 2).mean(1))
    assert np.corrcoef(dark, loud)[0, 1] > 0.9


def test_a_dataset_without_the_split_is_left_out(dataset, tmp_path):
    frames, labels, sound = talking(44, 9)
    only_train = tmp_path / "only"
    with ShardWriter(only_train, {"size": SIZE, "fps": 25, "sample_rate_hz": 16_000}) as writer:
        writer.add(
            pack_sample(
                key="x",
                identity="x",
                split="train",
                frames=frames,
                labels=labels,
                sound=sound,
                source={},
            )  # fmt: skip
        )
    found = read_spoken_clips([str(dataset), str(only_train)], "val", SIZE)
    assert list(found.sources) == ["talkers"]


def test_samples_are_pure_functions_of_their_draw(clips):
    samples = SyncSamples(clips)
    a, b, c = samples[Draw(0, 5)], samples[Draw(0, 5)], samples[Draw(0, 6)]
    assert a["crops"].shape == (CLIP_FRAMES, MOUTH_HEIGHT, MOUTH_WIDTH)
    assert a["mel"].shape == (4 * CLIP_FRAMES, NUM_BANDS)
    assert torch.equal(a["crops"], b["crops"]) and torch.equal(a["mel"], b["mel"])
    assert not torch.equal(a["crops"], c["crops"]) and not torch.equal(a["mel"], c["mel"])


def test_datasets_are_drawn_equally_often():
    crops, sound = np.zeros((40, 80, 96), np.uint8), np.zeros(40 * 640, np.float32)
    many = [SpokenClip(key=f"m{i}", crops=crops, sound=sound) for i in range(5)]
    one = [SpokenClip(key="one", crops=crops + 200, sound=sound)]
    samples = SyncSamples(SpokenClips(sources={"many": many, "one": one, "none": []}, digest=[]))
    assert len(samples) == 10
    bright = [samples[Draw(i, 0)]["crops"].mean() > 60 for i in range(10)]
    assert sum(bright) == 5


def test_a_disguise_moves_all_frames_of_a_clip_alike():
    """A bright spot stays where it is from frame to frame, but for the tremble."""
    crops = np.full((6, MOUTH_HEIGHT + 16, MOUTH_WIDTH + 16), 60, np.uint8)
    crops[:, 38:42, 46:50] = 250
    places = []
    for seed in range(8):
        seen = disguised(crops, np.random.default_rng(seed)).numpy()
        assert seen.shape == (6, MOUTH_HEIGHT, MOUTH_WIDTH)
        assert seen.min() >= 0 and seen.max() <= 255
        spot = np.where(seen > 0.8 * seen.max(axis=(1, 2), keepdims=True), seen, 0)
        total = spot.sum((1, 2))
        columns = (spot * np.arange(MOUTH_WIDTH)).sum((1, 2)) / total
        assert columns.std() < 2.5
        places.append(columns.mean())
    assert np.std(places) > 0.5


def test_sound_ends_in_silence_behind_a_clip(clips):
    clip = clips.sources["talkers"][0]
    part = clip_sound(clip, 8, CLIP_FRAMES)
    assert len(log_mel(part, NUM_BANDS)) == 4 * CLIP_FRAMES
    np.testing.assert_array_equal(part[: 40 * 640], clip.sound[8 * 640 :])
    assert not part[40 * 640 :].any()
    inner = clip_sound(clip, 0, CLIP_FRAMES)
    np.testing.assert_array_equal(inner, clip.sound[: len(inner)])


def test_another_voice_moves_resonances_by_a_share_of_their_band():
    mel = np.zeros((1, NUM_BANDS), np.float32)
    mel[0, 20] = 1
    peaks = {int(other_voice(mel, np.random.default_rng(s)).argmax()) for s in range(40)}
    assert min(peaks) >= 17 and max(peaks) <= 23 and len(peaks) > 3
    level = np.full((3, NUM_BANDS), 7, np.float32)
    np.testing.assert_allclose(other_voice(level, np.random.default_rng(0)), 7)


# --- loss and measures


class Told(SyncNetMini):
    """Embeds as it is told: frame and step i of any clip as the i-th unit vector."""

    def __init__(self, late: int = 0) -> None:
        super().__init__()
        self.late = late

    def embed_frames(self, crops):
        return crops[:, 0, :1].round()  # the frame's number

    def embed_lips(self, frames):
        return torch.eye(200)[frames[:, :-4, 0].long()]

    def embed_sound(self, mel):
        numbers = torch.arange((mel.shape[1] - 16) // 4) + self.late
        return torch.eye(200)[numbers].expand(len(mel), -1, -1)


def numbered(num_frames: int) -> torch.Tensor:
    return torch.arange(num_frames).float()[:, None, None].expand(-1, 8, 8)


def test_the_loss_is_small_where_each_window_knows_its_sound_and_large_where_not():
    batch = {"crops": numbered(40)[None].repeat(2, 1, 1, 1), "mel": torch.zeros(2, 160, 40)}
    right, wrong = SyncLoss(Told())(batch), SyncLoss(Told(late=5))(batch)
    assert right["loss"] < 0.01 and right["right"] == 1
    assert wrong["loss"] > 5 and wrong["right"] < 0.1


def test_the_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    loss = SyncLoss(SyncNetMini())
    batch = {"crops": 255 * torch.rand(1, 12, MOUTH_HEIGHT, MOUTH_WIDTH),
             "mel": torch.randn(1, 48, NUM_BANDS)}  # fmt: skip
    loss(batch)["loss"].backward()
    without = [n for n, p in loss.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_measures_tell_found_offsets_and_own_sound_from_anothers(clips, held_out):
    task = SyncTask(clips, held_out, 0)
    crops = np.zeros((60, MOUTH_HEIGHT + 16, MOUTH_WIDTH + 16), np.uint8)
    crops += np.arange(60, dtype=np.uint8)[:, None, None]
    sound = np.zeros(60 * 640, np.float32)
    made = [SpokenClip(key=key, crops=crops, sound=sound) for key in "ab"]
    task.held_out = SpokenClips(sources={"made": made}, digest=[])
    with torch.no_grad():  # as the loop measures
        perfect = task.evaluate(SyncLoss(Told()))
        late = task.evaluate(SyncLoss(Told(late=4)))
    assert set(perfect) == {"found_made", "own_made", "other_made"}
    assert perfect["found_made"] == 1
    assert perfect["own_made"] == pytest.approx(2**0.5, abs=0.01)
    assert late["found_made"] == 0


def test_the_network_learns_from_talking_faces(clips):
    torch.manual_seed(0)
    loss = SyncLoss(SyncNetMini())
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-3)
    clip = clips.sources["talkers"][0]
    batch = {
        "crops": torch.from_numpy(without_margin(clip.crops)[None, :16]),
        "mel": torch.from_numpy(log_mel(clip_sound(clip, 0, 16), NUM_BANDS)[None]),
    }
    values = []
    for _ in range(28):
        value = loss(batch)["loss"]
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    assert values[-1] < values[0] - 0.2


# --- runs


class Killed(Exception):
    pass


def run(task: SyncTask, out: Path, killed_at: int | None = None) -> dict[str, torch.Tensor]:
    def report(step: int, values: dict[str, float]) -> None:
        if step == killed_at:
            raise Killed

    options = RunOptions(out=out, device="cpu")
    return load_file(loop.train(task, TINY, options, report=report) / "syncnet_mini.safetensors")


def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(clips, held_out, tmp_path):
    whole = run(SyncTask(clips, held_out, 0), tmp_path / "whole")
    with pytest.raises(Killed):
        run(SyncTask(clips, held_out, 0), tmp_path / "parts", killed_at=3)
    resumed = run(SyncTask(clips, held_out, 0), tmp_path / "parts")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_the_command_trains_and_writes_what_the_metric_loads(dataset, tmp_path, capsys):
    out = tmp_path / "run"
    commands.sync(data=[str(dataset)], out=out, steps=1, batch=2, device="cpu")
    file = out / "model" / "syncnet_mini.safetensors"
    assert str(file) in capsys.readouterr().out
    network = load_syncnet_mini(file, sha256_of(file))
    assert not network.training
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    with pytest.raises(EmoError, match="seed was 0, now 1"):
        commands.sync(data=[str(dataset)], out=out, steps=1, batch=2, device="cpu", seed=1)


def test_nothing_to_learn_from_is_said(tmp_path):
    with pytest.raises(EmoError, match="no dataset|does not|absent|no index|not a"):
        commands.sync(data=[str(tmp_path / "absent")], out=tmp_path / "run", device="cpu")
    with pytest.raises(EmoError, match="is no precision"):
        commands.sync(data=["x"], out=tmp_path / "run", precision="fp8")
