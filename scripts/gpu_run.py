"""Train on a rented GPU from what `pack_gpu_run.py` packed; needs no network there.

    python scripts/gpu_run.py gpu_run.pack --out OUT --plan video:6 speed:1 distill:2 --minutes 9

Unpacks into a dataset of latents, trains each stage of the plan for its share of the minutes (the
number of steps is timed first, so that the rate's decay comes to its end), and puts into OUT, after
every minute, files of at most 15 MiB:

    ema-N.tar  averaged weights, fp16       raw-N.tar  the weights themselves, before `distill`
    STAGE-metrics.jsonl                     preview.png

At home: `tar xf` all ema-*.tar into RESULT, then `emo train pack mini-folder RESULT --out MODEL`.
Python, PyTorch, NumPy, safetensors and OpenCV must be there, accelerate, transformers, typer, rich
and fsspec too, unless the pack carries them (its --site).
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from unpack_gpu_run import unpack

STARTED = time.monotonic()
FILE_BYTES = 15 << 20
WARM = 0.4  # of the trial's steps come before the clock
SAVE_S = 60
TAUGHT_STEPS = (4, 2)  # of the teacher and of the student, as in train_mini.py
HELD_BACK = 0.9  # of the time is planned for steps: saving and measuring need the rest


class OutOfTime(Exception):
    """The minutes are over; the newest checkpoint is what counts."""


def main() -> None:
    options = parse()
    folder = open_pack(options)
    data = unpack(options, folder, say)
    stop = STARTED + 60 * options.minutes
    shares = [part.partition(":") for part in options.plan]
    whole = sum(float(share) for _, _, share in shares)
    init, spent = options.init, time.monotonic()
    for name, _, share in shares:
        until = min(stop, time.monotonic() + (stop - spent) * float(share) / whole)
        init = train(options, name, data, init, until)
    print(f"done after {time.monotonic() - STARTED:.0f} s", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "gpu_run")
    parser.add_argument("--init", type=Path, help="model folder to start from [the embedded one]")
    parser.add_argument("--plan", nargs="+", default=["video:6", "speed:1", "distill:2"])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--window", type=int)
    parser.add_argument("--variants", type=int, default=2, help="looks of each training clip")
    parser.add_argument("--steps", type=int, default=10**9, help="of each stage, at most")
    parser.add_argument("--trial", type=int, default=40, help="steps to time, at least 3")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def open_pack(options: argparse.Namespace) -> Path:
    """Lay the pack's members out, and make Python see what it carries and this repository."""
    folder = options.work / "pack"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.pack) as tar:
        tar.extractall(folder, filter="data")
    with tarfile.open(folder / "site.tar.xz") as tar:
        tar.extractall(folder / "site", filter="data")
    # At the end: what is installed here fits this machine better.
    sys.path.append(str(folder / "site"))
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    from emo_cli.model.load import EMBEDDED

    options.init = options.init or EMBEDDED
    options.out.mkdir(parents=True, exist_ok=True)
    return folder


def train(options: argparse.Namespace, name: str, data: Path, init: Path, until: float) -> Path:
    """One stage until `until`; returns the model's folder."""
    from emo_cli.presets import PRESETS
    from emo_cli.training.denoising_command import Sources, run_stage
    from emo_cli.training.distillation import Teaching
    from emo_cli.training.stages import RunOptions, stage_row, with_options
    from emo_cli.training.variation import Variation

    config = PRESETS["mini"]
    guidance = config.diffusion.guidance, config.diffusion.audio_guidance
    teaching = Teaching(*guidance, *TAUGHT_STEPS) if name == "distill" else None
    lr = None if name == "distill" else options.lr  # a student begins as what it is to become
    row = with_options(stage_row(name, "mini"), batch=options.batch, lr=lr)
    sources = Sources(
        data=[str(data)],
        inits=[init],
        window=options.window if name != "image" else None,
        variation=Variation(references=True),
    )

    def run(stage: Any, out: Path, watch: Any, preview: bool) -> Path:
        chosen = RunOptions(
            out=out,
            seed=options.seed,
            device="cpu" if options.device == "cpu" else "auto",
            precision=options.precision,
            workers=options.workers,
        )
        return run_stage(
            stage, chosen, config, sources, preview=preview, watch=watch, teaching=teaching
        )

    rate = time_steps(row, max(3, options.trial), options.work / f"{name}-trial", run)
    planned = int(rate * HELD_BACK * (until - time.monotonic()))
    steps = max(1, min(planned, options.steps))
    every = row.report_every * max(1, round(rate * SAVE_S / row.report_every))
    stage = dataclasses.replace(row, steps=steps, checkpoint_every=every, evaluate_every=2 * every)
    say(f"{name}: {rate:.2f} steps a second, {steps} steps")
    out = options.work / name
    watch = Watch(options.out, out, name, every, steps, until)
    try:
        model = run(stage, out, watch, True)
    except OutOfTime:
        say(f"{name}: out of time")
        return collect_last(options.out, out, name, init)
    bring_home(options.out, out, name)
    return model


