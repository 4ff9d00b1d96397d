"""Stage `audio`: mini's small wav2vec learns to hear what moves lips.

It predicts a teacher's features, the phonemes of synthesised speech, loudness, and the lips of
filmed speakers, by linear heads that are dropped afterwards: what they read, the projector can.

Legend: `B` batch, `S` samples at 16 kHz, `T` rows (steps of wav2vec), `L` layers of the encoder,
`D` their width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2PositionalConvEmbedding

from emo_cli.audio import build_wav2vec, normalised
from emo_cli.config import AudioConfig
from emo_cli.errors import EmoError
from emo_cli.training.audio_data import HEARD, UNKNOWN_PHONEME, SoundCache, StoredSound
from emo_cli.training.audio_noise import disturbed
from emo_cli.training.draws import Draw, derive_seed
from emo_cli.training.speech_synthesis import PHONEMES
from emo_cli.training.teacher import ROW
from emo_cli.training.teacher_targets import TeacherTargets

TEACHER_LAYERS = (2, 4)  # of Whisper tiny's four; the encoder's middle and last layer learn them
PIECE_ROWS = 125  # 2.5 s
PIECES = 2  # of different sounds, one behind the other: a voice must not need its own window
LIP_REPEATS = 3
SILENT_SHARE = 0.06  # of the pieces
SILENT_PHONEME = PHONEMES.index("pau")
LIP_WINDOW = 9  # rows, 180 ms
# Heads read all layers side by side times this: hundreds of inputs that move together would swing
# a single output by more than its range in one step of Adam.
HEAD_GAIN = 0.1
HELD_OUT_SOUNDS = 40  # of each source, that `evaluate` hears
WEIGHTS = {
    "teacher_middle": 1.0,
    "teacher_last": 1.0,
    "phoneme": 0.3,
    "envelope": 0.5,
    "lips": 1.0,
    "scale": 0.01,
}


class SoundSamples:
    """Two disturbed pieces of sound a sample, with the targets of the undisturbed ones."""

    def __init__(self, cache: SoundCache) -> None:
        self.cache = cache
        self.entries = _entries(cache)
        self.teacher = TeacherTargets(cache)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, drawn: Draw) -> dict[str, Tensor]:
        others = (derive_seed(drawn.seed, "other", i) for i in range(1, PIECES))
        chosen = [drawn.index, *(other % len(self.entries) for other in others)]
        pieces = [
            self.piece(self.entries[entry], PIECE_ROWS, derive_seed(drawn.seed, "piece", i))
            for i, entry in enumerate(chosen)
        ]
        rng = np.random.default_rng(derive_seed(drawn.seed, "disturb"))
        pieces = [silence(p) if rng.random() < SILENT_SHARE else p for p in pieces]
        sound = disturbed([piece.pop("sound") for piece in pieces], rng)
        joined = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
        joined["known"][PIECE_ROWS - 1 :: PIECE_ROWS] = False  # these hear two pieces
        num_steps = (len(sound) - HEARD) // ROW + 1
        batch = {name: torch.from_numpy(rows[:num_steps]) for name, rows in joined.items()}
        return batch | {"sound": torch.from_numpy(normalised(sound))}

    def piece(self, sound: StoredSound, num_rows: int, seed: int) -> dict[str, NDArray[Any]]:
        """A part of a sound, "sound" [320 T] float32, and its targets; silence where it ends."""
        room = sound.num_rows - num_rows
        start = derive_seed(seed, "start") % (abs(room) + 1) * (1 if room >= 0 else -1)
        first, last = max(0, start), min(sound.num_rows, start + num_rows)
        into = slice(first - start, last - start)
        stored = slice(sound.first_row + first, sound.first_row + last)
        rows: dict[str, NDArray[Any]] = {
            "sound": np.zeros((num_rows, ROW), np.float32),
            "phoneme": np.full(num_rows, SILENT_PHONEME, np.int64),
            "lips": np.full(num_rows, np.nan, np.float32),
            "envelope": np.full(num_rows, -1, np.float32),
            "teacher": np.zeros((num_rows, self.teacher.width), np.float32),
            "known": np.zeros(num_rows, bool),
        }
        samples = self.cache.samples[stored.start * ROW : stored.stop * ROW]
        rows["sound"][into] = samples.reshape(-1, ROW).astype(np.float32) / 32768
        for name in ("phoneme", "lips", "envelope"):
            rows[name][into] = self.cache.targets[name][stored]
        rows["teacher"][into] = self.teacher(stored.start, stored.stop)
        rows["known"][into] = True
        rows["sound"] = rows["sound"].reshape(-1)
        return rows


def silence(piece: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """As long as the piece, and nobody speaks: what is heard there is noise."""
    fills = {"phoneme": SILENT_PHONEME, "lips": np.nan, "envelope": -1}
    return {name: np.full_like(rows, fills.get(name, 0)) for name, rows in piece.items()}


def _entries(cache: SoundCache) -> list[StoredSound]:
    """Sounds by the number of pieces in them, more often where lips were seen; sources by the
    square root of their length."""
    per_source: list[list[StoredSound]] = [[] for _ in cache.source_names]
    for sound in cache.sounds:
        if not sound.held_out:
            pieces = max(1, round(sound.num_rows / PIECE_ROWS))
            seen = not np.isnan(cache.rows("lips", sound)).all()
            per_source[sound.source] += [sound] * (pieces * (LIP_REPEATS if seen else 1))
    filled = [sounds for sounds in per_source if sounds]
    largest = max(map(len, filled), default=0)
    entries = []
    for sounds in filled:
        count = round((len(sounds) * largest) ** 0.5)
        entries += [sounds[i % len(sounds)] for i in range(count)]
    return entries


class ContiguousGelu(nn.Module):
    """GELU of a tensor laid out in one piece: behind wav2vec's transposed LayerNorm it is not,
    and a training step on a CPU takes 1.5 times as long."""

    def forward(self, hidden: Tensor) -> Tensor:
        """The same shape."""
        return functional.gelu(hidden.contiguous())


class PositionsInFloat32(Wav2Vec2PositionalConvEmbedding):
    """Never in bfloat16: oneDNN (in torch 2.13, on a CPU with AMX) computes this grouped
    convolution wrongly there, without a word."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D] float32."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return super().forward(hidden_states.float())


