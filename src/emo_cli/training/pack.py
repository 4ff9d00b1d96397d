"""`emo train pack`: the parts that several runs left, as one model folder to use or to ship."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from emo_cli.config import ModelConfig, from_dict, read_model_config
from emo_cli.errors import EmoError
from emo_cli.presets import PRESETS
from emo_cli.training.options import NewModelFolder

# What a wheel may hold: each file is under what package indexes and code hosts take.
SHIPPED_FILE_BYTES, SHIPPED_BYTES = 16_000_000, 36_000_000
CHECKPOINTS = "step-" + "[0-9]" * 8


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where parts come from: `folder` holds finished ones, `checkpoint` those of a stopped run."""

    path: Path
    folder: Path | None
    checkpoint: Path | None


def pack_command(
    sources: Annotated[
        list[Path], typer.Argument(help="Runs and model folders; the later one's parts win.")
    ],
    out: NewModelFolder,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Write down that it needs more training: users are told."
        ),
    ] = False,
    blend: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Of numbers that several sources have, the later one's count by so much, what "
            "came before by the rest.",
        ),
    ] = 1.0,
    lean: Annotated[
        float,
        typer.Option(
            help="Lean more on the moved portrait, in logits of the gate that copies it: of "
            "people it never saw a small network draws worse than it believes.",
        ),
    ] = 0.0,
) -> None:
    """Put the parts of several runs together into one model folder."""
    from emo_cli.console import note

    sizes = pack_model(sources, out, unfinished=unfinished, blend=blend, lean=lean)
    note(f"{sum(sizes.values()) / 1e6:.1f} MB in {len(sizes)} files")
    typer.echo(out)


def pack_model(
    sources: list[Path],
    out: Path,
    *,
    unfinished: bool = False,
    blend: float = 1.0,
    lean: float = 0.0,
) -> dict[str, int]:
    """Write the model folder `out`; returns the bytes of each of its files.

    A run that was stopped gives the averaged weights of its newest checkpoint. Parts of finished
    runs are copied byte for byte, so that what was prepared with them still fits.

    Raises: EmoError when a source holds no part, a part is nowhere, a file is damaged, or the
    preset `mini` becomes too large to ship.
    """
    from emo_cli.model.emo_model import PARTS, parts_of
    from emo_cli.model.load import copy_part, load_model, write_config

    if out.exists() and any(out.resolve() in (s.resolve(), *s.resolve().parents) for s in sources):
        raise EmoError(f"{out} is itself a source", "Choose another --out.", exit_code=2)
    found = [find_source(path) for path in sources]
    config = _config(found, unfinished)
    offered = {part for source in found for part in _offers(source)}
    for part in parts_of(config):
        if part not in offered:
            what, stage = PARTS[part]
            raise EmoError(
                f"no source holds {what} ({part}.safetensors)",
                f"Name the run of `emo train {stage}`, or a model that has it.",
            )
    if lean and not config.unet.copy_reference:
        raise EmoError(
            f"--lean is for models that copy their portrait, which '{config.name}' does not",
            "Leave it out.",
            exit_code=2,
        )
    if blend < 1 and any(source.folder is None for source in found):
        raise EmoError(
            "--blend is for finished runs and model folders",
            "Run the stage's command again; it goes on where it stopped.",
            exit_code=2,
        )
    for source in found:
        if source.folder is not None:
            for part in _offers(source):
                if blend < 1 and (out / f"{part}.safetensors").exists():
                    blend_part(source.folder, out, part, blend)
                else:
                    copy_part(source.folder, out, part)
        elif source.checkpoint is not None:
            write_checkpoint(source.checkpoint, config, out)
    if lean:
        lean_on_portrait(out, lean)
    write_config(out, config)
    load_model(out)  # every digest, name, shape and value
    return _check_size(out, config)


def find_source(path: Path) -> Source:
    """What a path offers: a finished run, a model folder, or a run that was stopped.

    Raises: EmoError when it is none of them.
    """
    if not path.is_dir():
        raise EmoError(f"{path} does not exist", "Name runs and model folders.")
    for folder in (path / "model", path):
        if folder.is_dir() and _parts_in(folder):
            return Source(path=path, folder=folder, checkpoint=None)
    checkpoint = max((path / "checkpoints").glob(CHECKPOINTS), default=None)
    if checkpoint is None:
        raise EmoError(
            f"{path} holds no part of a model and no checkpoint",
            "Name folders that `emo train` wrote.",
        )
    stage = _run_options(path)["name"]
    if stage not in ("image", "video", "speed"):
        raise EmoError(
            f"the run {path} of stage '{stage}' is not finished",
            "Run its command again; it goes on where it stopped.",
        )
    return Source(path=path, folder=None, checkpoint=checkpoint)


