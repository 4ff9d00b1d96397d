"""Checkpoints that survive a kill or a full disk, and the run's record of its options.

    RUN/run.json                        what the run was started with
    RUN/checkpoints/step-00000200/      weights, optimizer, scaler, EMA, state.json; with FSDP each
                                        process writes its part of weights and optimizer
    RUN/metrics.jsonl                   one line per report
    RUN/model/                          the result

Data order and noise are pure functions of (seed, step), so `step` is also the data's position and
the state of every random generator.
"""

from __future__ import annotations

import json
import os
import pickle
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from emo_cli.errors import EmoError
from emo_cli.files import is_disk_full, write_atomically
from emo_cli.training.ema import Ema

# What torch, safetensors, pickle and json raise on files that were cut short or overwritten.
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError)
DAMAGE = (*UNREADABLE, SafetensorError, pickle.UnpicklingError, CheckpointException)
WHOLE, PARTED = "model.safetensors", "pytorch_model_fsdp_0"  # as accelerate names the weights
KEPT = 2  # the newest, and the one before it in case the newest turns out to be bad


class Checkpoints:
    """The checkpoints of one run; every process calls the same methods."""

    def __init__(self, run: Path, accelerator: Accelerator, ema: Ema) -> None:
        self.folder = run / "checkpoints"
        self.accelerator = accelerator
        self.ema = ema

    def latest(self) -> Path | None:
        """The newest complete checkpoint; an unfinished one has another name."""
        return max(self.folder.glob("step-" + "[0-9]" * 8), default=None)

    def save(self, step: int) -> None:
        """Write everything under another name, then rename: there is no half checkpoint.

        Raises: EmoError on a full or failing disk; older checkpoints are untouched.
        """
        target = self.folder / f"step-{step:08d}"
        partial = self.folder / f"step-{step:08d}.partial"
        with _disk_errors(partial, self.accelerator.is_main_process):
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial))
            averages = self.ema.state(keep=self.accelerator.is_main_process)
            if self.accelerator.is_main_process:
                save_file(averages, partial / "ema.safetensors")
                (partial / "state.json").write_text(json.dumps({"step": step}) + "\n")
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                _flush_to_disk(partial)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
        if self.accelerator.is_main_process:
            self._remove_old()

    def restore(self) -> int:
        """Load the newest checkpoint, if there is one; returns the next step to compute.

        Raises: EmoError when the checkpoint is damaged, or FSDP saved it and is not used now.
        """
        latest = self.latest()
        if latest is None:
            return 0
        parted = (latest / PARTED).exists()
        if (latest / (WHOLE if self.accelerator.is_fsdp2 else PARTED)).exists():
            raise EmoError(
                f"the checkpoint {latest} was saved {'with' if parted else 'without'} FSDP",
                f"Launch with the method that the run began with: {'FSDP' if parted else 'DDP'}.",
            )
        try:
            step = int(json.loads((latest / "state.json").read_text())["step"])
            self.ema.load(load_file(latest / "ema.safetensors"))
            self.accelerator.load_state(str(latest))
        except DAMAGE as error:
            raise EmoError(
                f"the checkpoint {latest} is damaged: {damage(error)}",
                "Remove that folder; the run goes on from the checkpoint before it.",
            ) from error
        return step

    def _remove_old(self) -> None:
        for old in sorted(self.folder.glob("step-" + "[0-9]" * 8))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint as they trained, whole; no other process is needed.

    Raises: one of `DAMAGE` when files are missing or cut short.
    """
    if not (checkpoint / PARTED).exists():
        return load_file(checkpoint / WHOLE)
    reader = dcp.FileSystemReader(checkpoint / PARTED)
    entries = reader.read_metadata().state_dict_metadata
    weights = {n: torch.empty(e.size, dtype=e.properties.dtype) for n, e in entries.items()}  # type: ignore[union-attr]
    dcp.load(weights, storage_reader=reader, no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def check_same_options(run: Path, options: dict[str, Any]) -> None:
    """Record what a run was started with, or refuse to go on with anything else.

    Raises: EmoError that names every option that differs, with both values.
    """
    path = run / "run.json"
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(options, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EmoError(f"cannot read {path}: {error}", "Choose another --out.") from error
    now = json.loads(json.dumps(options))
    changes = list(_differences(before, now))
    if changes:
        raise EmoError(
            f"{run} holds a run with other options: {', '.join(changes)}",
            "Resume with the options it was started with, or choose another --out.",
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Every option that differs; of those inside of another one, those alone."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".strip("."))
    elif before != now:
        yield f"{name} was {reprlib.repr(before)}, now {reprlib.repr(now)}"


@contextmanager
def _disk_errors(partial: Path, remove: bool) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
        cause = cause_of(error)
        full = is_disk_full(cause)
        if not full and not isinstance(cause, OSError | SafetensorError):
            raise
        if remove:
            shutil.rmtree(partial, ignore_errors=True)
        reason = "the disk is full" if full else str(cause)
        raise EmoError(
            f"cannot save a checkpoint in {partial.parent}: {reason}",
            "The last checkpoint is untouched; make room and run the same command again.",
        ) from error


def cause_of(error: BaseException) -> BaseException:
    """What went wrong in the first of the processes that saved or loaded parts together."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def damage(error: BaseException) -> str:
    """What is wrong with a checkpoint, in a line; some errors say no more than their name."""
    cause = cause_of(error)
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _flush_to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
