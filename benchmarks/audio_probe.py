"""How much of the lips' motion can be read from sound features by ridge regression.

    python benchmarks/audio_probe.py --clips GRID --model FOLDER --teacher WHISPER --lips CACHE/lips

For every kind of features a linear map of a window of five frames is fitted to MediaPipe's lip
opening |13-14| / |61-291| on clips that training may see, and judged on the held-out clips. Prints
one line of JSON a kind: R2 and correlation over all held-out frames, the mean correlation within a
clip, and the time offset in frames at which the prediction fits best.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from emo_cli.audio import SAMPLE_RATE_HZ, AudioFeatures, Sound, build_wav2vec, decode_sound
from emo_cli.faces import FaceFinder
from emo_cli.presets import MINI
from emo_cli.training.lips import stored_lip_openings
from emo_cli.training.splits import is_held_out, name_hash
from emo_cli.training.teacher import ROW, Teacher, load_teacher

FPS = 25
WINDOW = 2  # frames on each side, as the model's
PENALTIES = 10.0 ** np.arange(-1, 6)
VALIDATION = 5  # every fifth training clip chooses the penalty

Kind = Callable[[Sound], np.ndarray]  # a sound -> features [F, D] at frame centres


def main() -> None:
    """Measure all kinds of features that the arguments allow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, required=True, help="folder of GRID's videos")
    parser.add_argument("--model", type=Path, help="folder with audio_encoder.safetensors")
    parser.add_argument("--teacher", type=Path, help="folder of a Whisper model")
    parser.add_argument("--lips", type=Path, required=True, help="folder for measured openings")
    parser.add_argument("--train-clips", type=int, default=200)
    arguments = parser.parse_args()
    train, test = choose_clips(arguments.clips, arguments.train_clips)
    with FaceFinder() as finder:
        lips = {c: stored_lip_openings(c, arguments.lips, finder) for c in train + test}
    sounds = {clip: read(clip) for clip in train + test}
    for name, features in kinds(arguments.model, arguments.teacher):
        windows = {clip: windowed(features(sounds[clip])) for clip in train + test}
        print(json.dumps({"features": name} | probe(windows, lips, train, test)), flush=True)


def choose_clips(folder: Path, count: int) -> tuple[list[Path], list[Path]]:
    """`count` clips that training may see, in the order of their names' hashes; all held out."""
    clips = sorted(folder.glob("*.mp4"), key=lambda path: name_hash(path.stem))
    held_out = [clip for clip in clips if is_held_out(clip)]
    return [clip for clip in clips if clip not in held_out][:count], held_out


def read(clip: Path) -> Sound:
    """The clip's sound."""
    with tempfile.TemporaryDirectory() as folder:
        return decode_sound(clip, Path(folder))


