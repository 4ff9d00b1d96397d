"""Whether each metric moves the way it must: real clips against spoilt copies of themselves.

python benchmarks/metric_sense.py CLIPS --work FOLDER [--count 20] [--metrics fid,...]

Copies of the first clips of a folder are made once in FOLDER and scored by `emo eval`'s own
functions, with the clips as the real videos and each clip's first frame as its portrait. Prints
a table for docs/results.md and then, line by line, what had to be so and was or was not; the exit
code is 1 if anything was not. Features lie in FOLDER too: a second run takes seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from emo_cli.ffmpeg_process import ffmpeg_path
from emo_cli.metrics.evaluate import EvalOptions, Evaluation, evaluate
from emo_cli.metrics.pairing import open_portraits, open_videos
from emo_cli.metrics.registry import DEFAULT_METRICS, build_extractors, build_metrics
from emo_cli.metrics.tables import figure, heading, table_notes
from emo_cli.raw_video import FPS, VIDEO_SUFFIXES, probe

SHIFT = 6  # frames that the sound comes late
# Each copy: what is done to the picture and to the sound, as filters of ffmpeg. {s}: the length.
COPIES = {
    "recoded": ("null", "anull"),
    "noise": ("noise=alls=40:allf=t:all_seed=1", "anull"),
    "blur": ("gblur=sigma=3", "anull"),
    "freeze": ("trim=end_frame=1,tpad=stop_mode=clone:stop_duration={s},trim=end={s}", "anull"),
    "mirror": ("hflip", "anull"),
    "late sound": ("null", f"adelay=delays={SHIFT * 1000 // FPS}:all=1,atrim=end={{s}}"),
}
SELF = "itself"
REAL = "real videos"


def main() -> None:
    options = _arguments()
    clips = _clips(options.clips, options.count, options.work)
    for name, filters in COPIES.items():
        for clip in sorted(clips.iterdir()):
            _copy(clip, options.work / name.replace(" ", "_") / f"{clip.stem}.mkv", *filters)
    for clip in sorted(clips.iterdir()):
        _first_frame(clip, options.work / "portraits" / f"{clip.stem}.png")
    result = _score(options, clips)
    _print_table(result)
    print()
    for line in table_notes(result):
        print(f"- {line}")
    print()
    sys.exit(0 if _print_checks(result) else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clips", type=Path, help="folder of real clips with sound")
    parser.add_argument("--work", type=Path, required=True, help="folder for copies and features")
    parser.add_argument("--count", type=int, default=20, help="how many clips [20]")
    parser.add_argument("--metrics", default=",".join(DEFAULT_METRICS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def _clips(folder: Path, count: int, work: Path) -> Path:
    """A folder of the first `count` clips."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)[:count]
    target = work / f"clips_{count}"
    target.mkdir(parents=True, exist_ok=True)
    for path in found:
        if not (target / path.name).exists():
            shutil.copy(path, target / path.name)
    return target


def _copy(clip: Path, out: Path, picture: str, sound: str) -> None:
    if out.exists():
        return
    seconds = f"{probe(clip).duration_s:.3f}"
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}")
    _ffmpeg(
        *("-i", clip, "-map", "0:v:0", "-map", "0:a:0"),
        *("-vf", picture.format(s=seconds), "-af", sound.format(s=seconds)),
        *("-c:v", "libx264", "-crf", "10", "-preset", "veryfast", "-c:a", "pcm_s16le"),
        *("-f", "matroska", part),
    )
    part.rename(out)


def _first_frame(clip: Path, out: Path) -> None:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        _ffmpeg("-i", clip, "-frames:v", "1", out)


def _ffmpeg(*arguments: object) -> None:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def _score(options: argparse.Namespace, clips: Path) -> Evaluation:
    metrics = build_metrics(options.metrics.split(","))
    names = list(dict.fromkeys(metric.extractor for metric in metrics))
    folders = {SELF: clips} | {name: options.work / name.replace(" ", "_") for name in COPIES}
    return evaluate(
        EvalOptions(
            methods=tuple(open_videos(name, folder) for name, folder in folders.items()),
            real=open_videos(REAL, clips),
            portraits=open_portraits(options.work / "portraits"),
            cache=options.work / "features",
            workers=options.workers,
            paired=True,
        ),
        metrics=metrics,
        make_extractors=partial(build_extractors, names),
    )


def _print_table(result: Evaluation) -> None:
    print("| | " + " | ".join(heading(column) for column in result.columns) + " |")
    print("|---|" + "---|" * len(result.columns))
    for one in result.sets:
        cells = [figure(column, one.values.get(column.key)) for column in result.columns]
        print(f"| {one.name} | " + " | ".join(cells) + " |")


# What must be so, of the value of a column for a copy: v("copy") is that column's value.
Value = Callable[[str], float]
MUST: tuple[tuple[str, str, Callable[[Value], bool]], ...] = (
    ("fid", "0 against themselves (<= 1e-3)", lambda v: abs(v(SELF)) <= 1e-3),
    ("fid", "noise and blur cost most", lambda v: min(v("noise"), v("blur")) > 3 * v("recoded")),
    ("fvd", "0 against themselves (<= 1e-3)", lambda v: abs(v(SELF)) <= 1e-3),
    ("fvd", "noise and blur are worse", lambda v: min(v("noise"), v("blur")) > 3 * v("recoded")),
    ("fvd", "a frozen video is worse", lambda v: v("freeze") > 3 * v("recoded")),
    ("efid", "0 against themselves (<= 1e-3)", lambda v: abs(v(SELF)) <= 1e-3),
    ("efid", "a frozen face is worse", lambda v: v("freeze") > 3 * v("recoded")),
    ("fsim", "blur is less like the portrait", lambda v: v("blur") < v(REAL)),
    ("fsim", "a frozen portrait is most alike", lambda v: v("freeze") > v(REAL)),
    ("fsim", "a mirror changes little", lambda v: v("mirror") > v("blur")),
    ("velocity", "a frozen head does not turn", lambda v: v("freeze") < 0.1 * v(REAL)),
    ("velocity", "a mirrored one turns as fast", lambda v: abs(v("mirror") / v(REAL) - 1) < 0.1),
    ("confidence", "a frozen mouth fits no sound", lambda v: v("freeze") < 0.5 * v(REAL)),
    ("confidence", "a mirror changes little", lambda v: v("mirror") > 0.7 * v(REAL)),
    ("offset", "of itself is that of real", lambda v: v(SELF) == v(REAL)),
    (
        "offset",
        f"late sound is found, {SHIFT} frames +-1",
        lambda v: abs(v(REAL) - v("late sound") - SHIFT) <= 1,
    ),
)


def _print_checks(result: Evaluation) -> bool:
    values = {one.name: one.values for one in result.sets}
    held = True
    for key, what, holds in MUST:
        if not any(column.key == key for column in result.columns):
            continue
        known = {name: found.get(key) for name, found in values.items()}

        def value(name: str, known: dict[str, float | None] = known) -> float:
            found = known[name]
            return float("nan") if found is None else found

        good = bool(holds(value))
        held = held and good
        print(f"{'yes' if good else 'NO '}  {key}: {what}")
    return held


if __name__ == "__main__":
    main()
