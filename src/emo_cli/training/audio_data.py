"""Sounds to train on, decoded once, with what the teacher hears and what the speaker's lips do.

All sounds lie one behind the other in one stream of samples, in steps of 320 samples: row i of
every target belongs to samples 320 i ... 320 i + 400, which is what wav2vec's step i hears.

Legend: `S` samples at 16 kHz, `T` rows, `L*D` the teacher's layers side by side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from emo_cli.audio import SAMPLE_RATE_HZ, decode_sound
from emo_cli.errors import EmoError
from emo_cli.faces import FaceFinder
from emo_cli.files import find_files, write_atomically
from emo_cli.raw_video import VIDEO_SUFFIXES
from emo_cli.training.lips import stored_lip_openings
from emo_cli.training.speech_synthesis import phoneme_rows
from emo_cli.training.splits import is_held_out, name_hash
from emo_cli.training.teacher import CONTEXT_S, ROW, WINDOW_S, Teacher

SUFFIXES = VIDEO_SUFFIXES | {".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac", ".opus"}
GAP_ROWS = 10  # of silence between two sounds
HEARD = 400  # samples that one of wav2vec's steps hears
LOUDNESS = 0.08  # rms of every stored sound: Whisper hears 80 dB below the loudest of its window
LIP_VIDEOS = 240  # not held out; MediaPipe takes longer than the training
UNKNOWN_PHONEME = 255
RATES = (0.8, 1.25)
QUIET_DB = -50.0
KINDS = {"phoneme": np.uint8, "lips": np.float16, "envelope": np.float16, "teacher": np.float16}

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StoredSound:
    """One sound in the cache; `rate` > 1 was made faster and higher."""

    file: str
    source: int  # which of the folders named on the command line
    held_out: bool
    rate: float
    first_row: int
    num_rows: int


class SoundCache:
    """Samples [S] int16 and the targets of each row, mapped from disk.

    Targets: "phoneme" [T], place in PHONEMES or UNKNOWN_PHONEME; "lips" [T], opening or NaN;
    "envelope" [T], -1..1; "teacher" [T, L*D].
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "sounds.json").read_text(encoding="utf-8"))
        self.digest: str = index["digest"]
        self.source_names: list[str] = index["sources"]
        self.sounds = [StoredSound(**entry) for entry in index["sounds"]]
        self.layers: list[int] = index["layers"]
        self.teacher_width: int = index["teacher_width"]
        self.samples = np.memmap(folder / "samples.bin", dtype=np.int16, mode="r")
        self.num_rows = len(self.samples) // ROW
        self.targets: dict[str, NDArray[Any]] = {}
        for name, kind in KINDS.items():
            path = folder / f"{name}.bin"
            if path.exists() and path.stat().st_size:
                self.targets[name] = np.memmap(path, dtype=kind, mode="r")
        if "teacher" in self.targets:
            width = len(self.layers) * self.teacher_width
            complete = len(self.targets["teacher"]) // width * width
            self.targets["teacher"] = self.targets["teacher"][:complete].reshape(-1, width)

    def rows(self, name: str, sound: StoredSound) -> NDArray[Any]:
        """A target's rows [T, ...] of one sound, not copied."""
        return self.targets[name][sound.first_row : sound.first_row + sound.num_rows]

    def is_sound(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row belongs to a sound and not to the gap between two."""
        firsts = np.array([sound.first_row for sound in self.sounds])
        ends = firsts + [sound.num_rows for sound in self.sounds]
        which = np.searchsorted(firsts, rows, side="right") - 1
        return rows < ends[which]


def open_sound_cache(
    sources: list[Path], folder: Path, teacher: Teacher, layers: tuple[int, ...], say: Say
) -> SoundCache:
    """The cache in `folder`, made first if it is not there; what was done of it is kept.

    Raises: EmoError when a source is missing or holds no sound, none can be decoded, or the
    folder holds the cache of other files.
    """
    files = [find_sounds(source) for source in sources]
    digest = _digest(files, teacher, layers)
    index = folder / "sounds.json"
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"decoding {sum(map(len, files))} sounds")
        values = {
            "digest": digest,
            "sources": [source.name for source in sources],
            "layers": layers,
            "teacher_width": teacher.width,
            "sounds": [dataclasses.asdict(s) for s in _write_sounds(files, folder, say)],
        }
        write_atomically(index, json.dumps(values))
    cache = SoundCache(folder)
    if cache.digest != digest:
        raise EmoError(
            f"{folder} holds the cache of other sounds or another teacher",
            "Remove it, or name another folder with --cache.",
        )
    _write_teacher(cache, folder / "teacher.bin", teacher, say)
    if "lips" not in cache.targets:
        _write_lips(cache, folder, say)
    return SoundCache(folder)


def find_sounds(source: Path) -> list[Path]:
    """All sound and video files under a folder, sorted; or the one file that was named."""
    return find_files(source, SUFFIXES, what="sound", option="--sounds")


def _digest(files: list[list[Path]], teacher: Teacher, layers: tuple[int, ...]) -> str:
    digest = hashlib.sha256(f"{teacher.num_layers} {teacher.width} {layers}\n".encode())
    for found in files:
        for path in found:
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _write_sounds(files: list[list[Path]], folder: Path, say: Say) -> list[StoredSound]:
    sounds: list[StoredSound] = []
    with contextlib.ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        out, phonemes, envelopes = (
            opened.enter_context((folder / f"{name}.bin").open("wb"))
            for name in ("samples", "phoneme", "envelope")
        )
        for source, file in ((s, file) for s, found in enumerate(files) for file in found):
            try:
                rate = _rate(file)
                samples = _prepared(np.array(decode_sound(file, scratch).samples), rate)
                phoneme = _phonemes(file, samples, rate)
            except (EmoError, ValueError) as error:
                say(f"dropped {file}: {error}")
                continue
            sound = StoredSound(
                file=str(file),
                source=source,
                held_out=is_held_out(file),
                rate=rate,
                first_row=out.tell() // (2 * ROW),
                num_rows=len(samples) // ROW,
            )
            sounds.append(sound)
            out.write(_with_gap(samples * 32767, GAP_ROWS * ROW, 0).astype(np.int16).tobytes())
            phonemes.write(_with_gap(phoneme, GAP_ROWS, UNKNOWN_PHONEME).tobytes())
            loudness = _with_gap(envelope(samples), GAP_ROWS, -1.0)
            envelopes.write(loudness.astype(np.float16).tobytes())
    if not sounds:
        raise EmoError("none of the files can be decoded", "Name folders with usable sounds.")
    return sounds


def _with_gap(values: NDArray[Any], length: int, fill: float) -> NDArray[Any]:
    return np.pad(values, (0, length), constant_values=fill)


def _rate(file: Path) -> float:
    """How fast a file's sound is stored: half of the training files are slower or faster.

    That changes pitch and the vocal tract's length as well: other voices from few.
    """
    share = int(name_hash(file.name), 16) % 1000 / 999
    if is_held_out(file) or share < 0.5:
        return 1.0
    low, high = np.log(RATES)
    return round(float(np.exp(low + (high - low) * (2 * share - 1))), 3)


def _prepared(samples: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """Resampled, as loud as all the others, of whole rows [S]."""
    if rate != 1.0:
        samples = resampled(samples, rate)
    scale = LOUDNESS / np.sqrt(np.mean(samples.astype(np.float64) ** 2) + 1e-10)
    scale = min(scale, 0.99 / max(1e-5, np.abs(samples).max()))
    return np.pad(samples * np.float32(scale), (0, -len(samples) % ROW))


def resampled(samples: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """The sound [S] played `rate` times as fast and high, by its spectrum, in blocks of 60 s."""
    block = 60 * SAMPLE_RATE_HZ
    parts = []
    for start in range(0, len(samples), block):
        part = samples[start : start + block]
        length = max(1, round(len(part) / rate))
        parts.append(np.fft.irfft(np.fft.rfft(part)[: length // 2 + 1], length) / rate)
    return np.concatenate(parts).astype(np.float32)


def _centres_s(num_rows: int, rate: float) -> NDArray[np.floating]:
    """The time of each row's centre in the file, in seconds."""
    return (np.arange(num_rows) * ROW + HEARD / 2) / SAMPLE_RATE_HZ * rate


def _phonemes(file: Path, samples: NDArray[np.float32], rate: float) -> NDArray[np.uint8]:
    num_rows = len(samples) // ROW
    path = file.with_suffix(".phones")
    if not path.exists():
        return np.full(num_rows, UNKNOWN_PHONEME, np.uint8)
    length_s = len(samples) / SAMPLE_RATE_HZ * rate
    return phoneme_rows(path, _centres_s(num_rows, rate), length_s)


def envelope(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Loudness of each row [T]: 1 where the sound is loudest, -1 at 50 dB below or silence."""
    padded = np.pad(samples, (0, HEARD - ROW))
    heard = np.lib.stride_tricks.sliding_window_view(padded, HEARD)[::ROW]
    power = np.einsum("ts,ts->t", heard, heard) / HEARD
    level = 10 * np.log10(power + 1e-10)
    below = (level - np.percentile(level, 98)).clip(QUIET_DB, 0)
    return (1 - 2 * below / QUIET_DB).astype(np.float32)


def _write_teacher(cache: SoundCache, path: Path, teacher: Teacher, say: Say) -> None:
    """The teacher's rows of the whole stream, in windows of 30 s; goes on where it stopped."""
    row_bytes = 2 * len(cache.layers) * cache.teacher_width
    done = path.stat().st_size // row_bytes if path.exists() else 0
    context, step = _window_rows()
    with path.open("ab") as out:
        out.truncate(done * row_bytes)
        while done < cache.num_rows:
            first, last = max(0, done - context), min(cache.num_rows, done + step + context)
            window = cache.samples[first * ROW : last * ROW].astype(np.float32) / 32768
            rows = teacher.features(window, tuple(cache.layers))[done - first :][:step]
            out.write(rows.numpy().astype(np.float16).tobytes())
            done += len(rows)
            if done // step % 20 == 0:
                say(f"teacher: {done} of {cache.num_rows} rows")


def _window_rows() -> tuple[int, int]:
    """Rows of context on each side of the teacher's window, and those used between."""
    context = CONTEXT_S * SAMPLE_RATE_HZ // ROW
    return context, WINDOW_S * SAMPLE_RATE_HZ // ROW - 2 * context


def window_positions(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where in the teacher's window each row of the stream stood; the first has no context."""
    context, step = _window_rows()
    return np.where(rows < step, rows, context + rows % step)


def _write_lips(cache: SoundCache, folder: Path, say: Say) -> None:
    """What the lips do in videos: all that are held out, and some of the others."""
    rows = np.full(cache.num_rows, np.nan, np.float16)
    videos = [s for s in cache.sounds if Path(s.file).suffix.lower() in VIDEO_SUFFIXES]
    videos.sort(key=lambda s: (not s.held_out, name_hash(Path(s.file).stem)))
    num_held_out = sum(sound.held_out for sound in videos)
    chosen = videos[: num_held_out + LIP_VIDEOS]
    if chosen:
        say(f"measuring the lips of {len(chosen)} videos")
        with FaceFinder() as finder:
            for sound in chosen:
                try:
                    openings = _openings(sound, folder / "lips", finder)
                except (OSError, ValueError) as error:
                    say(f"no lips in {sound.file}: {error}")
                    continue
                rows[sound.first_row : sound.first_row + sound.num_rows] = openings
    partial = folder / "lips.partial"
    partial.write_bytes(rows.tobytes())
    partial.rename(folder / "lips.bin")


def _openings(sound: StoredSound, folder: Path, finder: FaceFinder) -> NDArray[np.floating]:
    """Lip opening at each row of a sound [T]; NaN without a face and behind the last frame."""
    with av.open(sound.file) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        fps = float(container.streams.video[0].average_rate or 25)
    openings = stored_lip_openings(Path(sound.file), folder, finder)
    # Frame f is the time (f + 0.5) / fps.
    frames = _centres_s(sound.num_rows, sound.rate) * fps - 0.5
    values = np.interp(frames, np.arange(len(openings)), openings)
    return np.where(frames > len(openings), np.nan, values)
