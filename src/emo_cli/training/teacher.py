"""The audio stage's teacher: Whisper's encoder, whose features a small encoder learns to predict.

Legend: `S` samples at 16 kHz, `T` feature rows (one per 320 samples, as in wav2vec), `L` layers,
`D` the teacher's width.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from emo_cli.audio import SAMPLE_RATE_HZ
from emo_cli.errors import EmoError

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

WINDOW_S, CONTEXT_S = 30, 2  # Whisper hears 30 s; what lies near the ends of them is not used
ROW = 320  # samples between feature rows, of Whisper and wav2vec alike
# Whisper's row j is centred at sample 320 j, wav2vec's row i at 320 i + 200.
ROW_SHIFT = 200 / ROW
CT2_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
CT2_NAMES = {
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
}


class Teacher:
    """Whisper's encoder, frozen, at wav2vec's rows."""

    def __init__(self, encoder: WhisperEncoder) -> None:
        from transformers import WhisperFeatureExtractor

        self.encoder = encoder.eval().requires_grad_(False)
        config = encoder.config
        self.width, self.num_layers = config.d_model, config.encoder_layers
        self.to_mel = WhisperFeatureExtractor(feature_size=config.num_mel_bins)

    @torch.no_grad()
    def features(self, samples: np.ndarray, layers: tuple[int, ...]) -> Tensor:
        """Layers (counted from 1) side by side for at most 30 s of sound [S]: [S / 320, L*D]."""
        assert len(samples) <= WINDOW_S * SAMPLE_RATE_HZ
        mel = self.to_mel(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        output = self.encoder(mel.input_features, output_hidden_states=True)
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        rows = torch.cat([states[layer][0] for layer in layers], dim=-1)  # [1500, L*D]
        later = torch.cat([rows[1:], rows[-1:]])
        return torch.lerp(rows, later, ROW_SHIFT)[: len(samples) // ROW]


def load_teacher(folder: Path) -> Teacher:
    """Whisper of any size from a folder in transformers' or CTranslate2's layout.

    Raises: EmoError when the folder holds neither, or a file of it cannot be read.
    """
    if (folder / "model.safetensors").exists():
        from transformers import WhisperModel

        return Teacher(WhisperModel.from_pretrained(folder, local_files_only=True).encoder)
    if not (folder / "model.bin").exists():
        raise EmoError(
            f"{folder} holds no Whisper model",
            "--teacher takes a folder with model.safetensors (transformers) or model.bin "
            "(CTranslate2).",
        )
    try:
        return Teacher(_encoder_from_ctranslate2(folder / "model.bin"))
    except (OSError, struct.error, KeyError, ValueError, RuntimeError) as error:
        raise EmoError(
            f"cannot read {folder / 'model.bin'}: {error}", "Get the teacher's file again."
        ) from error


def _encoder_from_ctranslate2(path: Path) -> WhisperEncoder:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    found = _read_ctranslate2(path)
    state = _with_transformers_names(found)
    width, num_mels, _ = state["conv1.weight"].shape
    config = WhisperConfig(
        d_model=width,
        num_mel_bins=num_mels,
        encoder_layers=1 + max(int(n.split(".")[1]) for n in state if n.startswith("layers.")),
        encoder_attention_heads=int(found["encoder/num_heads"]),
        encoder_ffn_dim=len(state["layers.0.fc1.bias"]),
    )
    encoder = WhisperEncoder(config)
    encoder.load_state_dict(state, strict=True)
    return encoder


def _with_transformers_names(found: dict[str, np.ndarray]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, values in found.items():
        tensor = torch.from_numpy(values.astype(np.float32))
        part, _, kind = name.removeprefix("encoder/").rpartition("/")
        kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
        if part == "position_encodings":
            state["embed_positions.weight"] = tensor
        elif part.endswith("self_attention/linear_0"):
            prefix = _layer(part) + "self_attn."
            for which, third in zip("qkv", tensor.chunk(3), strict=True):
                if not (which == "k" and kind == "bias"):  # it is zero: Whisper's keys have none
                    state[f"{prefix}{which}_proj.{kind}"] = third
        elif part.startswith("layer_") and part != "layer_norm":
            state[f"{_layer(part)}{CT2_NAMES[part.partition('/')[2]]}.{kind}"] = tensor
        elif part:
            state[f"{part}.{kind}"] = tensor
    return state


def _layer(part: str) -> str:
    return f"layers.{part.partition('/')[0].removeprefix('layer_')}."


def _read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """The encoder's variables of a CTranslate2 model of format 4 to 6."""
    found: dict[str, np.ndarray] = {}
    with path.open("rb") as file:
        (version,) = _unpack(file, "I")
        spec = _text(file)
        if version not in (4, 5, 6) or not spec.startswith("Whisper"):
            raise ValueError(f"not a Whisper model of format 4 to 6 ({spec!r}, {version})")
        _unpack(file, "I")  # the revision of the specification
        (num_variables,) = _unpack(file, "I")
        for _ in range(num_variables):
            name = _text(file)
            shape = _unpack(file, f"{_unpack(file, 'B')[0]}I")
            kind, num_bytes = _unpack(file, "BI")
            data = file.read(num_bytes)
            if name.startswith("encoder/"):
                found[name] = np.frombuffer(data, CT2_TYPES[kind]).reshape(shape)
    return found


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "H")
    return file.read(length)[:-1].decode("utf-8")
