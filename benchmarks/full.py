"""The whole table of `full` on one GPU, in one run of at most ten minutes; nothing is downloaded.

    python benchmarks/full.py [--dtype bf16] [--clips 3] [--budget-s 540] [--profile]
    python benchmarks/full.py --count

The weights are random, of the layout of `full`, made on the device: time does not depend on them.
Rows: eager and compiled, each quality, `--low-vram`; seconds per clip of 12 frames with decoding
(from one clip's end to the next one's), counted TFLOP, peak memory. Then how far eager and compiled
are apart, one step against diffusers' UNetMotionModel, and with --profile the costliest kernels.
Each row is also printed as a JSON object as soon as it is measured; the last line has all of them.
--count runs nothing and needs no GPU: counted TFLOP of a clip, bytes of each network's weights.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from clip_phases import clip_phases, count_clip
from measure import machine_rates, peak_memory_mib, reset_peak_memory, synchronize, timings
from step import compare

from emo_cli import GenerateOptions, __version__
from emo_cli.config import ModelConfig, Quality
from emo_cli.device import choose_device, choose_dtype
from emo_cli.engine import Engine, Video
from emo_cli.errors import EmoError
from emo_cli.face_points import usual_points
from emo_cli.model.emo_model import EmoModel
from emo_cli.portrait import Portrait
from emo_cli.presets import FULL
from emo_cli.sound import SAMPLE_RATE_HZ, Sound


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to run `full`, and what it should reach."""

    quality: Quality
    compiled: bool = False
    low_vram: bool = False
    goal_s: float | None = None  # for low VRAM twice the eager time, once that is measured
    goal_gb: float | None = None

    @property
    def name(self) -> str:
        how = [self.quality, "compiled" if self.compiled else "eager"]
        return ", ".join([*how, "low VRAM"] if self.low_vram else how)


