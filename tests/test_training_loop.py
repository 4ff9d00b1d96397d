"""The training loop: exact resume, safe checkpoints, frozen parts, and stage `autoencoder`."""

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from emo_cli.errors import EmoError
from emo_cli.model.load import write_part
from emo_cli.presets import MINI
from emo_cli.training import commands, draws, loop, splits
from emo_cli.training.pictures import find_pictures, open_picture_cache, random_crop
from emo_cli.training.precompute import latents_name
from emo_cli.training.run_log import RunLog
from emo_cli.training.stages import AUTOENCODER, RunOptions, Stage

STAGE = dataclasses.replace(
    AUTOENCODER,
    name="tiny",
    steps=10,
    batch=4,
    lr=0.05,
    warmup_steps=3,
    report_every=2,
    evaluate_every=5,
    checkpoint_every=4,
)


class TinyLoss(nn.Module):
    """A network with all that resume must bring back: dropout, drawn noise, a frozen part."""

    def __init__(self, nan_from: float = math.inf) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen_part = nn.Linear(3, 8)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.nan_from = nan_from
        self.num_calls = 0

    def forward(self, batch):
        self.num_calls += 1
        noise = draws.sample_noise(batch["seed"], "noise", (3,), batch["x"])
        predicted = self.net(self.frozen_part(batch["x"] + 0.1 * noise))
        loss = (predicted - batch["x"].sum(dim=1, keepdim=True)).square().mean()
        return {"loss": loss * (math.nan if self.num_calls >= self.nan_from else 1)}


class TinyTask:
    """Seven samples, so that a batch of four runs over the end of an epoch."""

    def __init__(self, **options) -> None:
        self.module = TinyLoss(**options)
        self.samples = self

    def __len__(self) -> int:
        return 7

    def __getitem__(self, drawn):
        generator = torch.Generator().manual_seed(drawn.seed)
        return {"x": drawn.index + torch.randn(3, generator=generator)}

    def evaluate(self, module):
        torch.rand(3)  # measures may use the global generator; training must not notice
        assert not module.training
        return {"weight": float(module.net[0].weight.sum())}

    def export(self, module, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), folder / "tiny.safetensors")


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def kill_after(step: int):
    def report(done, values):
        if done == step:
            raise Killed

    return report


def run(out: Path, *, task=None, stage: Stage = STAGE, seed: int = 0, **options) -> Path:
    task = task or TinyTask()
    return loop.train(task, stage, RunOptions(out=out, seed=seed, device="cpu"), **options)


def result(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "tiny.safetensors")


def metrics(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def assert_equal_runs(a: Path, b: Path) -> None:
    for name, tensor in result(a).items():
        assert torch.equal(tensor, result(b)[name]), name
    assert metrics(a) == metrics(b)


@pytest.mark.parametrize("killed_at", [3, 4, 7])
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, killed_at):
    run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "parts", report=kill_after(killed_at))
    run(tmp_path / "parts")
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    assert [line["step"] for line in metrics(tmp_path / "whole")] == [2, 4, 5, 6, 8, 10]


