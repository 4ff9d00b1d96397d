"""What a sync network hears: loudness, mel bands and MFCCs as python_speech_features defines them.

Steps are 10 ms and hear 25 ms: four of them a frame at 25 fps. Step s hears samples 160 s ...
160 s + 400; there are as many as python_speech_features gives, the last ones padded with zeros.

Legend: `S` samples at 16 kHz, `P` steps of 10 ms, `K` mel bands.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

SAMPLE_RATE_HZ = 16_000
STEP, HEARD, FFT = 160, 400, 512  # samples
STEPS_PER_FRAME = 4
EMPHASIS = 0.97  # share of the sample before that is taken off
PART = 6000  # steps worked on at a time
MFCC_BANDS, MFCC_NUMBER, LIFTER = 26, 13, 22
INT16 = 32_768  # the published network heard samples of WAV files, not of -1..1

# Loudness: blocks, gates and level of EBU R 128, to which broadcast video (what the published
# network saw) is made; without its K weighting, which moves speech by less than 2 dB.
TARGET_DB = -23.0
BLOCK, HOP = 6400, 1600  # 400 ms, every 100 ms
ABSOLUTE_GATE_DB, RELATIVE_GATE_DB = -70.0, -10.0
MOST_GAIN_DB = 40.0


def normalise_loudness(sound: np.ndarray) -> np.ndarray:
    """The sound [S] float32 scaled so that its blocks that are not silent have -23 dB.

    Mean power of blocks of 400 ms; below -70 dB, then 10 dB below the mean of the others, blocks
    do not count. Silence stays as it is; nothing is raised by more than 40 dB or clipped.
    """
    padded = np.pad(sound, (0, max(0, BLOCK - len(sound))))
    hops = padded[: len(padded) // HOP * HOP].reshape(-1, HOP)
    energy = np.einsum("ij,ij->i", hops, hops, dtype=np.float64)
    power = np.convolve(energy, np.ones(BLOCK // HOP), "valid") / BLOCK
    power = power[power > 10 ** (ABSOLUTE_GATE_DB / 10)]
    if not len(power):
        return sound.astype(np.float32)
    power = power[power >= power.mean() * 10 ** (RELATIVE_GATE_DB / 10)]
    gain_db = min(TARGET_DB - 10 * math.log10(power.mean()), MOST_GAIN_DB)
    return (sound * 10 ** (gain_db / 20)).astype(np.float32)


def log_mel(sound: np.ndarray, num_bands: int) -> np.ndarray:
    """Sound [S] at -1..1 -> natural logarithm of the energies of its mel bands, float32 [P, K]."""
    parts = [
        np.log(_mel_energies(power, num_bands)).astype(np.float32)
        for power in _power_spectra(sound * INT16)
    ]
    return np.concatenate(parts)


def mfcc(sound: np.ndarray) -> np.ndarray:
    """Sound [S] at -1..1 -> 13 coefficients, float32 [P, 13]: python_speech_features.mfcc of the
    same samples as 16-bit integers, with its defaults."""
    return np.concatenate([_mfcc(power) for power in _power_spectra(sound * INT16)])


def _mfcc(power: np.ndarray) -> np.ndarray:
    logs = np.log(_mel_energies(power, MFCC_BANDS))  # [P, K]
    coefficients = logs @ _cosines(MFCC_BANDS, MFCC_NUMBER)
    order = np.arange(MFCC_NUMBER)
    coefficients *= 1 + LIFTER / 2 * np.sin(np.pi * order / LIFTER)
    coefficients[:, 0] = np.log(_not_zero(power.sum(axis=1)))
    return coefficients.astype(np.float32)


def _power_spectra(samples: np.ndarray) -> Iterator[np.ndarray]:
    """[S] -> [P, FFT / 2 + 1] in parts of a minute, of rectangular windows."""
    emphasised = np.append(samples[:1], samples[1:] - np.float32(EMPHASIS) * samples[:-1])
    num_steps = 1 + max(0, math.ceil((len(samples) - HEARD) / STEP))
    padded = np.pad(emphasised, (0, max(0, (num_steps - 1) * STEP + HEARD - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, HEARD)[::STEP]
    for first in range(0, num_steps, PART):
        part = windows[first : min(first + PART, num_steps)].astype(np.float64)
        yield np.abs(np.fft.rfft(part, FFT)) ** 2 / FFT


def _mel_energies(power: np.ndarray, num_bands: int) -> np.ndarray:
    return _not_zero(power @ _mel_bands(num_bands))  # [P, K]


def _not_zero(values: np.ndarray) -> np.ndarray:
    return np.where(values == 0, np.finfo(np.float64).eps, values)


@functools.lru_cache(maxsize=4)
def _mel_bands(num_bands: int) -> np.ndarray:
    """Triangles over the bins of the spectrum [FFT / 2 + 1, K], corners on whole bins."""
    highest = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    corners_hz = 700 * (10 ** (np.linspace(0, highest, num_bands + 2) / 2595) - 1)
    corners = np.floor((FFT + 1) * corners_hz / SAMPLE_RATE_HZ)
    bins = np.arange(FFT // 2 + 1)[:, None]
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins - low) / (middle - low)
    falling = (high - bins) / (high - middle)
    return np.where(bins < middle, rising, falling).clip(min=0) * (bins < high)


@functools.lru_cache(maxsize=1)
def _cosines(num_bands: int, number: int) -> np.ndarray:
    """The orthonormal DCT-II's first rows, transposed [K, number]."""
    place = np.arange(num_bands)[:, None] + 0.5
    cosines = np.cos(np.pi * place * np.arange(number) / num_bands) * np.sqrt(2 / num_bands)
    cosines[:, 0] *= np.sqrt(0.5)
    return cosines
