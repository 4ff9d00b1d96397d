"""What the sound is worth to a model: the mouth's loss with the clip's own sound, and without.

python benchmarks/sound_probe.py --data DATASET... [--model MODEL] [--clips 16] [--window 16]

Held-out clips of each dataset are noised to the timesteps that sampling uses, and denoised three
times: with their own sound, with another clip's, and with the null condition. A model whose lips
follow the sound loses most where the noise hides the mouth. DATASETs need sound features and
latents of the model's encoders (`emo train prepare --audio-model --latents`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor

from emo_cli.config import read_model_config
from emo_cli.model.load import load_model, model_folder
from emo_cli.training.clip_samples import ClipSamples, open_datasets
from emo_cli.training.denoising import DenoisingLoss
from emo_cli.training.denoising_stage import loss_options
from emo_cli.training.draws import Draw, derive_seed
from emo_cli.training.stages import stage_row

HIDDEN = 4  # of the sampled timesteps, the noisiest
MICRO_BATCH = 4


class LossAt(DenoisingLoss):
    """The loss at one timestep, with all conditions."""

    timestep = 0

    def _timesteps(self, seeds: Tensor) -> Tensor:
        return torch.full((len(seeds),), self.timestep, device=self.alphas.device)


def main() -> None:
    options = _arguments()
    folder = model_folder(options.model)
    config = read_model_config(folder / "config.json")
    model = load_model(folder, device=torch.device("cpu"), dtype=torch.float32).eval()
    everything = dataclasses.replace(
        loss_options("video", config), drop_both=0.0, drop_audio=0.0, drop_motion=0.0
    )
    loss = LossAt(model, everything)
    rows = []
    for path in options.data:
        stage = stage_row("video", "mini")
        samples = open_datasets([str(path)], stage, config, "val", [folder], options.window)
        assert samples is not None, f"{path} holds no held-out clip"
        batch = _batch(samples, options.clips)
        for timestep in loss.sampled[:HIDDEN]:
            loss.timestep = timestep
            sounds = {"own": batch["audio"], "another's": batch["audio"].roll(1, 0)}
            sounds["none"] = torch.zeros_like(batch["audio"])
            row = {name: _mouth(loss, batch | {"audio": x}) for name, x in sounds.items()}
            rows.append({"data": path.name, "timestep": timestep} | row)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in row.items())
            print(f"{path.name}  t = {timestep}  mouth loss with sound: {shown}", flush=True)
    print(json.dumps(rows))


@torch.inference_mode()
def _mouth(loss: LossAt, batch: dict[str, Tensor]) -> float:
    count = len(batch["seed"])
    parts = range(0, count, MICRO_BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        found = [
            loss({name: x[i : i + MICRO_BATCH] for name, x in batch.items()})["mouth"].item()
            for i in parts
        ]
    return sum(found) / len(found)


def _batch(samples: ClipSamples, count: int) -> dict[str, Tensor]:
    seeds = [derive_seed("sound probe", number) for number in range(count)]
    rows = [samples[Draw(i * len(samples) // count, seed)] for i, seed in enumerate(seeds)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"seed": torch.tensor(seeds)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--window", type=int, default=16, help="latent pixels; see emo train video")
    return parser.parse_args()


if __name__ == "__main__":
    main()