def test_another_seed_gives_another_result(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", seed=1)
    name = "net.0.weight"
    assert not torch.equal(result(tmp_path / "a")[name], result(tmp_path / "b")[name])


def test_a_finished_run_is_not_trained_again(tmp_path):
    run(tmp_path)
    task = TinyTask()
    run(tmp_path, task=task)
    assert task.module.num_calls == 0


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    whole, parts = TinyTask(), TinyTask()
    for task, out, num in ((whole, tmp_path / "1", 1), (parts, tmp_path / "2", 2)):
        task.module.net[2].p = 0  # dropout draws by place in the batch
        options = RunOptions(out=out, device="cpu", micro_batches=num)
        loop.train(task, STAGE, options)
    for name, tensor in result(tmp_path / "1").items():
        torch.testing.assert_close(tensor, result(tmp_path / "2")[name], atol=1e-5, rtol=1e-4)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    options = RunOptions(out=tmp_path, device="cpu", micro_batches=3)
    with pytest.raises(EmoError, match="batch of 4 does not divide"):
        loop.train(TinyTask(), STAGE, options)


def test_only_named_parameters_train(tmp_path):
    before = {n: t.clone() for n, t in TinyTask().module.state_dict().items()}
    run(tmp_path, stage=dataclasses.replace(STAGE, trains=("net.3.*",)))
    changed = {n for n, t in result(tmp_path).items() if not torch.equal(t, before[n])}
    assert changed == {"net.3.weight", "net.3.bias"}


def test_resuming_with_other_options_names_the_difference(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, report=kill_after(5))
    with pytest.raises(EmoError, match=r"lr was 0\.05, now 0\.1"):
        run(tmp_path, stage=dataclasses.replace(STAGE, lr=0.1))
    with pytest.raises(EmoError, match="data was None, now 'x'"):
        run(tmp_path, fingerprint={"data": "x"})
    run(tmp_path, stage=dataclasses.replace(STAGE, evaluate_every=3))  # does not change the result


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(EmoError, match="loss is nan by step 6.*step-00000004"):
        run(tmp_path, task=TinyTask(nan_from=5))
    weights = load_file(tmp_path / "checkpoints" / "step-00000004" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "model").exists()
    run(tmp_path / "whole")
    run(tmp_path)  # the cause is gone: the run goes on as if nothing had been
    assert_equal_runs(tmp_path, tmp_path / "whole")


class DamagedTask(TinyTask):
    def __getitem__(self, drawn):
        if drawn.index == 3:
            raise EmoError("sample 3 is damaged", "Prepare it again.")
        return super().__getitem__(drawn)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_one_line_and_a_hint_in_a_worker_too(tmp_path, workers):
    options = RunOptions(out=tmp_path, seed=0, device="cpu", workers=workers)
    with pytest.raises(EmoError) as problem:
        loop.train(DamagedTask(), STAGE, options)
    assert problem.value.message == "sample 3 is damaged"
    assert problem.value.hint == "Prepare it again."


def test_a_full_disk_leaves_the_old_checkpoint_and_one_line(tmp_path, monkeypatch):
    save_state = Accelerator.save_state

    def fill_disk(self, folder):
        if folder.endswith("step-00000008.partial"):
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_state(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", fill_disk)
        with pytest.raises(EmoError, match="the disk is full"):
            run(tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000004"]
    run(tmp_path)
    run(tmp_path / "whole")
    assert_equal_runs(tmp_path, tmp_path / "whole")


@pytest.mark.parametrize(
    ("owner", "writer"), [(RunLog, "write"), (RunLog, "picture"), (TinyTask, "export")]
)
def test_a_disk_that_is_full_elsewhere_leaves_the_old_checkpoint(
    tmp_path, monkeypatch, owner, writer
):
    written = getattr(owner, writer)

    def fill_disk(self, *arguments):
        if writer == "export" or arguments[0] == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(self, *arguments)

    def show(module):
        return np.zeros((2, 2, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(owner, writer, fill_disk)
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path, show=show)
    assert "step-00000008" in os.listdir(tmp_path / "checkpoints")
    run(tmp_path, show=show)
    run(tmp_path / "whole")
    assert_equal_runs(tmp_path, tmp_path / "whole")


def test_a_kill_while_saving_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    def killed(self, folder):
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, report=kill_after(6))
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", killed)
        with pytest.raises(Killed):
            run(tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000008.partial").exists()
    run(tmp_path)
    run(tmp_path / "whole")
    assert_equal_runs(tmp_path, tmp_path / "whole")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, report=kill_after(9))
    newest = tmp_path / "checkpoints" / "step-00000008"
    (newest / "optimizer.bin").write_bytes(b"PK cut short")
    with pytest.raises(EmoError, match="step-00000008 is damaged"):
        run(tmp_path)
    newest.rename(tmp_path / "away")
    run(tmp_path)
    run(tmp_path / "whole")
    assert_equal_runs(tmp_path, tmp_path / "whole")


def launch_two(tmp_path: Path, run_folder: Path, *, kill_at: int | None = None) -> int:
    """Train on two gloo processes; the second one may kill itself. Returns the exit code."""
    script = tmp_path / "two.py"
    script.write_text(
        "import os, signal, sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training_loop import TinyTask, run\n"
        "task = TinyTask(); task.module.net[2].p = 0\n"
        "def report(step, values):\n"
        f"    if step == {kill_at} and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "run(Path(sys.argv[1]), task=task, report=report)\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += ["--master_port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*launch, str(script), str(run_folder)], env=env, timeout=300).returncode


def test_two_processes_give_the_loss_curve_of_one(tmp_path):
    assert launch_two(tmp_path, tmp_path / "2") == 0
    task = TinyTask()
    task.module.net[2].p = 0
    run(tmp_path / "1", task=task)
    for one, two in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(tmp_path):
    assert launch_two(tmp_path, tmp_path / "2", kill_at=6) != 0
    assert sorted(os.listdir(tmp_path / "2" / "checkpoints"))[0] == "step-00000004"
    assert not (tmp_path / "2" / "model").exists()
    assert launch_two(tmp_path, tmp_path / "2") == 0
    task = TinyTask()
    task.module.net[2].p = 0
    run(tmp_path / "1", task=task)
    for one, two in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_every_sample_comes_once_an_epoch_and_epochs_differ():
    orders = [[draws.draw(3, 7 * e + i, 7).index for i in range(7)] for e in range(3)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_processes_and_micro_batches_share_one_batch_without_overlap():
    whole = next(_micro_batches(num_processes=1, micro=1))
    for num_processes, micro in ((2, 1), (1, 4), (2, 2)):
        parts = []
        for process in range(num_processes):
            stream = _micro_batches(num_processes=num_processes, micro=micro, process=process)
            parts += [drawn for _ in range(micro) for drawn in next(stream)]
        assert sorted(d.seed for d in parts) == sorted(d.seed for d in whole)


def _micro_batches(*, num_processes: int, micro: int, process: int = 0):
    share = draws.Share(process=process, num_processes=num_processes, micro_batches=micro)
    return draws.micro_batches(0, 5, 6, 8, 100, share)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    seeds = torch.tensor([5, 6, 7])
    whole = draws.sample_noise(seeds, "noise", (2, 3), torch.zeros(1))
    assert torch.equal(draws.sample_noise(seeds[1:2], "noise", (2, 3), torch.zeros(1)), whole[1:2])
    other = draws.sample_noise(seeds, "other", (2, 3), torch.zeros(1))
    assert not torch.equal(other, whole)


def test_learning_rate_warms_up_and_decays_to_its_floor():
    stage = dataclasses.replace(STAGE, steps=100, warmup_steps=10, lr=1.0, final_lr=0.1)
    rates = [loop.learning_rate(stage, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in zip(rates[9:], rates[10:], strict=False))
    constant = dataclasses.replace(stage, final_lr=1.0)
    assert loop.learning_rate(constant, 99) == pytest.approx(1.0)


def test_an_absent_device_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(EmoError, match="--device cuda"):
        loop.train(TinyTask(), STAGE, RunOptions(out=tmp_path, device="cuda"))


def test_held_out_is_decided_by_the_file_name_alone():
    assert splits.is_held_out(Path("anywhere/london/002_smile.jpg"))
    assert not splits.is_held_out(Path("anywhere/canada/002_smile.jpg"))
    assert splits.is_held_out(Path("grid_s1/bbas2p.align"))
    assert splits.identity(Path("x/london/002_smile.jpg")) == "london/002"
    others = [splits.is_held_out(Path(f"mine/{i}.png")) for i in range(2000)]
    assert 60 < sum(others) < 140


def test_held_out_lists_follow_their_rule_on_shared_data(shared_data):
    for folder, num in (("portraits/london", 10), ("portraits/canada", 10), ("grid_s1", 40)):
        files = [f for f in (shared_data / folder).iterdir() if f.suffix != ".align"]
        names = {splits.identity(file) for file in files}
        first = sorted(names, key=splits.name_hash)[:num]
        held_out = {splits.identity(file) for file in files if splits.is_held_out(file)}
        assert held_out == set(first)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """London's folder in small: pictures of twelve people, two of them held out, one broken."""
    folder = tmp_path / "london"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for person in (2, 16, *range(200, 210)):
        coarse = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
        coarse.resize((128, 144), Image.Resampling.BICUBIC).save(folder / f"{person:03d}_x.png")
    (folder / "300_x.png").write_bytes(b"no picture")
    return folder


def test_held_out_people_are_cached_apart_and_broken_files_dropped(tmp_path, pictures):
    said: list[str] = []
    cache = open_picture_cache([pictures], tmp_path / "cache", said.append)
    held_out = [Path(files[0].file).name for files in cache.files(0, held_out=True)]
    assert held_out == ["002_x.png", "016_x.png"]
    assert len(cache.files(0, held_out=False)) == 10
    assert any("300_x.png" in line for line in said)
    said.clear()
    open_picture_cache([pictures], tmp_path / "cache", said.append)
    assert said == []  # the second time nothing is decoded


def test_a_video_gives_two_of_its_frames_and_a_truncated_one_none(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        for shade in range(20):
            picture = np.full((64, 64, 3), 10 * shade, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    (folder / "b.mp4").write_bytes((folder / "a.mp4").read_bytes()[:600])
    said: list[str] = []
    cache = open_picture_cache([folder], tmp_path / "cache", said.append)
    shades = [float(cache[stored].mean()) for stored in cache.stored]
    assert shades == pytest.approx([50, 150], abs=12)  # at 1/4 and 3/4 of the duration
    assert any("dropped" in line and "b.mp4" in line for line in said)


def test_crops_are_pure_functions_of_their_seed_and_stay_in_range():
    picture = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    crops = [random_crop(picture, 96, seed) for seed in (1, 1, 2)]
    assert np.array_equal(crops[0], crops[1])
    assert not np.array_equal(crops[0], crops[2])
    assert crops[0].shape == (3, 96, 96) and np.abs(crops[0]).max() <= 1


def test_the_autoencoder_command_trains_resumes_and_writes_a_model(tmp_path, pictures, capsys):
    out = tmp_path / "run"
    for _ in range(2):  # the second run finds everything done
        commands.autoencoder(pictures=[pictures], out=out, steps=3, batch=2, device="cpu")
    file = out / "model" / "autoencoder.safetensors"
    assert capsys.readouterr().out.split() == [str(file)] * 2
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    from emo_cli.model.autoencoder import build_autoencoder

    build_autoencoder(MINI.autoencoder).load_state_dict(tensors, strict=True)
    last = metrics(out)[-1]
    assert last["step"] == 3
    assert last["psnr_london"] > last["psnr_noise10_london"] > 20
    with pytest.raises(EmoError, match="batch was 2, now 4"):
        commands.autoencoder(pictures=[pictures], out=out, steps=3, batch=4, device="cpu")


@pytest.mark.parametrize("critic", [False, True])
def test_the_decoder_command_leaves_latents_as_they_are(tmp_path, pictures, critic):
    first, out = tmp_path / "autoencoder", tmp_path / "decoder"
    commands.autoencoder(pictures=[pictures], out=first, steps=2, batch=2, device="cpu")
    begun = first / "model"
    more = {"pictures": [pictures], "init": begun, "critic": critic, "steps": 2, "device": "cpu"}
    for _ in range(2):  # the second run finds everything done
        commands.decoder(out=out, batch=2, **more)
    last = metrics(out)[-1]
    assert ("critic" in last) == ("features" in last) == critic and last["psnr_london"] > 20
    old, new = (load_file(f / "autoencoder.safetensors") for f in (begun, out / "model"))
    assert old.keys() == new.keys()
    for name in old:
        rests = name.startswith(("encoder.", "linear_encoder."))
        assert torch.equal(old[name], new[name]) == rests, name
    assert latents_name(begun) == latents_name(out / "model")  # cached ones still serve
    changed = {n: t + 1 if n == "linear_encoder.bias" else t for n, t in new.items()}
    write_part(tmp_path, "autoencoder", changed, dtype=torch.float16)
    assert latents_name(begun) != latents_name(tmp_path)
    (begun / "autoencoder.safetensors").write_bytes(b"cut short")
    with pytest.raises(EmoError, match="wrong digest"):
        commands.decoder(out=tmp_path / "x", **more)


def test_the_autoencoder_learns_in_bf16_with_losses_in_fp32(tmp_path, pictures):
    runs = {}
    for precision in ("no", "bf16"):
        out = tmp_path / precision
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
        commands.autoencoder(
            pictures=[pictures], out=out, steps=2, batch=2, device="cpu", precision=precision
        )
        runs[precision] = metrics(out)[-1]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert runs["bf16"]["loss"] != runs["no"]["loss"]
    assert runs["bf16"]["loss"] == pytest.approx(runs["no"]["loss"], rel=0.05)
    with pytest.raises(EmoError, match="'fp16' is no precision"):
        commands.autoencoder(pictures=[pictures], out=tmp_path / "x", precision="fp16")


def test_links_that_lead_nowhere_are_passed_over(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]


def test_a_folder_without_pictures_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmoError, match="empty holds no picture"):
        commands.autoencoder(pictures=[tmp_path / "empty"], out=tmp_path / "run")
    with pytest.raises(EmoError, match="absent does not exist"):
        commands.autoencoder(pictures=[tmp_path / "absent"], out=tmp_path / "run")