ROWS = (
    Row(quality="paper", goal_s=2.4),
    Row(quality="balanced"),
    Row(quality="fast", goal_s=0.48),
    Row(quality="paper", low_vram=True, goal_gb=8.0),
    Row(quality="paper", compiled=True, goal_s=2.4),
    Row(quality="fast", compiled=True, goal_s=0.48),
    Row(quality="balanced", compiled=True),
)


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> EmoModel:
    """The networks of a config with random weights, made where they will work."""
    with torch.device("meta"):
        model = EmoModel(config)
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                tensor.normal_(0, 0.02, generator=generator)
            else:
                tensor.fill_(1.0 if name.endswith("weight") else 0.0)
    model.to(dtype=dtype).audio_encoder.float()
    model.requires_grad_(False)
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def prepared(engine: Engine, quality: Quality, clips: int) -> Video:
    """Noise as a portrait and as a sound of so many clips."""
    config, rng = engine.config, np.random.default_rng(0)
    size, frames = config.picture_size, clips * config.clip_frames
    mask = np.zeros((size, size), np.float32)
    mask[size // 4 : -size // 4, size // 4 : -size // 4] = 1
    box = (size / 4, size / 4, 3 * size / 4, 3 * size / 4)
    picture = rng.integers(0, 255, (size, size, 3), np.uint8)
    portrait = Portrait(
        picture=picture,
        shown=picture,
        mask=mask,
        face_box=box,
        face_points=usual_points(box),
        crop=(0, 0, size, size),
        num_faces=1,
        notes=(),
    )
    samples = rng.normal(0, 0.1, frames * SAMPLE_RATE_HZ // config.fps).astype(np.float32)
    sound = Sound(
        samples=samples,
        sample_rate_hz=SAMPLE_RATE_HZ,
        duration_s=frames / config.fps,
        path=Path("noise"),
        start_s=0.0,
    )
    return engine.prepare_video(portrait, sound, GenerateOptions(quality=quality))


def measure_row(
    row: Row, model: EmoModel, dtype: torch.dtype, device: torch.device, clips: int
) -> tuple[dict[str, Any], torch.Tensor, Engine, Video]:
    """The row's figures, its first two clips' latents, and its engine and video."""
    model.to("cpu" if row.low_vram else device)
    engine = Engine.of_model(
        model, device=device, dtype=dtype, compiled=row.compiled, low_vram=row.low_vram
    )
    reset_peak_memory(device)
    video = prepared(engine, row.quality, clips + 3)
    ends, motion, started = [], [], time.perf_counter()
    for clip in engine.clips(video):
        ends.append(time.perf_counter() - started)
        motion.append(clip.motion)
    # The first clip compiles and warms up; the second is the first with motion frames. On a GPU a
    # clip is handed out when the next one is launched, and the last one right behind it.
    figures: dict[str, Any] = {
        "s_per_clip": (ends[-2] - ends[1]) / clips,
        "first_clip_s": ends[0],
        "peak_gb": peak_memory_mib(device) * 2**20 / 1e9,
        "goal_s": row.goal_s,
        "goal_gb": row.goal_gb,
    }
    return figures, torch.cat(motion[:2]), engine, video


def table(
    config: ModelConfig,
    rows: tuple[Row, ...],
    device: torch.device,
    dtype: torch.dtype,
    *,
    clips: int,
    budget_s: float,
    profile: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measure row by row, as long as the budget lasts; print each as it is done."""
    started, model = time.perf_counter(), random_model(config, device, dtype)
    results: dict[str, dict[str, Any]] = {}
    eager: dict[str, tuple[torch.Tensor, dict[str, Any]]] = {}
    for row in rows:
        if time.perf_counter() - started > budget_s:
            print(f"{row.name}: left out, the time is used up", flush=True)
            continue
        try:
            figures, motion, engine, video = measure_row(row, model, dtype, device, clips)
            if not (row.compiled or row.low_vram):
                figures |= by_phase(engine, video)
                eager[row.quality] = motion, figures
                if profile:
                    show_kernels(engine, video)
            del engine, video
        except (RuntimeError, EmoError) as error:  # one row less: the others have their figures
            print(f"{row.name}: failed, {type(error).__name__}: {error}", flush=True)
            continue
        if row.quality in eager:
            first, measured = eager[row.quality]
            figures["tflop"] = measured["tflop"]
            figures["apart_from_eager"] = ((motion - first).norm() / first.norm()).item()
            if row.low_vram:
                figures["goal_s"] = 2 * measured["s_per_clip"]
        results[row.name] = figures
        print(json.dumps({row.name: figures}), flush=True)
    return results


def by_phase(engine: Engine, video: Video) -> dict[str, Any]:
    """Counted TFLOP of a clip, and seconds and TFLOP of each of its phases."""
    phases = clip_phases(engine, video)
    counts = count_clip(engine, phases)
    with torch.inference_mode():
        times = timings({n: p.call for n, p in phases.items()}, engine.device, 3)
    rows = {n: {"s": times[n].wall_s, "tflop": counts[n] / 1e12} for n in phases}
    return {"tflop": counts["clip"] / 1e12, "phases": rows}


def counted(config: ModelConfig) -> dict[str, Any]:
    """TFLOP of a clip's phases by quality, and GB of each network's weights in two bytes each."""
    device = torch.device("meta")
    with device:
        model = EmoModel(config).requires_grad_(False).to(device).eval()
    engine = Engine.of_model(model, device=device)
    qualities: dict[str, dict[str, float]] = {}
    for quality in get_args(Quality):
        counts = count_clip(engine, clip_phases(engine, prepared(engine, quality, 2)))
        qualities[quality] = {name: count / 1e12 for name, count in counts.items()}
    weights = {
        name: 2 * sum(p.numel() for p in part.parameters()) / 1e9
        for name, part in model.named_children()
    }
    return {"tflop": qualities, "weights_gb": weights}


def show_kernels(engine: Engine, video: Video) -> None:
    """Where the time of the first kind of step goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = engine.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    name, phase = next((n, p) for n, p in clip_phases(engine, video).items() if "step" in n)
    with torch.inference_mode(), profiler(activities=activities) as recorded:
        phase.call()
        synchronize(engine.device)
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(name, recorded.key_averages().table(sort_by=kind, row_limit=25, max_name_column_width=60))


def main(config: ModelConfig = FULL, given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=540.0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args(given)
    if arguments.count:
        print(json.dumps(counted(config), indent=1))
        return
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    started = time.perf_counter()
    rates = machine_rates(device, dtype)
    against = compare(config, device, dtype, repeats=5)
    print(json.dumps({"rates_gflop_per_s": rates, "one unguided step": against}), flush=True)
    results = table(
        config,
        ROWS,
        device,
        dtype,
        clips=arguments.clips,
        budget_s=arguments.budget_s - (time.perf_counter() - started),
        profile=arguments.profile,
    )
    show(results, rates)
    where = {"emo": __version__, "torch": torch.__version__, "dtype": str(dtype)}
    where["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(json.dumps(where | {"rates_gflop_per_s": rates, "step": against, "rows": results}))


def show(results: dict[str, dict[str, Any]], rates: dict[str, float]) -> None:
    """A table for people."""
    print(
        f"{'12 frames':28}{'s':>8}{'goal':>7}{'first':>8}{'TFLOP':>8}{'TFLOP/s':>9}"
        f"{'of matmul':>11}{'GB':>7}{'goal':>6}{'apart':>10}"
    )
    nan = float("nan")
    for name, row in results.items():
        rate = row.get("tflop", nan) / row["s_per_clip"]
        print(
            f"{name:28}{row['s_per_clip']:8.3f}{row['goal_s'] or nan:7.2f}"
            f"{row['first_clip_s']:8.1f}{row.get('tflop', nan):8.1f}"
            f"{rate:9.1f}{1000 * rate / rates['matmul']:11.2f}"
            f"{row['peak_gb']:7.2f}{row['goal_gb'] or nan:6.1f}"
            f"{row.get('apart_from_eager', nan):10.2e}"
        )
    matmul, convolution = rates["matmul"] / 1000, rates["convolution"] / 1000
    print(f"matmul {matmul:.0f}, convolution {convolution:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
