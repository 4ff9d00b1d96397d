"""Measures of `mini_quality.py` that are no metric of `emo eval`: pure functions of curves.

Legend: T frames at 25 per second; curves are [T], NaN where there was no face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FPS = 25
SAMPLES = 640  # of sound at 16 kHz in a frame
VOICE_HZ = (200.0, 4000.0)
SMOOTH = 1.0  # frames, standard deviation: syllables follow each other at 3 to 6 a second
REACH = 7  # frames: offsets looked at on each side
ALLOWED = 1  # frames: an offset that nobody sees
FEWEST = 8  # frames to correlate
BLINK = 0.6  # of the median opening; a blink of GRID's speaker goes down to 0.2 or 0.3
BLINK_FRAMES = (1, 12)  # from a blink to eyes that are simply shut
LIPS_MEET = ("b", "p", "m")  # words that begin with these begin with shut lips
LETTER_M = "m"  # but for its name, at whose end they meet
# Frames around an onset in which the lips meet, and around the speech in which they get ready.
ONSET, BEFORE_SPEECH, AFTER_SPEECH = (-2, 3), 4, 6
CORNERS = (0.5, 0.15)  # the upper left and right of a picture: its share of the height, the width


@dataclass(frozen=True)
class Word:
    """A word of a transcript and its time in frames."""

    text: str
    start: float
    end: float


def read_alignment(path: Path) -> list[Word]:
    """GRID's words; its times count 1000 to a frame."""
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Word(text, int(start) / 1000, int(end) / 1000) for start, end, text in rows]


def spoken(words: Sequence[Word]) -> list[Word]:
    """The words without silences and pauses."""
    return [word for word in words if word.text not in ("sil", "sp")]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r where both are known; 0 where one never moves; NaN of too few frames."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < FEWEST:
        return float("nan")
    a, b = (x[known].astype(np.float64) - x[known].mean(dtype=np.float64) for x in (a, b))
    product = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / product) if product > 1e-12 else 0.0


def correlations(curve: np.ndarray, target: np.ndarray) -> np.ndarray:
    """r [2 REACH + 1] of a curve that comes -REACH..REACH frames later than its target."""
    count = min(len(curve), len(target))
    curve, target = curve[:count], target[:count]
    return np.array(
        [
            correlation(
                curve[max(o, 0) : count + min(o, 0)], target[max(-o, 0) : count - max(o, 0)]
            )
            for o in range(-REACH, REACH + 1)
        ]
    )


def agreement(rows: Sequence[np.ndarray]) -> tuple[float, int]:
    """Mean r of several videos at the best offset nobody sees, and the best offset of all.

    One offset for all videos: choosing it for each would find agreement in noise.
    """
    known = [row for row in rows if np.isfinite(row).all()]
    if not known:
        return float("nan"), REACH
    mean = np.mean(known, axis=0)
    return float(mean[REACH - ALLOWED : REACH + ALLOWED + 1].max()), int(mean.argmax()) - REACH


def syllable_envelope(sound: np.ndarray, num_frames: int) -> np.ndarray:
    """Loudness of the voice's band [T], its square root, smoothed over about a tenth of a second.

    sound: float32 at 16 kHz. On 14 GRID clips the real speaker's lips follow it with r 0.65.
    """
    spectrum = np.fft.rfft(sound.astype(np.float64))
    hertz = np.fft.rfftfreq(len(sound), 1 / (FPS * SAMPLES))
    spectrum[(hertz < VOICE_HZ[0]) | (hertz > VOICE_HZ[1])] = 0
    power = np.zeros(num_frames * SAMPLES)
    band = np.fft.irfft(spectrum, len(sound))[: len(power)]
    power[: len(band)] = band**2
    loudness = np.sqrt(power.reshape(num_frames, SAMPLES).mean(1))
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / SMOOTH) ** 2)
    smooth = np.convolve(np.pad(loudness, 4, mode="edge"), kernel / kernel.sum(), "valid")
    return np.sqrt(smooth)


def silence_and_speech(mouth: np.ndarray, words: Sequence[Word]) -> tuple[float, float]:
    """Mean lip opening before and after speech, a few frames off, and while speaking."""
    said = spoken(words)
    time = np.arange(len(mouth)) + 0.5
    first, last = said[0].start, said[-1].end
    silent = (time < first - BEFORE_SPEECH) | (time > last + AFTER_SPEECH)
    speaking = (time > first) & (time < last)
    return mean(mouth[silent]), mean(mouth[speaking])


def shut_lips(mouth: np.ndarray, words: Sequence[Word]) -> list[float]:
    """The smallest lip opening about the onset of each word whose first sound is b, p or m."""
    found = []
    for word in spoken(words):
        start = int(word.start)
        around = mouth[max(0, start + ONSET[0]) : start + ONSET[1] + 1]
        meet = word.text.startswith(LIPS_MEET) and word.text != LETTER_M
        if meet and np.isfinite(around).any():
            found.append(float(np.nanmin(around)))
    return found


def count_blinks(eyes: np.ndarray) -> int:
    """Times that the eyes shut for a moment and open again."""
    known = np.isfinite(eyes)
    if not known.any():
        return 0
    shut = np.zeros(len(eyes) + 2, bool)
    shut[1:-1] = known & (eyes < BLINK * np.nanmedian(eyes))
    edges = np.flatnonzero(shut[1:] != shut[:-1])
    starts, ends = edges[::2], edges[1::2]
    low, high = BLINK_FRAMES
    inside = (starts > 0) & (ends < len(eyes))
    return int((inside & (ends - starts >= low) & (ends - starts <= high)).sum())


def join_ratio(changes: Sequence[np.ndarray], clip_frames: int) -> float:
    """Mean change between frames at clip borders, in units of that inside clips."""
    borders, inside = [], []
    for change in changes:
        at_border = np.arange(len(change)) % clip_frames == 0
        borders.append(change[1:][at_border[1:]])
        inside.append(change[1:][~at_border[1:]])
    return mean(np.concatenate(borders)) / max(mean(np.concatenate(inside)), 1e-9)


def drift(curve: np.ndarray, seconds: float = 5) -> float:
    """The mean of the last seconds in units of the mean of the first."""
    count = round(seconds * FPS)
    return mean(curve[-count:]) / max(mean(curve[:count]), 1e-9)


def mean(values: np.ndarray | Sequence[float]) -> float:
    """The mean of what is known; NaN of nothing."""
    array = np.asarray(values, np.float64)
    known = array[np.isfinite(array)]
    return float(known.mean()) if len(known) else float("nan")


class PictureReading:
    """What needs no face: change between frames, brightness, sharpness, the background's change."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._rows: list[tuple[float, float, float, float]] = []

    def add(self, picture: np.ndarray) -> None:
        """The next frame [H, W, 3] uint8."""
        grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        change = np.full_like(grey, np.nan) if self._before is None else np.abs(grey - self._before)
        rows, columns = (
            round(share * side) for share, side in zip(CORNERS, grey.shape, strict=True)
        )
        corners = (change[:rows, :columns].mean() + change[:rows, -columns:].mean()) / 2
        edges = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
        self._rows.append((change.mean(), grey.mean(), edges, corners))
        self._before = grey

    def finish(self) -> Mapping[str, np.ndarray]:
        """`change`, `brightness`, `sharpness`, `background`, each [T], in levels of 0..255."""
        columns = np.array(self._rows, np.float64).reshape(-1, 4).T
        return dict(zip(("change", "brightness", "sharpness", "background"), columns, strict=True))
