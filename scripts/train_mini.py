"""Make the weights of `mini` from its data: every stage, by the public commands, in order.

    python scripts/train_mini.py --data DATA --teacher WHISPER --out RUNS

DATA holds portraits/london, portraits/canada, portraits/faker, grid_s1, audio and
ict_facekit_light.npz (docs/model-card.md names their sources); WHISPER is a folder of Whisper tiny.
Run it again to go on: finished steps are passed over, a stopped one resumes. --dry-run prints the
commands; --tiny runs all of them on a few files for a step or two, to see that they work.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PORTRAITS = ("london", "canada", "faker")
PUPPET_SETS = 4  # stages draw from each dataset equally often: one window in five is of real video
# glibc asks for large pages and keeps what it has: a training step on a CPU takes a fifth less.
LARGE_PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:"
    "glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456"
}
WHOLE = ("--steps", "1640", "--batch", "4", "--lr", "3e-4")
# Of people it never saw a small network draws worse than it learns to believe.
LEAN = ("--lean", "2")
# Learnt, and so free of charge.
GUIDANCE = ("--teacher-steps", "4", "--student-steps", "2", "--steps", "300")
TINY_TRAIN = ("--steps", "2", "--batch", "2")
TINY_FILES = 3  # of each kind, one of them held out for validation


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the recipe."""

    name: str
    arguments: tuple[str, ...]  # of emo


def main() -> None:
    options = parse()
    data = tiny_data(options.data, options.out / "tiny") if options.tiny else options.data
    for number, step in enumerate(steps(options, data), 1):
        shown = f"emo {shlex.join(step.arguments)}"
        print(f"[{number}] {shown}", flush=True)
        record = options.out / "done" / step.name
        if options.dry_run or (record.exists() and record.read_text() == shown):
            continue
        started = time.monotonic()
        # The command's own last line says what went wrong, and what to do.
        command = [sys.executable, "-m", "emo_cli", *step.arguments]
        code = subprocess.call(command, env=os.environ | LARGE_PAGES)
        if code:
            raise SystemExit(code)
        print(f"    {time.monotonic() - started:.0f} s", flush=True)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(shown)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16", help="of the stages: no or bf16")
    parser.add_argument(
        "--window", type=int, default=16, help="train on squares at the face; 0: whole pictures"
    )
    parser.add_argument("--puppets", type=int, default=1200)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


def steps(options: argparse.Namespace, data: Path) -> list[Step]:
    """The recipe; numbers that are not here are the rows of training/stages.py."""
    return [*encoder_steps(options, data), *data_steps(options, data), *stage_steps(options)]


def encoder_steps(options: argparse.Namespace, data: Path) -> list[Step]:
    """The autoencoder and the audio encoder, which learn from nothing else of ours."""
    out, tiny = options.out, TINY_TRAIN if options.tiny else ()
    folders = [*(data / "portraits" / name for name in PORTRAITS), data / "grid_s1"]
    sounds = [data / "grid_s1", data / "audio", out / "speech/flite", out / "speech/espeak-ng"]
    on = ("--device", options.device)
    count = ("--utterances", "6") if options.tiny else ()
    pictures = repeated("--pictures", folders)
    sharper = ("--critic", "--init", str(out / "autoencoder/model"), "--out", str(out / "critic"))
    audio = (*repeated("--sounds", sounds), "--teacher", str(options.teacher))
    bf16 = ("--precision", options.precision)
    return [
        emo("autoencoder", *pictures, "--out", str(out / "autoencoder"), *on, *bf16, *tiny),
        emo("decoder", *pictures, *sharper, *on, *bf16, *tiny, name="critic"),
        emo("speech", "--out", str(out / "speech"), *count),
        emo("audio", *audio, "--out", str(out / "audio"), *on, *bf16, *tiny),
    ]


