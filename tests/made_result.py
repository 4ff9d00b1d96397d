"""Results of `emo eval` made up from figures, without videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emo_cli.metrics.contract import Column, VideoInfo
from emo_cli.metrics.evaluate import Evaluation, SetScore
from emo_cli.metrics.features import Item, VideoSet
from emo_cli.metrics.pairing import VideoFolder

COLUMNS = (
    Column(key="fid", heading="FID", digits=2, better="low"),
    Column(key="confidence", heading="SyncNet", digits=3, better="high"),
    Column(key="velocity", heading="Mean velocity", digits=2, better="real", unit="°"),
)
NAMES = {"fid": "fid", "confidence": "sync", "velocity": "motion"}


class _Metric:
    extractor = "none"
    needs_real = False

    def __init__(self, column: Column) -> None:
        self.name = NAMES.get(column.key, column.key)
        self.columns = (column,)


def made_result(
    methods: Mapping[str, Mapping[str, float | None]],
    *,
    real: Mapping[str, float | None] | None = None,
    columns: Sequence[Column] = COLUMNS,
    keys: Mapping[str, Sequence[str]] | None = None,
    per_video: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    skipped: Mapping[str, str] | None = None,
) -> Evaluation:
    """Sets of the two videos "one" and "two", or `keys`, that have these values."""
    used = {key for values in methods.values() for key in values} | set(real or {})

    def scored(name: str, values: Mapping[str, float | None], is_real: bool) -> SetScore:
        return SetScore(
            videos=_videos(name, (keys or {}).get(name, ("one", "two")), skipped or {}),
            is_real=is_real,
            num_frames=150,
            num_faceless=0,
            values=values,
            per_video=(per_video or {}).get(name, {}),
            notes=(),
        )

    return Evaluation(
        metrics=tuple(_Metric(column) for column in columns if column.key in used),  # type: ignore[misc]
        methods=tuple(scored(name, values, False) for name, values in methods.items()),
        real=None if real is None else scored("real videos", real, True),
        digests={"inception": "abc | 25 fps"},
        missing={name: {} for name in methods},
        notes=(),
        date="2026-01-02T03:04:05+00:00",
    )


def _videos(name: str, keys: Sequence[str], skipped: Mapping[str, str]) -> VideoSet:
    info = VideoInfo(path=Path("nowhere.mp4"), fps=25, size=(64, 64), has_sound=False)
    return VideoSet(
        folder=VideoFolder(name=name, folder=Path("folder"), videos={}),
        items=tuple(Item(key=key, info=info, entries={}) for key in keys),
        skipped=skipped,
    )
