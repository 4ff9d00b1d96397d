"""From folders of videos to figures: read what is new, score every set, say what was left out."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emo_cli.errors import EmoError
from emo_cli.metrics import decode
from emo_cli.metrics.contract import FPS, Column, Metric, Score
from emo_cli.metrics.features import (
    Progress,
    VideoSet,
    cache_digests,
    fill,
    index_videos,
)
from emo_cli.metrics.pairing import VideoFolder, keep_common, missing_keys

RESAMPLED = 0.01  # fps away from 25


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What is to be compared, and how."""

    methods: tuple[VideoFolder, ...]
    real: VideoFolder | None
    portraits: Mapping[str, Path]  # by key; may be empty
    cache: Path
    workers: int
    paired: bool = False  # only videos that all folders have


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """All figures of one set of videos."""

    videos: VideoSet
    is_real: bool
    num_frames: int
    num_faceless: int | None
    values: Mapping[str, float | None]
    per_video: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.videos.folder.name


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `emo eval`: what the tables, the JSON and the report are made of."""

    metrics: tuple[Metric, ...]
    methods: tuple[SetScore, ...]
    real: SetScore | None
    digests: Mapping[str, str]  # of extractors, with the way of decoding
    missing: Mapping[str, Mapping[str, list[str]]]  # keys, by method, then by where they lack
    notes: tuple[str, ...]
    date: str

    @property
    def sets(self) -> tuple[SetScore, ...]:
        return (*self.methods, self.real) if self.real else self.methods

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(column for metric in self.metrics for column in metric.columns)

    @property
    def num_skipped(self) -> int:
        return sum(len(one.videos.skipped) for one in self.sets)

    @property
    def same_videos(self) -> bool:
        """Whether all methods were scored on videos of the same names."""
        keys = [{item.key for item in one.videos.items} for one in self.methods]
        return all(other == keys[0] for other in keys)


def evaluate(
    options: EvalOptions,
    *,
    metrics: Sequence[Metric],
    make_extractors: decode.MakeExtractors,
    make_finder: decode.MakeFinder = decode.face_finder,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Score every method, and the real videos, by every metric.

    Raises: EmoError when a network is not here (before any video is looked at), when a set has
    no usable video, or when not one figure could be had.
    """
    digests = cache_digests(make_extractors())
    sets = _index(options, digests, progress)
    sets = fill(
        sets,
        make_extractors=make_extractors,
        make_finder=make_finder,
        workers=options.workers,
        progress=progress,
    )
    for videos in sets:
        _check_usable(videos)
    real = sets.pop() if options.real else None
    scorer = _Scorer(metrics, real, len(sets), progress)
    result = Evaluation(
        metrics=tuple(metrics),
        methods=tuple(scorer.score(videos) for videos in sets),
        real=scorer.score(real) if real else None,
        digests=digests,
        missing={videos.folder.name: _missing(videos.folder, options.real) for videos in sets},
        notes=tuple(_notes([*sets, *([real] if real else [])], bool(options.portraits))),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    if all(value is None for one in result.methods for value in one.values.values()):
        raise EmoError("; ".join(result.methods[0].notes), "Give more or longer videos.")
    return result


def _index(options: EvalOptions, digests: Mapping[str, str], progress: Progress) -> list[VideoSet]:
    """The methods' sets in their order; last the real one, if there is one."""
    folders = [*options.methods, *([options.real] if options.real else [])]
    return [
        index_videos(
            folder,
            portraits=options.portraits,
            cache=options.cache,
            digests=digests,
            progress=progress,
        )
        for folder in (keep_common(folders) if options.paired else folders)
    ]


def _check_usable(videos: VideoSet) -> None:
    if videos.items:
        return
    key, reason = next(iter(videos.skipped.items()))
    raise EmoError(
        f"no video in {videos.folder.folder} can be used; {key}: {reason}",
        "Convert them to mp4, or name another folder.",
    )


class _Scorer:
    """Puts every metric to every set; says how far it is."""

    def __init__(
        self,
        metrics: Sequence[Metric],
        real: VideoSet | None,
        num_methods: int,
        progress: Progress,
    ) -> None:
        self._metrics = metrics
        self._real = real
        self._progress = progress
        alone = sum(not metric.needs_real for metric in metrics)  # these judge real videos too
        self._done, self._total = 0, num_methods * len(metrics) + (alone if real else 0)

    def score(self, videos: VideoSet) -> SetScore:
        """All figures of a set; of the real videos those that need no others."""
        is_real = videos is self._real
        values: dict[str, float | None] = {}
        per_video: dict[str, Mapping[str, float]] = {}
        notes: list[str] = []
        for metric in self._metrics:
            if metric.needs_real and is_real:
                continue
            score = self._score_one(metric, videos, None if is_real else self._real)
            values |= score.values
            per_video |= score.per_video
            notes += [line for line in score.notes if line not in notes]
        frames, faceless = _count_frames(videos)
        return SetScore(
            videos=videos,
            is_real=is_real,
            num_frames=frames,
            num_faceless=faceless,
            values=values,
            per_video=per_video,
            notes=tuple(notes),
        )

    def _score_one(self, metric: Metric, videos: VideoSet, real: VideoSet | None) -> Score:
        """A metric that cannot be had says why and leaves its columns empty: others still can."""
        others = real.features(metric.extractor) if real else None
        try:
            score = metric.score(videos.features(metric.extractor), others)
        except EmoError as problem:
            empty: dict[str, float | None] = {column.key: None for column in metric.columns}
            score = Score(values=empty, notes=(f"{metric.name}: {problem.message}",))
        self._done += 1
        self._progress("scoring", self._done, self._total)
        return _finite(score)


def _finite(score: Score) -> Score:
    """The score less what is no number: an empty field says that, NaN would spread."""
    return Score(
        values={
            k: v if v is not None and math.isfinite(v) else None for k, v in score.values.items()
        },
        notes=score.notes,
        per_video={
            column: {key: value for key, value in found.items() if math.isfinite(value)}
            for column, found in score.per_video.items()
        },
    )


def _count_frames(videos: VideoSet) -> tuple[int, int | None]:
    """Frames, and those without a face where faces were looked for."""
    frames, faceless = 0, None
    for item in videos.items:
        for place, name in enumerate(item.entries):
            entry = videos.entry(item, name)
            frames += entry.num_frames if place == 0 else 0
            if entry.num_faceless is not None:
                faceless = (faceless or 0) + entry.num_faceless
                break
    return frames, faceless


def _missing(method: VideoFolder, real: VideoFolder | None) -> dict[str, list[str]]:
    if real is None:
        return {}
    return {
        "not among the real videos": missing_keys(real.videos, method.videos),
        "not generated": missing_keys(method.videos, real.videos),
    }


def _notes(sets: Sequence[VideoSet], with_portraits: bool) -> Iterator[str]:
    """What is to be known of the videos before their figures are believed."""
    for videos in sets:
        yield from _look(videos)
        lone = [item.key for item in videos.items if item.info.portrait is None]
        if with_portraits and lone:
            names = ", ".join(lone[:3]) + (" ..." if lone[3:] else "")
            yield f"{videos.folder.name}: {len(lone)} videos without a portrait, such as {names}"


def _look(videos: VideoSet) -> list[str]:
    name, infos = videos.folder.name, [item.info for item in videos.items]
    lines = []
    rates = sorted({round(i.fps, 3) for i in infos if abs(i.fps - FPS) > RESAMPLED})
    if rates:
        num = sum(abs(info.fps - FPS) > RESAMPLED for info in infos)
        stated = ", ".join(f"{rate:g}" for rate in rates[:4]) + (" ..." if rates[4:] else "")
        lines.append(f"{name}: {num} of {len(infos)} videos resampled to {FPS} fps from {stated}")
    sizes = sorted({info.size for info in infos})
    if len(sizes) > 1:
        (w0, h0), (w1, h1) = sizes[0], sizes[-1]
        lines.append(f"{name}: {len(sizes)} sizes, {w0}x{h0} to {w1}x{h1} px")
    silent = sum(not info.has_sound for info in infos)
    if silent:
        lines.append(f"{name}: {silent} of {len(infos)} videos have no sound")
    return lines
