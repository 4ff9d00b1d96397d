"""FSDP: two processes with parted weights learn, resume, measure and export as one process does."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_clips import write_clips
from safetensors.torch import load_file
from small_models import save_small
from test_stage_runs import train
from test_training_loop import (
    STAGE,
    Killed,
    TinyTask,
    assert_equal_runs,
    kill_after,
    metrics,
    result,
)

from emo_cli import cli
from emo_cli.errors import EmoError
from emo_cli.model.load import load_model
from emo_cli.training import loop
from emo_cli.training.checkpoint import load_weights
from emo_cli.training.stages import RunOptions

LAUNCH = Path(__file__).parent.parent / "scripts" / "launch" / "8_gpus_fsdp.yaml"
STAGES = ("video", "speed")  # one trains nearly all, the other temporal modules alone


def tiny(out: Path, *, micro_batches: int = 1, **options) -> None:
    """Train the small network of test_training_loop; its first layer is frozen."""
    task = TinyTask()
    task.module.net[2].p = 0  # dropout draws by place in the batch
    stage = dataclasses.replace(STAGE, trains=("net.*",))
    loop.train(
        task, stage, RunOptions(out=out, device="cpu", micro_batches=micro_batches), **options
    )


def stages(out: Path, model: Path, clips: Path) -> None:
    """Train stages by their commands, one after the other."""
    for stage in STAGES:
        assert cli.run(train(stage, 2, model, model, clips, out / stage)) == 0
        model = out / stage / "model"


def play(out: Path, model: Path, clips: Path) -> None:
    """What each of the two processes does."""
    tiny(out / "whole")
    with pytest.raises(Killed):
        tiny(out / "parts", report=kill_after(6))
    tiny(out / "parts")
    tiny(out / "micro", micro_batches=2)
    stages(out, model, clips)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("model"))  # fewer tensors than `full` has


@pytest.fixture(scope="module")
def clips(tmp_path_factory, model) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), model, size=64, latents=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory, model, clips) -> Path:
    """The runs of `play` by two gloo processes, launched with the file for eight GPUs."""
    out = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launch += ["--config_file", str(LAUNCH), "--num_processes", "2", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, __file__, str(out), str(model), str(clips)]
    subprocess.run(command, env=environment, timeout=600, check=True)
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory, model, clips) -> Path:
    """The same by this process alone."""
    out = tmp_path_factory.mktemp("one")
    tiny(out / "whole")
    stages(out, model, clips)
    return out


def test_each_process_keeps_half_of_weights_and_moments(two):
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        folder = two / "video" / "checkpoints" / "step-00000003" / name
        sizes = [file.stat().st_size for file in folder.glob("*.distcp")]
        # Tensors of few rows do not halve exactly.
        assert len(sizes) == 2 and min(sizes) > 0.7 * max(sizes)


@pytest.mark.parametrize("run", ["whole", "micro"])
def test_parted_weights_give_the_loss_curve_of_one_process(one, two, run):
    """Losses, the gradient's norm over all parts, and what the averages measure."""
    for ours, theirs in zip(metrics(two / run), metrics(one / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, tensor in result(one / "whole").items():
        torch.testing.assert_close(result(two / run)[name], tensor, atol=1e-5, rtol=1e-4)
    frozen = TinyTask().module.frozen_part.weight
    assert torch.equal(result(two / run)["frozen_part.weight"], frozen)


def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(two):
    assert_equal_runs(two / "whole", two / "parts")


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_parted_weights_train_as_in_one_process(one, two, stage):
    ours, theirs = (metrics(out / stage)[-1] for out in (two, one))
    for name in ("loss", "plain", "gradient_norm", "val_plain"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    for file in (one / stage / "model").glob("*.safetensors"):
        ours, theirs = load_file(two / stage / "model" / file.name), load_file(file)
        far = [(ours[n] - t).abs().float().flatten() > 1e-3 for n, t in theirs.items()]
        # Adam makes a whole step of a gradient that is nothing but rounding; files are fp16.
        assert torch.cat(far).float().mean() < 0.01
    assert stage in load_model(two / stage / "model").config.trained_stages


def test_a_stopped_run_of_parted_weights_is_packed(two, model, tmp_path, capsys):
    run = Path(shutil.copytree(two / "speed", tmp_path / "run"))
    shutil.rmtree(run / "model")
    command = ["train", "pack", str(model), str(run), "--out", str(tmp_path / "packed")]
    assert cli.run(command) == 0
    name = "temporal.safetensors"
    ours, theirs = load_file(tmp_path / "packed" / name), load_file(two / "speed" / "model" / name)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())

    weights = run / "checkpoints" / "step-00000003" / "pytorch_model_fsdp_0" / "__1_0.distcp"
    weights.write_bytes(weights.read_bytes()[:100])
    assert cli.run(command) == 1
    assert "step-00000003 is damaged" in capsys.readouterr().err


def test_weights_of_a_checkpoint_are_those_that_trained(one, two):
    checkpoint = Path("whole") / "checkpoints" / "step-00000008"
    ours, theirs = load_weights(two / checkpoint), load_weights(one / checkpoint)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4)


def test_whole_weights_do_not_go_on_from_parted_ones(two, tmp_path):
    run = shutil.copytree(two / "whole", tmp_path / "run")
    with pytest.raises(EmoError, match="step-00000010 was saved with FSDP"):
        tiny(Path(run))


if __name__ == "__main__":
    play(*map(Path, sys.argv[1:]))
