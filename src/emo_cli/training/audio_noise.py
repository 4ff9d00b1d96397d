"""What lies between a mouth and a file: rooms, microphones, other sounds, music.

Every function takes sound [S] at 16 kHz and returns as much; randomness comes from `rng` alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emo_cli.audio import SAMPLE_RATE_HZ

Samples = NDArray[np.float32]

QUIET_RMS = 0.02
GAIN_DB = 6.0  # between pieces
NOISE_SHARE, NOISE_DB = 0.6, (3.0, 35.0)
MUSIC_SHARE, MUSIC_DB = 0.25, (0.0, 20.0)
ROOM_SHARE, ROOM_S = 0.25, (0.08, 0.4)
EQUALISER_SHARE, EQUALISER_DB = 0.5, 12.0
NOTES_PER_CHORD, OVERTONES, CHORD_S = 3, 4, 0.5


def disturbed(pieces: list[Samples], rng: np.random.Generator) -> Samples:
    """The pieces one behind the other, each at a loudness of its own, as a bad recording of it."""
    gains = 10 ** (rng.uniform(-GAIN_DB, GAIN_DB, len(pieces)) / 20)
    sound = np.concatenate([piece * gain for piece, gain in zip(pieces, gains, strict=True)])
    if rng.random() < ROOM_SHARE:
        sound = in_a_room(sound, rng)
    if rng.random() < MUSIC_SHARE:
        sound = mixed(sound, music(len(sound), rng), rng.uniform(*MUSIC_DB))
    if rng.random() < NOISE_SHARE:
        sound = mixed(sound, noise(len(sound), rng), rng.uniform(*NOISE_DB))
    if rng.random() < EQUALISER_SHARE:
        sound = equalised(sound, rng)
    # A microphone may be wired either way round.
    return (sound * rng.choice([-1, 1])).astype(np.float32)


def mixed(sound: Samples, other: Samples, ratio_db: float) -> Samples:
    """The sum, with the other sound `ratio_db` below the first, or below a quiet voice."""
    power = max(float(np.mean(sound**2)), QUIET_RMS**2)
    level = np.sqrt(power / (np.mean(other**2) + 1e-12)) * 10 ** (-ratio_db / 20)
    return sound + other * level


def noise(length: int, rng: np.random.Generator) -> Samples:
    """Between white and brown, steady or rising and falling."""
    spectrum = np.fft.rfft(rng.standard_normal(length).astype(np.float32))
    spectrum *= np.arange(1, len(spectrum) + 1) ** -rng.uniform(0, 1)
    sound = np.fft.irfft(spectrum, length).astype(np.float32)
    if rng.random() < 0.5:
        knots = rng.uniform(0, 1, 8)
        sound *= np.interp(np.linspace(0, 7, length), np.arange(8), knots)
    return sound


def music(length: int, rng: np.random.Generator) -> Samples:
    """Chords of plucked tones with overtones, half a second each."""
    chord = int(CHORD_S * SAMPLE_RATE_HZ)
    time = np.arange(chord, dtype=np.float32) / SAMPLE_RATE_HZ
    pluck = np.exp(-time * rng.uniform(1, 8))
    scale = 2 * np.pi * 110 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11]) / 12)
    chords = []
    for _ in range(-(-length // chord)):
        notes = rng.choice(scale, NOTES_PER_CHORD) * rng.choice([1, 2, 4], NOTES_PER_CHORD)
        partials = (notes[:, None] * np.arange(1, OVERTONES + 1)).ravel()
        strengths = np.tile(rng.uniform(0.3, 1) ** np.arange(OVERTONES), NOTES_PER_CHORD)
        waves = np.sin(partials[:, None].astype(np.float32) * time)
        chords.append(strengths @ waves * pluck)
    return np.concatenate(chords)[:length].astype(np.float32)


def in_a_room(sound: Samples, rng: np.random.Generator) -> Samples:
    """With an echo that dies away by 60 dB in 0.08 to 0.4 s."""
    decay_s = rng.uniform(*ROOM_S)
    length = int(decay_s * SAMPLE_RATE_HZ)
    response = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    response *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(response**2))
    response[0] = 1
    padded = 1 << (len(sound) + length - 1).bit_length()
    spectrum = np.fft.rfft(sound, padded) * np.fft.rfft(response.astype(np.float32), padded)
    return np.fft.irfft(spectrum, padded)[: len(sound)].astype(np.float32)


def equalised(sound: Samples, rng: np.random.Generator) -> Samples:
    """With bands raised and lowered by up to 12 dB, as small loudspeakers and telephones do."""
    spectrum = np.fft.rfft(sound)
    knots = rng.uniform(-EQUALISER_DB, EQUALISER_DB, 6)
    octave = np.log2(np.linspace(2**-6, 1, len(spectrum))) + 6
    gain = 10 ** (np.interp(octave, np.linspace(0, 6, 6), knots) / 20)
    return np.fft.irfft(spectrum * gain, len(sound)).astype(np.float32)
