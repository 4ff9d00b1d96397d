"""The stages on tiny networks of `--model CONFIG`: exact resume, memory savers, several processes,
and what goes wrong."""

import dataclasses
import errno
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_clips import write_clips
from safetensors import SafetensorError
from safetensors.torch import load_file
from small_models import SMALL_FULL, SMALL_MINI, save_small

from emo_cli import cli
from emo_cli.config import read_model_config, to_json
from emo_cli.errors import EmoError
from emo_cli.training import denoising_command
from emo_cli.training.clip_samples import ClipSamples
from emo_cli.training.denoising_command import Sources, run_stage
from emo_cli.training.options import model_config
from emo_cli.training.stages import RunOptions, stage_row
from emo_cli.training.variation import AS_IT_IS

STAGE = dataclasses.replace(
    stage_row("video", "mini"),
    steps=4,
    batch=2,
    warmup_steps=1,
    report_every=1,
    evaluate_every=2,
    checkpoint_every=2,
)


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory, model) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), model, size=64, latents=True)


def video(out, model, clips, *, config=None, kill_at=None, window=None, **options) -> Path:
    """Four steps of stage video, as its command makes them; returns the run."""

    def watch(done, values):
        if done == kill_at:
            raise Killed

    sources = Sources(data=[str(clips)], inits=[model], window=window, variation=AS_IT_IS)
    chosen = RunOptions(out=out, device="cpu", threads=1, **options)
    config = config or model_config(str(model))
    run_stage(STAGE, chosen, config, sources, preview=False, watch=watch)
    return out


@pytest.fixture(scope="module")
def straight(tmp_path_factory, model, clips) -> Path:
    return video(tmp_path_factory.mktemp("straight"), model, clips)


