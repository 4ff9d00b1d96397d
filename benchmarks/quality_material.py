"""The faces and sounds that `mini_quality.py` judges with.

No network saw the people or GRID's sentences. The other sounds trained the audio encoder and
nothing else: no face was ever shown with them.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, zip_longest
from pathlib import Path

import numpy as np
import soundfile
from quality_measures import FPS, syllable_envelope

from emo_cli.errors import EmoError
from emo_cli.sound import SAMPLE_RATE_HZ, decode_sound
from emo_cli.training.pictures import find_pictures
from emo_cli.training.splits import identity, is_held_out, name_hash

PORTRAIT_SETS = ("london", "canada", "faker")
SOUND_SUFFIXES = {".flac", ".ogg", ".wav", ".mp3", ".m4a"}
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FOREIGN = ("de", "Guten Tag. Wie wird wohl heute das Wetter? Morgen fahren wir ans Meer.")


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A sound that is not GRID's, and where its fullest part begins."""

    name: str
    path: Path
    start_s: float


@dataclass(frozen=True, kw_only=True)
class Material:
    """What lies in the data folder and was held out of training."""

    portraits: tuple[Path, ...]  # one of each person, sets in turn
    portrait_sets: tuple[tuple[Path, ...], ...]  # all pictures of each set
    clips: tuple[Path, ...]  # GRID, each with its alignment beside it
    sounds: tuple[Path, ...]
    notes: tuple[str, ...]


def find_material(data: Path, folder: Path) -> Material:
    """Held-out portraits and clips of `data`, all its other sounds; `folder` takes made ones.

    Raises: EmoError when there are no held-out portraits or clips.
    """
    sets = [held_out_pictures(data / "portraits" / name) for name in PORTRAIT_SETS]
    in_turn = chain.from_iterable(zip_longest(*(one_each(pictures) for pictures in sets)))
    clips = [
        clip
        for clip in (data / "grid_s1").glob("*.mp4")
        if is_held_out(clip) and clip.with_suffix(".align").exists()
    ]
    sounds = [p for p in sorted((data / "audio").glob("*")) if p.suffix in SOUND_SUFFIXES]
    sounds.append(EXAMPLES / "speech.wav")
    notes = []
    if shutil.which("espeak-ng"):
        sounds.append(foreign_speech(folder))
    else:
        notes.append("espeak-ng is not installed: no sound in another language")
    material = Material(
        portraits=tuple(picture for picture in in_turn if picture is not None),
        portrait_sets=tuple(tuple(pictures) for pictures in sets if pictures),
        clips=tuple(sorted(clips, key=lambda clip: name_hash(clip.stem))),
        sounds=tuple(sounds),
        notes=tuple(notes),
    )
    if not material.portraits or not material.clips:
        raise EmoError(
            f"{data} has no held-out {'clips' if material.portraits else 'portraits'}",
            "It needs portraits/london, canada or faker, and grid_s1 with its .align files.",
        )
    return material


def held_out_pictures(folder: Path) -> list[Path]:
    """A set's pictures of held-out people, by name: the neutral one first."""
    files = find_pictures(folder) if folder.is_dir() else []
    return sorted(path for path in files if is_held_out(path))


def one_each(pictures: list[Path]) -> list[Path]:
    """The first picture of each person."""
    first: dict[str, Path] = {}
    for picture in pictures:
        first.setdefault(identity(picture), picture)
    return list(first.values())


def voices(material: Material, seconds: float) -> Iterator[Voice]:
    """The sounds that are not GRID's, each cut where the voice is fullest for `seconds`."""
    for path in material.sounds:
        with tempfile.TemporaryDirectory() as folder:
            sound = decode_sound(path, Path(folder))
            envelope = syllable_envelope(np.array(sound.samples), sound.num_frames(FPS))
        count = min(round(seconds * FPS), len(envelope))
        fullness = np.convolve(envelope, np.ones(count), "valid")
        yield Voice(name=path.stem, path=path, start_s=int(fullness.argmax()) / FPS)


def foreign_speech(folder: Path) -> Path:
    """A sentence in another language than all speech that was trained on people."""
    path = folder / "other_language.wav"
    if not path.exists():
        language, text = FOREIGN
        folder.mkdir(parents=True, exist_ok=True)
        command = ["espeak-ng", "-v", language, "-s", "150", "-w", str(path), text]
        subprocess.run(command, check=True, capture_output=True)
    return path


def silence(folder: Path, seconds: float) -> Path:
    """A sound without any."""
    return _write(folder / "silence.wav", np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32))


def joined(folder: Path, sounds: Sequence[Path], seconds: float) -> Path:
    """The sounds one after the other, from the first again where they are too short."""
    parts: list[np.ndarray] = []
    missing = round(seconds * SAMPLE_RATE_HZ)
    for path in cycle(sounds):
        with tempfile.TemporaryDirectory() as work:
            parts.append(np.array(decode_sound(path, Path(work)).samples[:missing]))
        missing -= len(parts[-1])
        if not missing:
            return _write(folder / "joined.wav", np.concatenate(parts))
    raise ValueError("no sound to join")


def _write(path: Path, samples: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE_HZ)
    return path
