"""Judges a model by the list that the embedded one must hold, on faces and sounds it never saw.

    python benchmarks/mini_quality.py --data DATA --out FOLDER [--model mini|PATH] [--count 6]

DATA holds portraits/london, canada, faker, grid_s1 and audio. Videos are made as `emo generate`
makes them, by default options, into FOLDER/videos, and kept: the same command goes on from there.
FOLDER/sheets gets a contact sheet of each set, the portrait first in its row: look at them, the
figures do not see everything. Every line is printed with its value, its goal and whether it is met;
the last line is one JSON object. With `--count 6` it films 1,800 frames: about ten minutes on two
quiet cores, counted from 3 s a clip; `--long` adds 1,500.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from quality_footage import FILMS, Footage, Shooting
from quality_lines import Line, at_least, at_most, judge, size_line
from quality_material import Material, find_material
from quality_videos import Studio, Watcher

from emo_cli import __version__
from emo_cli.engine import Engine
from emo_cli.errors import EmoError
from emo_cli.picture import read_picture
from emo_cli.training.autoencoder_stage import clean_and_noisy_psnr
from emo_cli.training.pictures import whole_picture

EVERYDAY = ("talk", "voices", "speed", "region")
PSNR_DB, LOST_DB = 32, 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Film, watch, judge."""
    options = parse(arguments)
    try:
        engine, shooting_lines, material = work(options)
    except EmoError as error:
        raise SystemExit(f"error: {error.message}\nhint: {error.hint}") from error
    lines = [*shooting_lines, size_line(engine.folder)]
    for note in (engine.note, *material.notes):
        if note:
            print(f"note: {note}")
    for line in lines:
        print(shown(line))
    judged = [line for line in lines if line.met is not None]
    print(f"{sum(bool(line.met) for line in judged)} of {len(judged)} lines met")
    print(json.dumps(result(options, engine, lines)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="portraits, grid_s1, audio")
    parser.add_argument("--out", type=Path, required=True, help="folder for videos and sheets")
    parser.add_argument("--model", default="mini")
    parser.add_argument(
        "--without-speed",
        metavar="MODEL",
        help="Table 2's model without speed layers; default: this one with its own silenced",
    )
    parser.add_argument("--count", type=int, default=6, help="portraits that speak")
    parser.add_argument("--long", action="store_true", help="also a minute of sound")
    parser.add_argument(
        "--parts",
        default="autoencoder," + ",".join(EVERYDAY),
        help="autoencoder, " + ", ".join(FILMS),
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",") + ["long"] * options.long
    if unknown := set(options.parts) - {"autoencoder", *FILMS}:
        parser.error(f"no part {', '.join(sorted(unknown))}")
    if options.count < 1:
        parser.error("--count is 1 at least")
    return options


def work(options: argparse.Namespace) -> tuple[Engine, list[Line], Material]:
    """Everything that takes time."""
    videos = options.out / "videos"
    material = find_material(options.data, videos)
    engine = open_engine(options, options.model)
    lines: list[Line] = []
    if "autoencoder" in options.parts:
        lines += autoencoder_lines(engine, material)
    footage = Footage(clip_frames=engine.config.clip_frames)
    if films := [FILMS[part] for part in FILMS if part in options.parts]:
        videos.mkdir(parents=True, exist_ok=True)
        with Watcher() as watcher:
            shooting = Shooting(
                studio=Studio(engine, videos, watcher, steps=options.steps, seed=options.seed),
                material=material,
                count=options.count,
                sheets=options.out / "sheets",
                without_speed=options.without_speed and open_engine(options, options.without_speed),
            )
            for film in films:
                film(shooting, footage)
    return engine, lines + judge(footage), material


def open_engine(options: argparse.Namespace, model: str) -> Engine:
    """The model, finished or not: an unfinished one has a right to be measured."""
    return Engine(model, device=options.device, dtype=options.dtype, allow_untrained=True)


@torch.inference_mode()
def autoencoder_lines(engine: Engine, material: Material) -> list[Line]:
    """How well unseen faces come back, also when a sampler leaves noise."""
    size = engine.config.picture_size
    autoencoder = engine.model.autoencoder
    like = next(autoencoder.parameters())
    found, counts = [], []
    for paths in material.portrait_sets:  # noise is a share of each set's latents, as in training
        pictures = np.stack([whole_picture(read_picture(path), size) for path in paths])
        found.append(clean_and_noisy_psnr(autoencoder, torch.from_numpy(pictures).to(like)))
        counts.append(len(paths))
    clean, noisy = np.average(found, axis=0, weights=counts)
    detail = f"{sum(counts)} portraits, whole, at {size} px"
    return [
        at_least("psnr", "autoencoder: PSNR on unseen faces, dB", clean, PSNR_DB, detail),
        at_most("psnr_lost", "autoencoder: lost to 10 % latent noise, dB", clean - noisy, LOST_DB),
    ]


def shown(line: Line) -> str:
    """A line for people."""
    verdict = {True: "met", False: "NOT MET", None: "-"}[line.met]
    value = "none" if line.value is None else f"{line.value:.3f}".rstrip("0").rstrip(".")
    text = f"{verdict:8}{line.text}: {value}"
    text += f"  [goal {line.goal}]" if line.goal else ""
    return text + (f"  ({line.detail})" if line.detail else "")


def result(options: argparse.Namespace, engine: Engine, lines: list[Line]) -> dict:
    """The same for programs."""
    return {
        "emo": __version__,
        "torch": torch.__version__,
        "model": engine.config.name,
        "digest": engine.digest,
        "trained_stages": list(engine.config.trained_stages),
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "count": options.count,
        "steps": options.steps or engine.config.diffusion.steps,
        "seed": options.seed,
        "parts": options.parts,
        "lines": [dataclasses.asdict(line) for line in lines],
    }


if __name__ == "__main__":
    main()