def write_checkpoint(
    checkpoint: Path, config: ModelConfig, folder: Path, *, averaged: bool = True
) -> set[str]:
    """Write the parts of a checkpoint of image, video, speed or distill; returns their names.

    averaged: what trains as its moving average; else as it is.

    Raises: EmoError when the checkpoint is damaged.
    """
    import torch
    from safetensors.torch import load_file

    from emo_cli.model.emo_model import key_in_file, part_of
    from emo_cli.model.load import write_part
    from emo_cli.training.checkpoint import DAMAGE, damage, load_weights

    try:
        tensors = load_weights(checkpoint)
        if averaged:
            tensors |= load_file(checkpoint / "ema.safetensors")
    except DAMAGE as error:
        raise EmoError(
            f"the checkpoint {checkpoint} is damaged: {damage(error)}",
            "Remove that folder; the one before it serves.",
        ) from error
    # A student's checkpoint also holds the target that it follows, under the same layers' names.
    tensors = {n: t for n, t in tensors.items() if n.startswith(("backbone.", "reference_net."))}
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if config.name == "mini" else torch.bfloat16
    parts = {part_of(name) for name in tensors}
    for part in sorted(parts):
        own = {key_in_file(n): t for n, t in tensors.items() if part_of(n) == part}
        write_part(folder, part, own, dtype=dtype)
    return parts


def blend_part(later: Path, folder: Path, part: str, share: float) -> None:
    """Draw a part in `folder` towards that of `later`, by a share of the way.

    Raises: EmoError when one is damaged or they are not of the same names and shapes.
    """
    import torch

    from emo_cli.model.load import check_keys, read_part, write_part

    old, new = read_part(folder, part), read_part(later, part)
    check_keys(old, new, later)
    if all(torch.equal(old[name], new[name]) for name in new):
        return
    mixed = {name: torch.lerp(old[name].float(), new[name].float(), share) for name in new}
    write_part(folder, part, mixed, dtype=next(iter(new.values())).dtype)


def lean_on_portrait(folder: Path, logits: float) -> None:
    """Open a Backbone's copying gate so much further, at every place alike.

    Raises: EmoError when it is damaged.
    """
    from emo_cli.model.backbone import GATE_SCALE
    from emo_cli.model.load import read_part, write_part

    tensors = read_part(folder, "backbone")
    bias = tensors["conv_out.bias"].clone()
    bias[-1] += logits / GATE_SCALE
    write_part(folder, "backbone", tensors | {"conv_out.bias": bias}, dtype=bias.dtype)


def _offers(source: Source) -> list[str]:
    if source.folder is None:  # a checkpoint is of a stage that has these in it
        return ["backbone", "reference_net", "temporal"]
    return sorted(_parts_in(source.folder))


def _parts_in(folder: Path) -> set[str]:
    from emo_cli.model.emo_model import PARTS

    return {part for part in PARTS if (folder / f"{part}.safetensors").exists()}


def _config(sources: list[Source], unfinished: bool) -> ModelConfig:
    """The last source's numbers, with the stages of all of them."""
    from emo_cli.training.stages import STAGES

    config: ModelConfig | None = None
    stages: set[str] = set()
    for source in sources:
        if source.folder is not None:
            parts = _parts_in(source.folder)
            stages |= {"autoencoder"} if "autoencoder" in parts else set()
            stages |= {"audio"} if "audio_encoder" in parts else set()
            stages |= {"lips"} if "lip_reader" in parts else set()
            if (source.folder / "config.json").exists():
                config = read_model_config(source.folder / "config.json")
                stages |= set(config.trained_stages)
        else:
            options = _run_options(source.path)
            own = options.get("config")
            config = from_dict(ModelConfig, own, "config") if own else PRESETS[options["preset"]]
            stages |= {*options["starts_from"], options["name"]}
    if config is None:
        raise EmoError(
            "no source says what model it belongs to (config.json)",
            "Name the result of `emo train image`, video or speed too.",
        )
    trained = tuple(name for name in STAGES if name in stages)
    return dataclasses.replace(config, trained_stages=trained, untrained=unfinished)


def _run_options(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EmoError(f"cannot read {run / 'run.json'}: {error}", "Is it a run?") from error


def _check_size(folder: Path, config: ModelConfig) -> dict[str, int]:
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
    largest, total = max(sizes.values()), sum(sizes.values())
    if config.name == "mini" and (largest >= SHIPPED_FILE_BYTES or total > SHIPPED_BYTES):
        raise EmoError(
            f"{folder} has {total / 1e6:.1f} MB, its largest file {largest / 1e6:.1f} MB: "
            "too much to ship",
            f"{SHIPPED_BYTES / 1e6:.0f} MB at most, {SHIPPED_FILE_BYTES / 1e6:.0f} a file.",
        )
    return sizes