def time_steps(row: Any, count: int, out: Path, run: Any) -> float:
    """Steps a second, once the machine is warm; what comes after the last one is not timed."""
    times: dict[int, float] = {}

    def watch(step: int, values: dict[str, float]) -> None:
        times[step] = time.monotonic()

    rare = 1000 * row.report_every
    trial = dataclasses.replace(row, steps=count, evaluate_every=rare, checkpoint_every=rare)
    shutil.rmtree(out, ignore_errors=True)
    run(trial, out, watch, False)
    shutil.rmtree(out, ignore_errors=True)
    first, last = max(1, int(WARM * count)), count - 1
    return (last - first) / (times[last] - times[first])


@dataclasses.dataclass
class Watch:
    """Brings checkpoints home as they come, and stops a run whose time is over."""

    home: Path
    run: Path
    name: str
    every: int
    steps: int
    until: float

    def __call__(self, step: int, values: dict[str, float]) -> None:
        if step % self.every == 0:
            bring_home(self.home, self.run, self.name)
        if step < self.steps and time.monotonic() > self.until:
            raise OutOfTime


def bring_home(home: Path, run: Path, name: str) -> None:
    """The newest checkpoint as fp16, averaged and as it is, and what was measured.

    Weights as they are serve to train on from: those of a student never come.
    """
    from emo_cli.presets import MINI
    from emo_cli.training.pack import write_checkpoint

    checkpoint = max((run / "checkpoints").glob("step-" + "[0-9]" * 8))
    kinds = {"ema": True} if name == "distill" else {"ema": True, "raw": False}
    for kind, averaged in kinds.items():
        folder = run / kind
        write_checkpoint(checkpoint, MINI, folder, averaged=averaged)
        bundle(folder, home, kind)
    shutil.copyfile(run / "metrics.jsonl", home / f"{name}-metrics.jsonl")
    previews = sorted((run / "previews").glob("*.png"))
    if previews:
        shutil.copyfile(previews[-1], home / "preview.png")
    say(f"{name}: brought {checkpoint.name} home")


def collect_last(home: Path, run: Path, name: str, init: Path) -> Path:
    """A model of the newest checkpoint; without one, what the stage began with."""
    from emo_cli.training.pack import pack_model

    if not any((run / "checkpoints").glob("step-" + "[0-9]" * 8)):
        return init
    bring_home(home, run, name)
    if name == "distill":  # whose place is the last: nothing starts from it
        return init
    pack_model([init, run], run / "stopped", unfinished=True)
    return run / "stopped"


def bundle(folder: Path, home: Path, name: str) -> None:
    """Files of a folder as few tars of at most FILE_BYTES each, the largest first."""
    groups: list[list[Path]] = []
    for file in sorted(folder.iterdir(), key=lambda f: -f.stat().st_size):
        size = tar_bytes(file)
        fits = [g for g in groups if sum(map(tar_bytes, g)) + size <= FILE_BYTES - 10240]
        if fits:
            fits[0].append(file)
        else:
            groups.append([file])
    for number, group in enumerate(groups):
        part = home / f"{name}-{number}.part"
        with tarfile.open(part, "w") as tar:
            for file in group:
                tar.add(file, arcname=file.name)
        part.replace(home / f"{name}-{number}.tar")  # a kill leaves the older one whole


def tar_bytes(file: Path) -> int:
    return 1024 + file.stat().st_size


def say(line: str) -> None:
    print(f"{time.monotonic() - STARTED:6.0f} s  {line}", flush=True)


if __name__ == "__main__":
    main()
