"""Stage `lips`: what lips do to a sound, and the part of a model that it makes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import SMALL_MINI

from emo_cli import presets
from emo_cli.conditions import windows
from emo_cli.errors import EmoError
from emo_cli.face_points import FACE_POINTS, lip_shape, usual_points
from emo_cli.model.lip_reader import LIP_UNITS, LipReader
from emo_cli.model.load import load_part
from emo_cli.training import commands, loop
from emo_cli.training.draws import Draw
from emo_cli.training.lips_stage import LipSamples, LipsLoss, LipsTask, open_heard_lips
from emo_cli.training.precompute import add_sound_features
from emo_cli.training.samples import Labels, pack_sample
from emo_cli.training.shards import ShardWriter
from emo_cli.training.stages import LIPS, RunOptions

SIZE = SMALL_MINI.picture_size
WIDTH = SMALL_MINI.audio.hidden_width
TINY = dataclasses.replace(
    LIPS, steps=4, batch=2, report_every=1, checkpoint_every=2, evaluate_every=4
)


def talking(num_frames: int, seed: int) -> tuple[Labels, np.ndarray]:
    """Lips that are as far apart as the noise is loud."""
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.random(-(-num_frames // 4)) < 0.5, 4)[:num_frames].astype(np.float32)
    landmarks = np.zeros((num_frames, 478, 3), np.float32)
    landmarks[:, FACE_POINTS] = usual_points((12, 12, 52, 56))
    landmarks[:, 14, 1] += 4 * loud
    sound = rng.standard_normal(640 * num_frames) * np.repeat(0.01 + 0.3 * loud, 640)
    labels = Labels(
        boxes=np.tile(np.float32([12, 12, 52, 56]), (num_frames, 1)),
        poses=np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1)),
        rotation=np.zeros(num_frames, np.float32),
        landmarks=landmarks,
        opening=loud,
    )
    return labels, sound.astype(np.float32).clip(-1, 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, small_model) -> Path:
    """Four clips to learn from, one mute and one too short, and one held out."""
    folder = tmp_path_factory.mktemp("data") / "talkers"
    kinds = {"a": (60, "train"), "b": (44, "train"), "mute": (44, "train"), "short": (12, "train"),
             "v": (60, "val")}  # fmt: skip
    with ShardWriter(folder, {"size": SIZE, "fps": 25, "sample_rate_hz": 16_000}) as writer:
        for seed, (key, (count, split)) in enumerate(kinds.items()):
            labels, sound = talking(count, seed)
            writer.add(
                pack_sample(
                    key=key,
                    identity=key,
                    split=split,  # type: ignore[arg-type]
                    frames=np.zeros((count, SIZE, SIZE, 3), np.uint8),
                    labels=labels,
                    sound=None if key == "mute" else sound,
                    source={},
                )
            )
    add_sound_features(folder, small_model)
    return folder


def opened(dataset: Path, small_model: Path, split="train"):
    return open_heard_lips([str(dataset)], str(small_model), SMALL_MINI, split)


def new_task(dataset: Path, small_model: Path) -> LipsTask:
    parts = (opened(dataset, small_model, split) for split in ("train", "val"))
    return LipsTask(SMALL_MINI, *parts, seed=0)


def test_samples_say_what_is_heard_and_what_the_lips_do(dataset, small_model):
    (clips,) = opened(dataset, small_model).values()
    samples = LipSamples([clips, clips])
    assert len(clips) == 2 and len(samples) == 4  # of those with sound that are long enough
    sample = samples[Draw(2, 5)]
    assert sample.keys() == {"audio", "lips", "lip_width"}
    assert sample["audio"].shape == (16 + 4, SMALL_MINI.audio_feature_width)
    labels, width = clips.all_labels(1).landmarks, sample["lip_width"].item()
    lips = lip_shape(labels[:, FACE_POINTS])
    assert width == np.median(lips[:, 1])
    assert any(np.array_equal(lips[i : i + 16], sample["lips"].numpy()) for i in range(44 - 15))
    assert all(torch.equal(samples[Draw(2, 5)][name], sample[name]) for name in sample)


def test_the_loss_counts_errors_in_units_of_people_who_talk():
    loss = LipsLoss(LipReader(8, 2), window=2)
    batch = {"audio": torch.randn(3, 20, 24), "lip_width": torch.tensor([0.5, 0.6, 0.7])}
    with torch.no_grad():
        read = loss.reader(torch.stack([windows(x, 5) for x in batch["audio"]]))
        usual = torch.stack([torch.zeros(3), batch["lip_width"]], -1)[:, None]
        assert loss(batch | {"lips": read + usual})["loss"] == pytest.approx(0, abs=1e-5)
        off = read + usual + torch.tensor([2 * LIP_UNITS[0], -3 * LIP_UNITS[1]])
        found = loss(batch | {"lips": off})
    assert found["gap"].item() == pytest.approx(2, abs=1e-4)
    assert found["width"].item() == pytest.approx(3, abs=1e-4)
    assert found["loss"].item() == pytest.approx(5, abs=1e-4)


def test_lips_are_read_from_the_last_layer_around_each_frame_alone():
    reader = LipReader(8, window=2)
    sound = torch.randn(16, 24)
    with torch.no_grad():
        lips = reader(windows(sound, 5)[None])
    assert lips.shape == (1, 12, 2)

    @torch.no_grad()
    def changed(layer: slice) -> list[int]:
        other = sound.clone()
        other[9, layer] += torch.randn(8)  # the middle of frame 7's window
        different = (reader(windows(other, 5)[None]) != lips).any(-1)[0]
        return different.nonzero().flatten().tolist()

    assert changed(slice(16, 24)) == [5, 6, 7, 8, 9]
    assert changed(slice(0, 8)) == changed(slice(8, 16)) == []


def test_it_learns_to_open_lips_where_there_is_sound(dataset, small_model, tmp_path):
    task = new_task(dataset, small_model)
    stage = dataclasses.replace(LIPS, steps=150, batch=4, evaluate_every=150, ema_decay=0.9)
    with torch.no_grad():
        before = task.evaluate(task.module)
    loop.train(task, stage, RunOptions(out=tmp_path / "run", device="cpu"))
    with torch.no_grad():
        after = task.evaluate(task.module)
    assert before.keys() == after.keys() == {"r_talkers"}
    assert after["r_talkers"] > before["r_talkers"] + 0.2


class Killed(Exception):
    pass


def run(task: LipsTask, out: Path, killed_at: int | None = None) -> dict[str, torch.Tensor]:
    def report(step: int, values: dict[str, float]) -> None:
        if step == killed_at:
            raise Killed

    options = RunOptions(out=out, device="cpu")
    return load_file(loop.train(task, TINY, options, report=report) / "lip_reader.safetensors")


def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(dataset, small_model, tmp_path):
    whole = run(new_task(dataset, small_model), tmp_path / "whole")
    with pytest.raises(Killed):
        run(new_task(dataset, small_model), tmp_path / "parts", killed_at=3)
    resumed = run(new_task(dataset, small_model), tmp_path / "parts")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_the_command_writes_the_part_of_a_model(
    dataset, small_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(presets, "MINI", SMALL_MINI)
    told = {"data": [str(dataset)], "out": tmp_path / "run", "batch": 2, "device": "cpu"}
    commands.lips(audio_model=str(small_model), steps=1, **told)
    folder = tmp_path / "run" / "model"
    assert str(folder / "lip_reader.safetensors") in capsys.readouterr().out
    load_part(folder, "lip_reader", LipReader(WIDTH, SMALL_MINI.window))
    with pytest.raises(EmoError, match="seed was 0, now 1"):
        commands.lips(audio_model=str(small_model), steps=1, seed=1, **told)


def test_nothing_to_learn_from_is_said(dataset, small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "MINI", SMALL_MINI)
    told = {"audio_model": str(small_model), "out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(EmoError, match="no dataset|does not|absent|no index|not a"):
        commands.lips(data=[str(tmp_path / "absent")], **told)
    bare = tmp_path / "bare"
    with ShardWriter(bare, {"size": SIZE, "fps": 25, "sample_rate_hz": 16_000}) as writer:
        labels, sound = talking(20, 0)
        frames = np.zeros((20, SIZE, SIZE, 3), np.uint8)
        writer.add(pack_sample(key="a", identity="a", split="train", frames=frames, labels=labels,
                               sound=sound, source={}))  # fmt: skip
    with pytest.raises(EmoError, match="has no sound features of this model's encoder"):
        commands.lips(data=[str(bare)], **told)
    with pytest.raises(EmoError, match="hold no clip to train on"):
        LipsTask(SMALL_MINI, {}, {}, seed=0)
