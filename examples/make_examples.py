"""How the files of this folder were made; they are committed, so nobody needs to run this.

    apt-get install flite                       # the voice: cmu_us_slt
    pip install numpy pillow pyloudnorm pyworld-prebuilt soundfile
    pip download --no-deps scikit-image         # unzip skimage/data/astronaut.png from it
    python examples/make_examples.py astronaut.png

The speech is flite's. The song is the same voice, moved to the notes: WORLD takes the sound
apart into pitch, spectrum and breath, the vowels are stretched to the beat, and the pitch becomes
the melody's. nobody.jpg is a generated face, as it came. Sources and licences are in NOTICE.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyloudnorm
import pyworld
import soundfile
from PIL import Image

HERE = Path(__file__).parent
SENTENCE = "Hello. This video is synthetic. A computer made my voice."
LYRICS = "Twinkle, twinkle, little star."
# Each syllable: onset, vowel, coda, note in hertz, length in beats.
SONG = [
    ("t w", "ih", "ng", 220.0, 1),
    ("k", "ax", "l", 220.0, 1),
    ("t w", "ih", "ng", 329.6, 1),
    ("k", "ax", "l", 329.6, 1),
    ("l", "ih", "", 370.0, 1),
    ("t", "ax", "l", 370.0, 1),
    ("s t", "aa", "r", 329.6, 2),
]
FIRST_BEAT_S, BEAT_S, TAIL_S = 0.35, 0.44, 0.15
FRAME_S = 0.005  # WORLD's own
VIBRATO_HZ, VIBRATO_DEPTH, VIBRATO_AFTER_S = 5.5, 0.012, 0.25
LOUDNESS_LUFS, PEAK = -20.0, 10 ** (-3 / 20)

Phone = tuple[str, float, float]  # name, start and end in seconds


def speak(text: str) -> tuple[np.ndarray, int, list[Phone]]:
    """Samples [T] in -1..1, sample rate in hertz, and what is said when."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command = ["flite", "-voice", "slt", "-psdur", "-t", text, "-o", str(wav)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        samples, rate = soundfile.read(wav)
    phones, start = [], 0.0
    for item in printed.split():
        name, end = item.split(":")
        phones.append((name, start, float(end)))
        start = float(end)
    return samples, rate, phones


def syllables(phones: list[Phone]) -> list[tuple[list[Phone], Phone, list[Phone]]]:
    """The phones of each syllable of SONG as (onset, vowel, coda); pauses are left out."""
    sounds = [phone for phone in phones if phone[0] != "pau"]
    found = []
    for onset, vowel, coda, _, _ in SONG:
        names = [*onset.split(), vowel, *coda.split()]
        head, sounds = sounds[: len(names)], sounds[len(names) :]
        if [phone[0] for phone in head] != names:
            raise SystemExit(f"flite says {head}, the song expects {names}")
        split = len(onset.split())
        found.append((head[:split], head[split], head[split + 1 :]))
    return found


def sung_times(phones: list[Phone]) -> tuple[list[float], list[float]]:
    """Anchors, times in the song and in the speech: vowels begin on the beat and fill it,
    consonants keep their length."""
    parts = syllables(phones)
    onsets_s = [vowel[1] - onset[0][1] for onset, vowel, _ in parts] + [0.0]
    song, speech, beat = [0.0], [0.0], FIRST_BEAT_S
    for number, ((onset, vowel, coda), note) in enumerate(zip(parts, SONG, strict=True)):
        coda_s = coda[-1][2] - vowel[2] if coda else 0.0
        end = beat + note[4] * BEAT_S - onsets_s[number + 1]
        song += [beat - onsets_s[number] + 1e-6, beat, end - coda_s - 1e-6, end]
        speech += [onset[0][1], vowel[1], vowel[2], vowel[2] + coda_s]
        beat += note[4] * BEAT_S
    song.append(song[-1] + TAIL_S)
    speech.append(min(speech[-1] + TAIL_S, phones[-1][2]))
    return song, speech


def melody(times_s: np.ndarray) -> np.ndarray:
    """Pitch in hertz at each time [T], with a glide into each note and vibrato on long ones."""
    starts = FIRST_BEAT_S + BEAT_S * np.cumsum([0, *(note[4] for note in SONG[:-1])])
    index = np.clip(np.searchsorted(starts, times_s, side="right") - 1, 0, None)
    steps = np.log([note[3] for note in SONG])[index]
    glide = np.hanning(13) / np.hanning(13).sum()  # 60 ms
    pitch = np.convolve(np.pad(steps, 6, mode="edge"), glide, mode="valid")
    late = np.clip((times_s - starts[index] - VIBRATO_AFTER_S) / 0.2, 0, 1)
    return np.exp(pitch + VIBRATO_DEPTH * late * np.sin(2 * np.pi * VIBRATO_HZ * times_s))


def sing(samples: np.ndarray, rate: int, phones: list[Phone]) -> np.ndarray:
    """The spoken lyrics [T] sung to SONG [T']."""
    pitch, at = pyworld.harvest(samples, rate, f0_floor=90.0, frame_period=FRAME_S * 1000)
    spectrum = pyworld.cheaptrick(samples, pitch, at, rate)
    breath = pyworld.d4c(samples, pitch, at, rate)
    song, speech = sung_times(phones)
    times_s = np.arange(0.0, song[-1], FRAME_S)
    frames = np.clip(np.rint(np.interp(times_s, song, speech) / FRAME_S), 0, len(pitch) - 1)
    frames = frames.astype(int)
    sung_pitch = np.where(pitch[frames] > 0, melody(times_s), 0.0)
    picked = (np.ascontiguousarray(values[frames]) for values in (spectrum, breath))
    return pyworld.synthesize(sung_pitch, *picked, rate, FRAME_S * 1000)


def save(path: Path, samples: np.ndarray, rate: int) -> None:
    """16-bit mono at LOUDNESS_LUFS, or quieter where that would pass PEAK."""
    loudness = pyloudnorm.Meter(rate).integrated_loudness(samples)
    gain = min(10 ** ((LOUDNESS_LUFS - loudness) / 20), PEAK / np.abs(samples).max())
    soundfile.write(path, samples * gain, rate, subtype="PCM_16")


def main() -> None:
    portrait = Image.open(sys.argv[1]).convert("RGB")
    portrait.save(HERE / "portrait.jpg", quality=92)
    samples, rate, _ = speak(SENTENCE)
    save(HERE / "speech.wav", samples, rate)
    lyrics = speak(LYRICS)
    save(HERE / "singing.wav", sing(*lyrics), lyrics[1])


if __name__ == "__main__":
    main()
