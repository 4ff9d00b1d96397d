"""What a rented GPU is sent and sends back, at a tiny size on the CPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_models import SMALL_MINI, save_small

from emo_cli import cli, presets
from emo_cli.errors import EmoError
from emo_cli.model.load import load_model
from emo_cli.training import precompute
from emo_cli.training.compact import (
    CompactClip,
    code_tracks,
    decode_tracks,
    decode_video,
    pack_clips,
)
from emo_cli.training.compact import unpack_clips as unpack
from emo_cli.training.samples import Labels, encode_frames, pack_sample
from emo_cli.training.shards import ShardWriter

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
FRAMES = 20


def made_labels(seed: int) -> Labels:
    rng = np.random.default_rng(seed)
    face = rng.uniform(90, 160, (1, 478, 3))
    sway = 3 * np.sin(np.arange(FRAMES) / 4)[:, None, None]
    return Labels(
        boxes=np.tile([[70.0, 70.0, 190.0, 210.0]], (FRAMES, 1)).astype(np.float32),
        poses=np.tile(np.eye(4, dtype=np.float32), (FRAMES, 1, 1)),
        rotation=rng.uniform(0, 1, FRAMES).astype(np.float32),
        landmarks=(face + sway).astype(np.float32),
        opening=rng.uniform(0, 0.5, FRAMES).astype(np.float32),
    )


def soft_frames(seed: int) -> np.ndarray:
    """A smooth picture that grows lighter."""
    rng = np.random.default_rng(seed)
    ramps = np.add.outer(np.linspace(0, 90, 256), np.linspace(0, 60, 256))[..., None]
    lift = np.linspace(0, 20, FRAMES)[:, None, None, None]
    return (ramps + rng.uniform(20, 70, 3) + lift).astype(np.uint8)


def test_tracks_come_back_within_their_step() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 40))
    for smooth in (False, True):
        tracks = [np.cumsum(rng.normal(size=(n, 6)), 0) @ mixing for n in (30, 17)]
        coded = code_tracks(tracks, 0.1, smooth=smooth)
        assert coded["basis"].shape == (40, 6)  # forty numbers, six of them free
        for before, after in zip(tracks, decode_tracks(coded, [30, 17]), strict=True):
            assert np.abs(before - after).max() < 0.35
            assert np.sqrt(np.mean((before - after) ** 2)) < 0.05


def test_labels_and_features_survive_packing() -> None:
    rng = np.random.default_rng(1)
    clips = [
        CompactClip(
            entry={"frames": FRAMES, "sound": sound},
            mp4=b"",
            features=rng.normal(size=(FRAMES, 12)).astype(np.float32) if sound else None,
            labels=made_labels(number),
        )
        for number, sound in enumerate((True, False, True))
    ]
    unpacked = unpack(pack_clips(clips, 256), [clip.entry for clip in clips], 256)
    assert unpacked[1][0] is None
    for clip, (features, labels) in zip(clips, unpacked, strict=True):
        if clip.features is not None and features is not None:
            assert np.abs(features - clip.features).max() < 1
        assert np.abs(labels.landmarks - clip.labels.landmarks).mean() < 0.3
        assert np.abs(labels.boxes - clip.labels.boxes).max() <= 1 / 16
        assert labels.rotation == pytest.approx(clip.labels.rotation, abs=1e-3)
        assert np.isnan(labels.poses).all()
    with pytest.raises(EmoError, match="damaged"):
        unpack(b"cut short", [clip.entry for clip in clips], 256)


def test_colours_survive_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    packed = importlib.import_module("pack_gpu_run").PACKED_H264
    colours = [(200, 40, 40), (40, 180, 60), (50, 60, 210), (220, 170, 140)]
    frames = np.zeros((6, 128, 128, 3), np.uint8)
    for number, colour in enumerate(colours):
        frames[:, :, 32 * number : 32 * (number + 1)] = colour
    file = tmp_path / "clip.mp4"
    file.write_bytes(encode_frames(frames, packed | {"crf": 20}))
    seen = decode_video(file, {"key": "a", "frames": 6, "bias": [0, 0, 0]})
    for number, colour in enumerate(colours):
        middle = seen[:, :, 32 * number + 8 : 32 * number + 24].mean((0, 1, 2))
        assert middle == pytest.approx(np.array(colour), abs=4)
    with pytest.raises(EmoError, match="6 of 7 frames"):
        decode_video(file, {"key": "a", "frames": 7, "bias": [0, 0, 0]})


def script(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    importlib.import_module(name).main()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(presets.PRESETS, "mini", SMALL_MINI)
    return save_small(tmp_path / "small")


def test_a_run_packs_itself_trains_and_brings_its_weights_home(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pack, home = tmp_path / "data", tmp_path / "run.pack", tmp_path / "home"
    with ShardWriter(data, {"size": 256, "fps": 25}) as writer:
        for number in range(3):
            writer.add(
                pack_sample(
                    key=f"clip-{number}",
                    identity=f"person/{number}",
                    split="val" if number == 2 else "train",
                    frames=soft_frames(number),
                    labels=made_labels(number),
                    sound=np.random.default_rng(number).normal(0, 0.1, FRAMES * 640).astype("f4"),
                    source={},
                )
            )
    precompute.add_sound_features(data, model)
    script("pack_gpu_run", monkeypatch, "--data", data, "--model", model, "--out", pack)
    assert pack.stat().st_size < 300_000

    script(
        "gpu_run", monkeypatch, pack, "--out", home, "--work", tmp_path / "work", "--init", model,
        "--plan", "video:1", "distill:1", "--minutes", "30", "--steps", "4", "--trial", "5",
        "--batch", "2", "--device", "cpu", "--precision", "no", "--workers", "0",
    )  # fmt: skip
    names = {file.name for file in home.iterdir()}
    metrics = {"video-metrics.jsonl", "distill-metrics.jsonl"}
    assert {"ema-0.tar", "raw-0.tar", "preview.png"} | metrics <= names
    assert len(names) <= 8 and not any(name.endswith(".part") for name in names)
    losses = [json.loads(line) for line in (home / "video-metrics.jsonl").read_text().splitlines()]
    assert losses and all(np.isfinite(line["loss"]) for line in losses if "loss" in line)

    result = tmp_path / "result"
    with tarfile.open(home / "ema-0.tar") as tar:
        tar.extractall(result, filter="data")
    packed = tmp_path / "packed"
    assert cli.run(["train", "pack", str(model), str(result), "--out", str(packed)]) == 0
    before, after = (load_model(folder).state_dict() for folder in (model, packed))
    assert any(not before[name].equal(after[name]) for name in before)
    own = set()  # of the stage before, to train on from
    for file in home.glob("raw-*.tar"):
        with tarfile.open(file) as tar:
            own |= set(tar.getnames())
    parts = {"backbone", "reference_net", "temporal"}
    assert own == {f"{part}.safetensors" for part in parts} | {"SHA256SUMS"}


def test_training_needs_neither_ffmpeg_nor_mediapipe_nor_soundfile() -> None:
    """A rented machine has none of them: stages on latents import without."""
    code = (
        "import sys\n"
        "for name in ('av', 'ffmpeg', 'imageio_ffmpeg', 'mediapipe', 'soundfile'):\n"
        "    sys.modules[name] = None\n"
        "import emo_cli.training.denoising_stage, emo_cli.training.denoising_command\n"
        "import emo_cli.training.compact, emo_cli.training.pack, emo_cli.training.precompute\n"
        "from emo_cli.model.emo_model import EmoModel\n"
        "from small_models import SMALL_MINI\n"
        "EmoModel(SMALL_MINI)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
