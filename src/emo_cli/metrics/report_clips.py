"""The report's clips: which ones are shown, a strip of their frames, and their curves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from emo_cli.errors import EmoError
from emo_cli.metrics.contract import FPS, SAMPLE_RATE_HZ, Column
from emo_cli.metrics.evaluate import Evaluation, SetScore
from emo_cli.metrics.features import Item
from emo_cli.raw_video import read_frames, read_sound

STRIP_FRAMES = 6
STRIP_HEIGHT = 144  # px
GAP = 2  # px between frames
SHOWN = 2  # best and worst clips of each method
RANKED_BY = ("confidence", "fsim")  # preferred, in this order
QUIETEST_DB = -40.0  # of the loudest frame: drawn as nothing


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip as it is shown."""

    set_name: str
    key: str
    rank: str  # best | worst | first
    figures: Mapping[Column, float]
    strip: str  # JPEG as a data URI; empty where frames cannot be read any more
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)  # [T] by name
    real_curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    real_strip: str = ""


def ranking_column(result: Evaluation) -> Column | None:
    """By which column clips are the best and the worst; None without one that has values a video
    and a better direction."""
    columns = [
        column
        for column in result.columns
        if column.better != "none" and any(one.per_video.get(column.key) for one in result.methods)
    ]
    for key in RANKED_BY:
        for column in columns:
            if column.key == key:
                return column
    return columns[0] if columns else None


def ranked(one: SetScore, column: Column, real: SetScore | None) -> list[str]:
    """Keys of a set's videos, the best first; equal ones by name."""
    values = one.per_video.get(column.key, {})
    if column.better == "real":
        known = real.per_video.get(column.key, {}) if real else {}
        mean = (real.values.get(column.key) if real else None) or 0.0
        badness = {key: abs(value - known.get(key, mean)) for key, value in values.items()}
    else:
        sign = -1 if column.better == "high" else 1
        badness = {key: sign * value for key, value in values.items()}
    return sorted(badness, key=lambda key: (badness[key], key))


def shown_clips(result: Evaluation) -> list[Clip]:
    """Best and worst clips of each method; the first ones where there is nothing to rank by."""
    column = ranking_column(result)
    clips = []
    for one in result.methods:
        keys = ranked(one, column, result.real) if column else []
        if not keys:
            first = [item.key for item in one.videos.items[:SHOWN]]
            clips += [_clip(result, one, key, "first") for key in first]
            continue
        best = keys[:SHOWN]
        worst = [key for key in keys[::-1][:SHOWN] if key not in best]
        clips += [_clip(result, one, key, "best") for key in best]
        clips += [_clip(result, one, key, "worst") for key in worst]
    return clips


def _clip(result: Evaluation, one: SetScore, key: str, rank: str) -> Clip:
    item = _item(one, key)
    assert item is not None
    twin = _item(result.real, key) if result.real else None
    figures = {
        column: one.per_video[column.key][key]
        for column in result.columns
        if key in one.per_video.get(column.key, {})
    }
    return Clip(
        set_name=one.name,
        key=key,
        rank=rank,
        figures=figures,
        strip=frame_strip(one, item),
        curves=curves_of(one, item),
        real_curves=curves_of(result.real, twin) if result.real and twin else {},
        real_strip=frame_strip(result.real, twin) if result.real and twin else "",
    )


def _item(one: SetScore, key: str) -> Item | None:
    return next((item for item in one.videos.items if item.key == key), None)


def curves_of(one: SetScore, item: Item) -> dict[str, np.ndarray]:
    """mouth, velocity, similarity and loudness over the frames, those that were measured."""
    curves: dict[str, np.ndarray] = {}
    for extractor, names in (("motion", ("mouth", "velocity")), ("identity", ("similarity",))):
        if extractor in item.entries:
            arrays = one.videos.entry(item, extractor).arrays
            curves |= {name: arrays[name].astype(np.float64) for name in names if name in arrays}
    if curves and item.info.has_sound:
        length = max(map(len, curves.values()))
        loud = loudness(item, length)
        if loud is not None:
            curves["loudness"] = loud
    return curves


def loudness(item: Item, num_frames: int) -> np.ndarray | None:
    """Of each frame's sound [T], 0 (QUIETEST_DB or less) ... 1 (the loudest frame)."""
    try:
        sound = read_sound(item.info.path, 0, num_frames)
    except EmoError:
        return None
    if sound is None:
        return None
    power = np.square(sound.astype(np.float64)).reshape(num_frames, SAMPLE_RATE_HZ // FPS).mean(1)
    if power.max() <= 0:
        return np.zeros(num_frames)
    decibels = 10 * np.log10((power / power.max()).clip(1e-10))
    return 1 - decibels.clip(QUIETEST_DB, 0) / QUIETEST_DB


def frame_strip(one: SetScore, item: Item) -> str:
    """STRIP_FRAMES frames evenly over the video side by side, as a data URI; "" if unreadable."""
    num_frames = one.videos.entry(item, next(iter(item.entries))).num_frames
    places = (np.arange(STRIP_FRAMES) + 0.5) * num_frames / STRIP_FRAMES
    try:
        frames = [
            _shrunk(picture)
            for place in sorted(set(places.astype(int).tolist()))
            for picture in read_frames(item.info.path, place, 1)
        ]
    except EmoError:  # it was moved since it was scored
        return ""
    if not frames:
        return ""
    width = sum(frame.width for frame in frames) + GAP * (len(frames) - 1)
    strip = Image.new("RGB", (width, frames[0].height))
    x = 0
    for frame in frames:
        strip.paste(frame, (x, 0))
        x += frame.width + GAP
    stream = io.BytesIO()
    strip.save(stream, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _shrunk(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    width = max(1, round(image.width * STRIP_HEIGHT / image.height))
    return image.resize((width, STRIP_HEIGHT), Image.Resampling.BOX)
