"""What networks make of a dataset once and for all: sound features, and latents for CPU training.

    DATASET/features-3f02b6c9d1/   windowed wav2vec features of each clip's sound, [T, L*D] fp16
    DATASET/latents-88ab01c2ff/    scaled latents of each clip's frames, [T, C, h, w] fp16

Each is a folder of shards of its own, named by the digest of the weights, its samples joined with
the clips by key. Run it as often as you like: it does what is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from emo_cli.audio import AudioFeatures, build_wav2vec
from emo_cli.config import ModelConfig, read_model_config
from emo_cli.errors import EmoError
from emo_cli.model.autoencoder import build_autoencoder
from emo_cli.model.load import load_part, model_folder, read_part, read_sums
from emo_cli.presets import PRESETS
from emo_cli.raw_video import FPS
from emo_cli.sound import SAMPLE_RATE_HZ, Sound
from emo_cli.training.samples import PackedSample, decode_frames, decode_sound, pack_arrays
from emo_cli.training.shard_reader import ShardReader
from emo_cli.training.shards import INDEX, ShardWriter

CPU_PICTURES, GPU_PICTURES = 3, 32  # at once; larger ones are slower on a CPU
DECODES = ("decoder", "linear_decoder", "post_quant_conv")  # parts of an autoencoder
SAY_EVERY = 200  # clips
Say = Callable[[str], None]


def features_name(model: str | Path) -> str:
    """The folder, in a dataset, of the sound features by this model's encoder."""
    file = "audio_encoder.safetensors"
    sums = read_sums(model_folder(model))
    if file not in sums:
        raise EmoError(
            f"the model {model} has no audio_encoder", "Train it first, or name another model."
        )
    return f"features-{sums[file][:10]}"


def latents_name(model: str | Path) -> str:
    """The folder, in a dataset, of the latents by this model's autoencoder.

    Named by what encodes alone: a decoder that is trained on leaves them as they are.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(read_part(model_folder(model), "autoencoder").items()):
        if name.partition(".")[0] not in DECODES:
            digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return f"latents-{digest.hexdigest()[:10]}"


def add_sound_features(
    dataset: Path, model: str | Path, say: Say = lambda line: None, device: str = "cpu"
) -> str:
    """Features of every clip with sound that has none yet; returns the folder's name.

    Each clip's sound is a sound of its own: windows begin at its first sample.

    Raises: EmoError when the model lacks its audio encoder, or the dataset is damaged.
    """
    folder = model_folder(model)
    config = _config(folder)
    encoder = build_wav2vec(config.audio)
    load_part(folder, "audio_encoder", encoder)
    nn.Module.to(encoder, device).requires_grad_(False)
    clips = ShardReader(str(dataset))

    def features(row: int) -> np.ndarray:
        samples = decode_sound(clips.read(row, "flac"), clips.name(row))
        sound = Sound(
            samples=samples,
            sample_rate_hz=SAMPLE_RATE_HZ,
            duration_s=len(samples) / SAMPLE_RATE_HZ,
            path=Path(clips.keys[row]),
            start_s=0.0,
        )
        made = AudioFeatures(sound, encoder, config=config.audio, fps=FPS)
        return made.features(0, int(clips.frames[row])).half().cpu().numpy()

    about = {"width": config.audio_feature_width, "fps": FPS}
    name = features_name(model)
    _add(dataset / name, about, clips, {"features": features}, say)
    return name


def add_latents(
    dataset: Path,
    model: str | Path,
    say: Say = lambda line: None,
    device: str = "cpu",
    *,
    bf16: bool = False,
) -> str:
    """Latents of every clip that has none yet; returns the folder's name.

    bf16: compute in bfloat16, three times faster on a CPU with AMX, off by some 1 % of the std.

    Raises: EmoError when the model lacks its autoencoder, or the dataset is damaged.
    """
    folder = model_folder(model)
    config = _config(folder)
    network = build_autoencoder(config.autoencoder)
    load_part(folder, "autoencoder", network)
    network.to(device).eval().requires_grad_(False)
    clips = ShardReader(str(dataset))
    at_once = CPU_PICTURES if device == "cpu" else GPU_PICTURES

    @torch.inference_mode()
    def latents(row: int) -> np.ndarray:
        wanted = list(range(clips.frames[row]))
        frames = torch.from_numpy(decode_frames(clips.read(row, "mp4"), wanted, clips.name(row)))
        parts = []
        for part in frames.split(at_once):
            pictures = part.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                parts.append(network.encode(pictures).half().cpu())
        return torch.cat(parts).numpy()

    about = {"channels": config.autoencoder.latent_channels, "factor": config.autoencoder.factor}
    name = latents_name(model)
    _add(dataset / name, about, clips, {"latents": latents}, say)
    return name


def count_missing(dataset: Path, name: str) -> tuple[int, int]:
    """How many clips the folder of features or latents lacks, and how many it is to have.

    Raises: EmoError when there is no dataset, or it is damaged.
    """
    clips = ShardReader(str(dataset))
    return len(_missing(dataset / name, clips)), len(_wanted(name, clips))


def _config(folder: Path) -> ModelConfig:
    """A model's numbers; runs of one encoder leave none, and only `mini` trains its encoders."""
    file = folder / "config.json"
    return read_model_config(file) if file.exists() else PRESETS["mini"]


def _add(
    folder: Path,
    about: dict[str, Any],
    clips: ShardReader,
    makers: dict[str, Callable[[int], np.ndarray]],
    say: Say,
) -> None:
    with ShardWriter(folder, about) as writer:
        for made, row in enumerate(_missing(folder, clips), 1):
            arrays = {name: make(row) for name, make in makers.items()}
            parts, entry = {"npz": pack_arrays(**arrays)}, {"frames": int(clips.frames[row])}
            writer.add(PackedSample(key=clips.keys[row], parts=parts, entry=entry))
            if made % SAY_EVERY == 0:
                say(f"{folder.name}: {writer.num_samples} of {len(clips.keys)} clips")


def _missing(folder: Path, clips: ShardReader) -> list[int]:
    done = set(ShardReader(str(folder)).keys) if (folder / INDEX).exists() else set()
    return [row for row in _wanted(folder.name, clips) if clips.keys[row] not in done]


def _wanted(name: str, clips: ShardReader) -> list[int]:
    """Sound features are made of clips with sound, latents of all."""
    heard = name.startswith("features")
    return [row for row in range(len(clips.keys)) if not heard or clips.has(row, "flac")]
