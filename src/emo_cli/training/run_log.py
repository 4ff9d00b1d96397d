"""What a run measured: `metrics.jsonl`, previews, and TensorBoard's files where it is installed."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from emo_cli.files import move_into_place, write_atomically


class RunLog:
    """Collects losses between reports and writes reports; only the main process writes."""

    def __init__(self, run: Path, first_step: int, writes: bool) -> None:
        self.path = run / "metrics.jsonl"
        self.sums: dict[str, Tensor] = {}
        self.num_steps = 0
        self.board: Any = None
        self.writes = writes
        if writes:
            _forget_after(self.path, first_step)
        if writes and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run), purge_step=first_step + 1)

    def add(self, losses: dict[str, Tensor]) -> None:
        """Take in one step; nothing waits for the device."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss
        self.num_steps += 1

    def averages(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes since the last call."""
        means = torch.stack([s.float() for s in self.sums.values()]) / self.num_steps
        means = accelerator.reduce(means, "mean")  # type: ignore[assignment]
        names = list(self.sums)
        self.sums, self.num_steps = {}, 0
        return dict(zip(names, means.tolist(), strict=True))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a line; values of a step that measured nothing are no line."""
        if not (values and self.writes):
            return
        line = {"step": step, "time": round(time.time(), 1)} | values
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Keep a picture, uint8 RGB [H, W, 3], as RUN/previews/step-000100.png."""
        file = self.path.parent / "previews" / f"step-{step:06d}.png"
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(".part")
        Image.fromarray(picture).save(part, format="png")
        move_into_place(part, file)
        if self.board is not None:
            self.board.add_image("preview", picture, step, dataformats="HWC")


def _forget_after(path: Path, step: int) -> None:
    """Drop lines of steps that will be computed again, and a last line that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.endswith("}") or json.loads(line)["step"] > step:
            break
        kept.append(line + "\n")
    write_atomically(path, "".join(kept))
