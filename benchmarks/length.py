"""Does a long sound need more memory, or more time a clip, than a short one? Do its ends meet?

    python benchmarks/length.py [--seconds 600] [--against 60] [--model PATH] [--device cpu]

Runs `emo generate` on made sounds of both lengths, each in a process of its own, with one denoising
step and by default a very small model of random weights: what could grow is all around the
networks. 60 s hold a whole window of the sound encoder (26 s); with `--model mini` other parts
need more than that, and 10 s will do. Reports each process's peak resident memory, a CUDA device's
beside it, and the larger ratio (goal: at most 1.05), the median time of the first and of the last
tenth of the clips, and by how many frames picture and sound begin and end apart in the file (goal:
at most 1). Exit code 1 where a goal is missed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch

from emo_cli.model.emo_model import EmoModel
from emo_cli.model.load import save_model
from emo_cli.presets import MINI

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FACE_REGION = "100,50,400,450"  # of the example portrait: no face is looked for
RATE_HZ = 16_000
MOST_MEMORY, MOST_FRAMES = 1.05, 1.0


def tiny_model(folder: Path) -> Path:
    """`mini` with the smallest widths that its layers allow, of random weights."""
    widths = (16, 32, 32)
    config = dataclasses.replace(
        MINI,
        name="tiny",
        picture_size=64,
        frame_size=64,
        unet=dataclasses.replace(MINI.unet, widths=widths, norm_groups=8, time_width=32),
        autoencoder=dataclasses.replace(
            MINI.autoencoder, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8)
        ),
        untrained=False,
        trained_stages=("autoencoder", "audio", "image", "video", "speed"),
    )
    torch.manual_seed(0)
    save_model(EmoModel(config), folder, dtype=torch.float32)
    return folder


def write_sound(path: Path, seconds: float) -> Path:
    """Noise, written piece by piece."""
    rng, left = np.random.default_rng(0), round(seconds * RATE_HZ)
    with soundfile.SoundFile(path, "w", RATE_HZ, 1) as file:
        while left > 0:
            count = min(left, RATE_HZ)
            file.write(rng.normal(0, 0.05, count).clip(-1, 1))
            left -= count
    return path


def generate(model: Path | str, sound: Path, out: Path, device: str) -> dict[str, Any]:
    """One run of the command: its peak memory, its own seconds, and its report."""
    command = [sys.executable, "-m", "emo_cli", "generate", str(EXAMPLES / "portrait.jpg")]
    command += [str(sound), "-o", str(out), "--model", str(model), "--device", device]
    command += ["--steps", "1", "--face-region", FACE_REGION, "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"emo generate failed with exit code {process.returncode}")
    report = json.loads(out.with_suffix(".json").read_text())
    clips = report["timings"]["clip_s"][1:]
    tenth = max(1, len(clips) // 10)
    return {
        "seconds": report["duration_s"],
        "frames": report["frames"],
        "peak_mib": usage.ru_maxrss / 1024,
        "peak_device_mib": report["peak_device_mib"],
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "clip_s_first": statistics.median(clips[:tenth]),
        "clip_s_last": statistics.median(clips[-tenth:]),
        "frames_apart": frames_apart(out),
    }


def memory_ratio(long: Mapping[str, Any], short: Mapping[str, Any]) -> float:
    """How many times as much the long sound needs, of the host's memory or of the device's."""
    kinds = [kind for kind in ("peak_mib", "peak_device_mib") if short[kind] is not None]
    return float(max(long[kind] / short[kind] for kind in kinds))


def frames_apart(video: Path) -> float:
    """By how many frames picture and sound differ at most: where they begin, where they end."""
    begins: dict[str, Fraction] = {}
    ends: dict[str, Fraction] = {}
    with av.open(str(video)) as file:
        for packet in file.demux():
            if packet.pts is None:
                continue
            kind, begin = packet.stream.type, Fraction(packet.pts * packet.time_base)
            end = begin + (packet.duration or 0) * packet.time_base
            # What lies before zero is an encoder's run-up, which players leave out.
            begins[kind] = min(begins.get(kind, end), max(begin, Fraction(0)))
            ends[kind] = max(ends.get(kind, end), end)
        rate = file.streams.video[0].average_rate
    return float(max(abs(times["video"] - times["audio"]) for times in (begins, ends)) * rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--against", type=float, default=60.0)
    parser.add_argument("--model", help="A model folder, or mini. [a tiny one, made here]")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or tiny_model(folder / "model")
        runs = {}
        for label, seconds in (("short", arguments.against), ("long", arguments.seconds)):
            sound = write_sound(folder / f"{label}.wav", seconds)
            runs[label] = generate(model, sound, folder / f"{label}.mp4", arguments.device)
    ratio = memory_ratio(runs["long"], runs["short"])
    apart = max(run["frames_apart"] for run in runs.values())
    print(f"{'':8}{'s':>8}{'frames':>8}{'peak MiB':>10}{'clip s, first and last':>24}{'apart':>8}")
    for label, run in runs.items():
        clips = f"{run['clip_s_first']:.3f} {run['clip_s_last']:.3f}"
        print(
            f"{label:8}{run['seconds']:8.1f}{run['frames']:8}{run['peak_mib']:10.0f}{clips:>24}"
            f"{run['frames_apart']:8.2f}"
        )
    met = ratio <= MOST_MEMORY and apart <= MOST_FRAMES
    print(f"memory {ratio:.3f} times (goal {MOST_MEMORY}), {'met' if met else 'missed'}")
    print(json.dumps({"runs": runs, "memory_ratio": ratio, "frames_apart": apart, "met": met}))
    sys.exit(not met)


if __name__ == "__main__":
    main()
