"""Times each phase of `emo generate` and relates it to what the machine can do.

    python benchmarks/generate.py [--model mini|PATH] [--device auto] [--dtype auto] [--clips 3]

FLOPs are counted by torch, with attention written out, because torch's counter does not see the
CPU's fused attention. The rates of a matrix product and of a convolution are measured in the same
run. The last line is one JSON object. Run it on a machine that does nothing else: two threads
beside a busy process are ten times slower.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from emo_cli import GenerateOptions, __version__
from emo_cli.clips import plan
from emo_cli.conditions import constant_speed
from emo_cli.engine import Engine, Video
from emo_cli.sampler import clip_generator, clip_noise
from emo_cli.video import VideoWriter, provenance_tags
from emo_cli.work_folder import WorkFolder

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
REPEATS = 5


def seconds(call: Callable[[], Any], device: torch.device, repeats: int = REPEATS) -> float:
    """Median time of a call, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def flops(call: Callable[[], Any]) -> int:
    """Floating point operations of a call: a multiply and an add are two."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of a 2048 matrix product and of a 3x3 convolution in channels_last."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    x = torch.randn(12, 128, 32, 32, device=device, dtype=dtype)
    conv = torch.nn.Conv2d(128, 128, 3, padding=1, device=device, dtype=dtype)
    x, conv = (v.to(memory_format=torch.channels_last) for v in (x, conv))
    with torch.inference_mode():
        return {
            "matmul": 2 * size**3 / seconds(lambda: a @ b, device) / 1e9,
            "convolution": flops(lambda: conv(x)) / seconds(lambda: conv(x), device) / 1e9,
        }


@torch.inference_mode()
def phases(engine: Engine, video: Video) -> dict[str, Callable[[], Any]]:
    """One call for each phase of a clip."""
    planned = list(plan(video.num_frames, engine.config.clip_frames))[1]
    first = next(engine.clips(video))
    config, count = engine.config, len(video.branches)
    size, channels = config.latent_size, config.autoencoder.latent_channels
    speed = constant_speed(1.0, config.clip_frames, 2 * config.window + 1, engine.device)

    def prepare() -> Any:
        return engine.model.backbone.prepare_clip(
            engine._audio(video, planned),
            engine._motion_features(first.motion, count),
            speed.expand(count, -1, -1),
        )

    shape = (1, config.clip_frames, channels, size, size)
    noise = clip_noise(shape, clip_generator(0, 0), 0.0, torch.float32)
    latents = noise.to(engine.device, engine.dtype).expand(count, *shape[1:])
    timesteps = torch.full((count,), 500, device=engine.device)
    clip = prepare()
    return {
        "reference": partial(engine._video_state, video.portrait, video.branches),
        "clip conditions": prepare,
        "step": partial(engine.model.backbone, latents, timesteps, video.state, clip),
        "decode": partial(engine._decode, noise.to(engine.device), config.clip_frames),
    }


def whole_clips(engine: Engine, video: Video, clips: int, out: Path) -> dict[str, float]:
    """Clips one after the other as `emo generate` makes them, and the final mux."""
    size = engine.config.picture_size
    with (
        WorkFolder.open(out, {}) as work,
        VideoWriter(work, size=(size, size), fps=engine.config.fps) as writer,
    ):
        times, frames = [], 0
        for clip in engine.clips(video):
            writer.add(clip.index, clip.frames, clip.motion)
            times.append(clip.seconds)
            frames += len(clip.frames)
        started = time.perf_counter()
        writer.finish(
            sound_path=video.sound.path,
            start_s=0.0,
            duration_s=video.options.duration_s,
            num_frames=frames,
            tags=provenance_tags(0),
            report={},
        )
    return {"clip": statistics.median(times[1:]), "mux": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clips", type=int, default=4)
    arguments = parser.parse_args()

    started = time.perf_counter()
    engine = Engine(
        arguments.model, device=arguments.device, dtype=arguments.dtype, allow_untrained=True
    )
    times, counts = {"load": time.perf_counter() - started}, {}
    rates = machine_rates(engine.device, engine.dtype)
    length = arguments.clips * engine.config.clip_frames / engine.config.fps
    options = GenerateOptions(duration_s=length)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        started = time.perf_counter()
        video = engine.prepare(
            EXAMPLES / "portrait.jpg", EXAMPLES / "speech.wav", Path(folder), options
        )
        times["portrait, sound, reference"] = time.perf_counter() - started
        started = time.perf_counter()
        video.features.features(0, 1)
        times["audio"] = time.perf_counter() - started
        for name, call in phases(engine, video).items():
            times[name] = seconds(call, engine.device)
            counts[name] = flops(call)
        times |= whole_clips(engine, video, arguments.clips, Path(folder) / "out.mp4")
    steps = len(video.scheduler.timesteps)
    counts["clip"] = counts["clip conditions"] + steps * counts["step"] + counts["decode"]
    show(engine, times, counts, rates, steps)


def show(
    engine: Engine,
    times: dict[str, float],
    counts: dict[str, int],
    rates: dict[str, float],
    steps: int,
) -> None:
    """A table for people, and a JSON line for programs."""
    print(f"{'phase':28}{'s':>9}{'GFLOP':>10}{'GFLOP/s':>10}{'of matmul':>11}")
    rows = {}
    for name, value in times.items():
        row: dict[str, float] = {"s": round(value, 4)}
        line = f"{name:28}{value:9.3f}"
        if name in counts:
            rate = counts[name] / value / 1e9
            row |= {"gflop": counts[name] / 1e9, "gflop_per_s": rate}
            share = rate / rates["matmul"]
            line += f"{counts[name] / 1e9:10.1f}{rate:10.1f}{share:11.2f}"
        rows[name] = row
        print(line)
    if engine.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(engine.device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"matmul {rates['matmul']:.0f} GFLOP/s, convolution {rates['convolution']:.0f} GFLOP/s, "
        f"{steps} steps, peak memory {peak:.0f} MiB"
    )
    result = {
        "emo": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "model": engine.config.name,
        "steps": steps,
        "phases": rows,
        "rates_gflop_per_s": rates,
        "peak_memory_mib": peak,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