def kinds(model: Path | None, teacher: Path | None) -> Iterator[tuple[str, Kind]]:
    """All kinds of features, by name."""
    whisper = load_teacher(teacher) if teacher else None
    if whisper:
        yield "log-mel (Whisper's 80)", functools.partial(mel, whisper)
    torch.manual_seed(0)
    yield "mini's encoder, untrained", encoder_features(None)
    if model:
        yield "mini's encoder", encoder_features(model)
    if whisper:
        heard: dict[Path, np.ndarray] = {}
        for layer in range(1, whisper.num_layers + 1):
            yield f"Whisper's layer {layer}", functools.partial(teach, whisper, heard, (layer,))
        both = (whisper.num_layers // 2, whisper.num_layers)
        yield "Whisper's middle and last layer", functools.partial(teach, whisper, heard, both)


def encoder_features(model: Path | None) -> Kind:
    """What `emo generate` feeds the projector with."""
    encoder = build_wav2vec(MINI.audio)
    if model:
        weights = load_file(model / "audio_encoder.safetensors")
        encoder.load_state_dict({name: t.float() for name, t in weights.items()})

    def features(sound: Sound) -> np.ndarray:
        heard = AudioFeatures(sound, encoder, config=MINI.audio, fps=FPS)
        return heard.features(0, heard.num_frames).numpy()

    return features


def mel(teacher: Teacher, sound: Sound) -> np.ndarray:
    """Whisper's own input, a column per 10 ms, at frame centres."""
    columns = teacher.to_mel(sound.samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")
    return at_frames(columns.input_features[0].T, 0.01, 0.0, sound)


def teach(
    teacher: Teacher, heard: dict[Path, np.ndarray], layers: tuple[int, ...], sound: Sound
) -> np.ndarray:
    """Layers of the teacher at frame centres; `heard` keeps all of them for the next call."""
    if sound.path not in heard:
        every = tuple(range(1, teacher.num_layers + 1))
        rows = teacher.features(np.array(sound.samples), every).numpy()
        # Its rows are centred where wav2vec's are.
        heard[sound.path] = at_frames(rows, ROW / SAMPLE_RATE_HZ, 200 / SAMPLE_RATE_HZ, sound)
    by_layer = heard[sound.path].reshape(-1, teacher.num_layers, teacher.width)
    return by_layer[:, [layer - 1 for layer in layers]].reshape(len(by_layer), -1)


def at_frames(rows: np.ndarray, step_s: float, first_s: float, sound: Sound) -> np.ndarray:
    """Rows [T, D], `step_s` apart from `first_s` on, interpolated at frame centres [F, D]."""
    centres_s = (np.arange(sound.num_frames(FPS)) + 0.5) / FPS
    place = ((centres_s - first_s) / step_s).clip(0, len(rows) - 1)
    before = place.astype(int)
    share = (place - before)[:, None]
    return rows[before] * (1 - share) + rows[(before + 1).clip(max=len(rows) - 1)] * share


def windowed(features: np.ndarray) -> np.ndarray:
    """Each frame with its neighbours, edges repeated: [F, D] -> [F, (2 WINDOW + 1) D]."""
    padded = np.pad(features, ((WINDOW, WINDOW), (0, 0)), mode="edge")
    return np.concatenate(
        [padded[i : i + len(features)] for i in range(2 * WINDOW + 1)], axis=1
    ).astype(np.float32)


def probe(
    windows: dict[Path, np.ndarray],
    lips: dict[Path, np.ndarray],
    train: list[Path],
    test: list[Path],
) -> dict[str, float]:
    """Fit on `train`, with the penalty that suits every fifth of its clips, and judge on `test`."""
    chosen_by = train[::VALIDATION]
    fitted_on = [clip for clip in train if clip not in chosen_by]
    maps = fit(*joined(windows, lips, fitted_on))
    x, y = joined(windows, lips, chosen_by)
    errors = [np.mean((predict(x, m) - y) ** 2) for m in maps]
    best = int(np.argmin(errors))
    final = fit(*joined(windows, lips, train))[best]
    x, y = joined(windows, lips, test)
    said = predict(x, final)
    clips = [predict(windows[clip], final) for clip in test]
    pairs = [aligned(s, lips[clip]) for s, clip in zip(clips, test, strict=True)]
    offsets = range(-5, 6)
    return {
        "width": windows[test[0]].shape[1] // (2 * WINDOW + 1),
        "r2": round(1 - float(np.mean((said - y) ** 2) / np.var(y)), 4),
        "r": round(float(np.corrcoef(said, y)[0, 1]), 4),
        "r_in_clip": round(float(np.mean([np.corrcoef(s, t)[0, 1] for s, t in pairs])), 4),
        "best_offset": max(offsets, key=lambda o: shifted_correlation(pairs, o)),
        "penalty": float(PENALTIES[best]),
        "train_clips": len(train),
        "test_clips": len(test),
    }


def aligned(said: np.ndarray, lips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to the shorter, without frames in which no face was found."""
    count = min(len(said), len(lips))
    seen = ~np.isnan(lips[:count])
    return said[:count][seen], lips[:count][seen]


def joined(
    windows: dict[Path, np.ndarray], lips: dict[Path, np.ndarray], clips: list[Path]
) -> tuple[np.ndarray, np.ndarray]:
    """All frames of the clips: windows [N, D] and openings [N]."""
    pairs = [aligned(windows[clip], lips[clip]) for clip in clips]
    return np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])


Map = tuple[np.ndarray, np.ndarray, np.ndarray, float]  # mean and std of x, weights, mean of y


def fit(x: np.ndarray, y: np.ndarray) -> list[Map]:
    """Ridge regression on standardised features, a map for every penalty."""
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    scaled = torch.from_numpy((x - mean) / std)
    values, vectors = torch.linalg.eigh((scaled.T @ scaled).double())
    towards = vectors.T @ (scaled.T @ torch.from_numpy(y - y.mean())).double()
    weights = [vectors @ (towards / (values.clamp(min=0) + penalty)) for penalty in PENALTIES]
    return [(mean, std, w.float().numpy(), float(y.mean())) for w in weights]


def predict(x: np.ndarray, fitted: Map) -> np.ndarray:
    """Openings [N] of windows [N, D]."""
    mean, std, weights, middle = fitted
    return (x - mean) / std @ weights + middle


def shifted_correlation(pairs: list[tuple[np.ndarray, np.ndarray]], offset: int) -> float:
    """Mean correlation where the prediction comes `offset` frames after the lips."""
    first, last = max(0, offset), min(0, offset)
    values = [
        np.corrcoef(s[first : len(s) + last], t[-last : len(t) - first])[0, 1] for s, t in pairs
    ]
    return float(np.mean(values))


if __name__ == "__main__":
    main()