class AudioLoss(nn.Module):
    """The encoder, and the heads that it is trained through."""

    def __init__(self, config: AudioConfig, teacher_width: int, lip_scale: tuple[float, float]):
        super().__init__()
        self.encoder = build_wav2vec(config)
        for layer in self.encoder.feature_extractor.conv_layers:
            layer.activation = ContiguousGelu()
        self.encoder.encoder.pos_conv_embed = PositionsInFloat32(self.encoder.config)
        self.lip_scale = lip_scale  # mean and std of the openings in the training data
        width, layers = config.hidden_width, config.num_layers * config.hidden_width
        self.middle = max(1, config.num_layers // 2)  # counted from 1
        self.heads = nn.ModuleDict(
            {
                "teacher_middle": nn.Linear(width, teacher_width),
                "teacher_last": nn.Linear(width, teacher_width),
                "phoneme": nn.Linear(layers, len(PHONEMES)),
                "envelope": nn.Linear(layers, 1),
                "lips": nn.Conv1d(layers, 1, LIP_WINDOW, padding=LIP_WINDOW // 2),
            }
        )

        for name, weight in self.heads.named_parameters():
            if name in ("phoneme.weight", "envelope.weight", "lips.weight"):
                weight.detach().mul_(0.3 / HEAD_GAIN)

    def hear(self, sound: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Normalised sound [B, S] -> layers L x [B, T, D], and what each head says [B, T, ...]."""
        output = self.encoder(sound, output_hidden_states=True)
        # As `AudioFeatures` takes them.
        layers = [*output.hidden_states[1:-1], output.last_hidden_state]
        beside = HEAD_GAIN * torch.cat(layers, dim=-1)  # [B, T, L*D]
        return layers, {
            "teacher_middle": self.heads["teacher_middle"](layers[self.middle - 1]),
            "teacher_last": self.heads["teacher_last"](layers[-1]),
            "phoneme": self.heads["phoneme"](beside),
            "envelope": self.heads["envelope"](beside)[..., 0],
            "lips": self.heads["lips"](beside.transpose(1, 2))[:, 0],
        }

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"sound": [B, S], "teacher": [B, T, 2 x its width], the others [B, T]} -> losses."""
        layers, said = self.hear(batch["sound"])
        known, phoneme = batch["known"], batch["phoneme"]
        middle, last = batch["teacher"].chunk(2, dim=-1)
        seen = ~batch["lips"].isnan()
        # NaN times zero is NaN, also in the gradient: no NaN may come near the sum.
        opening = (batch["lips"].nan_to_num() - self.lip_scale[0]) / self.lip_scale[1]
        losses = {
            "teacher_middle": _mean_square(said["teacher_middle"] - middle, known),
            "teacher_last": _mean_square(said["teacher_last"] - last, known),
            "envelope": _mean_square(said["envelope"] - batch["envelope"], None),
            "lips": _mean_square(said["lips"] - opening, seen),
            "phoneme": _mean(
                functional.cross_entropy(
                    said["phoneme"].transpose(1, 2),
                    phoneme,
                    ignore_index=UNKNOWN_PHONEME,
                    reduction="none",
                ),
                phoneme != UNKNOWN_PHONEME,
            ),
            # The residual stream would drift; the projector hears all layers side by side.
            "scale": torch.stack([layer.float().std().log().square() for layer in layers]).sum(),
        }
        loss = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        return {"loss": loss} | losses


def _mean_square(error: Tensor, where: Tensor | None) -> Tensor:
    squared = error.square()
    if squared.dim() == 3:
        squared = squared.mean(dim=-1)
    return _mean(squared, torch.ones_like(squared, dtype=torch.bool) if where is None else where)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of the values [B, T] where it is known; 0 where nothing is."""
    return (values * where).sum() / where.sum().clamp(min=1)


class AudioTask:
    """All that stage `audio` brings to the loop."""

    def __init__(self, config: AudioConfig, cache: SoundCache, seed: int) -> None:
        self.samples = SoundSamples(cache)
        if len(self.samples) == 0:
            raise EmoError("all sounds are held out for validation", "Name more folders.")
        torch.manual_seed(derive_seed(seed, "weights"))
        self.module = AudioLoss(config, self.samples.teacher.count, _lip_scale(cache))
        self.module.train()
        self.cache = cache

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """On undisturbed held-out sounds, each by itself: share of the teacher's variance that is
        predicted, share of phonemes that are right, correlation with lips, per source."""
        assert isinstance(module, AudioLoss)
        measures: dict[str, float] = {}
        for source, name in enumerate(self.cache.source_names):
            sounds = [s for s in self.cache.sounds if s.held_out and s.source == source]
            heard = [self._heard(module, sound) for sound in sounds[:HELD_OUT_SOUNDS]]
            if heard:
                joined = {key: torch.cat([rows[key] for rows in heard]) for key in heard[0]}
                measures |= {f"{key}_{name}": v for key, v in _measures(joined).items()}
        return measures

    def _heard(self, module: AudioLoss, sound: StoredSound) -> dict[str, Tensor]:
        piece = self.samples.piece(sound, min(sound.num_rows, 1000), 0)
        samples = torch.from_numpy(normalised(piece.pop("sound")))
        device = next(module.parameters()).device
        _, said = module.hear(samples[None].to(device))
        rows = {f"said_{name}": values[0].cpu() for name, values in said.items()}
        num_rows = len(rows["said_lips"])
        return rows | {name: torch.from_numpy(v[:num_rows]) for name, v in piece.items()}

    def export(self, module: nn.Module, folder: Path) -> None:
        """`audio_encoder.safetensors` in fp16, without the heads."""
        from emo_cli.model.load import write_part  # imports every network

        assert isinstance(module, AudioLoss)
        folder.mkdir(parents=True, exist_ok=True)
        write_part(folder, "audio_encoder", module.encoder.state_dict(), dtype=torch.float16)


def _lip_scale(cache: SoundCache) -> tuple[float, float]:
    known = [cache.rows("lips", s) for s in cache.sounds if not s.held_out]
    openings = np.concatenate(known).astype(np.float32)
    openings = openings[~np.isnan(openings)]
    if len(openings) == 0:
        return 0.0, 1.0
    return float(openings.mean()), float(openings.std()) + 1e-4


def _measures(rows: dict[str, Tensor]) -> dict[str, float]:
    values: dict[str, float] = {}
    teachers = zip(("middle", "last"), rows["teacher"].chunk(2, dim=-1), strict=True)
    for name, truth in teachers:
        error = (rows[f"said_teacher_{name}"] - truth).square().mean()
        values[f"teacher_{name}"] = (1 - error / truth.var(dim=0).mean()).item()
    known = rows["phoneme"] != UNKNOWN_PHONEME
    if known.any():
        right = rows["said_phoneme"].argmax(dim=-1) == rows["phoneme"]
        values["phoneme"] = right[known].float().mean().item()
    seen = ~rows["lips"].isnan()
    if seen.sum() > 1:
        pair = torch.stack([rows["said_lips"][seen], rows["lips"][seen]])
        values["lips"] = torch.corrcoef(pair)[0, 1].item()
    return values