def metrics(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def assert_same_run(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    ours, theirs = weights(a, 4), weights(b, 4)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stopped_stage_ends_as_the_one_that_was_not_bit_for_bit(straight, model, clips, tmp_path):
    with pytest.raises(Killed):
        video(tmp_path, model, clips, kill_at=3)
    assert_same_run(video(tmp_path, model, clips), straight)
    assert [line["step"] for line in metrics(straight)] == [1, 2, 3, 4]
    assert not all(torch.equal(t, weights(straight, 4)[n]) for n, t in weights(straight, 2).items())


def test_gradient_checkpointing_changes_nothing_that_is_learnt(straight, model, clips, tmp_path):
    assert_same_run(video(tmp_path, model, clips, gradient_checkpointing=True), straight)


def test_a_stage_in_micro_batches_learns_as_from_whole_batches(straight, model, clips, tmp_path):
    parts = metrics(video(tmp_path, model, clips, micro_batches=2))
    for name in ("loss", "plain", "gradient_norm"):
        ours, whole = ([line[name] for line in lines] for lines in (parts, metrics(straight)))
        assert ours == pytest.approx(whole, rel=1e-3)


def test_a_stage_learns_on_windows_of_cached_latents(straight, model, clips, tmp_path):
    lines = metrics(video(tmp_path, model, clips, window=4))
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[0]["loss"] != metrics(straight)[0]["loss"]
    assert lines[1]["val_plain"] == pytest.approx(metrics(straight)[1]["val_plain"], rel=0.2)


# ------------------------------------------------------------------------------ --model CONFIG


def test_a_stage_of_own_sizes_is_packed_from_its_checkpoint(straight, model, tmp_path):
    """Its record has the sizes: the preset's would not fit."""
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    shutil.rmtree(run / "model")
    out = tmp_path / "packed"
    assert cli.run(["train", "pack", str(model), str(run), "--out", str(out)]) == 0
    assert read_model_config(out / "config.json").unet == SMALL_MINI.unet


def test_resuming_with_another_config_names_what_differs(straight, model, clips):
    speed = dataclasses.replace(SMALL_MINI.speed, gain=0.5)  # of the weights' shapes
    other = dataclasses.replace(model_config(str(model)), speed=speed)
    said = rf"options: config\.speed\.gain was {SMALL_MINI.speed.gain}, now 0\.5$"
    with pytest.raises(EmoError, match=said):
        video(straight, model, clips, config=other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no preset and"),
        ("{", "cannot read"),
        ('{"format": 1}', "'audio' is missing"),
        (to_json(dataclasses.replace(SMALL_MINI, name="mine")), "has the name 'mine'"),
    ],
)
def test_a_config_that_will_not_do_is_named(text, said, tmp_path, capsys):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    options = ["--data", "D", "--init", "I", "--out", str(tmp_path / "run")]
    assert cli.run(["train", "image", "--model", str(file), *options]) > 0
    err = capsys.readouterr().err
    assert said in err and err.count("error:") == 1 and "Traceback" not in err


# -------------------------------------------------------------------------- what goes wrong


def refused(stage, out, clips, init, config, capsys) -> str:
    """What the command says as it refuses to run: one error, one hint."""
    file = out / "wanted.json"
    file.write_text(to_json(config))
    command = ["train", stage, "--model", str(file), "--data", str(clips), "--init", str(init)]
    assert cli.run([*command, "--out", str(out / "run"), "--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    return err


def test_a_run_in_place_of_its_result_is_pointed_to_it(straight, clips, tmp_path, capsys):
    said = refused("speed", tmp_path, clips, straight, SMALL_MINI, capsys)
    assert f"--init {straight} holds no parts of a model" in said
    assert f"hint: Name {straight / 'model'}." in said


def test_weights_of_other_sizes_are_named_on_one_line(model, clips, tmp_path, capsys):
    wider = dataclasses.replace(SMALL_MINI.unet, widths=(32, 64, 64))
    wanted = dataclasses.replace(SMALL_MINI, unet=wider)
    assert "has shape" in refused("video", tmp_path, clips, model, wanted, capsys)


def test_weights_of_the_other_preset_are_named_on_one_line(model, clips, tmp_path, capsys):
    said = refused("video", tmp_path, clips, model, SMALL_FULL, capsys)
    assert "safetensors does not fit" in said and "more)" in said


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device", "RUN/metrics.jsonl"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_wherever_it_is_met(problem, tmp_path, monkeypatch, capsys):
    def fill_disk(*arguments, **options):
        raise problem

    monkeypatch.setattr(denoising_command, "run_stage", fill_disk)
    options = ["--data", "D", "--init", "I", "--out", str(tmp_path)]
    assert cli.run(["train", "video", *options]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: the disk is full") and "run the same command again" in hint


def test_held_out_clips_that_are_silent_are_left_out_and_said(model, tmp_path, capsys):
    splits = ("train", "train", "val")
    clips = write_clips(tmp_path / "clips", model, size=64, splits=splits, silent=("val",))
    run = video(tmp_path / "run", model, clips)
    said = [line for line in capsys.readouterr().err.splitlines() if "held-out" in line]
    assert len(said) == 1 and "has sound, which this stage needs" in said[0]
    assert "val_plain" not in metrics(run)[-1] and "loss" in metrics(run)[-1]


def test_held_out_clips_are_spread_over_the_datasets_and_along_each():
    samples = ClipSamples([range(100), range(50), range(7), range(1)], SMALL_MINI)
    drawn = [divmod(index, 4) for index in samples.spread(12)]
    assert [which for _, which in drawn] == [0, 1, 2, 3] * 3
    assert [place for place, which in drawn if which == 0] == [0, 33, 66]
    assert [place for place, which in drawn if which == 2] == [0, 2, 4]
    assert [place for place, which in drawn if which == 3] == [0, 0, 0]
    assert max(samples.spread(12)) < len(samples)


# ------------------------------------------------------------------------- two processes


def train(stage, batch, init, config, clips, out) -> list[str]:
    return ["train", stage, "--model", str(config), "--data", str(clips), "--init", str(init),
            "--out", str(out), "--steps", "3", "--batch", str(batch), "--lr", "0.05",
            "--device", "cpu", "--threads", "1", "--no-preview"]  # fmt: skip


def launch_two(command: list[str]) -> int:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "emo_cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*launch, *command], env=environment, timeout=600).returncode


def test_two_processes_train_image_and_then_video_as_one_does(tmp_path):
    """`full`'s layout: every process waits for the gradient of all that trains."""
    model = save_small(tmp_path / "model", SMALL_FULL)
    clips = write_clips(tmp_path / "clips", model, size=64, latents=True)
    init = model
    for stage, batch in (("image", 4), ("video", 2)):
        one, two = tmp_path / f"{stage}-1", tmp_path / f"{stage}-2"
        assert cli.run(train(stage, batch, init, model, clips, one)) == 0
        assert launch_two(train(stage, batch, init, model, clips, two)) == 0
        for name in ("loss", "plain", "gradient_norm", "val_plain"):
            assert metrics(two)[-1][name] == pytest.approx(metrics(one)[-1][name], rel=1e-3)
        ours, theirs = (
            torch.cat([t.flatten() for t in weights(r, 3).values()]) for r in (one, two)
        )
        # Adam makes a whole step of a gradient that is nothing but rounding.
        assert ((ours - theirs).abs() > 2e-5).float().mean() < 0.01
        init = two / "model"
