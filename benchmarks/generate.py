"""Times each phase of `emo generate` and relates it to what the machine can do.

    python benchmarks/generate.py [--model mini|PATH] [--device auto] [--dtype auto] [--clips 4]
                                  [--quality Q] [--steps N] [--compile] [--low-vram]

FLOPs are counted by torch. The rates of a matrix product and of a convolution are measured in the
same run. `cpu s` are the process's own seconds. The last line is one JSON object. Run it on a
machine that does nothing else: two threads beside a busy process are ten times slower.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from clip_phases import clip_phases, count_clip
from measure import Timing, machine_rates, peak_memory_mib, timings

from emo_cli import GenerateOptions, __version__
from emo_cli.engine import Engine, Video
from emo_cli.quality import QUALITIES
from emo_cli.video import VideoWriter, provenance_tags
from emo_cli.work_folder import WorkFolder

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class Clock:
    """Wall and process seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def taken(self) -> Timing:
        return Timing(time.perf_counter() - self.wall, time.process_time() - self.cpu)


def whole_clips(engine: Engine, video: Video, out: Path) -> dict[str, Timing]:
    """Clips one after the other as `emo generate` makes them, and the final mux."""
    size = engine.config.frame_size
    with (
        WorkFolder.open(out, {}) as work,
        VideoWriter(work, size=(size, size), fps=engine.config.fps) as writer,
    ):
        times, frames, clock = [], 0, Clock()
        for clip in engine.clips(video):
            writer.add(clip.index, clip.frames, clip.motion)
            times.append(clock.taken())
            frames, clock = frames + len(clip.frames), Clock()
        writer.finish(
            sound_path=video.sound.path,
            start_s=0.0,
            duration_s=video.options.duration_s,
            num_frames=frames,
            tags=provenance_tags(0),
            report={},
        )
    # The first clip has no motion frames, and warms up; on a GPU the last one comes with the one
    # before it.
    columns = zip(*(times[1:-1] if engine.overlap else times[1:]), strict=True)
    return {"clip": Timing(*map(statistics.median, columns)), "mux": clock.taken()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clips", type=int, default=4, help="3 or more")
    parser.add_argument("--quality", choices=QUALITIES)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--low-vram", action="store_true")
    arguments = parser.parse_args()

    clock = Clock()
    engine = Engine(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        allow_untrained=True,
        compiled=arguments.compile,
        low_vram=arguments.low_vram,
    )
    times = {"load": clock.taken()}
    rates = machine_rates(engine.device, engine.dtype)
    length = arguments.clips * engine.config.clip_frames / engine.config.fps
    options = GenerateOptions(duration_s=length, quality=arguments.quality, steps=arguments.steps)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        clock = Clock()
        video = engine.prepare(
            EXAMPLES / "portrait.jpg", EXAMPLES / "speech.wav", Path(folder), options
        )
        times["portrait, sound, reference"] = clock.taken()
        counts: dict[str, int] = {}
        if not arguments.low_vram:  # else no part is at hand for its phase alone
            phases = clip_phases(engine, video)
            eager = Engine.of_model(engine.model, device=engine.device, dtype=engine.dtype)
            counts = count_clip(eager, clip_phases(eager, video))
            for name, phase in phases.items():
                times |= timings({name: phase.call}, engine.device)
        times |= whole_clips(engine, video, Path(folder) / "out.mp4")
    show(engine, video, times, counts, rates)


def show(
    engine: Engine,
    video: Video,
    times: dict[str, Timing],
    counts: dict[str, int],
    rates: dict[str, float],
) -> None:
    """A table for people, and a JSON line for programs."""
    print(f"{'phase':28}{'s':>9}{'cpu s':>9}{'GFLOP':>10}{'GFLOP/s':>10}{'of matmul':>11}")
    rows = {}
    for name, taken in times.items():
        row: dict[str, float] = {"s": taken.wall_s, "cpu_s": taken.cpu_s}
        line = f"{name:28}{taken.wall_s:9.3f}{taken.cpu_s:9.3f}"
        if name in counts:
            rate = counts[name] / taken.wall_s / 1e9
            row |= {"gflop": counts[name] / 1e9, "gflop_per_s": rate}
            line += f"{counts[name] / 1e9:10.1f}{rate:10.1f}{rate / rates['matmul']:11.2f}"
        rows[name] = row
        print(line)
    peak = peak_memory_mib(engine.device)
    print(
        f"matmul {rates['matmul']:.0f} GFLOP/s, convolution {rates['convolution']:.0f} GFLOP/s, "
        f"{video.sampling.steps} steps, peak memory {peak:.0f} MiB"
    )
    print(
        json.dumps(
            machine(engine)
            | {
                "model": engine.config.name,
                "steps": video.sampling.steps,
                "phases": rows,
                "rates_gflop_per_s": rates,
                "peak_memory_mib": peak,
            }
        )
    )


def machine(engine: Engine) -> dict[str, Any]:
    """Where and how it ran."""
    return {
        "emo": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "compiled": engine.compiled,
        "low_vram": engine.low_vram,
    }


if __name__ == "__main__":
    main()