def data_steps(options: argparse.Namespace, data: Path) -> list[Step]:
    """Clips of the speaker, puppets of the stills, what the encoders make of both, and what of
    their lips can be heard."""
    size = ("--size", "256", "--workers", str(options.workers))
    stills = repeated("--stills", [data / "portraits" / name for name in PORTRAITS])
    drivers = repeated("--drivers", [data / "grid_s1", options.out / "speech/flite"])
    shapes = ("--shapes", str(data / "ict_facekit_light.npz"))
    count = "3" if options.tiny else str(options.puppets // PUPPET_SETS)
    encoders = ("--audio-model", "audio/model"), ("--latents", "critic/model")
    made = [part for option, run in encoders for part in (option, str(options.out / run))]
    on = ("--device", options.device, "--precision", options.precision)
    grid, *puppets = datasets(options)
    reader = (*repeated("--data", [grid, *puppets]), *made[:2], "--out", str(options.out / "lips"))
    talk = (*stills, *drivers, *shapes, "--count", count)
    films = [emo("prepare", str(data / "grid_s1"), "--out", str(grid), *size, name=grid.name)]
    for seed, folder in enumerate(puppets):
        drawn = ("--seed", str(seed))
        films.append(emo("prepare", "--out", str(folder), *size, *talk, *drawn, name=folder.name))
    encoded = [
        emo("prepare", "--out", str(folder), *size, *made, *on, name=f"{folder.name}-encoded")
        for folder in (grid, *puppets)
    ]
    tiny = TINY_TRAIN if options.tiny else ()
    return [*films, *encoded, emo("lips", *reader, "--device", options.device, *tiny)]


def datasets(options: argparse.Namespace) -> list[Path]:
    """The speaker's, and those of the puppets."""
    sets = range(1 if options.tiny else PUPPET_SETS)
    return [options.out / "grid", *(options.out / f"puppets-{seed}" for seed in sets)]


def stage_steps(options: argparse.Namespace) -> list[Step]:
    """The paper's three stages, the guidance learnt in, and the model folder."""
    out, tiny = options.out, TINY_TRAIN if options.tiny else ()
    data = repeated("--data", datasets(options))
    on = ("--device", options.device, "--precision", options.precision)
    how = (*on, "--varied-references")
    window = ("--window", str(options.window)) if options.window else ()
    taught = (*data, "--init", str(out / "whole/model"), "--out", str(out / "distill"))

    def stage(stage: str, inits: list[Path], *more: str, name: str | None = None) -> Step:
        run = ("--out", str(out / (name or stage)))
        return emo(stage, *data, *repeated("--init", inits), *run, *how, *more, *tiny, name=name)

    return [
        stage("image", [out / f"{name}/model" for name in ("critic", "audio", "lips")]),
        stage("video", [out / "image/model"], *window),
        stage("speed", [out / "video/model"], *window),
        # Four times as dear: what lies beyond the windows.
        stage("video", [out / "speed/model"], *WHOLE, name="whole"),
        emo("distill", *taught, *on, *window, *GUIDANCE, *tiny),
        emo("pack", str(out / "distill"), "--out", str(out / "mini"), *LEAN),
    ]


def emo(stage: str, *arguments: str, name: str | None = None) -> Step:
    return Step(name=name or stage, arguments=("train", stage, *arguments))


def repeated(option: str, values: list[Path]) -> tuple[str, ...]:
    return tuple(part for value in values for part in (option, str(value)))


def tiny_data(data: Path, folder: Path) -> Path:
    """A few files of each kind, in folders of the same names."""
    from emo_cli.training.splits import is_held_out

    for name in (*(f"portraits/{name}" for name in PORTRAITS), "grid_s1", "audio"):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        files = [f for f in sorted((data / name).iterdir()) if f.suffix not in (".align", ".txt")]
        held_out = [f for f in files if is_held_out(f)][:1]
        others = [f for f in files if not is_held_out(f)][: TINY_FILES - len(held_out)]
        for file in (*held_out, *others):
            link(file, target / file.name)
    link(data / "ict_facekit_light.npz", folder / "ict_facekit_light.npz")
    return folder


def link(file: Path, place: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(file.resolve())


if __name__ == "__main__":
    main()
